#pragma once
// What can be known of a model's tensors before the work: values that are not finite, weights that are
// ternary already, tensors that cannot have been trained.
#include <span>
#include <string>
#include <vector>

#include "bitnet/quant/cancellation.hpp"
#include "bitnet/quant/model_io.hpp"
#include "bitnet/quant/quant_config.hpp"

namespace bitnet::quant {

/// What check_model() found. A plain value.
struct ModelFindings {
  std::vector<TensorId> ternary;      ///< linears that are trits times scales, packed or as floats
  std::vector<std::string> warnings;  ///< of norms, embedding and head, each with the tensor's name

  bool is_ternary(TensorId linear) const;
};

/// Reads every tensor once, one in memory at a time, with four bytes a value beside it. `plans`: what linears
/// are to become, empty where nothing is. Throws Error(kInvalidArgument), the tensor named, on a value that
/// is not finite, and where a plan's scales would destroy weights that are ternary already; what reading
/// throws; Error(kCancelled). Thread-safe.
ModelFindings check_model(const ModelReader& reader, std::span<const PlannedLinear> plans = {},
                          CancelFlag cancelled = nullptr);

}  // namespace bitnet::quant
