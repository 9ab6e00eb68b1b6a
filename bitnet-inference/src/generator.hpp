#pragma once
// One generation in progress, whoever runs the passes: its tokens, sampler, text and result. Used by the
// engine (one at a time) and by the scheduler (many at once), so that both give the same tokens and the same
// text.
#include <chrono>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "bitnet/inference/generation.hpp"
#include "bitnet/inference/model.hpp"
#include "bitnet/inference/stream.hpp"

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
  bool cancelled() const noexcept { return options_.cancellation.cancelled(); }

  /// Before the first pass: marks its begin, for the timings, and takes the memory of the whole generation;
  /// without that it is finished with kError (kOutOfMemory). Later calls do nothing.
  void start();
  /// Samples the next token from the logits after the last one. False when the generation is finished by it.
  /// An error of sampling or of the callback finishes it with kError and does not leave.
  bool advance(std::span<const float> logits);

  /// Ends the generation and emits what was held back. Does nothing when it is finished already.
  void finish(FinishReason reason);
  void fail(const Error& error);
  bool finished() const noexcept { return finished_; }
  GenerationResult& result() noexcept { return result_; }

 private:
  /// Runs body(); an exception of it finishes the generation with kError.
  template <class Body>
  void guard(Body&& body);
  void take(TokenId token);
  void emit(const std::string& text);

  const Model& model_;
  GenerationOptions options_;
  TextCallback on_text_;
  std::int64_t max_length_;
  std::vector<TokenId> tokens_;
  std::optional<Sampler> sampler_;  // from start() on: candidates for a whole vocabulary
  TextStream stream_;
  Clock::time_point submitted_, started_{}, first_token_{};
  bool has_started_ = false, has_token_ = false, finished_ = false;
  GenerationResult result_;
};

}  // namespace bitnet::inference
