#pragma once
// Vocabulary of AMX with int8 tiles: AVX512-VBMI's for everything that is not a product of many rows, and
// Tiles for those. Tiles are written as assembly because g++ 12's intrinsics do not tell the compiler which
// memory they read and write (stores before a tile load could move behind it).
#include "bitnet/simd/avx512_vbmi.hpp"

/// simd::Tiles is there.
#define BITNET_SIMD_TILES 1

namespace bitnet::simd {
namespace {

/// The eight tile registers of this thread: sums 0 … 3 (2·i + j is row block i times column block j),
/// activations 4 + i, codes 6 + j. A tile has up to 16 rows of 64 bytes. The process must have been permitted
/// to use them (cpu/isa.cpp).
struct Tiles {
  /// Row blocks of `rows0` and `rows1` rows, 1 … 16 each. Tiles lose their contents.
  static BITNET_INLINE void configure(int rows0, int rows1) {
    struct alignas(64) Config {
      std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
      std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      std::uint8_t rows[16] = {};
    };
    Config c;
    const auto r0 = static_cast<std::uint8_t>(rows0), r1 = static_cast<std::uint8_t>(rows1);
    c.rows[0] = c.rows[1] = c.rows[4] = r0;
    c.rows[2] = c.rows[3] = c.rows[5] = r1;
    c.rows[6] = c.rows[7] = 16;
    __asm__ volatile("ldtilecfg %0" : : "m"(c));
  }
  static BITNET_INLINE void release() { __asm__ volatile("tilerelease"); }
  template <int T>
  static BITNET_INLINE void zero() {
    __asm__ volatile("tilezero %%tmm%c0" : : "i"(T));
  }
  /// Rows are `stride` bytes apart.
  template <int T>
  static BITNET_INLINE void load(const void* p, std::int64_t stride) {
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(p), "r"(stride), "i"(T) : "memory");
  }
  template <int T>
  static BITNET_INLINE void store(void* p, std::int64_t stride) {
    __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(p), "r"(stride), "i"(T) : "memory");
  }
  /// Sums += signed · unsigned bytes (x · codes): C[m][n] += Σ_k Σ_j A[m][4·k + j] · B[k][4·n + j].
  template <int C, int A, int B>
  static BITNET_INLINE void multiply() {
    __asm__ volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(C), "i"(A), "i"(B));
  }
  /// The same of signed · signed bytes (queries · keys).
  template <int C, int A, int B>
  static BITNET_INLINE void multiply_signed() {
    __asm__ volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(C), "i"(A), "i"(B));
  }
  /// The same of unsigned · signed bytes (weights · values).
  template <int C, int A, int B>
  static BITNET_INLINE void multiply_unsigned() {
    __asm__ volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(C), "i"(A), "i"(B));
  }
};

}  // namespace
}  // namespace bitnet::simd
