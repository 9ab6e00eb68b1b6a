// See weight_checks.hpp.
#include "quantizer/weight_checks.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "bitnet/core/error.hpp"
#include "bitnet/quant/post_training.hpp"

namespace bitnet::quant {
namespace {

[[noreturn]] void refuse(std::size_t at, std::int64_t in, float value) {
  const auto n = static_cast<std::size_t>(in);
  throw Error(ErrorCode::kInvalidArgument,
              fmt::format("the weight in row {}, column {} is {}, not finite", at / n, at % n, value));
}

/// One in the last place of a float type.
float unit_of(DType type) noexcept {
  return type == DType::kF16 ? 0x1p-10f : type == DType::kBF16 ? 0x1p-7f : 0x1p-23f;
}

/// Which groups of scales weights may have come with, the coarsest first.
constexpr ScaleUnit kUnits[] = {ScaleUnit::kTensor,   ScaleUnit::kRow,     ScaleUnit::kGroup256,
                                ScaleUnit::kGroup128, ScaleUnit::kGroup64, ScaleUnit::kGroup32};

/// `widen`: an element as it is stored to f32.
template <class Stored, class Widen>
void check(std::span<const std::byte> bytes, std::int64_t in, const Widen& widen) {
  for (std::size_t i = 0; i < bytes.size() / sizeof(Stored); ++i) {
    Stored stored;
    std::memcpy(&stored, bytes.data() + i * sizeof stored, sizeof stored);
    if (const float v = widen(stored); !std::isfinite(v)) refuse(i, in, v);
  }
}

}  // namespace

void require_finite(std::span<const float> w, std::int64_t in) {
  const auto bad = std::find_if(w.begin(), w.end(), [](float v) { return !std::isfinite(v); });
  if (bad != w.end()) refuse(static_cast<std::size_t>(bad - w.begin()), in, *bad);
}

void require_finite(const LogicalTensor& tensor) {
  const std::int64_t in = tensor.shape[tensor.shape.rank() - 1];
  with_context(fmt::format("tensor '{}'", gguf_name(tensor.id)), [&] {
    if (tensor.dtype == DType::kF16)
      check<std::uint16_t>(tensor.dense, in, f16_to_f32);
    else if (tensor.dtype == DType::kBF16)
      check<std::uint16_t>(tensor.dense, in, bf16_to_f32);
    else
      check<float>(tensor.dense, in, [](float v) { return v; });
  });
}

std::optional<ExactTrits> find_trits(std::span<const float> w, std::int64_t out, std::int64_t in,
                                     DType type) {
  for (const ScaleUnit u : kUnits) {
    const ScaleGroups groups = scale_groups(u);
    if (groups.cols > 0 && in % groups.cols != 0) continue;
    if (auto t = exactly_ternary(w, out, in, groups, unit_of(type))) return ExactTrits{std::move(*t), u};
  }
  return std::nullopt;
}

void require_same_scales(ScaleUnit found, const LinearPlan& plan) {
  if (!is_ternary(plan.method) || found == ScaleUnit::kTensor || found == plan.scales) return;
  const auto instead = plan.method == WeightMethod::kAbsmean ? WeightMethod::kLeastSquares : plan.method;
  throw Error(
      ErrorCode::kInvalidArgument,
      fmt::format("the weights are ternary already, with scales by {}, which {} with scales by {} would "
                  "destroy: expected 'method: {}' with 'scales: {}' for it, which keeps it as it is",
                  to_string(found), to_string(plan.method), to_string(plan.scales), to_string(instead),
                  to_string(found)));
}

void warn_of_weights(std::span<const float> w, std::vector<std::string>& warnings) {
  if (std::all_of(w.begin(), w.end(), [](float v) { return v == 0; }))
    warnings.emplace_back("every weight is 0: the linear has no effect");
  else if (w.size() > 1 && std::all_of(w.begin(), w.end(), [&](float v) { return v == w[0]; }))
    warnings.push_back(fmt::format("every weight is {}: it cannot have been trained", w[0]));
}

}  // namespace bitnet::quant
