#pragma once
// A model's layers on several backends: on devices that are too small for all of them and the CPU, or on
// several devices, one after the other. How many layers go where is layer_split.hpp's business.
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "bitnet/core/device/backend.hpp"
#include "bitnet/core/model/model_config.hpp"

namespace bitnet::inference {

/// So many layers of a model, one after the other, and where they run.
struct Stage {
  std::unique_ptr<Backend> backend;
  std::int64_t n_layers = 0;
};

/// The stages as one backend for one model. Weights, norms and KV pages of a layer lie on its stage alone,
/// the embedding on the first one, the last norm and the head on the last one (a table that is both on
/// either). Every op runs where its weights or its cache are, else where its input was computed last; what
/// another stage has to read is copied through the host, which is the residual stream once a boundary and
/// step. The bits are those of each stage's backend. available_memory() is what caches may take spread over
/// all layers as these lie; statistics() adds up.
///
/// Throws Error(kInvalidArgument) without stages, on a null backend, on numbers of layers below 0 or that do
/// not add up to the model's. Ops are issued by one thread at a time (Backend).
std::unique_ptr<Backend> with_layers_split(std::vector<Stage> stages, const ModelConfig& config);

/// What several devices did, or one after it was opened anew: the sum of all figures, kernels of one name
/// together. A pure function.
DeviceStatistics add_up(std::span<const DeviceStatistics> all);

}  // namespace bitnet::inference
