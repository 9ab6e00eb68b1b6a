#pragma once
// AMX's tiles in plain C++: a tile algorithm written against a vocabulary (simd::Tiles of
// bitnet-core/simd/bitnet/simd/amx_int8.hpp is the processor's) runs on these on any processor. Everything
// but the count has internal linkage, because what includes it is compiled once per instruction set.
#include <cstdint>

namespace bitnet::testing {

/// Tile instructions that would fault or give no defined result; the test defines it.
extern int tile_misuses;

namespace {

struct EmulatedTiles {
  static inline std::uint8_t data[8][16][64];
  static inline int rows[8];  // 0: not configured

  static void need(bool ok) { tile_misuses += ok ? 0 : 1; }
  /// Nothing is left configured.
  static void need_released() {
    for (const int r : rows) need(r == 0);
  }
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
  template <int C, int A, int B>
  static void multiply() {
    products<std::int8_t, std::uint8_t, C, A, B>();  // TDPBSUD of the instruction set reference
  }
  template <int C, int A, int B>
  static void multiply_signed() {
    products<std::int8_t, std::int8_t, C, A, B>();  // TDPBSSD
  }
  template <int C, int A, int B>
  static void multiply_unsigned() {
    products<std::uint8_t, std::int8_t, C, A, B>();  // TDPBUSD
  }

 private:
  template <class Left, class Right, int C, int A, int B>
  static void products() {
    need(rows[C] != 0 && rows[C] == rows[A] && rows[B] == 16);
    for (int m = 0; m < rows[C]; ++m)
      for (int n = 0; n < 16; ++n) {
        std::uint32_t sum;  // wraps, as the processor's
        __builtin_memcpy(&sum, &data[C][m][4 * n], 4);
        for (int k = 0; k < 16; ++k)
          for (int j = 0; j < 4; ++j)
            sum += static_cast<std::uint32_t>(static_cast<Left>(data[A][m][4 * k + j]) *
                                              int{static_cast<Right>(data[B][k][4 * n + j])});
        __builtin_memcpy(&data[C][m][4 * n], &sum, 4);
      }
  }
};

}  // namespace
}  // namespace bitnet::testing
