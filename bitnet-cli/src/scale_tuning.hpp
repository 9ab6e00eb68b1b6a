#pragma once
// The join of bitnet-quant and bitnet-training: scales and norms of a quantised model trained towards the
// model that it was made of. Built with training only.
#include <filesystem>
#include <functional>
#include <memory>
#include <vector>

#include "bitnet/cli/app.hpp"
#include "bitnet/quant/model_io.hpp"
#include "bitnet/quant/quant_report.hpp"
#include "bitnet/training/tuning.hpp"

namespace bitnet::cli {

struct TuneInputs {
  const ModelConfig& config;  ///< of the quantised model
  /// Its tensors, each asked for once.
  std::function<quant::LogicalTensor(TensorId)> source;
  std::filesystem::path original;
  quant::FloatLinears floats = quant::FloatLinears::kAsConfigured;  ///< of the original
  std::vector<std::vector<TokenId>> windows;
};

struct Tuned {
  std::unique_ptr<training::TunedModel> model;
  quant::TuningFigures figures;
};

/// Before anything is done: whether the windows are enough for a step. Throws Error(kInvalidArgument).
void check_enough(const std::vector<std::vector<TokenId>>& windows, const training::TuningOptions& options);

/// With a bar and a line about the result. Throws what training::tune() and FrozenModel throw,
/// Error(kInvalidArgument) where no linear is quantised, and Error(kCancelled) once Ctrl-C was pressed.
Tuned tune_model(const ExecutionContext& context, const TuneInputs& inputs,
                 const training::TuningOptions& options, const training::TunedParts& parts, Io& io);

}  // namespace bitnet::cli
