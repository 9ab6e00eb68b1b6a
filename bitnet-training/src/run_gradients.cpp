// A batch's passes and what may go wrong in them.
#include "run_gradients.hpp"

#include <algorithm>
#include <new>
#include <optional>
#include <string>
#include <vector>

#include "bitnet/core/error.hpp"
#include "bitnet/training/losses.hpp"
#include "run_guard.hpp"

namespace bitnet::training {

RunGradients::RunGradients(const TrainConfig& config, const TrainCallbacks& callbacks,
                           const ExecutionContext& context, const Tokenizer& tokenizer, const RunModel& model,
                           RunProcesses& processes)
    : c_(config),
      context_(context),
      model_(model),
      processes_(processes),
      distillation_(teacher_of(config, context, model->config(), tokenizer)),
      tape_(context, true, config.precision()),
      micro_batch_(config.micro_batch),
      recovery_({shrink(micro_batch_)}, nullptr, callbacks.message) {}

/// `sequences` of the batch from `first` on.
RunGradients::Part RunGradients::part(const Batch& batch, std::int64_t first, std::int64_t sequences) const {
  const auto at = static_cast<std::size_t>(first * c_.length);
  const auto count = static_cast<std::size_t>(sequences * c_.length);
  const auto rows = [&](const std::vector<std::int32_t>& of) {
    return of.empty() ? std::span<const std::int32_t>{} : std::span(of).subspan(at, count);
  };
  return {rows(batch.inputs), rows(batch.targets), {c_.length, rows(batch.positions)}};
}

double RunGradients::pass(const Part& part, float scale) {
  const Variable logits =
      model_->forward(tape_, part.inputs, part.layout, distillation_ ? distillation_->states() : nullptr);
  Variable taught;
  if (distillation_)
    taught = distillation_->loss(tape_, logits, part.inputs, part.layout, part.targets, scale);
  Variable l = cross_entropy(tape_, logits, part.targets, scale);
  if (taught) l = add(tape_, taught, l);
  const double loss = l.value()[0];
  tape_.backward(l);
  tape_.reset();
  return loss;
}

/// of() in passes of micro_batch_. Begins anew after an Error.
double RunGradients::once(const Batch& batch, std::int64_t step, float scale) {
  struct {
    const Batch& batch;
    std::int64_t step;
    float scale;
  } const now{batch, step, scale};  // two pointers are what std::function holds without memory of its own
  try {
    return processes_.parallel().gradients(tape_, c_.batch, micro_batch_,
                                           [this, &now](std::int64_t first, std::int64_t sequences) {
                                             model_->begin_pass(now.step, first);
                                             return pass(part(now.batch, first, sequences), now.scale);
                                           });
  } catch (...) {
    release();
    throw;
  }
}

double RunGradients::of(const Batch& batch, std::int64_t step, float scale) {
  for (std::vector<std::int64_t> tried;;) {  // as Recovery::run(), without its words where nothing fails
    std::optional<Error> error;
    try {
      return once(batch, step, scale);
    } catch (Error& e) {
      error = std::move(e);
    } catch (const std::bad_alloc&) {
      error.emplace(ErrorCode::kOutOfMemory, "out of memory");
    }
    recovery_.decide("step " + std::to_string(step) + " in micro-batches of " + std::to_string(micro_batch_),
                     *error, tried);
  }
}

std::string RunGradients::not_finite(const Batch& batch, std::int64_t step, float scale, double loss,
                                     double norm) {
  std::string where;
  Tape tape(context_, false, c_.precision());
  for (std::int64_t done = 0; done < c_.batch && where.empty(); done += micro_batch_) {
    const Part some = part(batch, done, std::min(micro_batch_, c_.batch - done));
    where = first_not_finite(*model_, tape, some.inputs, some.layout);
  }
  if (where.empty()) {
    once(batch, step, scale);
    where = processes_.group().size() == 1 ? gradient_not_finite(*model_) : processes_.first_bad_gradient();
  }
  return "loss " + std::to_string(loss) + ", gradient norm " + std::to_string(norm) +
         (where.empty() ? "" : "; the first values that are not finite are " + where);
}

void RunGradients::release() noexcept {
  tape_.release();
  if (distillation_) distillation_->release();
}

void RunGradients::limit(std::int64_t sequences) noexcept {
  micro_batch_ = std::min(sequences, micro_batch_);
}

}  // namespace bitnet::training
