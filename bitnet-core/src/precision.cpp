// The tables of what inference and training can compute in, and the policies made from them.
#include "bitnet/core/precision.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "bitnet/core/error.hpp"

namespace bitnet {
namespace {

constexpr DType kF32 = DType::kF32, kF16 = DType::kF16, kBF16 = DType::kBF16, kI8 = DType::kI8,
                kI32 = DType::kI32;

constexpr Precision kFull{kF32, kF32, kF32};
constexpr Precision kAsStored{std::nullopt, kF32, kF32};  // f16, bf16 and f32 are widened exactly
constexpr Precision kOnlyFull[] = {kFull};

namespace for_inference {
constexpr Precision kTernary[] = {{DType::kTernary, kI8, kI32}};
constexpr Precision kDense[] = {kAsStored};
constexpr Precision kEmbedding[] = {{kI8, kF32, kF32}, {kF16, kF32, kF32}, kAsStored};
constexpr Precision kHead[] = {{kI8, kI8, kI32}, {kF16, kF32, kF32}, kAsStored};
constexpr Precision kAttention[] = {{kF16, kF32, kF32}, {kI8, kI8, kI32}, kFull};

std::span<const Precision> supported(OpClass op) noexcept {
  switch (op) {
    case OpClass::kTernaryLinear:
      return kTernary;
    case OpClass::kDenseLinear:
      return kDense;
    case OpClass::kEmbedding:
      return kEmbedding;
    case OpClass::kHead:
      return kHead;
    case OpClass::kAttention:
      return kAttention;
    default:
      return kOnlyFull;
  }
}
}  // namespace for_inference

namespace for_training {
// Integers held in floats: sums are exact (docs/decisions/0008).
constexpr Precision kTernary[] = {{kF32, kI8, kF32}};
// Operands in f16 would need their loss scaled, which nothing here does.
constexpr Precision kProducts[] = {kFull, {kF32, kBF16, kF32}};

std::span<const Precision> supported(OpClass op) noexcept {
  if (op == OpClass::kTernaryLinear) return kTernary;
  if (op == OpClass::kDenseLinear || op == OpClass::kHead) return kProducts;
  return kOnlyFull;
}
}  // namespace for_training

}  // namespace

std::string_view to_string(OpClass op) noexcept {
  constexpr std::string_view kNames[] = {"ternary linear", "dense linear",  "embedding",   "head",
                                         "attention",      "normalization", "elementwise", "optimizer"};
  static_assert(std::size(kNames) == kOpClasses);
  return kNames[static_cast<std::size_t>(op)];
}

std::string_view to_string(Workload workload) noexcept {
  return workload == Workload::kInference ? "inference" : "training";
}

std::string to_string(const Precision& p) {
  return fmt::format("storage {}, compute {}, accumulate {}",
                     p.storage ? to_string(*p.storage) : "of the file", to_string(p.compute),
                     to_string(p.accumulate));
}

std::span<const Precision> supported_precisions(Workload workload, OpClass op) noexcept {
  return workload == Workload::kInference ? for_inference::supported(op) : for_training::supported(op);
}

PrecisionPolicy PrecisionPolicy::inference(bool ternary) {
  PrecisionPolicy policy;
  for (std::size_t i = 0; i < kOpClasses; ++i)
    policy.of_[i] = supported_precisions(Workload::kInference, static_cast<OpClass>(i)).front();
  if (!ternary) policy.set_tables(std::nullopt);
  return policy;
}

PrecisionPolicy PrecisionPolicy::training(DType compute) {
  PrecisionPolicy policy;
  for (std::size_t i = 0; i < kOpClasses; ++i)
    policy.of_[i] = supported_precisions(Workload::kTraining, static_cast<OpClass>(i)).front();
  return policy.set(OpClass::kDenseLinear, {kF32, compute, kF32}).set(OpClass::kHead, {kF32, compute, kF32});
}

PrecisionPolicy& PrecisionPolicy::set(OpClass op, const Precision& precision) noexcept {
  of_[static_cast<std::size_t>(op)] = precision;
  return *this;
}

PrecisionPolicy& PrecisionPolicy::set_kv_type(DType type) noexcept {
  return set(OpClass::kAttention, type == kI8 ? Precision{kI8, kI8, kI32} : Precision{type, kF32, kF32});
}

PrecisionPolicy& PrecisionPolicy::set_tables(std::optional<DType> type) noexcept {
  set(OpClass::kEmbedding, {type, kF32, kF32});
  return set(OpClass::kHead, type == kI8 ? Precision{kI8, kI8, kI32} : Precision{type, kF32, kF32});
}

void PrecisionPolicy::validate(Workload workload) const {
  for (std::size_t i = 0; i < kOpClasses; ++i) {
    const auto op = static_cast<OpClass>(i);
    const auto can = supported_precisions(workload, op);
    if (std::ranges::find(can, of_[i]) != can.end()) continue;
    std::string list;
    for (const Precision& p : can) list += (list.empty() ? "" : "; ") + to_string(p);
    throw Error(ErrorCode::kUnsupported,
                fmt::format("precision of {} in {}: {} asked for; there are: {}", to_string(op),
                            to_string(workload), to_string(of_[i]), list));
  }
}

DType dtype_from_name(std::string_view name) {
  std::string list;
  for (const DType d : {kF32, kF16, kBF16, kI8, kI32, DType::kTernary}) {
    if (to_string(d) == name) return d;
    list += (list.empty() ? "" : ", ") + std::string(to_string(d));
  }
  throw Error(ErrorCode::kInvalidArgument, fmt::format("dtype '{}': there are {}", name, list));
}

}  // namespace bitnet
