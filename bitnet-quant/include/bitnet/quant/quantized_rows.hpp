#pragma once
// Activations as rows of int8 with a scale a row: what products of quantised linears begin with. How they are
// rounded is docs/numerics.md. The functions are thread-safe; one call fills a QuantizedRows at a time.
#include <cstdint>
#include <memory>
#include <memory_resource>
#include <span>
#include <type_traits>
#include <vector>

#include "bitnet/core/device/backend_types.hpp"
#include "bitnet/core/execution.hpp"

namespace bitnet::quant {

/// Rows quantised by absmax, shared by several BitLinears over the same input (q, k, v; gate, up).
struct QuantizedRows {
  std::int64_t rows = 0, cols = 0;
  std::int64_t stride = 0;               ///< bytes from row to row, quantized_stride(cols); padding zero
  std::pmr::vector<std::int8_t> values;  // [rows, stride]
  std::pmr::vector<float> inv_scales;    // [rows], 1 / a as f32
  std::pmr::vector<std::int32_t>
      sums;                           // [rows], Σ values (kernels multiply codes trit + 1 and subtract this)
  std::pmr::vector<float> scratch{};  // of quantize_made_rows: a row a thread, from the first cache line on

  /// None yet, whose memory will come from `memory`, which must outlive them.
  static QuantizedRows in(std::pmr::memory_resource* memory) {
    return {.rows = 0,
            .cols = 0,
            .stride = 0,
            .values = std::pmr::vector<std::int8_t>(memory),
            .inv_scales = std::pmr::vector<float>(memory),
            .sums = std::pmr::vector<std::int32_t>(memory),
            .scratch = std::pmr::vector<float>(memory)};
  }
};

/// The same in memory of somebody else.
struct QuantizedView {
  std::int64_t rows = 0, cols = 0, stride = 0;
  const std::int8_t* values = nullptr;  // [rows, stride]
  const float* inv_scales = nullptr;    // [rows]
  const std::int32_t* sums = nullptr;   // [rows]
};

/// Bytes from row to row of QuantizedRows: at least `cols` rounded up to 16 and to 20 (whole lines of either
/// TileCode), and an odd number of cache lines, so that rows do not compete for the same sets of a cache.
constexpr std::int64_t quantized_stride(std::int64_t cols) {
  return ((cols + 19) / 20 * 20 + 63) / 64 * 64 | 64;
}

/// Quantises x [rows, cols] into `to`, reusing its memory (no allocation once it is large enough).
void quantize_rows(const ExecutionContext& context, std::span<const float> x, std::int64_t rows,
                   std::int64_t cols, QuantizedRows& to, ActivationForm form = ActivationForm::kInt8);

/// Writes row `row` of a matrix to `to` [cols], which begins a cache line; called on several threads at once.
using MakeRow = void (*)(void* state, std::int64_t row, float* to);

/// quantize_rows() of rows that are made on the way (a norm, a gate) and pass through the cache only.
void quantize_made_rows(const ExecutionContext& context, std::int64_t rows, std::int64_t cols, MakeRow make,
                        void* state, QuantizedRows& to, ActivationForm form = ActivationForm::kInt8);
template <class Make>
void quantize_made_rows(const ExecutionContext& context, std::int64_t rows, std::int64_t cols, Make&& make,
                        QuantizedRows& to, ActivationForm form = ActivationForm::kInt8) {
  using M = std::remove_reference_t<Make>;
  quantize_made_rows(
      context, rows, cols, [](void* m, std::int64_t row, float* x) { (*static_cast<M*>(m))(row, x); },
      const_cast<void*>(static_cast<const void*>(std::addressof(make))), to, form);
}

}  // namespace bitnet::quant
