// BitLinear: checks and repacking (prepare), then products cut over threads (run). The products themselves
// are kernels/generic/ternary.inl.hpp, the tile layout is described in kernels/ternary_table.hpp.
#include "bitnet/quant/bit_linear.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <iterator>
#include <new>
#include <string_view>

#include "bitnet/core/error.hpp"
#include "kernels/ternary_table.hpp"

namespace bitnet::quant {
namespace {

struct AlignedFree {
  void operator()(std::uint8_t* p) const noexcept { ::operator delete (p, std::align_val_t{64}); }
};
using AlignedBytes = std::unique_ptr<std::uint8_t, AlignedFree>;

/// Multiply-adds that are worth a second thread: some 10 µs of one core.
constexpr std::int64_t kWorkPerThread = 2'000'000;

constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

/// Throws unless `ok`; the message is put together only then, so that a check costs and allocates nothing.
template <class... Args>
void check(bool ok, std::string_view message, const Args&... args) {
  if (!ok)
    throw Error(ErrorCode::kInvalidArgument,
                "BitLinear: " + fmt::vformat(message, fmt::make_format_args(args...)));
}

/// Codes trit + 1 of four trits, byte by byte (no carry from one to the next).
std::uint32_t codes_of(const std::int8_t* trits) {
  std::uint32_t t;
  std::memcpy(&t, trits, 4);
  return ((t & 0x7f7f7f7fu) + 0x01010101u) ^ (t & 0x80808080u);
}

/// Nonzero where a byte is no code 0, 1 or 2.
std::uint32_t not_codes(std::uint32_t codes) {
  return (codes & 0xfcfcfcfcu) | (codes & (codes >> 1) & 0x01010101u);
}

/// Codes of rows [16·tile, …) into `to` [lines, 64]. Returns false if any value is no trit.
bool pack_tile(const std::int8_t* trits, std::int64_t out, std::int64_t in, std::int64_t tile,
               std::uint8_t* to) {
  std::uint32_t wrong = 0;
  for (std::int64_t r = 0; r < kTileRows && tile * kTileRows + r < out; ++r) {
    const std::int8_t* const row = trits + (tile * kTileRows + r) * in;
    for (std::int64_t k = 0; k < in; k += kLineColumns) {
      std::int8_t last[kLineColumns];
      const std::int8_t* from = row + k;
      if (in - k < kLineColumns) {  // padded columns meet activations that are zero
        std::fill(std::begin(last), std::end(last), std::int8_t{0});
        std::copy(from, row + in, last);
        from = last;
      }
      const std::uint32_t c0 = codes_of(from), c1 = codes_of(from + 4), c2 = codes_of(from + 8),
                          c3 = codes_of(from + 12);
      wrong |= not_codes(c0) | not_codes(c1) | not_codes(c2) | not_codes(c3);
      const std::uint32_t line = c0 | c1 << 2 | c2 << 4 | c3 << 6;
      std::memcpy(to + k / kLineColumns * kLineBytes + 4 * r, &line, 4);
    }
  }
  return wrong == 0;
}

}  // namespace

struct BitLinear::Impl {
  std::int64_t out = 0, in = 0, lines = 0, tiles = 0;
  std::size_t tile_bytes = 0;  // of all tiles
  AlignedBytes packed;
  std::vector<float> scales;  // [out]
};

BitLinear::BitLinear(const ExecutionContext& context, const TernaryWeights& weights)
    : BitLinear(context, weights.out, weights.in, weights.trits, weights.scales, weights.rows_per_scale) {}

BitLinear::BitLinear(const ExecutionContext& context, std::int64_t out, std::int64_t in,
                     std::span<const std::int8_t> trits, std::span<const float> scales,
                     std::int64_t rows_per_scale)
    : impl_(std::make_unique<Impl>()) {
  check(in >= 1 && in <= kMaxColumns, "{} columns: from 1 to {} are possible (int32 sums)", in, kMaxColumns);
  check(out >= 1 && out <= (std::int64_t{1} << 40) / in, "{} x {} is no possible size", out, in);
  check(trits.size() == static_cast<std::size_t>(out * in), "{} trits for a matrix of {} x {}", trits.size(),
        out, in);
  check(rows_per_scale >= 1, "{} rows per scale", rows_per_scale);
  check(scales.size() == static_cast<std::size_t>(ceil_div(out, rows_per_scale)),
        "{} scales for {} rows, {} rows each", scales.size(), out, rows_per_scale);
  for (std::size_t i = 0; i < scales.size(); ++i)
    check(std::isfinite(scales[i]), "scale {} is {}, not finite", i, scales[i]);

  Impl& m = *impl_;
  m.out = out;
  m.in = in;
  m.lines = ceil_div(in, kLineColumns);
  m.tiles = ceil_div(out, kTileRows);
  m.tile_bytes = static_cast<std::size_t>(m.tiles * m.lines * kLineBytes);
  m.packed.reset(
      static_cast<std::uint8_t*>(::operator new (m.tile_bytes, std::align_val_t{64}, std::nothrow)));
  if (m.packed == nullptr) {
    throw Error(ErrorCode::kOutOfMemory,
                fmt::format("BitLinear: no {} bytes for a matrix of {} x {}", m.tile_bytes, out, in));
  }
  m.scales.resize(static_cast<std::size_t>(out));
  for (std::int64_t o = 0; o < out; ++o)
    m.scales[static_cast<std::size_t>(o)] = scales[static_cast<std::size_t>(o / rows_per_scale)];

  std::atomic<bool> all_trits{true};
  const std::int64_t bytes = m.lines * kLineBytes;
  context.parallel_for(static_cast<std::size_t>(m.tiles), 4, [&](std::size_t begin, std::size_t end) {
    for (auto tile = static_cast<std::int64_t>(begin); tile < static_cast<std::int64_t>(end); ++tile) {
      std::uint8_t* const to = m.packed.get() + tile * bytes;
      if ((tile + 1) * kTileRows > out) std::fill(to, to + bytes, std::uint8_t{0});
      if (!pack_tile(trits.data(), out, in, tile, to)) all_trits = false;
    }
  });
  if (all_trits) return;
  const auto at =
      std::find_if(trits.begin(), trits.end(), [](std::int8_t t) { return t < -1 || t > 1; }) - trits.begin();
  check(false, "trit {} (row {}, column {}) is {}, not -1, 0 or 1", at, at / in, at % in,
        static_cast<int>(trits[static_cast<std::size_t>(at)]));
}

BitLinear::~BitLinear() = default;
BitLinear::BitLinear(BitLinear&&) noexcept = default;

std::int64_t BitLinear::out() const noexcept { return impl_->out; }
std::int64_t BitLinear::in() const noexcept { return impl_->in; }
std::size_t BitLinear::bytes() const noexcept {
  return impl_->tile_bytes + impl_->scales.size() * sizeof(float);
}

void BitLinear::run(const ExecutionContext& context, const QuantizedRows& x, std::int32_t* acc, float* y,
                    std::size_t size) const {
  const Impl& m = *impl_;
  check(x.cols == m.in, "input rows of {}, expected {}", x.cols, m.in);
  check(x.rows >= 0 && x.stride >= m.lines * kLineColumns &&
            x.values.size() >= static_cast<std::size_t>(x.rows * x.stride) &&
            x.sums.size() >= static_cast<std::size_t>(x.rows) &&
            x.inv_scales.size() >= static_cast<std::size_t>(x.rows),
        "the input rows are not as quantize_rows makes them");
  check(size == static_cast<std::size_t>(x.rows * m.out), "{} results for {} rows of {}", size, x.rows,
        m.out);
  const TernaryKernels& kernels = ternary_kernels(context.isa());
  TernaryProduct product{.tiles = m.packed.get(),
                         .lines = m.lines,
                         .out = m.out,
                         .tile_begin = 0,
                         .tile_end = m.tiles,
                         .x = x.values.data(),
                         .stride = x.stride,
                         .rows = 0,
                         .sums = x.sums.data(),
                         .acc = acc,
                         .y = y,
                         .scales = m.scales.data(),
                         .inv_scales = x.inv_scales.data()};
  // A chunk of rows of at most 512 KB stays in L2 while the tiles pass over it.
  const std::int64_t chunk = std::max<std::int64_t>(32, (std::int64_t{512} << 10) / x.stride);
  for (std::int64_t row = 0; row < x.rows; row += chunk) {
    const std::int64_t rows = std::min(chunk, x.rows - row);
    product.rows = rows;
    product.x = x.values.data() + row * x.stride;
    product.sums = x.sums.data() + row;
    product.inv_scales = x.inv_scales.data() + row;
    if (acc != nullptr) product.acc = acc + row * m.out;
    if (y != nullptr) product.y = y + row * m.out;
    // Pairs of tiles, so that every cut keeps the kernels' widest blocks.
    const std::int64_t pair_work = 2 * kTileRows * m.in * rows;
    const auto grain = static_cast<std::size_t>(ceil_div(kWorkPerThread, pair_work));
    context.parallel_for(static_cast<std::size_t>(ceil_div(m.tiles, 2)), grain,
                         [&](std::size_t begin, std::size_t end) {
                           TernaryProduct part = product;
                           part.tile_begin = 2 * static_cast<std::int64_t>(begin);
                           part.tile_end = std::min(m.tiles, 2 * static_cast<std::int64_t>(end));
                           kernels.multiply(part);
                         });
  }
}

void BitLinear::multiply_int(const ExecutionContext& context, const QuantizedRows& x,
                             std::span<std::int32_t> acc) const {
  if (!acc.empty() || x.rows != 0) run(context, x, acc.data(), nullptr, acc.size());
}

void BitLinear::forward(const ExecutionContext& context, const QuantizedRows& x, std::span<float> y) const {
  run(context, x, nullptr, y.data(), y.size());
}

std::vector<std::int8_t> BitLinear::trits() const {
  const Impl& m = *impl_;
  std::vector<std::int8_t> result(static_cast<std::size_t>(m.out * m.in));
  for (std::int64_t o = 0; o < m.out; ++o) {
    const std::uint8_t* const tile = m.packed.get() + o / kTileRows * m.lines * kLineBytes;
    for (std::int64_t k = 0; k < m.in; ++k) {
      const std::uint8_t byte = tile[k / kLineColumns * kLineBytes + o % kTileRows * 4 + k % 4];
      const int code = (byte >> (k % kLineColumns / 4 * 2)) & 3;
      result[static_cast<std::size_t>(o * m.in + k)] = static_cast<std::int8_t>(code - 1);
    }
  }
  return result;
}

}  // namespace bitnet::quant
