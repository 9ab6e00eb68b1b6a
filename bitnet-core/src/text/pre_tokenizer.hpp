#pragma once
// Normalising a text and cutting it into the pieces that BPE then works on, one after the other.
#include <deque>
#include <string>
#include <string_view>
#include <vector>

#include "text/regex.hpp"
#include "text/spec.hpp"

namespace bitnet::text {

/// Normalizer and pre-tokenizer of a spec, compiled. Immutable, thread-safe.
class PreTokenizer {
 public:
  PreTokenizer(const std::vector<NormalizerStep>& normalizer, const std::vector<PreTokenizerStep>& steps);

  /// Appends the pieces of `text` (valid UTF-8) in order: views into `text` or into strings added to
  /// `storage`. `at_start`: the text begins the whole input (for Metaspace's prepend_scheme "first").
  /// `room`: bytes that the normalised text may have, less those it has; start with room_for(whole input).
  /// Throws Error(kUnsupported) naming the normalizer's step that needs more.
  void split(std::string_view text, bool at_start, std::size_t& room, std::deque<std::string>& storage,
             std::vector<std::string_view>& pieces) const;
  static std::size_t room_for(std::string_view input) noexcept { return 65536 + 16 * input.size(); }

 private:
  struct Step {
    PreTokenizerStep spec;
    std::vector<Regex> regex;  // none or one
  };
  std::vector<NormalizerStep> normalizer_;
  std::vector<Step> steps_;
};

}  // namespace bitnet::text
