// Reads a buffer once, as fast as the device's memory gives it: what a token costs at least that streams all weights.
// When it is run and how the time is taken is in src/read_bandwidth.cpp.
//
// Layout:
//   data   u32 [n, 4]
//   words  u32 [global size], the exclusive or of what each work-item read: without a use the reads could be left out
// Work-item i reads elements i, i + global size, i + 2 * global size, …, so that neighbours read neighbours.
__kernel void read_bandwidth(__global const uint4* restrict data, ulong n, __global uint* restrict words) {
  const ulong step = get_global_size(0);
  uint4 all = (uint4)(0u);
  for (ulong i = get_global_id(0); i < n; i += step) all ^= data[i];
  words[get_global_id(0)] = all.x ^ all.y ^ all.z ^ all.w;
}
