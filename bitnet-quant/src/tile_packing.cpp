// The bit arithmetic of tile_packing.hpp: four neighbouring columns are four bytes of one word.
#include "tile_packing.hpp"

#include <algorithm>
#include <array>
#include <cstring>

#include "kernels/ternary_table.hpp"

namespace bitnet::quant {
namespace {

constexpr std::uint32_t kBytes = 0x01010101u;  // the same value in each byte: value · kBytes

/// Codes trit + 1 of four trits, byte by byte (no carry from one to the next).
std::uint32_t codes_of(const std::int8_t* trits) {
  std::uint32_t t;
  std::memcpy(&t, trits, 4);
  return ((t & 0x7fu * kBytes) + kBytes) ^ (t & 0x80u * kBytes);
}

/// Nonzero where a byte is no code 0, 1 or 2.
std::uint32_t not_codes(std::uint32_t codes) {
  return (codes & 0xfcu * kBytes) | (codes & (codes >> 1) & kBytes);
}

/// Four bytes of a kTwoBit line.
std::uint32_t two_bit_word(const std::uint32_t (&c)[5]) { return c[0] | c[1] << 2 | c[2] << 4 | c[3] << 6; }

/// Four bytes of a kBase3 line. No byte carries: t ≤ 80, and escaped bytes, ≤ 242, are masked before they are
/// added up.
std::uint32_t base3_word(const std::uint32_t (&c)[5]) {
  const std::uint32_t t = c[0] + 3 * c[1] + 9 * c[2] + 27 * c[3];
  const std::uint32_t escaped = (t >> 6 & kBytes) * 0xffu;  // bytes of t ≥ 64
  const std::uint32_t beyond = t & escaped & 0x3fu * kBytes;
  return ((t | c[4] << 6) & ~escaped) | ((192u * kBytes & escaped) + 3 * beyond + (c[4] & escaped));
}

/// The five digits of each byte of a kBase3 line; of bytes that pack_tile() never writes, whatever.
std::array<std::array<std::uint8_t, 5>, 256> base3_digits() {
  std::array<std::array<std::uint8_t, 5>, 256> digits{};
  for (unsigned byte = 0; byte < 256; ++byte) {
    const bool escaped = byte >= 192;
    const unsigned t = escaped ? 64 + (byte - 192) / 3 : byte & 63, fifth = escaped ? byte % 3 : byte >> 6;
    for (unsigned i = 0, rest = t; i < 4; ++i, rest /= 3)
      digits[byte][i] = static_cast<std::uint8_t>(rest % 3);
    digits[byte][4] = static_cast<std::uint8_t>(fifth);
  }
  return digits;
}

}  // namespace

bool pack_tile(TileCode code, const std::int8_t* trits, std::int64_t rows, std::int64_t in,
               std::uint8_t* to) {
  const std::int64_t columns = line_columns(code), fields = columns / 4;
  if (rows < kTileRows) std::fill_n(to, tile_lines(code, in) * kLineBytes, std::uint8_t{0});
  std::uint32_t wrong = 0;
  for (std::int64_t r = 0; r < rows; ++r) {
    std::uint8_t* word = to + 4 * r;
    for (std::int64_t k = 0; k < in; k += columns, word += kLineBytes) {
      std::int8_t last[20] = {};
      const std::int8_t* from = trits + r * in + k;
      if (in - k < columns) {  // padded columns meet activations that are zero
        std::copy(from, trits + (r + 1) * in, last);
        from = last;
      }
      std::uint32_t codes[5] = {};
      for (std::int64_t i = 0; i < fields; ++i) {
        codes[i] = codes_of(from + 4 * i);
        wrong |= not_codes(codes[i]);
      }
      const std::uint32_t packed = code == TileCode::kTwoBit ? two_bit_word(codes) : base3_word(codes);
      std::memcpy(word, &packed, 4);
    }
  }
  return wrong == 0;
}

void unpack_tile(TileCode code, const std::uint8_t* tile, std::int64_t rows, std::int64_t in,
                 std::int8_t* trits) {
  static const auto digits = base3_digits();
  const std::int64_t columns = line_columns(code);
  for (std::int64_t r = 0; r < rows; ++r)
    for (std::int64_t k = 0; k < in; ++k) {
      const std::uint8_t byte = tile[k / columns * kLineBytes + 4 * r + k % 4];
      const auto field = static_cast<std::size_t>(k % columns / 4);
      const int value = code == TileCode::kTwoBit ? byte >> (2 * field) & 3 : digits[byte][field];
      trits[r * in + k] = static_cast<std::int8_t>(value - 1);
    }
}

}  // namespace bitnet::quant
