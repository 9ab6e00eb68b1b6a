#pragma once
// Learns a byte-level BPE vocabulary from text and writes a standard tokenizer.json.
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace bitnet {

/// How a vocabulary is learnt. Deterministic: same options and text, same vocabulary.
struct BpeTrainerOptions {
  std::int64_t vocab_size = 4096;  ///< special tokens and the 256 byte symbols included
  std::vector<std::string> special_tokens = {"<|begin_of_text|>", "<|end_of_text|>"};  ///< ids 0, 1, …
  std::int64_t min_frequency = 2;  ///< a pair seen less often is not merged
};

/// Counts pre-tokenised pieces (the Llama-3 pattern) of everything that is fed, then merges the most frequent
/// pair again and again (ties: the smaller pair of token strings). Not thread-safe.
class BpeTrainer {
 public:
  explicit BpeTrainer(BpeTrainerOptions options = {});
  ~BpeTrainer();
  BpeTrainer(BpeTrainer&&) noexcept;
  /// Throws Error(kInvalidArgument) with the byte offset on invalid UTF-8.
  void feed(std::string_view text);
  /// The text of a tokenizer.json. The first special token is BOS, the second EOS; the post-processor adds
  /// BOS. Throws Error(kInvalidArgument) if vocab_size cannot hold the special tokens and 256 bytes. The
  /// vocabulary is smaller than asked when the text has no more pairs.
  std::string train();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace bitnet
