// See weight_checks.hpp.
#include "quantizer/weight_checks.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "bitnet/core/error.hpp"

namespace bitnet::quant {
namespace {

[[noreturn]] void refuse(std::size_t at, std::int64_t in, float value) {
  const auto n = static_cast<std::size_t>(in);
  throw Error(ErrorCode::kInvalidArgument,
              fmt::format("the weight in row {}, column {} is {}, not finite", at / n, at % n, value));
}

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

void warn_of_weights(std::span<const float> w, std::vector<std::string>& warnings) {
  if (std::all_of(w.begin(), w.end(), [](float v) { return v == 0; }))
    warnings.emplace_back("every weight is 0: the linear has no effect");
  else if (w.size() > 1 && std::all_of(w.begin(), w.end(), [&](float v) { return v == w[0]; }))
    warnings.push_back(fmt::format("every weight is {}: it cannot have been trained", w[0]));
}

}  // namespace bitnet::quant
