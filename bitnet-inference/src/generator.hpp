#pragma once
// One generation in progress, whoever runs the passes: its tokens, sampler, text and result. Used by the
// engine (one at a time) and by the scheduler (many at once), so that both give the same tokens and the same
// text.
#include <array>
#include <chrono>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "bitnet/inference/generation.hpp"
#include "bitnet/inference/model.hpp"
#include "bitnet/inference/stream.hpp"
#include "prompt_lookup.hpp"

namespace bitnet::inference {

/// Until start() it holds little more than its prompt, so that many may wait. Not thread-safe.
class Generator {
 public:
  using Clock = std::chrono::steady_clock;

  /// Throws Error(kInvalidArgument): empty prompt, id outside the vocabulary, bad options, or a prompt that
  /// does not fit n_ctx (both numbers named).
  Generator(const Model& model, std::span<const TokenId> prompt, const GenerationOptions& options,
            TextCallback on_text, std::int64_t n_ctx);

  /// Prompt and generated tokens: what the model has to have seen before the next token.
  std::span<const TokenId> tokens() const noexcept { return tokens_; }
  /// Most tokens that it can ever have.
  std::int64_t max_length() const noexcept { return max_length_; }
  /// Of the options; null without.
  const std::shared_ptr<const AdapterSet>& adapters() const noexcept { return options_.adapters; }
  bool cancelled() const noexcept { return options_.cancellation.cancelled(); }

  /// Before the first pass: marks its begin, for the timings, and takes the memory of the whole generation;
  /// without that it is finished with kError (kOutOfMemory). Later calls do nothing.
  void start();
  /// At most `most` tokens that may follow tokens(); none unless options.draft asks for them. To be evaluated
  /// after tokens() in the same pass, and valid until the next draft().
  std::span<const TokenId> draft(std::int64_t most);
  /// Sampler::needed_logits(), from start() on.
  std::int64_t needed_logits() const noexcept { return sampler_ ? sampler_->needed_logits() : 0; }
  /// Samples the next tokens from the logits [1 + drafts, vocab] after the last token and after each draft of
  /// the last draft(): the token after a draft exists only when that draft was sampled itself. So every token
  /// comes out of the sampler, in order, as without drafts. Returns how many drafts the model would have seen
  /// by now without drafting; it must forget the others. An error of sampling or of the callback finishes the
  /// generation with kError and does not leave.
  std::int64_t advance(std::span<const float> logits);

  /// Ends the generation and emits what was held back. Does nothing when it is finished already.
  void finish(FinishReason reason);
  /// finish() with an Error; of_the_pass: see GenerationResult.
  void fail(Error error, bool of_the_pass = false);
  bool finished() const noexcept { return finished_; }
  GenerationResult& result() noexcept { return result_; }

 private:
  /// Runs body(); an exception of it finishes the generation with kError.
  template <class Body>
  void guard(Body&& body);
  void take(TokenId token);
  void adapt_draft(std::size_t accepted) noexcept;
  void emit(const std::string& text);

  const Model& model_;
  GenerationOptions options_;
  TextCallback on_text_;
  std::int64_t max_length_;
  std::vector<TokenId> tokens_;
  std::optional<Sampler> sampler_;  // from start() on: candidates for a whole vocabulary
  TextStream stream_;
  std::optional<PromptLookup> lookup_;  // from start() on, where drafts are asked for
  std::array<TokenId, static_cast<std::size_t>(GenerationOptions::kMaxDraft)> drafts_{};
  std::size_t n_drafts_ = 0;
  std::int64_t draft_limit_;  // 1 … options_.draft: see adapt_draft()
  Clock::time_point submitted_, started_{}, first_token_{};
  bool has_started_ = false, has_token_ = false, finished_ = false;
  GenerationResult result_;
};

}  // namespace bitnet::inference
