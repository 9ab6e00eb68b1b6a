// What a device's arithmetic and its queue reach at most. What is measured with it, and how, is in src/peaks.cpp.
//
// integer_peak: BN_PEAK_CHAINS chains of multiply-adds in registers, by what the matrix kernels multiply with on this device:
// bn_ternary_pairs() with BN_WIDE 1, 64 bytes in BN_PIECES steps; BN_DOT4, four bytes, with BN_WIDE 0. Each chain's factor is
// another one's sum, so that no product is known before. Sums wrap, which is defined for unsigned integers. The bytes of `seed`
// are 0 … 3, so that neighbours' products added fit into 16 bits.
// nothing: a launch with four arguments.
//
// Layout:
//   out   u32 [global size]
// Global size of integer_peak: a multiple of BN_PEAK_WG; local size {BN_PEAK_WG}. Of nothing: {1}.
//
// Tunables:
//   BN_PEAK_WG   work-items of a group
#ifndef BN_PEAK_WG
#define BN_PEAK_WG 64
#endif
#define BN_PEAK_CHAINS 8

__kernel __attribute__((reqd_work_group_size(BN_PEAK_WG, 1, 1)))
void integer_peak(uint rounds, uint seed, __global uint* restrict out) {
  const uint item = get_global_id(0);
#if BN_WIDE
  bn_words sum[BN_PEAK_CHAINS];
  for (uint c = 0; c < BN_PEAK_CHAINS; ++c) sum[c] = (bn_words)(seed + item + c);
  for (ulong i = 0; i < (ulong)rounds * BN_PIECES; ++i) {
    BN_UNROLL for (uint c = 0; c < BN_PEAK_CHAINS; ++c) {
      const bn_shorts products = bn_ternary_pairs(sum[(c + 1u) % BN_PEAK_CHAINS], seed);
      sum[c] += *(const bn_words*)&products;
    }
  }
  bn_words all = sum[0];
  for (uint c = 1; c < BN_PEAK_CHAINS; ++c) all ^= sum[c];
  const uint* const part = (const uint*)&all;
  uint result = 0;
  for (uint c = 0; c < 16u / BN_PIECES; ++c) result ^= part[c];
#else
  uint sum[BN_PEAK_CHAINS];
  for (uint c = 0; c < BN_PEAK_CHAINS; ++c) sum[c] = seed + item + c;
  for (uint i = 0; i < rounds; ++i) {
    __attribute__((opencl_unroll_hint)) for (uint c = 0; c < BN_PEAK_CHAINS; ++c)
      sum[c] += (uint)BN_DOT4(sum[(c + 1u) % BN_PEAK_CHAINS], seed, 0);
  }
  uint result = 0;
  for (uint c = 0; c < BN_PEAK_CHAINS; ++c) result ^= sum[c];
#endif
  out[item] = result;
}

__kernel __attribute__((reqd_work_group_size(1, 1, 1)))
void nothing(uint a, uint b, uint c, __global uint* restrict out) {
  if (a + b + c == 0u) out[0] = 0u;
}
