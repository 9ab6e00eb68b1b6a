#pragma once
// The prepared factors of an adapter set, as the forward pass wants them.
#include <array>
#include <cstddef>
#include <vector>

#include "bitnet/core/device/backend.hpp"
#include "bitnet/core/model/tensor_names.hpp"

namespace bitnet::inference {

/// The factors of all adapters of a set for one linear, side by side: R is the sum of their ranks. Null where
/// none of them has the linear.
struct LowRank {
  PreparedPtr a;  // [R, in]
  PreparedPtr b;  // [out, R], weight and scaling multiplied in
};

struct AdapterWeights {
  using Layer = std::array<LowRank, kTensorRoleCount>;
  std::vector<Layer> layers;

  const LowRank& of(TensorRole role, std::size_t layer) const {
    return layers[layer][static_cast<std::size_t>(role)];
  }
};

}  // namespace bitnet::inference
