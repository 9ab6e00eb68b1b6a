// Packing of weights: trits to 2-bit codes, floats to int8 with a scale a row, floats as they are. A unit of
// the packed layouts is a tile of 16 columns of the product, that is 16 rows of the matrix.
#include "prepared.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <vector>

#include "bitnet/core/attention_kernels.hpp"
#include "bitnet/core/error.hpp"
#include "bitnet/core/f32_kernels.hpp"

namespace bitnet::gpu {
namespace {

constexpr std::int64_t kTritsPerWord = 16;     // 2-bit codes in a u32
constexpr std::int64_t kMaxIn = 524'287 * 16;  // ternary_matmul.cl: the int32 bound
constexpr std::int64_t kMaxInt8In = 131'072;   // int8_matmul.cl: the int32 bound
constexpr std::int64_t kMaxOut = 1 << 30;      // column numbers are u32 in the kernels
constexpr std::uint32_t kAllZeroTrits = 0x55555555u;
constexpr float kSmallest = 1e-30f;  // of the definition's max(…, 1e-30): 127 / m stays finite

void check_size(const LinearWeights& w, std::int64_t max_in) {
  if (w.in > max_in || w.out > kMaxOut)
    throw Error(ErrorCode::kUnsupported,
                fmt::format("a linear of {} x {} exceeds {} x {}", w.out, w.in, kMaxOut, max_in));
}

/// Where trit k of a word lies in it: byte k % 4, bits 2 · (k / 4 % 4).
constexpr unsigned shift_of(std::int64_t k) { return static_cast<unsigned>(8 * (k % 4) + 2 * (k / 4 % 4)); }

/// Columns [first, first + n) of row `o` of the matrix, lane `lane` of its tile, from a word of their own on.
void pack_trits(const std::int8_t* row, std::int64_t o, std::int64_t first, std::int64_t n, std::int64_t lane,
                std::uint32_t* tile) {
  row += first;
  for (std::int64_t k = 0; k < n; ++k) {
    if (row[k] < -1 || row[k] > 1)
      throw Error(ErrorCode::kInvalidArgument,
                  fmt::format("trit [{}, {}] is {}, not -1, 0 or 1", o, first + k, row[k]));
    // Code 1 is there already: adding the trit makes it trit + 1 without touching its neighbours.
    tile[k / kTritsPerWord * kTileColumns + lane] += static_cast<std::uint32_t>(row[k]) << shift_of(k);
  }
}

/// f32 of rows [begin, end) of a dense matrix.
void floats_of(const F32Kernels& kernels, const LinearWeights& w, std::int64_t begin, std::int64_t end,
               std::vector<std::byte>& scratch, std::vector<float>& to) {
  const auto n = static_cast<std::size_t>((end - begin) * w.in);
  to.resize(n);
  const std::byte* const from = w.dense_of(begin, end, scratch);
  switch (w.dense_type) {
    case DType::kF16:
      return kernels.f16_to_f32(reinterpret_cast<const std::uint16_t*>(from), to.data(), n);
    case DType::kBF16:
      return kernels.bf16_to_f32(reinterpret_cast<const std::uint16_t*>(from), to.data(), n);
    default:
      std::memcpy(to.data(), from, n * sizeof(float));
  }
}

/// Rounds a row to int8, into lane `lane` of its tile; returns its scale.
float pack_bytes(const F32Kernels& kernels, std::span<const float> row, std::int64_t o, std::int64_t lane,
                 std::uint32_t* tile) {
  for (std::size_t k = 0; k < row.size(); ++k)
    if (!std::isfinite(row[k]))
      throw Error(ErrorCode::kInvalidArgument,
                  fmt::format("the weight in row {}, column {} is {}, not finite", o, k, row[k]));
  const float m = std::max(kernels.max_abs(row.data(), row.size()), kSmallest), factor = 127.0f / m;
  for (std::size_t k = 0; k < row.size(); ++k) {
    // Adding 1.5 · 2^23 rounds half to even, and leaves the integer in the low bits.
    const auto value = std::bit_cast<std::uint32_t>(row[k] * factor + 0x1.8p23f) & 255u;
    tile[k / 4 * kTileColumns + static_cast<std::size_t>(lane)] |= value << (8 * (k % 4));
  }
  return m / 127.0f;
}

void round_to_f16(const AttentionKernels& kernels, std::span<const float> from, std::int64_t first_row,
                  std::int64_t cols, std::uint16_t* to) {
  kernels.f32_to_f16(from.data(), to, from.size());
  for (std::size_t i = 0; i < from.size(); ++i) {
    if ((to[i] & 0x7fffu) != 0x7c00u || !std::isfinite(from[i])) continue;
    const auto at = static_cast<std::int64_t>(i);
    throw Error(ErrorCode::kUnsupported,
                fmt::format("the weight in row {}, column {} is {}, beyond f16's ±65504",
                            first_row + at / cols, at % cols, from[i]));
  }
}

/// Tiles of codes whose every `group_cols` columns begin a word.
PooledMem write_codes(const LinearWeights& w, std::int64_t group_cols, WeightWriter& writer) {
  const std::int64_t group_words = round_up(group_cols, kTritsPerWord) / kTritsPerWord;
  const auto tile_words = static_cast<std::size_t>(w.in / group_cols * group_words * kTileColumns);
  const auto fill = [&](std::size_t begin, std::size_t end, std::byte* to) {
    auto* tile = reinterpret_cast<std::uint32_t*>(to);
    std::vector<std::int8_t> scratch;
    for (std::size_t t = begin; t < end; ++t, tile += tile_words) {
      std::fill_n(tile, tile_words, kAllZeroTrits);
      const auto first = static_cast<std::int64_t>(t) * kTileColumns;
      const std::int64_t last = std::min(first + kTileColumns, w.out);
      const std::int8_t* const rows = w.trits_of(first, last, scratch);
      for (std::int64_t o = first; o < last; ++o)
        for (std::int64_t k = 0; k < w.in; k += group_cols)
          pack_trits(rows + (o - first) * w.in, o, k, group_cols, o - first,
                     tile + k / group_cols * group_words * kTileColumns);
    }
  };
  const auto tiles = static_cast<std::size_t>(round_up(w.out, kTileColumns) / kTileColumns);
  return writer.write(tiles, tile_words * sizeof(std::uint32_t), fill);
}

/// f32 [groups, tiles * 16]
std::vector<float> scales_of_groups(const LinearWeights& w, std::int64_t group_cols) {
  const std::int64_t groups = w.in / group_cols, stride = round_up(w.out, kTileColumns);
  std::vector<float> scales(static_cast<std::size_t>(groups * stride));
  for (std::int64_t o = 0; o < w.out; ++o)
    for (std::int64_t g = 0; g < groups; ++g) {
      const std::int64_t from = w.cols_per_scale != 0 ? o * groups + g : o / w.rows_per_scale;
      scales[static_cast<std::size_t>(g * stride + o)] = w.scales[static_cast<std::size_t>(from)];
    }
  return scales;
}

}  // namespace

std::shared_ptr<const OpenClTernary> prepare_ternary(const LinearWeights& w, WeightWriter& writer) {
  check_size(w, kMaxIn);
  PooledMem codes = write_codes(w, w.in, writer);
  return std::make_shared<const OpenClTernary>(w, std::move(codes), writer.copy(std::as_bytes(w.scales)));
}

std::shared_ptr<const OpenClExtended> prepare_extended(const LinearWeights& w, WeightWriter& writer) {
  std::vector<OpenClExtended::Plane> planes;
  std::size_t bytes = 0;
  for (const LinearWeights* plane = &w; plane != nullptr; plane = plane->second.get()) {
    check_size(*plane, kMaxIn);
    const std::int64_t cols = plane->cols_per_scale != 0 ? plane->cols_per_scale : plane->in;
    OpenClExtended::Plane& p = planes.emplace_back();
    p.group_cols = static_cast<cl_uint>(cols);
    p.group_words = static_cast<cl_uint>(round_up(cols, kTritsPerWord) / kTritsPerWord);
    p.groups = static_cast<cl_uint>(plane->in / cols);
    p.codes = write_codes(*plane, cols, writer);
    p.scales = writer.copy(std::as_bytes(std::span<const float>(scales_of_groups(*plane, cols))));
    bytes += p.bytes();
  }
  return std::make_shared<const OpenClExtended>(w, std::move(planes), bytes);
}

std::shared_ptr<const OpenClInt8> prepare_int8(const LinearWeights& w, WeightWriter& writer) {
  check_size(w, kMaxInt8In);
  const F32Kernels& kernels = tested_f32_kernels(writer.context().isa());
  const auto tile_words = static_cast<std::size_t>(round_up(w.in, kActivationBlock) / 4 * kTileColumns);
  std::vector<float> scales(static_cast<std::size_t>(w.out));
  const auto fill = [&](std::size_t begin, std::size_t end, std::byte* to) {
    auto* tile = reinterpret_cast<std::uint32_t*>(to);
    std::vector<std::byte> scratch;
    std::vector<float> values;
    for (std::size_t t = begin; t < end; ++t, tile += tile_words) {
      std::fill_n(tile, tile_words, 0u);
      const auto first = static_cast<std::int64_t>(t) * kTileColumns;
      const std::int64_t last = std::min(first + kTileColumns, w.out);
      floats_of(kernels, w, first, last, scratch, values);
      for (std::int64_t o = first; o < last; ++o)
        scales[static_cast<std::size_t>(o)] =
            pack_bytes(kernels,
                       std::span<const float>(values).subspan(static_cast<std::size_t>((o - first) * w.in),
                                                              static_cast<std::size_t>(w.in)),
                       o, o - first, tile);
    }
  };
  const auto tiles = static_cast<std::size_t>(round_up(w.out, kTileColumns) / kTileColumns);
  PooledMem table = writer.write(tiles, tile_words * sizeof(std::uint32_t), fill);
  return std::make_shared<const OpenClInt8>(w, std::move(table),
                                            writer.copy(std::as_bytes(std::span<const float>(scales))));
}

std::shared_ptr<const OpenClDense> prepare_dense(const LinearWeights& w, DType kept, WeightWriter& writer) {
  check_size(w, kMaxOut);
  const Isa isa = writer.context().isa();
  const auto row_bytes = static_cast<std::size_t>(w.in) * bits_of(kept) / 8;
  const auto fill = [&](std::size_t begin, std::size_t end, std::byte* to) {
    const auto first = static_cast<std::int64_t>(begin), last = static_cast<std::int64_t>(end);
    std::vector<std::byte> scratch;
    if (kept == w.dense_type) {
      if (w.dense_rows != nullptr) return w.dense_rows(first, last, to);
      std::memcpy(to, w.dense_of(first, last, scratch), (end - begin) * row_bytes);
      return;
    }
    std::vector<float> values;
    for (std::int64_t row = first; row < last; ++row, to += row_bytes) {
      floats_of(tested_f32_kernels(isa), w, row, row + 1, scratch, values);
      round_to_f16(tested_attention_kernels(isa), values, row, w.in, reinterpret_cast<std::uint16_t*>(to));
    }
  };
  return std::make_shared<const OpenClDense>(w, kept,
                                             writer.write(static_cast<std::size_t>(w.out), row_bytes, fill));
}

}  // namespace bitnet::gpu
