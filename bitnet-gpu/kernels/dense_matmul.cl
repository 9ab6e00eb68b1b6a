// f32 rows times a float matrix: linears of dense models, heads that are kept as floats, low-rank adapters. Each output is
// summed over 16 lanes (index mod 16) and folded, as the CPU's dots() does.
//
// Layout:
//   w   [out, in] of f32 (BN_TYPE 0), f16 (1) or bf16 (2), row-major
//   x   f32 [rows, in], row-major, x_offset elements into the buffer
//   y   f32 [rows, out], row-major, y_offset elements into the buffer
// A work-item computes one column for BN_ROWS rows; global size {out rounded up to BN_DENSE_WG, ceil(rows / BN_ROWS)}, local
// size {BN_DENSE_WG, 1}.
//
// Tunables:
//   BN_DENSE_WG   columns a work-group
//   BN_ROWS       rows a work-item
#ifndef BN_TYPE
#define BN_TYPE 0
#endif
#ifndef BN_DENSE_WG
#define BN_DENSE_WG 16
#endif
#ifndef BN_ROWS
#define BN_ROWS 1
#endif

#if BN_TYPE == 0
#define BN_ELEMENT float
#define BN_WIDEN16(p) vload16(0, p)
#define BN_WIDEN(p) (*(p))
#elif BN_TYPE == 1
#define BN_ELEMENT half
#define BN_WIDEN16(p) vload_half16(0, p)
#define BN_WIDEN(p) vload_half(0, p)
#else
#define BN_ELEMENT ushort
#define BN_WIDEN16(p) as_float16(convert_uint16(vload16(0, p)) << 16u)
#define BN_WIDEN(p) as_float((uint)(*(p)) << 16)
#endif

__kernel __attribute__((reqd_work_group_size(BN_DENSE_WG, 1, 1)))
void dense_matmul(__global const BN_ELEMENT* restrict w, __global const float* restrict x, ulong x_offset, uint in,
                  uint out, uint rows, __global float* restrict y, ulong y_offset) {
  const uint o = get_global_id(0);
  const uint first = get_global_id(1) * BN_ROWS;
  if (o >= out) return;
  __global const BN_ELEMENT* const column = w + (ulong)o * in;
  __global const float* row[BN_ROWS];
  float16 acc[BN_ROWS];
  for (uint r = 0; r < BN_ROWS; ++r) {
    row[r] = x + x_offset + (ulong)min(first + r, rows - 1u) * in;
    acc[r] = (float16)(0.0f);
  }
  uint k = 0;
  for (; k + 16u <= in; k += 16u) {
    const float16 v = BN_WIDEN16(column + k);
    for (uint r = 0; r < BN_ROWS; ++r) acc[r] = fma(v, vload16(0, row[r] + k), acc[r]);
  }
  if (k < in) {
    float part[16];
    for (uint j = 0; j < 16u; ++j) part[j] = k + j < in ? BN_WIDEN(column + k + j) : 0.0f;
    const float16 v = vload16(0, part);
    for (uint r = 0; r < BN_ROWS; ++r) acc[r] = fma(v, bn_load16(row[r], k, in, 0.0f), acc[r]);
  }
  for (uint r = 0; r < BN_ROWS && first + r < rows; ++r) y[y_offset + (ulong)(first + r) * out + o] = bn_fold(acc[r]);
}
