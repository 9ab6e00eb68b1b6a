#pragma once
// Scales and norms of a quantised model trained for a few steps towards the predictions of the model that it
// was made of. What is trained is tuned_model.hpp; longer runs that move trits are trainer.hpp. Not
// thread-safe, as the model is not.
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "bitnet/core/execution.hpp"
#include "bitnet/core/text/tokenizer.hpp"
#include "bitnet/training/frozen_model.hpp"
#include "bitnet/training/tuned_model.hpp"

namespace bitnet::training {

struct TuningOptions {
  std::int64_t steps = 100;
  /// Peak: about how much of itself a scale, or of its tensor's root mean square a norm's weight, moves in a
  /// step. Grows within the first tenth of the steps, then half a cosine to 0.
  double learning_rate = 3e-3;
  std::int64_t batch = 4;  ///< windows of text a step
  double temperature = 1;  ///< of both models' predictions in their KL divergence
  double text = 0;         ///< weight of the text's own cross-entropy beside the KL divergence
  std::uint64_t seed = 1;  ///< of the order of the windows

  /// Throws Error(kInvalidArgument) naming the option and what it may be.
  void validate() const;
};

/// What of it is lost and won, in nats a token over all windows.
struct TuningResult {
  std::int64_t steps = 0, tokens = 0;
  double loss_before = 0, loss_after = 0;  ///< KL divergence, with `text` times the cross-entropy
  double nll_before = 0, nll_after = 0;    ///< of the text
  bool kept =
      false;  ///< the loss did not fall: the model is as it was, and the figures after are those before
};

struct TuningCallbacks {
  /// After each step with the loss of its windows. What it throws ends the tuning, the model half way.
  std::function<void(std::int64_t step, double loss)> progress;
};

/// Tunes `model` on windows of text, which all have the same length and are read from their beginning, one at
/// a time; `teacher` is the original. The same bits for any number of threads. Throws Error(kInvalidArgument)
/// for options, fewer windows than `batch` or of fewer than two tokens, vocabularies of other sizes, and a
/// loss that is not finite, which a lower rate avoids.
TuningResult tune(const ExecutionContext& context, TunedModel& model, std::unique_ptr<FrozenModel> teacher,
                  std::span<const std::vector<TokenId>> windows, const TuningOptions& options = {},
                  const TuningCallbacks& callbacks = {});

}  // namespace bitnet::training
