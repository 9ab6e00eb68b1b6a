// Reads a buffer once, as fast as the device's memory gives it: what a token costs at least that streams all weights.
// When it is run and how the time is taken is in src/read_bandwidth.cpp.
//
// Layout:
//   data   u32 [chunks * BN_READ_STEPS * BN_READ_WG, 4], with BN_WIDE 1 [chunks * BN_READ_STEPS * BN_READ_WG, 16]
//   words  u32 [global size], the exclusive or of what each work-item read: without a use the reads could be left out
// A work-group reads whole chunks: BN_READ_WG neighbours at a step, together; with BN_WIDE 1 a work-item reads one after the
// other, as a core's prefetcher likes it, into four sums, so that no load waits for the one before.
//
// Tunables:
//   BN_READ_WG     work-items of a group, at most the device's maximal work-group size; 1 with BN_WIDE 1
//   BN_READ_STEPS  steps of a chunk, a multiple of 4
#ifndef BN_WIDE
#define BN_WIDE 0
#endif
#ifndef BN_READ_WG
#define BN_READ_WG (BN_WIDE ? 1 : 64)
#endif
#ifndef BN_READ_STEPS
#define BN_READ_STEPS (BN_WIDE ? 1024 : 16)
#endif

#if BN_WIDE
__kernel __attribute__((reqd_work_group_size(BN_READ_WG, 1, 1)))
void read_bandwidth(__global const uint16* restrict data, ulong chunks, __global uint* restrict words) {
  const ulong step = get_num_groups(0);
  uint16 a = (uint16)(0u), b = (uint16)(0u), c = (uint16)(0u), d = (uint16)(0u);
  for (ulong chunk = get_group_id(0); chunk < chunks; chunk += step) {
    __global const uint16* const from = data + chunk * BN_READ_STEPS;
    for (uint i = 0; i < BN_READ_STEPS; i += 4) {
      a ^= from[i];
      b ^= from[i + 1];
      c ^= from[i + 2];
      d ^= from[i + 3];
    }
  }
  const uint16 all = (a ^ b) ^ (c ^ d);
  const uint8 half8 = all.lo ^ all.hi;
  const uint4 half4 = half8.lo ^ half8.hi;
  words[get_global_id(0)] = half4.x ^ half4.y ^ half4.z ^ half4.w;
}
#else
__kernel __attribute__((reqd_work_group_size(BN_READ_WG, 1, 1)))
void read_bandwidth(__global const uint4* restrict data, ulong chunks, __global uint* restrict words) {
  const ulong step = get_num_groups(0);
  uint4 all = (uint4)(0u);
  for (ulong chunk = get_group_id(0); chunk < chunks; chunk += step) {
    __global const uint4* const from = data + chunk * (BN_READ_STEPS * BN_READ_WG) + get_local_id(0);
    for (uint i = 0; i < BN_READ_STEPS; ++i) all ^= from[i * BN_READ_WG];
  }
  words[get_global_id(0)] = all.x ^ all.y ^ all.z ^ all.w;
}
#endif
