#pragma once
// What is wrong, or looks like a mistake, in the weights that are to be quantised. Private to bitnet-quant.
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "bitnet/quant/model_io.hpp"

namespace bitnet::quant {

/// Throws Error(kInvalidArgument) on the first weight of [rows, in] that is not finite.
void require_finite(std::span<const float> w, std::int64_t in);
/// The same of a dense tensor in its own type, without a copy of it; its name is in the message.
void require_finite(const LogicalTensor& tensor);

/// Adds what looks like a mistake: all weights zero, or all the same.
void warn_of_weights(std::span<const float> w, std::vector<std::string>& warnings);

}  // namespace bitnet::quant
