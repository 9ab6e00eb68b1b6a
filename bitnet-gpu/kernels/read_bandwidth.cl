// Reads a buffer once, as fast as the device's memory gives it: what a token costs at least that streams all weights.
// When it is run and how the time is taken is in src/read_bandwidth.cpp.
//
// Layout:
//   data   u32 [chunks * BN_READ_STEPS * BN_READ_WG, 4]
//   words  u32 [global size], the exclusive or of what each work-item read: without a use the reads could be left out
// A work-group reads whole chunks, BN_READ_WG neighbours at a step: together on a GPU, within a cache on a device that runs
// the work-items of a group one after the other.
//
// Tunables:
//   BN_READ_WG     work-items of a group, at most the device's maximal work-group size
//   BN_READ_STEPS  steps of a chunk
#ifndef BN_READ_WG
#define BN_READ_WG 64
#endif
#ifndef BN_READ_STEPS
#define BN_READ_STEPS 16
#endif

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
