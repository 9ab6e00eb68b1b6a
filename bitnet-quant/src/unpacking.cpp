// Reading the file layouts of ternary matrices, whole or in rows. The inner loops are on 16-byte vectors that
// every compiler and baseline has (loading is bound by them and by memory). Writing is packing.cpp's.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "bitnet/core/dtype.hpp"
#include "bitnet/core/error.hpp"
#include "bitnet/quant/packing.hpp"
#include "packing_layout.hpp"

namespace bitnet::quant {
namespace {

using namespace file_layout;

using Bytes16 = std::uint8_t __attribute__((vector_size(16)));
using Words = std::uint64_t __attribute__((vector_size(16)));

template <class T>
T fetch(const void* from) {
  T value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

/// The trits of 16 bytes whose codes are at bits `shift` and `shift` + 1.
Bytes16 trits_at(Bytes16 bytes, int shift) {
  const auto codes = (Bytes16)(((Words)bytes >> shift) & 0x0303030303030303u);
  return codes - 1;
}

/// Nonzero where bits 2n and 2n + 1 of a byte are both set: a code 3.
Words threes(Bytes16 bytes) { return (Words)bytes & ((Words)bytes >> 1) & 0x5555555555555555u; }

bool any(Words w) { return (w[0] | w[1]) != 0; }

/// A code 3 among the bits that `mask` selects of `n` bytes; `first` is the offset of from[0] in the matrix.
[[noreturn]] void refuse_code(TernaryLayout layout, const std::byte* from, std::size_t n, std::size_t first,
                              unsigned mask) {
  const auto* const at = std::find_if(from, from + n, [mask](std::byte b) {
    const auto v = std::to_integer<unsigned>(b);
    return (v & (v >> 1) & 0x55u & mask) != 0;
  });
  throw Error(ErrorCode::kCorruptFile,
              fmt::format("{}: byte {} holds code 3, which is no ternary value", to_string(layout),
                          first + static_cast<std::size_t>(at - from)));
}

/// 32 bytes → 128 trits, run q of 32 trits from bits shift(q); returns threes().
template <bool kHighFirst>
Words unpack_128(const std::byte* from, std::int8_t* to) {
  Words bad{};
  for (std::size_t half = 0; half < 2; ++half) {
    const auto bytes = fetch<Bytes16>(from + 16 * half);
    bad |= threes(bytes);
    for (int q = 0; q < 4; ++q) {
      const Bytes16 trits = trits_at(bytes, kHighFirst ? 6 - 2 * q : 2 * q);
      std::memcpy(to + 16 * half + 32 * static_cast<std::size_t>(q), &trits, sizeof trits);
    }
  }
  return bad;
}

void unpack_i2s(const std::byte* from, std::size_t first_byte, std::size_t n, std::int8_t* to) {
  Words bad{};
  for (std::size_t i = 0; i < n; i += kI2SBlock) bad |= unpack_128<true>(from + i / 4, to + i);
  if (any(bad)) refuse_code(TernaryLayout::kI2_S, from, n / 4, first_byte, 0xff);
}

void unpack_tq2_block(const std::byte* block, std::size_t first_byte, std::int8_t* to) {
  const Words bad = unpack_128<false>(block, to) | unpack_128<false>(block + 32, to + 128);
  if (any(bad)) refuse_code(TernaryLayout::kTQ2_0, block, kTqBlock / 4, first_byte, 0xff);
}

/// The next digit of base-3 fractions: ⌊3·rest / 256⌋ − 1 is returned, 3·rest mod 256 stays. 3·85 = 255 is
/// below 256, 3·170 = 510 below 512. A comparison that holds is −1.
Bytes16 next_trits(Bytes16& rest) {
  const Bytes16 above_85 = (Bytes16)(rest > 85), above_170 = (Bytes16)(rest > 170);
  rest = rest + rest + rest;
  return (Bytes16{} - 1) - above_85 - above_170;
}

void unpack_tq1_block(const std::byte* block, std::int8_t* to) {
  for (const Tq1Run& run : kTq1Runs)
    for (std::size_t m = 0; m < run.count; m += 16) {
      const std::size_t n = std::min<std::size_t>(16, run.count - m);
      Bytes16 rest{};
      std::memcpy(&rest, block + run.first_byte + m, n);
      for (std::size_t digit = 0; digit < run.digits; ++digit) {
        const Bytes16 trits = next_trits(rest);
        std::memcpy(to + run.first + m + run.count * digit, &trits, n);
      }
    }
}

/// One row; bits of rows that are not there are not looked at.
void unpack_hf_row(const std::byte* from, std::size_t first_byte, int shift, std::size_t in,
                   std::int8_t* to) {
  Words bad{};
  const Words mask = Words{} + 0x0101010101010101u * (1u << shift);
  for (std::size_t c = 0; c < in; c += 16) {
    const std::size_t n = std::min<std::size_t>(16, in - c);
    Bytes16 bytes{};
    if (n == 16)
      bytes = fetch<Bytes16>(from + c);
    else
      std::memcpy(&bytes, from + c, n);
    bad |= threes(bytes) & mask;
    const Bytes16 trits = trits_at(bytes, shift);
    if (n == 16)
      std::memcpy(to + c, &trits, 16);
    else
      std::memcpy(to + c, &trits, n);
  }
  if (any(bad)) refuse_code(TernaryLayout::kHfUint8, from, in, first_byte, 1u << shift);
}

// --- Scales of the TQ types -----------------------------------------------------------------------------

std::size_t tq_bytes(TernaryLayout layout) { return layout == TernaryLayout::kTQ1_0 ? kTq1Bytes : kTq2Bytes; }

bool all_zero(TernaryLayout layout, const std::byte* block) {
  std::int8_t trits[kTqBlock];
  if (layout == TernaryLayout::kTQ1_0)
    unpack_tq1_block(block, trits);
  else
    unpack_tq2_block(block, 0, trits);
  return std::all_of(trits, trits + kTqBlock, [](std::int8_t t) { return t == 0; });
}

std::vector<float> block_scales(TernaryLayout layout, std::span<const std::byte> bytes) {
  const std::size_t size = tq_bytes(layout);
  std::vector<float> scales(bytes.size() / size);
  for (std::size_t b = 0; b < scales.size(); ++b) {
    scales[b] = f16_to_f32(fetch<std::uint16_t>(bytes.data() + (b + 1) * size - 2));
    if (!std::isfinite(scales[b])) {
      throw Error(ErrorCode::kCorruptFile, fmt::format("{}: the scale of block {} is {}, not finite",
                                                       to_string(layout), b, scales[b]));
    }
  }
  return scales;
}

/// Blocks of zeros with scale 0 (llama.cpp's quantiser takes the largest |w| of a block) mean the same with
/// any scale: they take their row's, else the matrix's first one.
void adopt_scales(TernaryLayout layout, std::span<const std::byte> bytes, std::size_t per_row,
                  std::vector<float>& scales) {
  std::vector<bool> empty(scales.size());
  float first = 0;
  for (std::size_t b = 0; b < scales.size(); ++b) {
    empty[b] = scales[b] == 0 && all_zero(layout, bytes.data() + b * tq_bytes(layout));
    if (first == 0 && !empty[b]) first = scales[b];
  }
  for (std::size_t row = 0; row < scales.size(); row += per_row) {
    float scale = first;
    for (std::size_t b = row + per_row; b-- > row;)
      if (!empty[b]) scale = scales[b];
    for (std::size_t b = row; b < row + per_row; ++b)
      if (empty[b]) scales[b] = scale;
  }
}

bool all_equal(std::span<const float> scales) {
  return std::all_of(scales.begin(), scales.end(), [&](float s) { return s == scales[0]; });
}

/// One scale if all blocks agree, one per row if each row's do; empty if a row's differ.
std::vector<float> merge_scales(const std::vector<float>& scales, std::size_t per_row) {
  if (all_equal(scales)) return {scales[0]};
  std::vector<float> rows;
  for (std::size_t b = 0; b < scales.size(); b += per_row) {
    if (!all_equal(std::span(scales).subspan(b, per_row))) return {};
    rows.push_back(scales[b]);
  }
  return rows;
}

}  // namespace

PackedMatrix::PackedMatrix(TernaryLayout layout, std::span<const std::byte> bytes, std::int64_t out,
                           std::int64_t in)
    : layout_(layout), bytes_(bytes), out_(out), in_(in), rows_per_scale_(out) {
  std::size_t expected = 0;
  try {
    expected = packed_bytes(layout, out, in);
  } catch (const Error& e) {  // here the sizes come from a file
    throw Error(ErrorCode::kCorruptFile, e.what());
  }
  if (bytes.size() != expected) {
    throw Error(ErrorCode::kCorruptFile, fmt::format("{}: {} bytes for a matrix of {} x {}, expected {}",
                                                     to_string(layout), bytes.size(), out, in, expected));
  }
  if (layout == TernaryLayout::kI2_S) {
    const std::size_t at = bytes.size() - kI2STail;
    scales_ = {fetch<float>(bytes.data() + at)};
    if (!std::isfinite(scales_[0]))
      throw Error(ErrorCode::kCorruptFile,
                  fmt::format("i2_s: the scale at byte {} is {}, not finite", at, scales_[0]));
  } else if (layout != TernaryLayout::kHfUint8) {
    const std::size_t per_row = static_cast<std::size_t>(in) / kTqBlock;
    std::vector<float> scales = block_scales(layout, bytes);
    if (scales.empty()) return;
    std::vector<float> adopted = scales;
    adopt_scales(layout, bytes, per_row, adopted);
    scales_ = merge_scales(adopted, per_row);
    if (scales_.empty()) {  // each block keeps what the file has
      scales_ = std::move(scales);
      cols_per_scale_ = kTqBlock;
    }
    if (scales_.size() > 1) rows_per_scale_ = 1;
  }
}

void PackedMatrix::unpack_rows(std::int64_t begin, std::int64_t end, std::int8_t* to) const {
  const auto rows = static_cast<std::size_t>(out_), in = static_cast<std::size_t>(in_);
  const auto first = static_cast<std::size_t>(begin) * in, n = static_cast<std::size_t>(end) * in - first;
  switch (layout_) {
    case TernaryLayout::kHfUint8: {
      const std::size_t quarter = (rows + 3) / 4;
      for (auto o = static_cast<std::size_t>(begin); o < static_cast<std::size_t>(end); ++o, to += in) {
        const std::size_t at = o % quarter * in;
        unpack_hf_row(bytes_.data() + at, at, static_cast<int>(2 * (o / quarter)), in, to);
      }
      return;
    }
    case TernaryLayout::kI2_S:
      return unpack_i2s(bytes_.data() + first / 4, first / 4, n, to);
    case TernaryLayout::kTQ1_0:
      for (std::size_t b = first / kTqBlock; b < (first + n) / kTqBlock; ++b, to += kTqBlock)
        unpack_tq1_block(bytes_.data() + b * kTq1Bytes, to);
      return;
    case TernaryLayout::kTQ2_0:
      for (std::size_t b = first / kTqBlock; b < (first + n) / kTqBlock; ++b, to += kTqBlock)
        unpack_tq2_block(bytes_.data() + b * kTq2Bytes, b * kTq2Bytes, to);
      return;
  }
}

TernaryWeights unpack(TernaryLayout layout, std::span<const std::byte> bytes, std::int64_t out,
                      std::int64_t in) {
  const PackedMatrix matrix(layout, bytes, out, in);
  TernaryWeights w{.out = out,
                   .in = in,
                   .trits = {},
                   .scales = matrix.scales(),
                   .rows_per_scale = matrix.rows_per_scale(),
                   .cols_per_scale = matrix.cols_per_scale()};
  w.trits.resize(static_cast<std::size_t>(out * in));
  matrix.unpack_rows(0, out, w.trits.data());
  return w;
}

}  // namespace bitnet::quant
