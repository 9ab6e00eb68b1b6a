// Int8Linear: rounding and repacking (prepare), then products cut over threads (run). The products themselves
// are kernels/generic/int8.inl.hpp, the tile layout is described in kernels/int8_table.hpp.
#include "bitnet/quant/int8_linear.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <string_view>

#include "bitnet/core/error.hpp"
#include "bitnet/core/f32_kernels.hpp"
#include "kernels/int8_table.hpp"
#include "linear_common.hpp"
#include "self_test.hpp"
#include "tile_memory.hpp"

namespace bitnet::quant {
namespace {

constexpr float kSmallest = 1e-30f;  // of the definition's max(…, 1e-30): 127 / m stays finite

template <class... Args>
void check(bool ok, std::string_view message, const Args&... args) {
  check_argument("Int8Linear", ok, message, args...);
}

bool all_finite(std::span<const float> v) {
  std::uint32_t not_finite = 0;  // no branch: the compiler makes vectors of it
  for (const float x : v)
    not_finite |= static_cast<std::uint32_t>((std::bit_cast<std::uint32_t>(x) & 0x7f800000u) == 0x7f800000u);
  return not_finite == 0;
}

}  // namespace

struct Int8Linear::Impl {
  std::int64_t out = 0, in = 0, lines = 0, tiles = 0;
  std::size_t tile_bytes = 0;  // of all tiles
  std::shared_ptr<std::int8_t> packed;
  std::vector<float> scales;  // [out]

  /// Rounds the rows of tiles [begin, end).
  void pack(const ExecutionContext& context, const RowSource& rows, std::int64_t begin, std::int64_t end);
  /// Where dword `line` of row `index` is, for line 0; the next ones follow kInt8LineBytes apart.
  const std::int8_t* at(std::int64_t index) const {
    return packed.get() + index / kInt8TileRows * lines * kInt8LineBytes + index % kInt8TileRows * 4;
  }
};

void Int8Linear::Impl::pack(const ExecutionContext& context, const RowSource& rows, std::int64_t begin,
                            std::int64_t end) {
  const F32Kernels& floats = tested_f32_kernels(context.isa());
  const TernaryKernels& kernels = tested_kernels(context.isa());
  const auto n = static_cast<std::size_t>(in);
  std::vector<float> values(n * static_cast<std::size_t>(kInt8TileRows));
  std::vector<std::int8_t> q(static_cast<std::size_t>(lines * kInt8LineColumns));  // the padding stays zero
  for (std::int64_t tile = begin; tile < end; ++tile) {
    std::int8_t* const to = packed.get() + tile * lines * kInt8LineBytes;
    const std::int64_t first = tile * kInt8TileRows, last = std::min(first + kInt8TileRows, out);
    if (last - first < kInt8TileRows) std::fill(to, to + lines * kInt8LineBytes, std::int8_t{0});
    rows(first, last, values.data());
    for (std::int64_t row = first; row < last; ++row) {
      const std::span<const float> w(values.data() + static_cast<std::size_t>(row - first) * n, n);
      if (!all_finite(w)) {
        const auto bad = std::find_if(w.begin(), w.end(), [](float v) { return !std::isfinite(v); });
        check(false, "the weight in row {}, column {} is {}, not finite", row, bad - w.begin(), *bad);
      }
      const float m = std::max(floats.max_abs(w.data(), n), kSmallest);
      scales[static_cast<std::size_t>(row)] = m / 127.0f;
      kernels.quantize(w.data(), 127.0f / m, q.data(), n);  // |w·(127/m)| rounds to at most 127
      std::int8_t* dword = to + (row - first) * 4;
      for (std::int64_t line = 0; line < lines; ++line, dword += kInt8LineBytes)
        std::memcpy(dword, q.data() + 4 * line, 4);
    }
  }
}

Int8Linear::Int8Linear(const ExecutionContext& context, std::int64_t out, std::int64_t in,
                       const RowSource& rows)
    : impl_(std::make_unique<Impl>()) {
  check(in >= 1 && in <= kInt8MaxColumns, "{} columns: from 1 to {} are possible (int32 sums)", in,
        kInt8MaxColumns);
  check(out >= 1 && out <= (std::int64_t{1} << 40) / in, "{} x {} is no possible size", out, in);
  Impl& m = *impl_;
  m.out = out;
  m.in = in;
  m.lines = ceil_div(in, kInt8LineColumns);
  m.tiles = ceil_div(out, kInt8TileRows);
  m.tile_bytes = static_cast<std::size_t>(m.tiles * m.lines * kInt8LineBytes);
  const std::shared_ptr<std::uint8_t> bytes =
      with_context(fmt::format("Int8Linear: a matrix of {} x {}", out, in),
                   [&] { return allocate_tiles(context, m.tile_bytes); });
  m.packed = {bytes, reinterpret_cast<std::int8_t*>(bytes.get())};
  m.scales.resize(static_cast<std::size_t>(out));
  tested_int8_kernels(context.isa());  // here, so that the first product does not do it
  context.parallel_for(static_cast<std::size_t>(m.tiles), 1, [&](std::size_t begin, std::size_t end) {
    m.pack(context, rows, static_cast<std::int64_t>(begin), static_cast<std::int64_t>(end));
  });
}

namespace {

std::span<const float> checked(std::span<const float> w, std::int64_t out, std::int64_t in) {
  check(out >= 1 && in >= 1 && w.size() % static_cast<std::size_t>(in) == 0 &&
            w.size() / static_cast<std::size_t>(in) == static_cast<std::size_t>(out),
        "{} weights for a matrix of {} x {}", w.size(), out, in);
  return w;
}

}  // namespace

Int8Linear::Int8Linear(const ExecutionContext& context, std::int64_t out, std::int64_t in,
                       std::span<const float> w)
    : Int8Linear(context, out, in,
                 [from = checked(w, out, in).data(), in](std::int64_t begin, std::int64_t end, float* to) {
                   std::copy(from + begin * in, from + end * in, to);
                 }) {}

Int8Linear::~Int8Linear() = default;
Int8Linear::Int8Linear(Int8Linear&&) noexcept = default;

std::int64_t Int8Linear::out() const noexcept { return impl_->out; }
std::int64_t Int8Linear::in() const noexcept { return impl_->in; }
std::size_t Int8Linear::bytes() const noexcept {
  return impl_->tile_bytes + impl_->scales.size() * sizeof(float);
}
std::span<const float> Int8Linear::scales() const noexcept { return impl_->scales; }

void Int8Linear::run(const ExecutionContext& context, const QuantizedRows& x, std::int32_t* acc, float* y,
                     std::size_t size) const {
  const Impl& m = *impl_;
  check(x.cols == m.in, "input rows of {}, expected {}", x.cols, m.in);
  check(x.rows >= 0 && x.stride % 64 == 0 && x.stride >= m.lines * kInt8LineColumns &&
            x.values.size() >= static_cast<std::size_t>(x.rows * x.stride) &&
            x.sums.size() >= static_cast<std::size_t>(x.rows) &&
            x.inv_scales.size() >= static_cast<std::size_t>(x.rows),
        "the input rows are not as quantize_rows makes them");
  check(size == static_cast<std::size_t>(x.rows * m.out), "{} results for {} rows of {}", size, x.rows,
        m.out);
  const Int8Kernels& kernels = tested_int8_kernels(context.isa());
  // A chunk of rows of at most 256 KB stays in L2 beside the two tiles that pass over it.
  const std::int64_t chunk = std::max<std::int64_t>(32, (std::int64_t{256} << 10) / x.stride);
  for (std::int64_t row = 0; row < x.rows; row += chunk) {
    const std::int64_t rows = std::min(chunk, x.rows - row);
    const Int8Product product{.tiles = m.packed.get(),
                              .lines = m.lines,
                              .out = m.out,
                              .tile_begin = 0,
                              .tile_end = m.tiles,
                              .x = x.values.data() + row * x.stride,
                              .stride = x.stride,
                              .rows = rows,
                              .sums = x.sums.data() + row,
                              .acc = acc != nullptr ? acc + row * m.out : nullptr,
                              .y = y != nullptr ? y + row * m.out : nullptr,
                              .scales = m.scales.data(),
                              .inv_scales = x.inv_scales.data() + row};
    // Pairs of tiles, so that every cut keeps the kernels' widest blocks.
    const std::int64_t pair_work = 2 * kInt8TileRows * m.in * rows;
    const auto grain = static_cast<std::size_t>(ceil_div(kWorkPerThread, pair_work));
    context.parallel_for(static_cast<std::size_t>(ceil_div(m.tiles, 2)), grain,
                         [&](std::size_t begin, std::size_t end) {
                           Int8Product part = product;
                           part.tile_begin = 2 * static_cast<std::int64_t>(begin);
                           part.tile_end = std::min(m.tiles, 2 * static_cast<std::int64_t>(end));
                           kernels.multiply(part);
                         });
  }
}

void Int8Linear::multiply_int(const ExecutionContext& context, const QuantizedRows& x,
                              std::span<std::int32_t> acc) const {
  if (!acc.empty() || x.rows != 0) run(context, x, acc.data(), nullptr, acc.size());
}

void Int8Linear::forward(const ExecutionContext& context, const QuantizedRows& x, std::span<float> y) const {
  run(context, x, nullptr, y.data(), y.size());
}

void Int8Linear::row(std::int64_t index, std::span<float> to) const {
  const Impl& m = *impl_;
  check(index >= 0 && index < m.out, "row {} of {}", index, m.out);
  check(to.size() == static_cast<std::size_t>(m.in), "{} places for a row of {}", to.size(), m.in);
  const float scale = m.scales[static_cast<std::size_t>(index)];
  const std::int8_t* dword = m.at(index);
  std::int64_t k = 0;
  for (; k + 4 <= m.in; k += 4, dword += kInt8LineBytes)
    for (std::int64_t j = 0; j < 4; ++j)
      to[static_cast<std::size_t>(k + j)] = static_cast<float>(dword[j]) * scale;
  for (; k < m.in; ++k, ++dword) to[static_cast<std::size_t>(k)] = static_cast<float>(*dword) * scale;
}

std::vector<std::int8_t> Int8Linear::values(std::int64_t index) const {
  const Impl& m = *impl_;
  check(index >= 0 && index < m.out, "row {} of {}", index, m.out);
  std::vector<std::int8_t> result(static_cast<std::size_t>(m.in));
  for (std::int64_t k = 0; k < m.in; ++k)
    result[static_cast<std::size_t>(k)] = m.at(index)[k / kInt8LineColumns * kInt8LineBytes + k % 4];
  return result;
}

}  // namespace bitnet::quant
