#pragma once
// Ternary linears that no public format holds: two planes, or scales of groups of columns, as sums of
// products of BitLinear, which are exact integers each. The rows are copied group by group once a product.
#include <cstdint>
#include <memory_resource>
#include <span>
#include <vector>

#include "bitnet/core/device/backend.hpp"
#include "bitnet/core/execution.hpp"
#include "bitnet/core/f32_kernels.hpp"
#include "bitnet/quant/bit_linear.hpp"

namespace bitnet::inference::cpu {

/// Memory of a product, kept from one to the next.
struct ExtendedScratch {
  explicit ExtendedScratch(std::pmr::memory_resource* memory) : values(memory), sums(memory), sum(memory) {}
  std::pmr::vector<std::int8_t> values;  // [groups, rows, quantized_stride(columns of the group)]
  std::pmr::vector<std::int32_t> sums;   // [groups, rows]
  std::pmr::vector<float> sum;           // [rows, out]
  std::vector<quant::BitLinear::Summand> summands;
};

/// Ternary weights [out, in] of one or two planes. Immutable.
class ExtendedLinear final : public PreparedWeights {
 public:
  /// Throws as BitLinear does.
  ExtendedLinear(const ExecutionContext& context, const LinearWeights& weights);

  /// How the rows of x are to be quantised.
  ActivationForm activations() const noexcept { return activations_; }

  /// y[rows, out] = Σ over planes, then groups, in that order, of the products as BitLinear::forward() rounds
  /// them.
  void forward(const ExecutionContext& context, const quant::QuantizedRows& x, ExtendedScratch& scratch,
               std::span<float> y) const;

 private:
  /// Columns [first, first + linear.in()) of a plane, with a scale a row.
  struct Part {
    quant::BitLinear linear;
    std::int64_t first;
    std::size_t columns = 0;  ///< which of columns_, unless they are all
  };
  struct Columns {
    std::int64_t first, n;
  };
  explicit ExtendedLinear(std::vector<Part> parts, const LinearWeights& weights);
  static std::vector<Part> make_parts(const ExecutionContext& context, const LinearWeights& weights);
  void take_columns(const ExecutionContext& context, const quant::QuantizedRows& x,
                    ExtendedScratch& scratch) const;
  std::vector<Part> parts_;
  std::vector<Columns> columns_;  ///< that both planes' groups have
  ActivationForm activations_;
};

}  // namespace bitnet::inference::cpu
