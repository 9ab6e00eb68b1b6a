#pragma once
// Random whole models of known shapes, made in memory. Measuring a model file is `bitnet run`'s business.
// Thread-safe, but for the backend that random_model() is given: its ops are issued by one thread at a time.
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>

#include "bitnet/core/device/backend.hpp"
#include "bitnet/core/model/model_config.hpp"
#include "bitnet/inference/model.hpp"

namespace bitnet::benchmarks {

/// A model shape by name.
struct ModelShape {
  std::string_view name;
  ModelConfig config;
};
/// "tiny" (two layers of 64), "small" (the shape of the shipped model) and "2b4t".
std::span<const ModelShape> model_shapes();

/// A random ternary model without a tokenizer, prepared for `backend` as a file with f16 embeddings is: they
/// and the head become int8 where the backend can (HeadType::kAuto). Its activations have the size of a
/// trained model's, its text has no meaning. Takes seconds for "2b4t". Throws Error(kOutOfMemory).
std::shared_ptr<const inference::Model> random_model(const ModelConfig& config,
                                                     std::shared_ptr<Backend> backend, std::uint64_t seed);

}  // namespace bitnet::benchmarks
