#pragma once
// Mixed precision: for each class of ops, the type that values are stored in, the type that products are
// computed in, and the type that sums are kept in. A policy is data: where there is a choice, inference and
// training ask it what to do, and validate() says before anything runs whether they can. Conversions are
// Tensor::to.
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "bitnet/core/dtype.hpp"

namespace bitnet {

enum class OpClass : std::uint8_t {
  kTernaryLinear,  ///< linears with ternary weights
  kDenseLinear,    ///< linears with float weights
  kEmbedding,      ///< the token table
  kHead,           ///< the output head
  kAttention,      ///< storage is the KV cache's
  kNormalization,  ///< RMS norms, softmax, losses
  kElementwise,    ///< residuals, gates, rotary embedding
  kOptimizer,      ///< master weights and moments
};
inline constexpr std::size_t kOpClasses = 8;
std::string_view to_string(OpClass op) noexcept;  ///< "ternary linear", …

/// Who runs the ops: each implements combinations of its own.
enum class Workload : std::uint8_t { kInference, kTraining };
std::string_view to_string(Workload workload) noexcept;  ///< "inference", "training"

struct Precision {
  std::optional<DType> storage = DType::kF32;  ///< none: whatever the model's file has
  DType compute = DType::kF32, accumulate = DType::kF32;
  friend bool operator==(const Precision&, const Precision&) = default;
};
/// "storage f16, compute f32, accumulate f32"; "storage of the file, …" for none.
std::string to_string(const Precision& precision);

/// One Precision a class. A plain value.
class PrecisionPolicy {
 public:
  /// The default of inference. Beside ternary linears: embedding and head int8 rows, int8 × trits and
  /// int8 × int8 summed in i32. Beside dense ones (`ternary` false): both tables as the file has them. KV
  /// cache f16; the rest f32.
  static PrecisionPolicy inference(bool ternary = true);
  /// Training with products of `compute` (kF32 or kBF16) operands in the dense linears and the head; sums,
  /// master weights, norms and losses stay f32. Ternary linears multiply integers held in floats.
  static PrecisionPolicy training(DType compute = DType::kF32);

  const Precision& at(OpClass op) const noexcept { return of_[static_cast<std::size_t>(op)]; }
  PrecisionPolicy& set(OpClass op, const Precision& precision) noexcept;
  /// Attention with keys and values stored as `type`; int8 ones are multiplied as integers, others in f32.
  PrecisionPolicy& set_kv_type(DType type) noexcept;
  /// Embedding and head stored as `type` (none: as the file has them); an int8 head is multiplied as
  /// integers.
  PrecisionPolicy& set_tables(std::optional<DType> type) noexcept;

  /// Throws Error(kUnsupported) naming the first class whose combination `workload` does not implement, what
  /// was asked for, and the combinations that there are.
  void validate(Workload workload) const;
  friend bool operator==(const PrecisionPolicy&, const PrecisionPolicy&) = default;

 private:
  PrecisionPolicy() = default;
  std::array<Precision, kOpClasses> of_;
};

/// The combinations that a class can have, the default first.
std::span<const Precision> supported_precisions(Workload workload, OpClass op) noexcept;

/// The dtype called "f32", "f16", "bf16", "i8", "i32" or "ternary". Throws Error(kInvalidArgument) listing
/// them.
DType dtype_from_name(std::string_view name);

}  // namespace bitnet
