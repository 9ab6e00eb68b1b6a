// AMX's tiles in plain C++, and the tile algorithm (kernels/generic/tiles.inl.hpp) on them: the same source
// that runs on the processor's tiles, which differ in the few lines of simd/amx_int8.hpp only. Compiled for a
// vocabulary BITNET_ISA, whose decoders it uses; the test is emulated_tiles_test.cpp.
#include "kernels/ternary_table.hpp"

#define BITNET_STR2(x) #x
#define BITNET_STR(x) BITNET_STR2(x)
// clang-format off
#define BITNET_SIMD_HEADER BITNET_STR(bitnet/simd/BITNET_ISA.hpp)
// clang-format on
#include BITNET_SIMD_HEADER

#include "kernels/generic/tiles.inl.hpp"

namespace bitnet::quant::emulated {
extern int misuses;
}

namespace bitnet::quant::emulated::BITNET_ISA {
namespace {

struct EmulatedTiles {
  static inline std::uint8_t data[8][16][64];
  static inline int rows[8];  // 0: not configured

  static void need(bool ok) { misuses += ok ? 0 : 1; }
  static void configure(int rows0, int rows1) {
    need(rows0 >= 1 && rows0 <= 16 && rows1 >= 1 && rows1 <= 16);
    rows[0] = rows[1] = rows[4] = rows0;
    rows[2] = rows[3] = rows[5] = rows1;
    rows[6] = rows[7] = 16;
    __builtin_memset(data, 0xa5, sizeof data);  // the processor clears them; nothing may rely on it
  }
  static void release() {
    for (int& r : rows) r = 0;
  }
  template <int T>
  static void zero() {
    need(rows[T] != 0);
    __builtin_memset(data[T], 0, sizeof data[T]);
  }
  template <int T>
  static void load(const void* p, std::int64_t stride) {
    need(rows[T] != 0);
    for (int r = 0; r < rows[T]; ++r)
      __builtin_memcpy(data[T][r], static_cast<const std::uint8_t*>(p) + r * stride, 64);
  }
  template <int T>
  static void store(void* p, std::int64_t stride) {
    need(rows[T] != 0);
    for (int r = 0; r < rows[T]; ++r)
      __builtin_memcpy(static_cast<std::uint8_t*>(p) + r * stride, data[T][r], 64);
  }
  /// TDPBSUD of the instruction set reference.
  template <int C, int A, int B>
  static void multiply() {
    need(rows[C] != 0 && rows[C] == rows[A] && rows[B] == 16);
    for (int m = 0; m < rows[C]; ++m)
      for (int n = 0; n < 16; ++n) {
        std::int32_t sum;
        __builtin_memcpy(&sum, &data[C][m][4 * n], 4);
        for (int k = 0; k < 16; ++k)
          for (int j = 0; j < 4; ++j)
            sum += static_cast<std::int8_t>(data[A][m][4 * k + j]) * int{data[B][k][4 * n + j]};
        __builtin_memcpy(&data[C][m][4 * n], &sum, 4);
      }
  }
};

void multiply(const TernaryProduct& p) noexcept {
  if (p.code == TileCode::kTwoBit)
    kernels::multiply_tiles<EmulatedTiles, kernels::TwoBit>(p);
  else
    kernels::multiply_tiles<EmulatedTiles, kernels::Base3>(p);
  for (const int rows : EmulatedTiles::rows) EmulatedTiles::need(rows == 0);  // released
}

}  // namespace

extern const TernaryKernels kKernels;
const TernaryKernels kKernels{.isa = BITNET_STR(BITNET_ISA),
                              .fast_base3 = true,
                              .row_block = 32,
                              .x_bytes = 1 << 20,
                              .multiply = &multiply,
                              .quantize = nullptr};

}  // namespace bitnet::quant::emulated::BITNET_ISA
