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

/// One word of a line from line_columns(code) trits. False if any value is no trit.
bool pack_word(TileCode code, const std::int8_t* trits, std::uint8_t* to) {
  std::uint32_t codes[5] = {}, wrong = 0;
  for (std::int64_t i = 0; i < line_columns(code) / 4; ++i) {
    codes[i] = codes_of(trits + 4 * i);
    wrong |= not_codes(codes[i]);
  }
  const std::uint32_t packed = code == TileCode::kTwoBit ? two_bit_word(codes) : base3_word(codes);
  std::memcpy(to, &packed, 4);
  return wrong == 0;
}

// The same for four rows at a time, whose words lie side by side in a line: loading is bound by this.

using Bytes = std::uint8_t __attribute__((vector_size(16)));
using Words = std::uint32_t __attribute__((vector_size(16)));

template <class T>
T fetch(const std::int8_t* from) {
  T value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

/// codes[i] becomes the codes of columns 4i … 4i + 3 of the four rows of trits [4, in].
template <TileCode kCode>
void fetch_codes(const std::int8_t* trits, std::int64_t in, Bytes (&codes)[5]) {
  const auto a = fetch<Words>(trits), b = fetch<Words>(trits + in), c = fetch<Words>(trits + 2 * in),
             d = fetch<Words>(trits + 3 * in);
  const Words ab = __builtin_shufflevector(a, b, 0, 4, 1, 5), cd = __builtin_shufflevector(c, d, 0, 4, 1, 5);
  const Words ab2 = __builtin_shufflevector(a, b, 2, 6, 3, 7),
              cd2 = __builtin_shufflevector(c, d, 2, 6, 3, 7);
  codes[0] = reinterpret_cast<Bytes>(__builtin_shufflevector(ab, cd, 0, 1, 4, 5)) + 1;
  codes[1] = reinterpret_cast<Bytes>(__builtin_shufflevector(ab, cd, 2, 3, 6, 7)) + 1;
  codes[2] = reinterpret_cast<Bytes>(__builtin_shufflevector(ab2, cd2, 0, 1, 4, 5)) + 1;
  codes[3] = reinterpret_cast<Bytes>(__builtin_shufflevector(ab2, cd2, 2, 3, 6, 7)) + 1;
  if constexpr (kCode == TileCode::kBase3) {
    const Words last{fetch<std::uint32_t>(trits + 16), fetch<std::uint32_t>(trits + in + 16),
                     fetch<std::uint32_t>(trits + 2 * in + 16), fetch<std::uint32_t>(trits + 3 * in + 16)};
    codes[4] = reinterpret_cast<Bytes>(last) + 1;
  }
}

Bytes times_3(Bytes v) { return v + v + v; }

/// Codes shifted left within bytes: codes are below 4, so that nothing crosses into the next byte up to 6.
template <int kShift>
Bytes shifted(Bytes codes) {
  return reinterpret_cast<Bytes>(reinterpret_cast<Words>(codes) << kShift);
}

/// two_bit_word() or base3_word() of 16 bytes.
template <TileCode kCode>
Bytes pack_codes(const Bytes (&c)[5]) {
  if constexpr (kCode == TileCode::kTwoBit) {
    return c[0] | shifted<2>(c[1]) | shifted<4>(c[2]) | shifted<6>(c[3]);
  } else {
    const Bytes t = c[0] + times_3(c[1] + times_3(c[2] + times_3(c[3])));
    const Bytes escaped = reinterpret_cast<Bytes>(t > 63);
    return ((t | shifted<6>(c[4])) & ~escaped) | ((192 + times_3(t & 0x3f) + c[4]) & escaped);
  }
}

/// The first `words` words of four rows of trits [4, in]. False if any value is no trit.
template <TileCode kCode>
bool pack_four_rows(const std::int8_t* trits, std::int64_t in, std::int64_t words, std::uint8_t* to) {
  constexpr std::int64_t kColumns = line_columns(kCode);
  Bytes seen{}, threes{};
  for (std::int64_t w = 0; w < words; ++w, trits += kColumns, to += kLineBytes) {
    Bytes codes[5];
    fetch_codes<kCode>(trits, in, codes);
    for (std::int64_t i = 0; i < kColumns / 4; ++i) {
      seen |= codes[i];
      threes |= codes[i] & reinterpret_cast<Bytes>(reinterpret_cast<Words>(codes[i]) >>
                                                   1);  // bit 0: of a code with bits 0 and 1
    }
    const Bytes packed = pack_codes<kCode>(codes);
    std::memcpy(to, &packed, sizeof packed);
  }
  const auto wrong = reinterpret_cast<Words>((seen & 0xfc) | (threes & 1));
  return (wrong[0] | wrong[1] | wrong[2] | wrong[3]) == 0;
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
  const std::int64_t columns = line_columns(code), whole = in / columns;
  if (rows < kTileRows) std::fill_n(to, tile_lines(code, in) * kLineBytes, std::uint8_t{0});
  bool right = true;
  std::int64_t packed = 0;  // rows whose whole words are packed
  for (; packed + 4 <= rows; packed += 4) {
    const std::int8_t* const from = trits + packed * in;
    std::uint8_t* const words = to + 4 * packed;
    right &= code == TileCode::kTwoBit ? pack_four_rows<TileCode::kTwoBit>(from, in, whole, words)
                                       : pack_four_rows<TileCode::kBase3>(from, in, whole, words);
  }
  for (std::int64_t r = 0; r < rows; ++r)
    for (std::int64_t w = r < packed ? whole : 0; w * columns < in; ++w) {
      std::int8_t word[20] = {};  // padded columns meet activations that are zero
      std::copy_n(trits + r * in + w * columns, std::min(columns, in - w * columns), word);
      right &= pack_word(code, word, to + w * kLineBytes + 4 * r);
    }
  return right;
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
