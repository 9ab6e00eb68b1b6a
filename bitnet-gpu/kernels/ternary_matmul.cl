// int8 rows times packed ternary weights, int32 accumulation, one scale at the end. The rows come from
// quantize_rows.cl; the packing is done by OpenClBackend::prepare.
//
//   acc[r, o] = sum_k code[o, k] * q[r, k] - sum_k q[r, k]        code = trit + 1, in {0, 1, 2}
//   y[r, o]   = float(acc) * (scale[o / rows_per_scale] * inv_scale[r])     the CPU's expression, one rounding each
//
// Layout:
//   codes       u32 [words, out_stride]: word w of column o holds k = 16 w + j in bits 2 j and 2 j + 1, so that
//               neighbouring work-items (columns) read neighbouring words. Columns past `out` and k past the
//               matrix's inner size are code 1, that is 0.
//   q           i8 [rows, 16 words], padding zero       sums  i32 [rows]       inv_scales  f32 [rows]
//   scales      f32 [ceil(out / rows_per_scale)]
//   y           f32 [rows, out], row-major, y_offset elements into the buffer
// Bound: |sum code * q| <= 2 * 128 * 16 words < 2^31 for words <= 524,287; prepare() refuses more.
// Global size {out_stride, ceil(rows / BN_ROWS)}, local size {BN_OUT_WG, 1}; out_stride is a multiple of BN_OUT_WG.
//
// Tunables:
//   BN_OUT_WG   columns a work-group
//   BN_ROWS     rows a work-item, so that one unpacking serves several; the backend builds one program for a single
//               row and one for batches
#ifndef BN_OUT_WG
#define BN_OUT_WG 64
#endif
#ifndef BN_ROWS
#define BN_ROWS 1
#endif

#pragma OPENCL FP_CONTRACT OFF

__kernel __attribute__((reqd_work_group_size(BN_OUT_WG, 1, 1)))
void ternary_matmul(__global const uint* restrict codes, __global const char* restrict q,
                    __global const int* restrict sums, __global const float* restrict inv_scales,
                    __global const float* restrict scales, uint rows_per_scale, uint words, uint out,
                    uint out_stride, uint rows, __global float* restrict y, ulong y_offset) {
  const uint o = get_global_id(0);
  const uint first = get_global_id(1) * BN_ROWS;
  const ulong stride = (ulong)words * 16;

  // Rows past the end read the last row again and are not stored.
  __global const char* row[BN_ROWS];
  int acc[BN_ROWS];
  for (uint r = 0; r < BN_ROWS; ++r) {
    row[r] = q + (ulong)min(first + r, rows - 1) * stride;
    acc[r] = 0;
  }
  for (uint w = 0; w < words; ++w) {
    const uint v = codes[(ulong)w * out_stride + o];
    for (uint j = 0; j < 16; ++j) {
      const int code = (int)((v >> (2 * j)) & 3u);
      for (uint r = 0; r < BN_ROWS; ++r) acc[r] += code * (int)row[r][w * 16 + j];
    }
  }
  if (o >= out) return;
  const float scale = scales[o / rows_per_scale];
  for (uint r = 0; r < BN_ROWS; ++r) {
    if (first + r >= rows) break;
    const uint at = first + r;
    y[y_offset + (ulong)at * out + o] = (float)(acc[r] - sums[at]) * (scale * inv_scales[at]);
  }
}
