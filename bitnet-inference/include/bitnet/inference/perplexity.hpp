#pragma once
// Perplexity of a text as llama.cpp's users know it (docs/numerics.md): chunks of n_ctx tokens, token 0 of
// each chunk replaced by BOS where the vocabulary adds one, the second half of each chunk scored. Or of many
// texts that have nothing to do with each other. Not thread-safe as to the model: ops of its backend are
// issued by one thread at a time. Callbacks come on the caller's thread.
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "bitnet/inference/adapter_set.hpp"
#include "bitnet/inference/cancellation.hpp"
#include "bitnet/inference/model.hpp"

namespace bitnet::inference {

struct PerplexityOptions {
  std::int64_t n_ctx = 512;           ///< ≥ 4
  std::int64_t chunk_rows = 256;      ///< rows of one forward pass; does not change the result
  std::int64_t max_chunks = 0;        ///< 0: all
  std::optional<DType> kv_type = {};  ///< of the KV cache; none: what the model's policy says (f16)
  std::shared_ptr<const AdapterSet> adapters = {};  ///< LoRA adapters of the model, or null
  std::function<void(std::int64_t chunk, std::int64_t n_chunks, double perplexity_so_far)> progress = {};
  CancellationToken cancellation = {};
};

struct PerplexityResult {
  double perplexity = 0;
  double standard_error = 0;  ///< of the perplexity; 0 when one token was scored
  double nll = 0;             ///< natural logarithm, summed over the scored tokens
  double bits_per_byte = 0;   ///< nll / ln 2 / scored_bytes; 0 without a tokenizer
  std::int64_t scored_tokens = 0;
  std::int64_t scored_bytes = 0;  ///< that the scored tokens decode to
  std::int64_t chunks = 0;        ///< of perplexity_of_texts(): pieces
  std::int64_t total_tokens = 0;  ///< of the text
  double seconds = 0;
};

/// Throws Error(kInvalidArgument) naming both numbers when the text is shorter than one chunk;
/// Error(kCancelled); Error(kInternal) on NaN logits.
PerplexityResult perplexity(std::shared_ptr<const Model> model, std::span<const TokenId> tokens,
                            const PerplexityOptions& options = {});
/// Encodes `text` (with BOS where the vocabulary adds one) and does the same.
PerplexityResult perplexity(std::shared_ptr<const Model> model, std::string_view text,
                            const PerplexityOptions& options = {});

/// Of texts that each begin anew (encoded, with BOS where the vocabulary adds one): every token but the first
/// of each is scored. A text longer than n_ctx is cut into pieces that begin as texts do. Short ones are
/// evaluated together, packed into passes of chunk_rows rows (pack_lengths()); the logits are those of one
/// after the other. Throws Error(kInvalidArgument) when no text has two tokens; else as perplexity().
PerplexityResult perplexity_of_texts(std::shared_ptr<const Model> model,
                                     std::span<const std::vector<TokenId>> texts,
                                     const PerplexityOptions& options = {});

/// −log softmax(logits)[target], in double.
double negative_log_likelihood(std::span<const float> logits, TokenId target);

}  // namespace bitnet::inference
