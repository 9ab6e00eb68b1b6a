// What several programs share: divisions, square roots and exponentials with the CPU's bits, the fold of a 16-lane sum,
// loads of 16 values. Put in front of every other source by src/kernel_set.cpp; it has no kernels of its own.
//
// OpenCL lets a device round a single-precision division by 2.5 ulp and a square root by 3; addition, multiplication, fma()
// and conversions are correctly rounded by the standard. docs/numerics.md has the order of every sum.
//
// Capabilities, set by src/device_traits.cpp:
//   BN_EXACT_DIVIDE   1 where the device divides and takes roots as IEEE 754 does (and the program is built with
//                     -cl-fp32-correctly-rounded-divide-sqrt); 0: both are done in integers
//   BN_INTEGER_DOT    1 where the device has cl_khr_integer_dot_product: dot products of four bytes in one instruction, where
//                     the compiler declares them, too (BN_DOT_DECLARED); plain code elsewhere
//   BN_WIDE           1 for kernels whose work-items run one after another and use vectors of 16 (CPUs); 0 for work-groups
//                     that share a row or a tile (GPUs)
// A capability of the compiler, which it is asked for here:
//   BN_PAIRS          bytes that one instruction multiplies with as many others, neighbours added: 64, 32, or 0 for plain code.
//                     With BN_WIDE alone, and no more than BN_MOST_PAIRS. All give the same integers.
#ifndef BN_EXACT_DIVIDE
#define BN_EXACT_DIVIDE 0
#endif
#ifndef BN_INTEGER_DOT
#define BN_INTEGER_DOT 0
#endif
#ifndef BN_WIDE
#define BN_WIDE 0
#endif
#ifndef BN_MOST_PAIRS
#define BN_MOST_PAIRS 64
#endif
#if BN_WIDE && defined(__has_builtin)
#if BN_MOST_PAIRS >= 64 && defined(__AVX512BW__) && __has_builtin(__builtin_ia32_pmaddubsw512)
#define BN_PAIRS 64
#elif BN_MOST_PAIRS >= 32 && defined(__AVX2__) && __has_builtin(__builtin_ia32_pmaddubsw256)
#define BN_PAIRS 32
#endif
#endif
#ifndef BN_PAIRS
#define BN_PAIRS 0
#endif

#pragma OPENCL FP_CONTRACT OFF

#define BN_INFINITY as_float(0x7f800000u)
#define BN_NAN as_float(0x7fc00000u)

#if BN_EXACT_DIVIDE
float bn_divide(float n, float d) { return n / d; }
float16 bn_divide16(float16 n, float16 d) { return n / d; }
float bn_sqrt(float x) { return sqrt(x); }
#else
// The magnitude `bits` of a number as mantissa in [2^23, 2^24) and biased exponent, which is < 1 for subnormal ones.
uint bn_mantissa(uint bits, int* exponent) {
  if (bits >= 0x800000u) {
    *exponent = (int)(bits >> 23);
    return (bits & 0x7fffffu) | 0x800000u;
  }
  const int shift = (int)clz(bits) - 8;
  *exponent = 1 - shift;
  return bits << shift;
}

// n / d, half to even.
float bn_divide(float n, float d) {
  const uint a = as_uint(n) & 0x7fffffffu, b = as_uint(d) & 0x7fffffffu;
  const uint sign = (as_uint(n) ^ as_uint(d)) & 0x80000000u;
  if (a > 0x7f800000u || b > 0x7f800000u || (a == b && (a == 0u || a == 0x7f800000u))) return BN_NAN;
  if (a == 0x7f800000u || b == 0u) return as_float(sign | 0x7f800000u);
  if (b == 0x7f800000u || a == 0u) return as_float(sign);
  int a_exponent, b_exponent;
  const ulong scaled = (ulong)bn_mantissa(a, &a_exponent) << 27;
  const ulong divisor = bn_mantissa(b, &b_exponent);
  ulong quotient = scaled / divisor;                     // (2^26, 2^28)
  uint inexact = quotient * divisor != scaled;
  int biased = a_exponent - b_exponent + 126;
  if (quotient >= (1ul << 27)) {
    inexact |= (uint)quotient & 1u;
    quotient >>= 1;
    biased += 1;
  }
  const int drop = biased > 0 ? 3 : min(4 - biased, 30); // bits below the result's last one
  const uint q = (uint)quotient;
  uint man = q >> drop;
  const uint rest = q & ((1u << drop) - 1u), half_way = 1u << (drop - 1);
  if (rest > half_way || (rest == half_way && (inexact || (man & 1u)))) man += 1u;
  // 2^24 carries into the exponent, and 2^23 of a subnormal one into the least normal number.
  const uint bits = biased > 0 ? ((uint)biased << 23) + (man - 0x800000u) : man;
  return as_float(sign | (biased > 254 || bits > 0x7f800000u ? 0x7f800000u : bits));
}

float16 bn_divide16(float16 n, float16 d) {
  float a[16], b[16];
  vstore16(n, 0, a);
  vstore16(d, 0, b);
  for (int i = 0; i < 16; ++i) a[i] = bn_divide(a[i], b[i]);
  return vload16(0, a);
}

// The square root, half to even.
float bn_sqrt(float x) {
  const uint bits = as_uint(x);
  if ((bits & 0x7fffffffu) == 0u || bits == 0x7f800000u) return x;
  if (bits > 0x7f800000u) return BN_NAN;                 // negative, or a NaN
  int biased;
  const ulong man = bn_mantissa(bits, &biased);
  const int exponent = biased - 127 - 23;                // x = man * 2^exponent
  const int shift = (exponent & 1) ? 25 : 26;            // so that exponent - shift is even
  const ulong square = man << shift;                     // [2^48, 2^50)
  ulong root = 0;
  for (ulong bit = 1ul << 24; bit != 0; bit >>= 1) {
    const ulong more = root | bit;
    if (more * more <= square) root = more;
  }
  uint result = (uint)(root >> 1);                       // [2^23, 2^24), and a bit below
  if ((root & 1ul) && (root * root != square || (result & 1u))) result += 1u;
  return as_float(((uint)((exponent - shift) / 2 + 24 + 127) << 23) + (result - 0x800000u));
}
#endif

// e^x as bitnet-core/src/kernels/generic/exp_reg.inl.hpp has it, operation by operation: NaN -> NaN, > 88.73 -> infinity,
// < -104 -> 0. ?: chooses by element for vectors.
#define BN_DEFINE_EXP(NAME, FLOAT, INT, AS_INT, AS_FLOAT)                             \
  FLOAT NAME(FLOAT x) {                                                               \
    const FLOAT high = (FLOAT)(89.0f), low = (FLOAT)(-104.0f);                        \
    FLOAT clamped = x > high ? high : x;                                              \
    clamped = clamped < low ? low : clamped;                                          \
    const FLOAT magic = (FLOAT)(0x1.8p23f);                                           \
    const FLOAT shifted = fma(clamped, (FLOAT)(1.44269504088896341f), magic);         \
    const FLOAT n = shifted - magic;                                                  \
    FLOAT r = fma(n, (FLOAT)(-0.693359375f), clamped);                                \
    r = fma(n, (FLOAT)(2.12194440054690583e-4f), r);                                  \
    FLOAT p = (FLOAT)(1.0f / 5040);                                                   \
    p = fma(p, r, (FLOAT)(1.0f / 720));                                               \
    p = fma(p, r, (FLOAT)(1.0f / 120));                                               \
    p = fma(p, r, (FLOAT)(1.0f / 24));                                                \
    p = fma(p, r, (FLOAT)(1.0f / 6));                                                 \
    p = fma(p, r, (FLOAT)(0.5f));                                                     \
    p = fma(p, r, (FLOAT)(1.0f));                                                     \
    p = fma(p, r, (FLOAT)(1.0f));                                                     \
    const INT k = AS_INT(shifted) - (INT)(0x4b400000);                                \
    const INT part = k >> (INT)(1);                                                   \
    const FLOAT first = AS_FLOAT((part + (INT)(127)) << (INT)(23));                   \
    const FLOAT second = AS_FLOAT((k - part + (INT)(127)) << (INT)(23));              \
    const FLOAT result = p * first * second;                                          \
    const FLOAT infinite = (FLOAT)(BN_INFINITY), zero = (FLOAT)(0.0f);                \
    const FLOAT number = x == x ? result : x;                                         \
    const FLOAT small = x < low ? zero : number;                                      \
    return x > (FLOAT)(88.7228394f) ? infinite : small;                               \
  }
BN_DEFINE_EXP(bn_exp, float, int, as_int, as_float)
BN_DEFINE_EXP(bn_exp16, float16, int16, as_int16, as_float16)

// The sum of 16 lanes: i with i + 8, + 4, + 2, + 1.
float bn_fold(float16 v) {
  const float8 a = v.lo + v.hi;
  const float4 b = a.lo + a.hi;
  const float2 c = b.lo + b.hi;
  return c.x + c.y;
}

// round(x), half to even, of |x| < 2^22.
int bn_round(float x) { return as_int(x + 0x1.8p23f) - 0x4b400000; }
int16 bn_round16(float16 x) { return as_int16(x + (float16)(0x1.8p23f)) - (int16)(0x4b400000); }

// acc + the products of four signed bytes with four unsigned, or signed, ones, each in a u32.
int bn_dot4_plain_su(uint a, uint b) {
  const char4 x = as_char4(a);
  const uchar4 y = as_uchar4(b);
  return (int)x.x * (int)y.x + (int)x.y * (int)y.y + (int)x.z * (int)y.z + (int)x.w * (int)y.w;
}
int bn_dot4_plain_ss(uint a, uint b) {
  const char4 x = as_char4(a), y = as_char4(b);
  return (int)x.x * (int)y.x + (int)x.y * (int)y.y + (int)x.z * (int)y.z + (int)x.w * (int)y.w;
}
// Clang has the macros in every version of the language, and the functions from 2.0 on.
#ifndef BN_DOT_DECLARED
#if __OPENCL_C_VERSION__ >= 200 && \
    (defined(__opencl_c_integer_dot_product_input_4x8bit_packed) || defined(cl_khr_integer_dot_product))
#define BN_DOT_DECLARED 1
#else
#define BN_DOT_DECLARED 0
#endif
#endif
#if BN_INTEGER_DOT && BN_DOT_DECLARED
#define BN_DOT4(q, codes, acc) ((acc) + dot_4x8packed_su_int(q, codes))
#define BN_DOT4_SIGNED(q, w, acc) ((acc) + dot_4x8packed_ss_int(q, w))
#else
#define BN_DOT4(q, codes, acc) ((acc) + bn_dot4_plain_su(q, codes))
#define BN_DOT4_SIGNED(q, w, acc) ((acc) + bn_dot4_plain_ss(q, w))
#endif

#if BN_WIDE
// A row of 16 words, one a column, comes in BN_PIECES vectors of u32 (BN_WORDS); with four bytes a word:
//   bn_ternary_pairs(codes, q)   bytes 0 … 2 times the signed bytes of q, neighbours added: 16-bit lanes, two a column
//   bn_widen(sums)               the two lanes of each column added, in 32 bits
//   bn_signed_dots(w, q)         signed bytes, -128 nowhere in w, times those of q, four a column added in 32 bits
#if BN_PAIRS
#define BN_LANES (BN_PAIRS / 2)
typedef char bn_bytes __attribute__((ext_vector_type(BN_PAIRS)));
typedef short bn_shorts __attribute__((ext_vector_type(BN_LANES)));
#if BN_PAIRS == 64
#define BN_PIECES 1
typedef uint16 bn_words;
typedef int16 bn_ints;
#define BN_LOAD_WORDS(i, p) vload16(i, p)
#define BN_ADD_PAIRS(a, b) __builtin_ia32_pmaddwd512(a, b)
#define BN_ADD_BYTES(a, b) __builtin_ia32_pmaddubsw512(a, b)
#else
#define BN_PIECES 2
typedef uint8 bn_words;
typedef int8 bn_ints;
#define BN_LOAD_WORDS(i, p) vload8(i, p)
#define BN_ADD_PAIRS(a, b) __builtin_ia32_pmaddwd256(a, b)
#define BN_ADD_BYTES(a, b) __builtin_ia32_pmaddubsw256(a, b)
#endif
// Vectors of other lengths than OpenCL has: as_type() does not know them.
bn_bytes bn_as_bytes(bn_words v) { return *(bn_bytes*)&v; }
bn_shorts bn_as_shorts(bn_words v) { return *(bn_shorts*)&v; }
bn_shorts bn_ternary_pairs(bn_words codes, uint q) {
  return BN_ADD_BYTES(bn_as_bytes(codes), bn_as_bytes((bn_words)(q)));
}
bn_ints bn_widen(bn_shorts sums) { return BN_ADD_PAIRS(sums, (bn_shorts)(1)); }
bn_ints bn_signed_dots(bn_words w, uint q) {
  const bn_shorts a = bn_as_shorts(w), b = bn_as_shorts((bn_words)(q));
  return BN_ADD_PAIRS((a << (short)8) >> (short)8, (b << (short)8) >> (short)8) +
         BN_ADD_PAIRS(a >> (short)8, b >> (short)8);
}
#else
#define BN_PIECES 2
typedef uint8 bn_words;
typedef int8 bn_ints;
typedef short16 bn_shorts;
#define BN_LOAD_WORDS(i, p) vload8(i, p)
bn_shorts bn_ternary_pairs(bn_words codes, uint q) {
  const short16 a = as_short16(codes), b = as_short16((uint8)(q));
  return (a & (short16)(255)) * ((b << (short16)(8)) >> (short16)(8)) + (a >> (short16)(8)) * (b >> (short16)(8));
}
bn_ints bn_widen(bn_shorts sums) { return convert_int8(sums.even) + convert_int8(sums.odd); }
// 16-bit lanes: |a sum of two products| <= 2 * 127 * 128, widened at once.
bn_ints bn_signed_dots(bn_words w, uint q) {
  const short16 a = as_short16(w), b = as_short16((uint8)(q));
  return bn_widen(((a << (short16)(8)) >> (short16)(8)) * ((b << (short16)(8)) >> (short16)(8)) +
                  (a >> (short16)(8)) * (b >> (short16)(8)));
}
#endif
// The pieces of 16 columns as one vector.
#if BN_PIECES == 1
#define BN_JOIN(pieces) ((pieces)[0])
#else
#define BN_JOIN(pieces) ((int16)((pieces)[0], (pieces)[1]))
#endif
// Adds to acc[r][p], of BN_ROWS rows, the products of a tile's words with the rows' bytes; FOUR(r, i): bytes 4 i … 4 i + 3 of row
// r. In 16-bit sums: a lane adds 8 products of at most 2 * 128 a word, 15 words at most (8 * 256 * 15 = 30,720) before they
// are widened.
#define BN_FLUSH 15u
#define BN_ADD_TERNARY_TILE(acc, tile_codes, words, FOUR)                                                             \
  for (uint begin = 0; begin < (words); begin += BN_FLUSH) {                                                          \
    const uint end = min(begin + BN_FLUSH, (words));                                                                  \
    bn_shorts sum[BN_ROWS][BN_PIECES];                                                                                \
    BN_UNROLL for (uint r = 0; r < BN_ROWS; ++r) {                                                                    \
      BN_UNROLL for (uint p = 0; p < BN_PIECES; ++p) sum[r][p] = (bn_shorts)(0);                                      \
    }                                                                                                                 \
    for (uint w = begin; w < end; ++w) {                                                                              \
      BN_UNROLL for (uint p = 0; p < BN_PIECES; ++p) {                                                                \
        const bn_words v = BN_LOAD_WORDS(BN_PIECES * w + p, (tile_codes));                                            \
        BN_UNROLL for (uint j = 0; j < 4u; ++j) {                                                                     \
          const bn_words four = (v >> (2u * j)) & 0x03030303u;                                                        \
          BN_UNROLL for (uint r = 0; r < BN_ROWS; ++r) sum[r][p] += bn_ternary_pairs(four, FOUR(r, 4u * w + j));      \
        }                                                                                                             \
      }                                                                                                               \
    }                                                                                                                 \
    BN_UNROLL for (uint r = 0; r < BN_ROWS; ++r) {                                                                    \
      BN_UNROLL for (uint p = 0; p < BN_PIECES; ++p) acc[r][p] += bn_widen(sum[r][p]);                                \
    }                                                                                                                 \
  }
#endif
// Adds to acc[r], of BN_ROWS rows, the products of a column's word with the rows' bytes; FOUR(r, j): bytes 4 j … 4 j + 3 of those
// of row r that the word belongs to.
#define BN_ADD_TERNARY_WORD(acc, word, FOUR)                                                      \
  for (uint j = 0; j < 4u; ++j) {                                                                 \
    const uint four = ((word) >> (2u * j)) & 0x03030303u;                                         \
    for (uint r = 0; r < BN_ROWS; ++r) acc[r] = BN_DOT4(FOUR(r, j), four, acc[r]);                \
  }
#define BN_UNROLL __attribute__((opencl_unroll_hint))

// Values i … i + 15 of n; `pad` from n on.
float16 bn_load16(__global const float* x, uint i, uint n, float pad) {
  if (i + 16u <= n) return vload16(0, x + i);
  float v[16];
  for (uint j = 0; j < 16u; ++j) v[j] = i + j < n ? x[i + j] : pad;
  return vload16(0, v);
}

void bn_store16(float16 v, __global float* y, uint i, uint n) {
  if (i + 16u <= n) {
    vstore16(v, 0, y + i);
    return;
  }
  float part[16];
  vstore16(v, 0, part);
  for (uint j = 0; i + j < n; ++j) y[i + j] = part[j];
}
