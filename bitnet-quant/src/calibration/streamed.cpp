// Calibration from a model that runs: which inputs a pass collects, and what it makes of their rows.
#include <fmt/format.h>

#include <algorithm>

#include "bitnet/core/error.hpp"
#include "bitnet/quant/calibration.hpp"

namespace bitnet::quant {

std::vector<TensorId> linear_inputs(const ModelConfig& model) {
  std::vector<TensorId> out;
  for (const TensorId id : model_tensors(model))
    if (is_linear(id.role) && input_role(id.role) == id.role) out.push_back(id);
  return out;
}

std::int64_t input_width(TensorId input, const ModelConfig& model) { return tensor_shape(input, model)[1]; }

StreamedCalibration::StreamedCalibration(const ExecutionContext& context, ActivationSource& source,
                                         const ModelConfig& model, const StreamOptions& options)
    : context_(context), source_(source), model_(model), options_(options) {}

/// Those of a pass that begins with `first`.
std::vector<TensorId> StreamedCalibration::next_inputs(TensorId first) const {
  const std::vector<TensorId> all = linear_inputs(model_);
  auto at = std::find(all.begin(), all.end(), first);
  if (at == all.end())
    throw Error(ErrorCode::kNotFound,
                fmt::format("calibration: '{}' stands for no input of this model", gguf_name(first)));
  std::vector<TensorId> chosen;
  std::uint64_t bytes = 0;
  for (; at != all.end(); ++at) {
    const auto in = static_cast<std::uint64_t>(input_width(*at, model_));
    bytes += 8 * in * in + 4 * in;
    const bool other_layer = options_.through_quantised && at->layer != first.layer;
    if (!chosen.empty() && (bytes > options_.memory || other_layer)) break;
    chosen.push_back(*at);
  }
  return chosen;
}

std::shared_ptr<const InputCalibration> StreamedCalibration::find(TensorId input) {
  const auto key = [](TensorId id) { return std::pair(id.role, id.layer); };
  if (const auto at = now_.find(key(input)); at != now_.end()) return at->second;
  const std::vector<TensorId> chosen = next_inputs(input);
  now_.clear();
  ++passes_;
  for (const TensorId id : chosen)
    now_[key(id)] = std::make_shared<InputCalibration>(
        InputCalibration{id, Hessian(input_width(id, model_)), InputStatistics{}});
  try {
    source_.stream([&](TensorId id) { return now_.contains(key(id)); },
                   [&](TensorId id, std::span<const float> rows) {
                     const auto at = now_.find(key(id));
                     if (at == now_.end()) return;
                     with_context(fmt::format("input of '{}'", gguf_name(id)), [&] {
                       at->second->hessian.add(context_, rows);  // checks them
                       at->second->statistics.add(context_, rows, at->second->hessian.in());
                     });
                   });
    for (const auto& [unused, c] : now_)
      if (c->hessian.n_rows() < 1)
        throw Error(
            ErrorCode::kInvalidArgument,
            fmt::format("calibration: no rows for the input of '{}': expected at least {}, better four "
                        "times as many",
                        gguf_name(c->id), rows_needed(CalibrationUse::kSecondMoments, c->hessian.in())));
  } catch (...) {
    now_.clear();  // half a pass is none
    throw;
  }
  return now_.at(key(input));
}

}  // namespace bitnet::quant
