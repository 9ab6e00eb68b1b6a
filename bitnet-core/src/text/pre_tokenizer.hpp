#pragma once
// Normalising a text and cutting it into the pieces that BPE then works on, one after the other.
#include <cstdint>
#include <deque>
#include <string>
#include <string_view>
#include <vector>

#include "text/regex.hpp"
#include "text/spec.hpp"

namespace bitnet::text {

/// What a text is of the whole input, and so what is put before it.
enum class TextPlace : std::uint8_t {
  kStart,      ///< its beginning (for Metaspace's prepend_scheme "first")
  kPart,       ///< begins behind an added token
  kContinues,  ///< begins at a cut (text_cuts.hpp): the first step puts nothing before it, nor do normalizers
};

/// Normalizer and pre-tokenizer of a spec, compiled. Immutable, thread-safe.
class PreTokenizer {
 public:
  PreTokenizer(const std::vector<NormalizerStep>& normalizer, const std::vector<PreTokenizerStep>& steps);

  /// Appends the pieces of `text` (valid UTF-8) in order: views into `text` or into strings added to
  /// `storage`. `place`: what the text is of the whole input.
  /// `room`: bytes that the normalised text may have, less those it has; start with room_for(whole input).
  /// Throws Error(kUnsupported) naming the normalizer's step that needs more.
  void split(std::string_view text, TextPlace place, std::size_t& room, std::deque<std::string>& storage,
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
