#pragma once
// Logits → one token. Deterministic: the same options, seed and logits give the same token everywhere in a
// run.
#include <cstdint>
#include <span>
#include <vector>

#include "bitnet/core/rng.hpp"
#include "bitnet/core/text/tokenizer.hpp"

namespace bitnet::inference {

/// llama.cpp's names and defaults.
struct SamplerOptions {
  static constexpr std::int32_t kMaxRepeatLastN = 1 << 20;
  float temperature = 0.8f;  ///< ≥ 0; 0 is greedy: the largest logit, lowest id on ties (after the penalty)
  std::int32_t top_k = 40;   ///< ≤ 0: off
  float top_p = 0.95f;       ///< in (0, 1]; 1: off
  float min_p = 0.05f;       ///< in [0, 1]; 0: off
  float repeat_penalty = 1.0f;      ///< > 0; 1: off
  std::int32_t repeat_last_n = 64;  ///< 0 … kMaxRepeatLastN, window of the penalty; prompt tokens count
  std::uint64_t seed = 0;

  /// Throws Error(kInvalidArgument) naming the option, its value and its range.
  void validate() const;
};

/// One sequence's sampler: penalty → top-k → top-p → min-p → temperature → draw. Not thread-safe.
class Sampler {
 public:
  /// Throws as SamplerOptions::validate(). After construction nothing allocates.
  Sampler(const SamplerOptions& options, std::int64_t vocab_size);

  /// Adds a token (of the prompt, or one just sampled) to the window of the repetition penalty.
  void accept(TokenId token) noexcept;
  /// Throws Error(kInternal) on a NaN logit, or when no logit is finite. Does not accept() the token.
  TokenId sample(std::span<const float> logits);  // [vocab]

  /// How many of the largest logits decide what sample() gives, so that all others may be −∞; 0: all of them.
  std::int64_t needed_logits() const noexcept;

  const SamplerOptions& options() const noexcept { return options_; }

 private:
  struct Candidate {
    TokenId id;
    float logit;
    double p;
  };
  void scan(std::span<const float> logits);
  void penalise();
  TokenId greedy() const;
  void keep_top_k();
  void keep_top_p();
  void keep_min_p();
  TokenId draw();

  SamplerOptions options_;
  Rng rng_;
  std::size_t vocab_size_;
  std::span<const float> logits_;        // while sample() runs: its argument, or penalised_
  std::vector<float> penalised_;         // [vocab], with a penalty only
  std::vector<std::int32_t> block_max_;  // [blocks of logits], the largest of each as order_key()
  std::vector<Candidate> candidates_;    // [top_k, or vocab without one]
  std::size_t n_ = 0;                    // candidates that are left
  std::vector<TokenId> window_;          // ring of the last repeat_last_n tokens
  std::size_t window_size_ = 0, window_next_ = 0;
};

}  // namespace bitnet::inference
