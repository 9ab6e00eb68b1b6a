#pragma once
// What is wrong, or looks like a mistake, in the weights that are to be quantised. Private to bitnet-quant.
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "bitnet/quant/model_io.hpp"
#include "bitnet/quant/quant_config.hpp"

namespace bitnet::quant {

/// Throws Error(kInvalidArgument) on the first weight of [rows, in] that is not finite.
void require_finite(std::span<const float> w, std::int64_t in);
/// The same of a dense tensor in its own type, without a copy of it; its name is in the message.
void require_finite(const LogicalTensor& tensor);

/// Float weights that are trits times scales, and what shares a scale, the coarsest that will do.
struct ExactTrits {
  TernaryWeights weights;
  ScaleUnit unit;
};
/// `type`: that they are stored in, whose last place sizes may differ by.
std::optional<ExactTrits> find_trits(std::span<const float> w, std::int64_t out, std::int64_t in, DType type);
/// Throws Error(kInvalidArgument) where ternary weights with such scales would be destroyed by the plan, with
/// what to ask for instead.
void require_same_scales(ScaleUnit found, const LinearPlan& plan);

/// Adds what looks like a mistake: all weights zero, or all the same.
void warn_of_weights(std::span<const float> w, std::vector<std::string>& warnings);

}  // namespace bitnet::quant
