#pragma once
// y = BitLinear(x): rows quantised to int8 (quantized_rows.hpp), multiplied by ternary weights in exact
// integers, scaled once. Thread-safe but for assign().
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "bitnet/core/execution.hpp"
#include "bitnet/quant/quantize.hpp"
#include "bitnet/quant/quantized_rows.hpp"
#include "bitnet/quant/tile_code.hpp"

namespace bitnet::quant {

/// "two_bit" or "base3".
std::string_view to_string(TileCode code) noexcept;
/// The code of that name. Throws Error(kInvalidArgument) listing the names for an unknown one.
TileCode tile_code_from_name(std::string_view name);
/// kBase3 where `isa` decodes it as fast as memory gives the bytes, else kTwoBit (docs/decisions/0002).
TileCode preferred_tile_code(Isa isa) noexcept;
/// The code that a BitLinear takes by itself: the one that the environment variable BITNET_TILE_CODE names
/// (same error as tile_code_from_name), else preferred_tile_code(isa).
TileCode default_tile_code(Isa isa);

/// A ternary matrix repacked for the kernels: "T16" tiles of either code, which every ISA can multiply
/// (docs/decisions/0002; docs/numerics.md has the int32 bound). Any out and any in ≤ 500,000. Immutable but
/// for assign(), thread-safe.
class BitLinear {
 public:
  /// Repacks on the threads of `context`. Throws Error(kInvalidArgument) on trits outside −1 … 1, sizes that
  /// disagree, or an `in` over the bound. `code`: empty for default_tile_code(context.isa()).
  /// The first BitLinear of an instruction set in a process tests its kernels: Error(kDevice) if they compute
  /// wrongly.
  BitLinear(const ExecutionContext& context, const TernaryWeights& weights,
            std::optional<TileCode> code = {});
  /// The same from views, without a TernaryWeights.
  BitLinear(const ExecutionContext& context, std::int64_t out, std::int64_t in,
            std::span<const std::int8_t> trits, std::span<const float> scales, std::int64_t rows_per_scale,
            std::optional<TileCode> code = {});
  /// The same from a row source, which is asked for the rows of one tile at a time: no matrix of trits is
  /// made. What `rows` throws comes out.
  BitLinear(const ExecutionContext& context, std::int64_t out, std::int64_t in,
            const RowSource<std::int8_t>& rows, std::span<const float> scales, std::int64_t rows_per_scale,
            std::optional<TileCode> code = {});
  ~BitLinear();
  BitLinear(BitLinear&&) noexcept;

  /// Takes other trits [out, in] and as many scales as evenly share the rows: for weights that are trained.
  /// Packs on the calling thread, while nobody multiplies; allocates nothing. Throws what the constructor
  /// throws; trits that are none leave a mixture behind.
  void assign(std::span<const std::int8_t> trits, std::span<const float> scales);

  std::int64_t out() const noexcept;
  std::int64_t in() const noexcept;
  TileCode code() const noexcept;
  std::size_t bytes() const noexcept;  ///< of the tiles and scales, which a product reads once

  /// acc[rows, out] = Σ_k x·trit, exact; bit-equal on every ISA and thread count. Neither product allocates.
  /// Both throw Error(kInvalidArgument) on sizes that disagree.
  void multiply_int(const ExecutionContext& context, const QuantizedRows& x,
                    std::span<std::int32_t> acc) const;
  /// y[rows, out] = float(acc) · (scale[row of W] · inv_scale[row of x]), one rounding a product.
  void forward(const ExecutionContext& context, const QuantizedRows& x, std::span<float> y) const;
  void forward(const ExecutionContext& context, const QuantizedView& x, std::span<float> y) const;
  /// One of several products over the same rows.
  struct Product {
    const BitLinear* linear;
    std::span<float> y;  // [rows, out]
  };
  /// forward() of each, in one cut over the threads: the same values. Without products nothing happens.
  static void forward_each(const ExecutionContext& context, const QuantizedRows& x,
                           std::span<const Product> products);
  /// One of the products that add up to the rows of a larger matrix.
  struct Summand {
    const BitLinear* linear;
    QuantizedView x;
  };
  /// y[rows, out] = Σ forward() of each, in their order and rounded as one after the other, in one cut over
  /// the threads; `scratch` [rows, out]. All have `out` and `rows` in common; one at least. Allocates
  /// nothing.
  static void forward_sum(const ExecutionContext& context, std::span<const Summand> summands,
                          std::span<float> scratch, std::span<float> y);
  /// Trits of rows [begin, end) to `to` [end − begin, in], `begin` a multiple of 16: what a product by the
  /// transposed matrix goes through. Allocates nothing. Throws Error(kInvalidArgument) for other rows or
  /// another size.
  void unpack_rows(std::int64_t begin, std::int64_t end, std::span<std::int8_t> to) const;
  /// Of each row. [out]
  std::span<const float> row_scales() const noexcept;
  /// The trits again, for export and tests. [out, in]
  std::vector<std::int8_t> trits() const;

 private:
  struct Impl;
  void check_product(const QuantizedView& x, std::size_t size) const;
  static void run(const ExecutionContext& context, const QuantizedView& x, std::span<const Product> products);
  void multiply(const ExecutionContext& context, const QuantizedView& x, std::int64_t row, std::int64_t rows,
                std::int64_t pair_begin, std::int64_t pair_end, std::int32_t* acc, float* y) const;
  std::unique_ptr<Impl> impl_;
};

}  // namespace bitnet::quant
