#pragma once
// Ternary linears that no public format holds: two planes, or scales of groups of columns, as sums of
// products of BitLinear, which are exact integers each. Clear rather than fast: a group's columns of the rows
// are copied.
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
  explicit ExtendedScratch(std::pmr::memory_resource* memory)
      : rows(quant::QuantizedRows::in(memory)), sum(memory) {}
  quant::QuantizedRows rows;    // a group's columns
  std::pmr::vector<float> sum;  // [rows, out]
};

/// Ternary weights [out, in] of one or two planes. Immutable.
class ExtendedLinear final : public PreparedWeights {
 public:
  /// Throws as BitLinear does.
  ExtendedLinear(const ExecutionContext& context, const LinearWeights& weights);

  /// y[rows, out] = Σ over planes, then groups, in that order, of the products as BitLinear::forward() rounds
  /// them.
  void forward(const ExecutionContext& context, const F32Kernels& kernels, const quant::QuantizedRows& x,
               ExtendedScratch& scratch, std::span<float> y) const;

 private:
  /// Columns [first, first + linear.in()) of a plane, with a scale a row.
  struct Part {
    quant::BitLinear linear;
    std::int64_t first;
  };
  explicit ExtendedLinear(std::vector<Part> parts, std::int64_t out, std::int64_t in);
  static std::vector<Part> make_parts(const ExecutionContext& context, const LinearWeights& weights);
  std::vector<Part> parts_;
};

}  // namespace bitnet::inference::cpu
