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
  void split(std::string_view text, bool at_start, std::deque<std::string>& storage,
             std::vector<std::string_view>& pieces) const;

 private:
  struct Step {
    PreTokenizerStep spec;
    std::vector<Regex> regex;  // none or one
  };
  std::vector<NormalizerStep> normalizer_;
  std::vector<Step> steps_;
};

}  // namespace bitnet::text
