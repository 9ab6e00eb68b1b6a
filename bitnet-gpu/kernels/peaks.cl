// What a device's arithmetic and its queue reach at most. What is measured with it, and how, is in src/peaks.cpp.
//
// integer_peak: BN_PEAK_CHAINS chains of multiply-adds in registers, in the form that the matrix kernels have: 16-bit lanes with
// BN_WIDE 1, dot products of four bytes with BN_WIDE 0. Each chain's factor is another one's sum, so that no product is known
// before. BN_PEAK_OPS operations of a work-item and round; sums wrap, which is defined for unsigned integers.
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
  ushort16 sum[BN_PEAK_CHAINS];
  for (uint c = 0; c < BN_PEAK_CHAINS; ++c) sum[c] = (ushort16)((ushort)(seed + item + c));
  for (uint i = 0; i < rounds; ++i) {
    __attribute__((opencl_unroll_hint)) for (uint c = 0; c < BN_PEAK_CHAINS; ++c)
      sum[c] += sum[(c + 1u) % BN_PEAK_CHAINS] * (ushort16)((ushort)seed);
  }
  ushort16 all = sum[0];
  for (uint c = 1; c < BN_PEAK_CHAINS; ++c) all ^= sum[c];
  ushort part[16];
  vstore16(all, 0, part);
  uint result = 0;
  for (uint c = 0; c < 16u; ++c) result ^= part[c];
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
