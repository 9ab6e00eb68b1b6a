#pragma once
// How a model's layers are divided among the CPU and devices. What runs them then is layered_backend.hpp.
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "bitnet/core/dtype.hpp"
#include "bitnet/inference/model.hpp"

namespace bitnet::inference {

/// Layers on devices: all of the model's, or as many as fit into their memory.
inline constexpr std::int64_t kAllLayers = std::numeric_limits<std::int64_t>::max();
inline constexpr std::int64_t kAutoLayers = -1;

/// What a session needs beside the weights.
struct SplitNeeds {
  std::int64_t n_ctx = 4096;      ///< tokens of one sequence; the cache is counted for two
  std::int64_t chunk_rows = 256;  ///< of a forward pass
  DType kv_type = DType::kF16;
};

/// Bytes that a model takes on a device, caches and scratch with the eighth that pools of devices round up
/// by. Upper bounds for layouts of 2 bits a trit, of as many planes and scales as the files have, and of a
/// byte an int8.
struct LayerCosts {
  std::vector<std::size_t> layers;  ///< weights and cache of each
  std::size_t embedding = 0;        ///< of the first stage
  std::size_t head = 0;             ///< and the last norm: of the last stage
  std::size_t workspace = 0;        ///< of every stage
};
/// Of extended linears the scales are read. Throws Error(kInvalidArgument) on sizes that overflow, and what
/// ModelReader::rows throws.
LayerCosts layer_costs(const ModelFiles& files, const SplitNeeds& needs);

/// Layers of the CPU, the first ones of the model, and of each device in its order. The embedding is the
/// CPU's where it has layers or n_devices is 0, else the first device's.
struct LayerSplit {
  std::int64_t on_cpu = 0;
  std::vector<std::int64_t> on_device;
  std::int64_t n_layers() const noexcept;
};

/// The last `asked` layers on the devices, in proportion to `free`, the bytes that each has; all of them
/// where there are fewer. kAutoLayers: the largest number for which everything fits, which may be 0: then no
/// device is used. The split is a pure function of its arguments. Throws Error(kInvalidArgument) without
/// devices or on another number below 0.
LayerSplit split_layers(const LayerCosts& costs, std::span<const std::size_t> free, std::int64_t asked);

/// Where one part of a model lies, for people: "layers 0 … 11 on cpu".
struct StagePlace {
  std::string device;
  std::int64_t first = 0, n_layers = 0;
};
/// "embedding and layers 0 … 11 on cpu; layers 12 … 23 and head on opencl:0:0".
std::string describe(std::span<const StagePlace> stages);

}  // namespace bitnet::inference
