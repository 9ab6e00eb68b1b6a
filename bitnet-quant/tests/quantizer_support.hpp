#pragma once
// What tests of the Quantizer have in common.
#include <vector>

#include "bitnet/quant/quantizer.hpp"

namespace bitnet::quant::testing {

/// A plan of one method for all linears.
inline QuantConfig mixed(WeightMethod method, ScaleUnit scales = ScaleUnit::kTensor) {
  QuantConfig c;
  c.scheme = QuantScheme::kMixedPrecision;
  c.linears = {method, scales};
  return c;
}

/// All linears of a model, in file order.
inline std::vector<LogicalTensor> linears_of(Quantizer& q, const ModelConfig& model) {
  std::vector<LogicalTensor> out;
  for (const TensorId id : model_tensors(model))
    if (is_linear(id.role))
      out.push_back(q.read(id));
    else
      q.read(id);
  return out;
}

}  // namespace bitnet::quant::testing
