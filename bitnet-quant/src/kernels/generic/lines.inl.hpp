#pragma once
// From the bytes of a tile's line (layouts: ternary_table.hpp) to registers of codes 0 … 2: one decoder for
// each code. A decoder has kFields, the steps of four columns in a line; decode(), once for a register of the
// line; field<S>(), the codes of step S; and with kScaled scaled_field<S>(), the same times 4^min(S, 3). With
// kDirect decoding is cheap enough to be repeated for every few rows of x. What is done with the codes is in
// registers.inl.hpp and panel.inl.hpp. Included by ternary_table.cpp only.
namespace bitnet::quant::kernels {
namespace {

using simd::I8;

constexpr int kTileRegs = 16 / I8::kRows;  // registers in a line
constexpr std::int64_t kRegBytes = 4 * I8::kRows;

template <class V>
struct TwoBitDecoder {
  static constexpr int kFields = 4;
  static constexpr bool kDirect = true, kScaled = V::kScaledCodes;
  typedef typename V::Bytes Bytes;
  typedef Bytes Codes;

  BITNET_INLINE Codes decode(Bytes v) const { return v; }
  template <int S>
  static BITNET_INLINE Bytes field(const Codes& v) {
    return V::template field<S>(v);
  }
  template <int S>
  static BITNET_INLINE Bytes scaled_field(const Codes& v) {
    return V::template scaled_field<S>(v);
  }
};

/// Five trits a byte on any ISA: comparisons find the digits, no table is needed.
template <class V>
struct Base3Decoder {
  static constexpr int kFields = 5;
  static constexpr bool kDirect = false, kScaled = false;
  typedef typename V::Bytes Bytes;
  struct Codes {
    Bytes digit[5];
  };
  typedef std::uint8_t U8 __attribute__((vector_size(sizeof(Bytes))));
  typedef std::int8_t S8 __attribute__((vector_size(sizeof(Bytes))));
  typedef std::uint16_t U16 __attribute__((vector_size(sizeof(Bytes))));

  /// ⌊v / 3⌋ for bytes ≤ 63: 86/256 − 1/3 = 1/384 adds less than 1/3 to it.
  static BITNET_INLINE U8 third(U8 v) {
    const U16 w = reinterpret_cast<U16>(v);
    return reinterpret_cast<U8>((((w & 0xff) * 86) >> 8) | (((w >> 8) * 86) & 0xff00));
  }
  /// The digit of `unit` in t < 3·unit ≤ 81; t keeps the rest.
  static BITNET_INLINE Bytes take_digit(S8& t, int unit) {
    const std::int8_t one = static_cast<std::int8_t>(unit), two = static_cast<std::int8_t>(2 * unit);
    const S8 from_one = t >= one, from_two = t >= two;
    t -= (from_one & one) + (from_two & one);
    return reinterpret_cast<Bytes>(-(from_one + from_two));
  }
  BITNET_INLINE Codes decode(Bytes v) const {
    const U8 byte = reinterpret_cast<U8>(v);
    const U8 escaped = reinterpret_cast<U8>(byte > 191);
    const U8 low = byte & 63, q = third(low);
    S8 t = reinterpret_cast<S8>((escaped & (q + 64)) | (~escaped & low));
    Codes c;
    c.digit[4] = reinterpret_cast<Bytes>((escaped & (low - 3 * q)) | (~escaped & (byte >> 6)));
    c.digit[3] = take_digit(t, 27);
    c.digit[2] = take_digit(t, 9);
    c.digit[1] = take_digit(t, 3);
    c.digit[0] = reinterpret_cast<Bytes>(t);
    return c;
  }
  template <int S>
  static BITNET_INLINE Bytes field(const Codes& c) {
    return c.digit[S];
  }
};

#if defined(__AVX512VBMI__)
/// Five trits a byte by byte look-ups.
template <class V>
struct Base3LookupDecoder {
  static constexpr int kFields = 5;
  static constexpr bool kDirect = true, kScaled = true;
  typedef typename V::Bytes Bytes;
  struct Codes {
    Bytes four, fifth;
  };
  simd::Base3Lookup lookup;

  BITNET_INLINE Codes decode(Bytes v) const {
    Codes c;
    lookup.decode(v, c.four, c.fifth);
    return c;
  }
  template <int S>
  static BITNET_INLINE Bytes field(const Codes& c) {
    return V::template field<(S < 4 ? S : 3)>(S < 4 ? c.four : c.fifth);
  }
  template <int S>
  static BITNET_INLINE Bytes scaled_field(const Codes& c) {
    return V::template scaled_field<(S < 4 ? S : 3)>(S < 4 ? c.four : c.fifth);
  }
};
using Base3 = Base3LookupDecoder<I8>;
#else
using Base3 = Base3Decoder<I8>;
#endif
using TwoBit = TwoBitDecoder<I8>;

}  // namespace
}  // namespace bitnet::quant::kernels
