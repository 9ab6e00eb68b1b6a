// Arithmetic at full speed, for the peak probe: compiled once per instruction set and made of the operations
// that its ternary and float kernels are made of, from registers only and with enough independent sums that
// nothing waits. What the machine reaches here is the limit that bitnet bench compares with.
#include "kernels/peak_table.hpp"

#include "bitnet/simd/this_isa.hpp"

namespace bitnet::quant {
namespace {

using simd::F32;
using simd::I8;

// Makes a register's contents unknown to the compiler, without an instruction: equal products stay apart.
#if defined(__AVX512F__)
#define BITNET_OPAQUE(r) __asm__ volatile("" : "+v"(r))
#elif defined(__x86_64__)
#define BITNET_OPAQUE(r) __asm__ volatile("" : "+x"(r))
#else
#define BITNET_OPAQUE(r) __asm__ volatile("" : "+w"(r))
#endif
#if defined(__clang__)
#define BITNET_UNROLL_4 _Pragma("clang loop unroll_count(4)")
#else
#define BITNET_UNROLL_4 _Pragma("GCC unroll 4")
#endif
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr std::size_t kRegisters = 32;
#else
constexpr std::size_t kRegisters = 16;
#endif

alignas(64) constexpr std::uint8_t kCodes[64] = {
    2, 1, 0, 2, 1, 0, 2, 1, 0, 2, 1, 0, 2, 1, 0, 2, 1, 0, 2, 1, 0, 2, 1, 0, 2, 1, 0, 2, 1, 0, 2, 1,
    0, 2, 1, 0, 2, 1, 0, 2, 1, 0, 2, 1, 0, 2, 1, 0, 2, 1, 0, 2, 1, 0, 2, 1, 0, 2, 1, 0, 2, 1, 0, 2};

#if defined(BITNET_SIMD_TILES)

/// Four 16 × 16 tiles of int32, each += a 16 × 64 tile of x · a 64 × 16 tile of codes.
constexpr double kIntOperations = 4 * 2.0 * 16 * 16 * 64;
/// Of row 0, column 0.
constexpr std::int32_t first_of_tile() {
  std::int32_t sum = 0;
  for (int k = 0; k < 16; ++k)
    for (int j = 0; j < 4; ++j) sum += kCodes[4 * k + j] * kCodes[j];
  return sum;
}
constexpr std::int32_t kIntFirst = first_of_tile();
std::int32_t int8_rounds(std::size_t rounds) noexcept {
  using simd::Tiles;
  alignas(64) std::int32_t sums[256] = {};
  Tiles::configure(16, 16);
  Tiles::zero<0>();
  Tiles::zero<1>();
  Tiles::zero<2>();
  Tiles::zero<3>();
  Tiles::load<4>(kCodes, 0);  // stride 0: every row is the same line
  Tiles::load<5>(kCodes, 0);
  Tiles::load<6>(kCodes, 0);
  Tiles::load<7>(kCodes, 0);
  for (std::size_t i = 0; i < rounds; ++i) {
    Tiles::multiply<0, 4, 6>();
    Tiles::multiply<1, 4, 7>();
    Tiles::multiply<2, 5, 6>();
    Tiles::multiply<3, 5, 7>();
  }
  Tiles::store<0>(sums, 64);
  Tiles::release();
  return sums[0];
}

#else

alignas(4) constexpr std::int8_t kX[4] = {127, -128, 3, -5};

// A 16-bit sum may be wider than a register, and its product needs one more.
constexpr std::size_t kSums =
    I8::kWideSums ? 3 * kRegisters / 4 : kRegisters / 2 / (sizeof(I8::Sum) / sizeof(I8::Bytes));

/// Products that one sum takes in a round: as many as it can hold before it is widened.
template <class V>
constexpr std::int32_t sum_steps() {
  if constexpr (V::kWideSums)
    return 64;
  else
    return V::kSumSteps;
}
constexpr std::int32_t kSteps = sum_steps<I8>();

constexpr double kIntOperations = 2.0 * sizeof(I8::Bytes) * kSums * kSteps;
// Of row 0: 2·127 + 1·−128 + 0·3 + 2·−5 a product.
constexpr std::int32_t kIntFirst = 116 * static_cast<std::int32_t>(kSums) * kSteps;

template <class Sum>
BITNET_INLINE void add_step(Sum (&sums)[kSums], I8::Bytes codes, I8::Bytes x) {
  BITNET_UNROLL for (std::size_t s = 0; s < kSums; ++s) {
    if constexpr (!I8::kWideSums) BITNET_OPAQUE(x);  // or one product would do for all
    sums[s] = I8::add_products(sums[s], codes, x);
    if constexpr (sizeof(Sum) == sizeof(I8::Bytes)) BITNET_OPAQUE(sums[s]);  // updated in place
  }
}

std::int32_t int8_rounds(std::size_t rounds) noexcept {
  const I8::Bytes codes = I8::load(kCodes), x = I8::broadcast4(kX);
  I8::Acc total = {};
  I8::Sum sums[kSums];
  BITNET_UNROLL for (std::size_t s = 0; s < kSums; ++s) sums[s] = I8::zero_sum();
  if constexpr (I8::kWideSums) {
    for (std::size_t i = 0; i < rounds * kSteps; ++i) add_step(sums, codes, x);  // wraps
    BITNET_UNROLL for (std::size_t s = 0; s < kSums; ++s) total = I8::widen(total, sums[s]);
  } else {
    for (std::size_t i = 0; i < rounds; ++i) {
      BITNET_UNROLL_4 for (std::int32_t step = 0; step < kSteps; ++step) add_step(sums, codes, x);
      BITNET_UNROLL for (std::size_t s = 0; s < kSums; ++s) {
        total = I8::widen(total, sums[s]);
        sums[s] = I8::zero_sum();
      }
    }
  }
  std::int32_t lanes[sizeof(I8::Acc) / sizeof(std::int32_t)];
  I8::store(lanes, total);
  return lanes[0];
}

#endif

constexpr std::size_t kFloatSums = 3 * kRegisters / 4, kFloatSteps = 64;
constexpr double kFloatOperations = 2.0 * F32::kLanes * kFloatSums * kFloatSteps;
constexpr std::int32_t kFloatFirst = kFloatSums * kFloatSteps;  // 0.5 · 2^-20 each

std::int32_t f32_rounds(std::size_t rounds) noexcept {
  F32::Reg a = F32::broadcast(0.5f), b = F32::broadcast(0x1p-20f), sums[kFloatSums];
  BITNET_UNROLL for (std::size_t s = 0; s < kFloatSums; ++s) sums[s] = F32::broadcast(1.0f);
  for (std::size_t i = 0; i < rounds * kFloatSteps; ++i) {
    BITNET_UNROLL for (std::size_t s = 0; s < kFloatSums; ++s) {
      BITNET_OPAQUE(a);
      sums[s] = F32::fma(a, b, sums[s]);
    }
  }
  float added = 0;  // exact while there are few rounds; they grow to 8 at most
  for (std::size_t s = 0; s < kFloatSums; ++s) {
    float lanes[F32::kLanes];
    F32::store(lanes, sums[s]);
    added += lanes[rounds % F32::kLanes] - 1.0f;
  }
  return static_cast<std::int32_t>(added * 0x1p21f);
}

}  // namespace

namespace kernels::BITNET_ISA {

extern const PeakKernels kPeaks;
constinit const PeakKernels kPeaks{
    .isa = BITNET_STR(BITNET_ISA),
    .int8 = {kIntOperations, kIntFirst, &int8_rounds},
    .f32 = {kFloatOperations, kFloatFirst, &f32_rounds},
};

}  // namespace kernels::BITNET_ISA
}  // namespace bitnet::quant
