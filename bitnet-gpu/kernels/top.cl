// The largest values of long rows, so that logits stay on the device: rows are cut into chunks of BN_TOP_CHUNK, each is sorted,
// and its first k are kept; the kept ones are cut and sorted again until one chunk a row is left (src/top_op.cpp).
//
// A value and its column are one number that orders as wanted: the value's bits made monotonic above, the column's complement
// below, so that the larger number is the larger value, and of equal values (a zero is +0) the one of the smaller column. A
// NaN is larger than everything.
//
// Layout:
//   x     f32 [rows, cols], row-major, x_offset elements into the buffer
//   keys  u64 [rows, n] in, u64 [rows, chunks, k] out; 0 where there are fewer than k: smaller than that of any value
// A work-group a chunk: global size {chunks * BN_TOP_WG, rows}, local size {BN_TOP_WG, 1}.
//
// Tunables:
//   BN_TOP_CHUNK   values of a chunk, a power of two, at least twice the largest k
//   BN_TOP_WG      work-items of a group, a power of two, at most half of that
#ifndef BN_TOP_CHUNK
#define BN_TOP_CHUNK 1024
#endif
#ifndef BN_TOP_WG
#define BN_TOP_WG 128
#endif

ulong bn_key(float value, uint column) {
  const uint bits = as_uint(value + 0.0f);
  const uint monotonic = (bits & 0x80000000u) ? ~bits : bits | 0x80000000u;
  return ((ulong)(isnan(value) ? 0xffffffffu : monotonic) << 32) | (0xffffffffu - column);
}

// Descending, in place: Batcher's bitonic sort.
void bn_sort(__local ulong* keys) {
  for (uint size = 2; size <= BN_TOP_CHUNK; size *= 2) {
    for (uint distance = size / 2; distance > 0; distance /= 2) {
      barrier(CLK_LOCAL_MEM_FENCE);
      for (uint pair = get_local_id(0); pair < BN_TOP_CHUNK / 2; pair += BN_TOP_WG) {
        const uint i = 2 * distance * (pair / distance) + pair % distance;
        const uint j = i + distance;
        const ulong a = keys[i], b = keys[j];
        const int descending = (i & size) == 0;
        if (descending ? a < b : a > b) {
          keys[i] = b;
          keys[j] = a;
        }
      }
    }
  }
  barrier(CLK_LOCAL_MEM_FENCE);
}

__kernel __attribute__((reqd_work_group_size(BN_TOP_WG, 1, 1)))
void top_of_values(__global const float* restrict x, ulong x_offset, uint cols, uint k, __global ulong* restrict out) {
  __local ulong keys[BN_TOP_CHUNK];
  const uint chunk = get_group_id(0), row = get_group_id(1);
  for (uint i = get_local_id(0); i < BN_TOP_CHUNK; i += BN_TOP_WG) {
    const uint c = chunk * BN_TOP_CHUNK + i;
    keys[i] = c < cols ? bn_key(x[x_offset + (ulong)row * cols + c], c) : 0ul;
  }
  bn_sort(keys);
  __global ulong* const to = out + ((ulong)row * get_num_groups(0) + chunk) * k;
  for (uint i = get_local_id(0); i < k; i += BN_TOP_WG) to[i] = keys[i];
}

__kernel __attribute__((reqd_work_group_size(BN_TOP_WG, 1, 1)))
void top_of_keys(__global const ulong* restrict from, uint n, uint k, __global ulong* restrict out) {
  __local ulong keys[BN_TOP_CHUNK];
  const uint chunk = get_group_id(0), row = get_group_id(1);
  for (uint i = get_local_id(0); i < BN_TOP_CHUNK; i += BN_TOP_WG) {
    const uint c = chunk * BN_TOP_CHUNK + i;
    keys[i] = c < n ? from[(ulong)row * n + c] : 0ul;
  }
  bn_sort(keys);
  __global ulong* const to = out + ((ulong)row * get_num_groups(0) + chunk) * k;
  for (uint i = get_local_id(0); i < k; i += BN_TOP_WG) to[i] = keys[i];
}
