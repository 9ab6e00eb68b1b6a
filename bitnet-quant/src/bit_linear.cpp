// BitLinear: checks and repacking (prepare), then products cut over threads (run). The products themselves
// are kernels/generic/*.inl.hpp, the tile layout is described in kernels/ternary_table.hpp.
#include "bitnet/quant/bit_linear.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <string_view>

#include "bitnet/core/env.hpp"
#include "bitnet/core/error.hpp"
#include "bitnet/core/f32_kernels.hpp"
#include "kernels/ternary_table.hpp"
#include "linear_common.hpp"
#include "self_test.hpp"
#include "tile_memory.hpp"
#include "tile_packing.hpp"

namespace bitnet::quant {
namespace {

template <class... Args>
void check(bool ok, std::string_view message, const Args&... args) {
  check_argument("BitLinear", ok, message, args...);
}

/// Rows that one call of the kernels gets: near-equal chunks of the size that they want.
std::int64_t row_chunk(const TernaryKernels& kernels, const QuantizedView& x) {
  const std::int64_t most = std::max<std::int64_t>(32, kernels.x_bytes / x.stride);
  if (x.rows <= most) return std::max<std::int64_t>(1, x.rows);
  const std::int64_t near_equal = ceil_div(x.rows, ceil_div(x.rows, most));
  return ceil_div(near_equal, kernels.row_block) * kernels.row_block;
}

void check_size(std::int64_t out, std::int64_t in) {
  check(in >= 1 && in <= kMaxColumns, "{} columns: from 1 to {} are possible (int32 sums)", in, kMaxColumns);
  check(out >= 1 && out <= (std::int64_t{1} << 40) / in, "{} x {} is no possible size", out, in);
}

/// A whole matrix as a row source.
RowSource<std::int8_t> rows_of(std::span<const std::int8_t> trits, std::int64_t out, std::int64_t in) {
  check_size(out, in);
  check(trits.size() == static_cast<std::size_t>(out * in), "{} trits for a matrix of {} x {}", trits.size(),
        out, in);
  return [trits, in](std::int64_t begin, std::int64_t end, std::int8_t* to) {
    std::copy(trits.data() + begin * in, trits.data() + end * in, to);
  };
}

/// Rows as quantize_rows() makes them, or an error.
QuantizedView view_of(const QuantizedRows& x) {
  check(x.rows >= 0 && x.values.size() >= static_cast<std::size_t>(x.rows * x.stride) &&
            x.sums.size() >= static_cast<std::size_t>(x.rows) &&
            x.inv_scales.size() >= static_cast<std::size_t>(x.rows),
        "the input rows are not as quantize_rows makes them");
  return {x.rows, x.cols, x.stride, x.values.data(), x.inv_scales.data(), x.sums.data()};
}

/// Throws naming the first value of a tile that is no trit.
[[noreturn]] void refuse_trits(std::span<const std::int8_t> trits, std::int64_t first_row, std::int64_t in) {
  const auto at =
      std::find_if(trits.begin(), trits.end(), [](std::int8_t t) { return t < -1 || t > 1; }) - trits.begin();
  throw Error(ErrorCode::kInvalidArgument,
              fmt::format("BitLinear: the trit in row {}, column {} is {}, not -1, 0 or 1",
                          first_row + at / in, at % in, int{trits[static_cast<std::size_t>(at)]}));
}

}  // namespace

TileCode preferred_tile_code(Isa isa) noexcept {
  return ternary_kernels(isa).fast_base3 ? TileCode::kBase3 : TileCode::kTwoBit;
}

std::string_view to_string(TileCode code) noexcept { return code == TileCode::kTwoBit ? "two_bit" : "base3"; }

TileCode tile_code_from_name(std::string_view name) {
  for (const TileCode code : {TileCode::kTwoBit, TileCode::kBase3})
    if (to_string(code) == name) return code;
  throw Error(ErrorCode::kInvalidArgument,
              fmt::format("unknown tile code '{}' (there are: {}, {})", name, to_string(TileCode::kTwoBit),
                          to_string(TileCode::kBase3)));
}

TileCode default_tile_code(Isa isa) {
  const auto name = env("BITNET_TILE_CODE");
  if (!name) return preferred_tile_code(isa);
  return with_context("BITNET_TILE_CODE", [&] { return tile_code_from_name(*name); });
}

struct BitLinear::Impl {
  TileCode code = TileCode::kTwoBit;
  std::int64_t out = 0, in = 0, lines = 0, tiles = 0;
  std::size_t tile_bytes = 0;  // of all tiles
  std::shared_ptr<std::uint8_t> packed;
  std::vector<float> scales;  // [out]
};

BitLinear::BitLinear(const ExecutionContext& context, const TernaryWeights& weights,
                     std::optional<TileCode> code)
    : BitLinear(context, weights.out, weights.in, weights.trits, weights.scales, weights.rows_per_scale,
                code) {}

BitLinear::BitLinear(const ExecutionContext& context, std::int64_t out, std::int64_t in,
                     std::span<const std::int8_t> trits, std::span<const float> scales,
                     std::int64_t rows_per_scale, std::optional<TileCode> code)
    : BitLinear(context, out, in, rows_of(trits, out, in), scales, rows_per_scale, code) {}

BitLinear::BitLinear(const ExecutionContext& context, std::int64_t out, std::int64_t in,
                     const RowSource<std::int8_t>& rows, std::span<const float> scales,
                     std::int64_t rows_per_scale, std::optional<TileCode> code)
    : impl_(std::make_unique<Impl>()) {
  check_size(out, in);
  check(rows_per_scale >= 1, "{} rows per scale", rows_per_scale);
  check(scales.size() == static_cast<std::size_t>(ceil_div(out, rows_per_scale)),
        "{} scales for {} rows, {} rows each", scales.size(), out, rows_per_scale);
  for (std::size_t i = 0; i < scales.size(); ++i)
    check(std::isfinite(scales[i]), "scale {} is {}, not finite", i, scales[i]);

  Impl& m = *impl_;
  tested_kernels(context.isa());
  m.code = code ? *code : default_tile_code(context.isa());
  m.out = out;
  m.in = in;
  m.lines = tile_lines(m.code, in);
  m.tiles = ceil_div(out, kTileRows);
  m.tile_bytes = static_cast<std::size_t>(m.tiles * m.lines * kLineBytes);
  m.packed = with_context(fmt::format("BitLinear: a matrix of {} x {}", out, in),
                          [&] { return allocate_tiles(context, m.tile_bytes); });
  m.scales.resize(static_cast<std::size_t>(out));
  for (std::int64_t o = 0; o < out; ++o)
    m.scales[static_cast<std::size_t>(o)] = scales[static_cast<std::size_t>(o / rows_per_scale)];

  const std::int64_t bytes = m.lines * kLineBytes;
  context.parallel_for(static_cast<std::size_t>(m.tiles), 4, [&](std::size_t begin, std::size_t end) {
    std::vector<std::int8_t> trits(static_cast<std::size_t>(kTileRows * in));
    for (auto tile = static_cast<std::int64_t>(begin); tile < static_cast<std::int64_t>(end); ++tile) {
      const std::int64_t first = tile * kTileRows, n = std::min(kTileRows, out - first);
      rows(first, first + n, trits.data());
      if (!pack_tile(m.code, trits.data(), n, in, m.packed.get() + tile * bytes))
        refuse_trits(std::span(trits).first(static_cast<std::size_t>(n * in)), first, in);
    }
  });
}

BitLinear::~BitLinear() = default;
BitLinear::BitLinear(BitLinear&&) noexcept = default;

std::int64_t BitLinear::out() const noexcept { return impl_->out; }
std::int64_t BitLinear::in() const noexcept { return impl_->in; }
TileCode BitLinear::code() const noexcept { return impl_->code; }
std::size_t BitLinear::bytes() const noexcept {
  return impl_->tile_bytes + impl_->scales.size() * sizeof(float);
}

std::span<const float> BitLinear::row_scales() const noexcept { return impl_->scales; }

void BitLinear::assign(std::span<const std::int8_t> trits, std::span<const float> scales) {
  Impl& m = *impl_;
  const auto rows = static_cast<std::size_t>(m.out), in = static_cast<std::size_t>(m.in);
  check(trits.size() == rows * in, "{} trits for a matrix of {} x {}", trits.size(), m.out, m.in);
  check(!scales.empty() && rows % scales.size() == 0, "{} scales for {} rows", scales.size(), m.out);
  for (std::size_t i = 0; i < scales.size(); ++i)
    check(std::isfinite(scales[i]), "scale {} is {}, not finite", i, scales[i]);
  for (std::size_t o = 0; o < rows; ++o) m.scales[o] = scales[o / (rows / scales.size())];
  for (std::int64_t tile = 0; tile < m.tiles; ++tile) {
    const std::int64_t first = tile * kTileRows, n = std::min(kTileRows, m.out - first);
    if (!pack_tile(m.code, trits.data() + first * m.in, n, m.in,
                   m.packed.get() + tile * m.lines * kLineBytes))
      refuse_trits(trits.subspan(static_cast<std::size_t>(first) * in, static_cast<std::size_t>(n) * in),
                   first, m.in);
  }
}

void BitLinear::check_product(const QuantizedView& x, std::size_t size) const {
  const Impl& m = *impl_;
  check(x.cols == m.in, "input rows of {}, expected {}", x.cols, m.in);
  check(x.rows >= 0 && x.stride % 64 == 0 && x.stride >= m.lines * line_columns(m.code),
        "the input rows are not as quantize_rows makes them");
  check(size == static_cast<std::size_t>(x.rows * m.out), "{} results for {} rows of {}", size, x.rows,
        m.out);
}

/// Rows [row, row + rows) of x times pairs of tiles [pair_begin, pair_end), on the calling thread.
void BitLinear::multiply(const ExecutionContext& context, const QuantizedView& x, std::int64_t row,
                         std::int64_t rows, std::int64_t pair_begin, std::int64_t pair_end, std::int32_t* acc,
                         float* y) const {
  const Impl& m = *impl_;
  ternary_kernels(context.isa())
      .multiply({.code = m.code,
                 .tiles = m.packed.get(),
                 .lines = m.lines,
                 .out = m.out,
                 .tile_begin = 2 * pair_begin,
                 .tile_end = std::min(m.tiles, 2 * pair_end),
                 .x = x.values + row * x.stride,
                 .stride = x.stride,
                 .rows = rows,
                 .sums = x.sums + row,
                 .acc = acc == nullptr ? nullptr : acc + row * m.out,
                 .y = y == nullptr ? nullptr : y + row * m.out,
                 .scales = m.scales.data(),
                 .inv_scales = x.inv_scales + row});
}

namespace {

/// Calls multiply(row, rows, begin, end) on parts of all rows × `pairs` pairs of tiles: chunks of rows one
/// after the other, each cut over the threads by pairs of tiles, so that every cut keeps the kernels' widest
/// blocks.
template <class Multiply>
void cut(const ExecutionContext& context, const QuantizedView& x, std::int64_t pairs, Multiply&& multiply) {
  if (pairs == 0 || x.rows == 0) return;  // without products nobody has checked x
  const std::int64_t chunk = row_chunk(tested_kernels(context.isa()), x);
  for (std::int64_t row = 0; row < x.rows; row += chunk) {
    const std::int64_t rows = std::min(chunk, x.rows - row);
    const std::int64_t pair_work = 2 * kTileRows * std::max<std::int64_t>(1, x.cols) * rows;
    const auto grain = static_cast<std::size_t>(ceil_div(kWorkPerThread, pair_work));
    context.parallel_for(static_cast<std::size_t>(pairs), grain, [&](std::size_t begin, std::size_t end) {
      multiply(row, rows, static_cast<std::int64_t>(begin), static_cast<std::int64_t>(end));
    });
  }
}

}  // namespace

void BitLinear::multiply_int(const ExecutionContext& context, const QuantizedRows& rows_of_x,
                             std::span<std::int32_t> acc) const {
  const QuantizedView x = view_of(rows_of_x);
  check_product(x, acc.size());
  cut(context, x, ceil_div(impl_->tiles, 2),
      [&](std::int64_t row, std::int64_t rows, std::int64_t begin, std::int64_t end) {
        multiply(context, x, row, rows, begin, end, acc.data(), nullptr);
      });
}

void BitLinear::forward(const ExecutionContext& context, const QuantizedRows& x, std::span<float> y) const {
  forward(context, view_of(x), y);
}

void BitLinear::forward(const ExecutionContext& context, const QuantizedView& x, std::span<float> y) const {
  const Product one{this, y};
  run(context, x, {&one, 1});
}

void BitLinear::forward_each(const ExecutionContext& context, const QuantizedRows& x,
                             std::span<const Product> products) {
  run(context, view_of(x), products);
}

void BitLinear::run(const ExecutionContext& context, const QuantizedView& x,
                    std::span<const Product> products) {
  std::int64_t pairs = 0;  // of all products, one after the other
  for (const Product& p : products) {
    p.linear->check_product(x, p.y.size());
    pairs += ceil_div(p.linear->impl_->tiles, 2);
  }
  cut(context, x, pairs, [&](std::int64_t row, std::int64_t rows, std::int64_t begin, std::int64_t end) {
    std::int64_t first = 0;
    for (const Product& p : products) {
      const std::int64_t last = first + ceil_div(p.linear->impl_->tiles, 2);
      const std::int64_t from = std::max(begin, first), to = std::min(end, last);
      if (from < to) {
        p.linear->multiply(context, x, row, rows, from - first, to - first, nullptr, p.y.data());
      }
      first = last;
    }
  });
}

void BitLinear::forward_sum(const ExecutionContext& context, std::span<const Summand> summands,
                            std::span<float> scratch, std::span<float> y) {
  check(!summands.empty(), "a sum of no products");
  const Summand& first = summands.front();
  const std::int64_t out = first.linear->out();
  for (const Summand& s : summands) {
    s.linear->check_product(s.x, y.size());
    check(s.linear->out() == out && s.x.rows == first.x.rows, "a product [{}, {}] in a sum of [{}, {}]",
          s.x.rows, s.linear->out(), first.x.rows, out);
  }
  check(scratch.size() >= y.size(), "scratch of {} for {} results", scratch.size(), y.size());
  const F32Kernels& kernels = tested_f32_kernels(context.isa());
  const auto run = [&](std::int64_t row, std::int64_t rows, std::int64_t begin, std::int64_t end) {
    const std::int64_t from = 2 * kTileRows * begin, to = std::min(out, 2 * kTileRows * end);
    for (const Summand& s : summands) {
      const bool own = &s == &first;
      s.linear->multiply(context, s.x, row, rows, begin, end, nullptr, own ? y.data() : scratch.data());
      for (std::int64_t r = row; !own && r < row + rows; ++r)
        kernels.add(scratch.data() + r * out + from, y.data() + r * out + from,
                    static_cast<std::size_t>(to - from));
    }
  };
  // The work is that of all columns together, what a kernel goes over at a time the rows of one product.
  QuantizedView whole = first.x;
  whole.cols = 0;
  for (const Summand& s : summands) {
    whole.cols += s.x.cols;
    whole.stride = std::max(whole.stride, s.x.stride);
  }
  cut(context, whole, ceil_div(first.linear->impl_->tiles, 2), run);
}

std::vector<std::int8_t> BitLinear::trits() const {
  std::vector<std::int8_t> result(static_cast<std::size_t>(impl_->out * impl_->in));
  unpack_rows(0, impl_->out, result);
  return result;
}

void BitLinear::unpack_rows(std::int64_t begin, std::int64_t end, std::span<std::int8_t> to) const {
  const Impl& m = *impl_;
  check(begin >= 0 && begin % kTileRows == 0 && begin <= end && end <= m.out,
        "rows {} to {} of {}: expected the first to be a multiple of {}", begin, end, m.out, kTileRows);
  check(to.size() == static_cast<std::size_t>((end - begin) * m.in), "room for {} trits of {} rows of {}",
        to.size(), end - begin, m.in);
  for (std::int64_t o = begin; o < end; o += kTileRows)
    unpack_tile(m.code, m.packed.get() + o / kTileRows * m.lines * kLineBytes, std::min(kTileRows, end - o),
                m.in, to.data() + (o - begin) * m.in);
}

}  // namespace bitnet::quant
