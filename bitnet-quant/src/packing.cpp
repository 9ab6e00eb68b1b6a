// Writing the file layouts of ternary matrices: checks, then one coder per layout. Every coder names the
// bytes as docs/formats/ternary-layouts.md does. Reading them is unpacking.cpp's, layouts in memory
// bit_linear.cpp's.
#include "bitnet/quant/packing.hpp"

#include <fmt/format.h>

#include <array>
#include <cmath>
#include <cstring>

#include "bitnet/core/dtype.hpp"
#include "bitnet/core/error.hpp"
#include "packing_layout.hpp"

namespace bitnet::quant {
namespace {

constexpr std::array kLayouts{TernaryLayout::kHfUint8, TernaryLayout::kI2_S, TernaryLayout::kTQ1_0,
                              TernaryLayout::kTQ2_0};
using namespace file_layout;

std::size_t column_multiple(TernaryLayout layout) {
  switch (layout) {
    case TernaryLayout::kHfUint8:
      return 1;
    case TernaryLayout::kI2_S:
      return kI2SBlock;
    case TernaryLayout::kTQ1_0:
      return kTqBlock;
    case TernaryLayout::kTQ2_0:
      return kTqBlock;
  }
  return 1;
}

bool scale_is_in_blocks(TernaryLayout layout) {
  return layout == TernaryLayout::kTQ1_0 || layout == TernaryLayout::kTQ2_0;
}

/// Scales side by side in a row.
std::size_t scales_across(const TernaryWeights& w) {
  return w.cols_per_scale == 0 || w.in == 0 ? 1 : static_cast<std::size_t>((w.in - 1) / w.cols_per_scale + 1);
}

void check_weights(const TernaryWeights& w) {
  const auto bad = [](const std::string& what) {
    return Error(ErrorCode::kInvalidArgument, "pack: " + what);
  };
  if (w.out < 0 || w.in < 0 || (w.in > 0 && w.out > (std::int64_t{1} << 48) / w.in) ||
      w.trits.size() != static_cast<std::size_t>(w.out * w.in))
    throw bad(fmt::format("{} trits for a matrix of {} x {}", w.trits.size(), w.out, w.in));
  if (w.cols_per_scale < 0) throw bad(fmt::format("{} columns a scale", w.cols_per_scale));
  const std::size_t down =
      w.rows_per_scale > 0 ? static_cast<std::size_t>((w.out - 1) / w.rows_per_scale + 1) : 0;
  if (w.out > 0 && (w.rows_per_scale <= 0 || w.scales.size() != down * scales_across(w)))
    throw bad(fmt::format(
        "{} scales for {} rows, {} rows each{}", w.scales.size(), w.out, w.rows_per_scale,
        w.cols_per_scale == 0 ? "" : fmt::format(", by groups of {} of {} columns", w.cols_per_scale, w.in)));
  for (std::size_t i = 0; i < w.trits.size(); ++i)
    if (w.trits[i] < -1 || w.trits[i] > 1)
      throw bad(fmt::format("value {} is {}, not -1, 0 or 1", i, static_cast<int>(w.trits[i])));
  for (std::size_t i = 0; i < w.scales.size(); ++i)
    if (!std::isfinite(w.scales[i])) throw bad(fmt::format("scale {} is {}, not finite", i, w.scales[i]));
}

/// Code trit + 1 of element i.
unsigned code(const TernaryWeights& w, std::size_t i) { return static_cast<unsigned>(w.trits[i] + 1); }

/// Of the columns from `column` on, in a row.
float scale_at(const TernaryWeights& w, std::size_t row, std::size_t column) {
  const std::size_t down = row / static_cast<std::size_t>(w.rows_per_scale);
  if (w.cols_per_scale == 0) return w.scales[down];
  return w.scales[down * scales_across(w) + column / static_cast<std::size_t>(w.cols_per_scale)];
}

template <class T>
void store(std::byte* to, T value) {
  std::memcpy(to, &value, sizeof value);
}

// --- Hugging Face uint8: byte [r, c] holds rows r, r + R, r + 2R, r + 3R from the low bits, R = ceil(out/4)
// -----

void pack_hf(const TernaryWeights& w, std::byte* to) {
  const auto out = static_cast<std::size_t>(w.out), in = static_cast<std::size_t>(w.in),
             quarter = (out + 3) / 4;
  for (std::size_t o = 0; o < out; ++o)
    for (std::size_t c = 0; c < in; ++c)
      to[o % quarter * in + c] |= static_cast<std::byte>(code(w, o * in + c) << (2 * (o / quarter)));
}

// --- I2_S: per 128 elements 32 bytes, element j in byte j % 32 at shift 6 − 2·(j / 32); one f32 scale at the
// end ----

void pack_i2s(const TernaryWeights& w, std::byte* to) {
  const std::size_t n = w.trits.size();
  for (std::size_t block = 0; block < n; block += kI2SBlock)
    for (std::size_t p = 0; p < 32; ++p)
      to[block / 4 + p] = static_cast<std::byte>(code(w, block + p) << 6 | code(w, block + 32 + p) << 4 |
                                                 code(w, block + 64 + p) << 2 | code(w, block + 96 + p));
  store(to + n / 4, w.scales.empty() ? 1.0f : w.scales[0]);
}

// --- TQ2_0: element h·128 + l·32 + m in byte h·32 + m at shift 2·l, then an f16 scale
// -------------------------------

void pack_tq2_block(const std::int8_t* trits, std::byte* to) {
  for (std::size_t h = 0; h < 2; ++h)
    for (std::size_t m = 0; m < 32; ++m) {
      const std::int8_t* const t = trits + h * 128 + m;
      to[h * 32 + m] =
          static_cast<std::byte>((t[0] + 1) | (t[32] + 1) << 2 | (t[64] + 1) << 4 | (t[96] + 1) << 6);
    }
}

// --- TQ1_0: base-3 digits, first the most significant, as a fraction of 3^5 scaled to a byte
// ------------------------

void pack_tq1_block(const std::int8_t* trits, std::byte* to) {
  for (const Tq1Run& run : kTq1Runs)
    for (std::size_t m = 0; m < run.count; ++m) {
      unsigned q = 0;
      for (std::size_t n = 0; n < 5; ++n)
        q = q * 3 + (n < run.digits ? static_cast<unsigned>(trits[run.first + m + run.count * n] + 1) : 0);
      to[run.first_byte + m] = static_cast<std::byte>((q * 256 + 242) / 243);
    }
}

void pack_tq(TernaryLayout layout, const TernaryWeights& w, std::byte* to) {
  const std::size_t bytes = layout == TernaryLayout::kTQ1_0 ? kTq1Bytes : kTq2Bytes;
  const std::size_t blocks = w.trits.size() / kTqBlock, per_row = static_cast<std::size_t>(w.in) / kTqBlock;
  for (std::size_t b = 0; b < blocks; ++b, to += bytes) {
    const std::int8_t* const trits = w.trits.data() + b * kTqBlock;
    if (layout == TernaryLayout::kTQ1_0)
      pack_tq1_block(trits, to);
    else
      pack_tq2_block(trits, to);
    store(to + bytes - 2, f32_to_f16(scale_at(w, b / per_row, b % per_row * kTqBlock)));
  }
}

}  // namespace

std::string_view to_string(TernaryLayout layout) noexcept {
  switch (layout) {
    case TernaryLayout::kHfUint8:
      return "hf";
    case TernaryLayout::kI2_S:
      return "i2_s";
    case TernaryLayout::kTQ1_0:
      return "tq1_0";
    case TernaryLayout::kTQ2_0:
      return "tq2_0";
  }
  return "?";
}

bool layout_holds(TernaryLayout layout, const TernaryWeights& w, std::string* why) {
  const auto no = [&](std::string reason) {
    if (why != nullptr) *why = std::move(reason);
    return false;
  };
  const bool blocks = scale_is_in_blocks(layout);
  if (w.cols_per_scale != 0 && !(blocks && w.cols_per_scale % static_cast<std::int64_t>(kTqBlock) == 0))
    return no(fmt::format("{} holds no scales of groups of {} columns", to_string(layout), w.cols_per_scale));
  const std::size_t multiple = column_multiple(layout);
  if (w.in < 0 || static_cast<std::size_t>(w.in) % multiple != 0)
    return no(fmt::format("{} needs columns in multiples of {}, got {}", to_string(layout), multiple, w.in));
  if (!blocks) {
    for (const float s : w.scales)
      if (s != w.scales[0])
        return no(fmt::format("{} holds one scale a matrix, got {}", to_string(layout), w.scales.size()));
    return true;
  }
  for (const float s : w.scales) {
    const float half = f16_to_f32(f32_to_f16(s));
    if (!std::isfinite(half) || (half == 0 && s != 0))
      return no(fmt::format("{} holds scales as f16, which cannot represent {}", to_string(layout), s));
  }
  return true;
}

std::size_t packed_bytes(TernaryLayout layout, std::int64_t out, std::int64_t in) {
  constexpr std::int64_t kMost = std::int64_t{1} << 48;  // elements: far above any file, far below overflow
  if (out < 0 || in < 0 || out > kMost || in > kMost || (in > 0 && out > kMost / in)) {
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("{}: {} x {} is no possible size", to_string(layout), out, in));
  }
  const auto rows = static_cast<std::size_t>(out), cols = static_cast<std::size_t>(in);
  if (cols % column_multiple(layout) != 0) {
    throw Error(ErrorCode::kInvalidArgument, fmt::format("{} needs columns in multiples of {}, got {}",
                                                         to_string(layout), column_multiple(layout), in));
  }
  switch (layout) {
    case TernaryLayout::kHfUint8:
      return (rows + 3) / 4 * cols;
    case TernaryLayout::kI2_S:
      return rows * cols / 4 + kI2STail;
    case TernaryLayout::kTQ1_0:
      return rows * cols / kTqBlock * kTq1Bytes;
    case TernaryLayout::kTQ2_0:
      return rows * cols / kTqBlock * kTq2Bytes;
  }
  return 0;
}

std::vector<std::byte> pack(TernaryLayout layout, const TernaryWeights& w) {
  check_weights(w);
  if (std::string why; !layout_holds(layout, w, &why)) {
    std::string others;
    for (const TernaryLayout other : kLayouts)
      if (layout_holds(other, w)) others += std::string(to_string(other)) + ", ";
    throw Error(ErrorCode::kUnsupported, fmt::format("{}; types that would do: {}extended", why, others));
  }
  std::vector<std::byte> bytes(packed_bytes(layout, w.out, w.in));
  switch (layout) {
    case TernaryLayout::kHfUint8:
      pack_hf(w, bytes.data());
      break;
    case TernaryLayout::kI2_S:
      pack_i2s(w, bytes.data());
      break;
    case TernaryLayout::kTQ1_0:
    case TernaryLayout::kTQ2_0:
      pack_tq(layout, w, bytes.data());
      break;
  }
  return bytes;
}

}  // namespace bitnet::quant
