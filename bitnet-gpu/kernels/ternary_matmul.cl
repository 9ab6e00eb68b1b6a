// int8 rows times packed ternary weights, int32 accumulation, one scale at the end: a product with one row (decode), with a
// few, or with many (prefill), by BN_ROWS. The rows come from normalize_quantize.cl; the packing is src/packing.cpp's.
//
//   acc[r, o] = sum_k code[o, k] * q[r, k] - sum_k q[r, k]        code = trit + 1, in {0, 1, 2}
//   y[r, o]   = float(acc) * (scale[o / rows_per_scale] * inv_scale[r])     the CPU's expression, one rounding each
//
// Layout:
//   codes       u32 [tiles, words, 16]: word w of column o = 16 * tile + lane holds k = 16 w + 4 j + b in bits 8 b + 2 j and
//               8 b + 2 j + 1, so that (word >> 2 j) & 0x03030303 is four neighbouring codes as bytes. Columns past `out`
//               and k past the matrix's inner size are code 1, that is 0.
//   q           as normalize_quantize.cl writes it, [rows, 16 words], padding zero
//   sums  i32 [rows]       inv_scales  f32 [rows]       scales  f32 [ceil(out / rows_per_scale)]
//   y           f32 [rows, out], row-major, y_offset elements into the buffer
// Bound: |sum code * q| <= 2 * 128 * 16 words < 2^31 for words <= 524,287; prepare() refuses more.
//
// BN_WIDE 0: a work-item computes one column for BN_ROWS rows; BN_SPLIT work-items share its k. Global size
//   {tiles * 16 rounded up to BN_OUT_WG, ceil(rows / BN_ROWS) * BN_SPLIT}, local size {BN_OUT_WG, BN_SPLIT}.
// BN_WIDE 1: a work-item computes a tile for BN_ROWS rows, in 16-bit sums: a lane adds 8 products of at most 2 * 128 a
//   word, 15 words at most (8 * 256 * 15 = 30,720) before they are widened. Global size {ceil(rows / BN_ROWS), tiles}.
//
// Tunables:
//   BN_OUT_WG   columns a work-group, a multiple of 16
//   BN_SPLIT    parts of k that are computed at the same time (BN_WIDE 0)
//   BN_ROWS     rows a work-item, so that one unpacking serves several; src/kernel_set.cpp builds a program for a single
//               row, one for a few and one for many
#ifndef BN_OUT_WG
#define BN_OUT_WG 64
#endif
#ifndef BN_SPLIT
#define BN_SPLIT 1
#endif
#ifndef BN_ROWS
#define BN_ROWS 1
#endif

#if BN_WIDE

#define BN_FLUSH 15u

// Code j of the low and of the high byte of each half word, times the pairs (k, k + 2) and (k + 1, k + 3) of each row.
#define BN_PRODUCTS(j)                                                                     \
  {                                                                                        \
    const short16 low0 = as_short16((v0 >> (ushort)(2 * (j))) & (ushort)3);                \
    const short16 low1 = as_short16((v1 >> (ushort)(2 * (j))) & (ushort)3);                \
    const short16 high0 = as_short16((v0 >> (ushort)(8 + 2 * (j))) & (ushort)3);           \
    const short16 high1 = as_short16((v1 >> (ushort)(8 + 2 * (j))) & (ushort)3);           \
    __attribute__((opencl_unroll_hint)) for (uint r = 0; r < BN_ROWS; ++r) {               \
      const short16 even = as_short16((uint8)(pairs[r][8u * w + 2 * (j)]));                \
      const short16 odd = as_short16((uint8)(pairs[r][8u * w + 2 * (j) + 1]));             \
      sum0[r] += low0 * even + high0 * odd;                                                \
      sum1[r] += low1 * even + high1 * odd;                                                \
    }                                                                                      \
  }

__kernel __attribute__((reqd_work_group_size(1, 1, 1)))
void ternary_matmul(__global const uint* restrict codes, __global const short* restrict q,
                    __global const int* restrict sums, __global const float* restrict inv_scales,
                    __global const float* restrict scales, uint rows_per_scale, uint words, uint out, uint rows,
                    __global float* restrict y, ulong y_offset) {
  const uint first = get_global_id(0) * BN_ROWS;
  const uint tile = get_global_id(1);
  __global const uint* const tile_codes = codes + (ulong)tile * words * 16u;
  // Rows past the end read the last row again and are not stored.
  __global const uint* pairs[BN_ROWS];
  int8 acc0[BN_ROWS], acc1[BN_ROWS];
  __attribute__((opencl_unroll_hint)) for (uint r = 0; r < BN_ROWS; ++r) {
    pairs[r] = (__global const uint*)(q + (ulong)min(first + r, rows - 1u) * words * 16u);
    acc0[r] = (int8)(0);
    acc1[r] = (int8)(0);
  }
  for (uint begin = 0; begin < words; begin += BN_FLUSH) {
    const uint end = min(begin + BN_FLUSH, words);
    short16 sum0[BN_ROWS], sum1[BN_ROWS];
    __attribute__((opencl_unroll_hint)) for (uint r = 0; r < BN_ROWS; ++r) {
      sum0[r] = (short16)(0);
      sum1[r] = (short16)(0);
    }
    for (uint w = begin; w < end; ++w) {
      const ushort16 v0 = as_ushort16(vload8(2u * w, tile_codes));
      const ushort16 v1 = as_ushort16(vload8(2u * w + 1u, tile_codes));
      BN_PRODUCTS(0) BN_PRODUCTS(1) BN_PRODUCTS(2) BN_PRODUCTS(3)
    }
    __attribute__((opencl_unroll_hint)) for (uint r = 0; r < BN_ROWS; ++r) {
      acc0[r] += convert_int8(sum0[r].even) + convert_int8(sum0[r].odd);
      acc1[r] += convert_int8(sum1[r].even) + convert_int8(sum1[r].odd);
    }
  }
  float scale[16];
  const uint columns = min(out - tile * 16u, 16u);
  for (uint c = 0; c < columns; ++c) scale[c] = scales[(tile * 16u + c) / rows_per_scale];
  for (uint r = 0; r < BN_ROWS && first + r < rows; ++r) {
    const uint at = first + r;
    const int16 acc = (int16)(acc0[r], acc1[r]) - (int16)(sums[at]);
    const float16 result = convert_float16(acc) * (vload16(0, scale) * (float16)(inv_scales[at]));
    bn_store16(result, y + y_offset + (ulong)at * out + tile * 16u, 0, columns);
  }
}

#else

__kernel __attribute__((reqd_work_group_size(BN_OUT_WG, BN_SPLIT, 1)))
void ternary_matmul(__global const uint* restrict codes, __global const uint* restrict q,
                    __global const int* restrict sums, __global const float* restrict inv_scales,
                    __global const float* restrict scales, uint rows_per_scale, uint words, uint out, uint rows,
                    __global float* restrict y, ulong y_offset) {
  const uint o = get_global_id(0);
  const uint part = get_local_id(1);
  const uint first = get_group_id(1) * BN_ROWS;
  const uint tile = min(o / 16u, (out - 1u) / 16u);
  __global const uint* const column = codes + (ulong)tile * words * 16u + o % 16u;

  // Rows past the end read the last row again and are not stored.
  __global const uint* row[BN_ROWS];
  int acc[BN_ROWS];
  for (uint r = 0; r < BN_ROWS; ++r) {
    row[r] = q + (ulong)min(first + r, rows - 1u) * words * 4u;
    acc[r] = 0;
  }
  for (uint w = part; w < words; w += BN_SPLIT) {
    const uint v = column[(ulong)w * 16u];
    for (uint j = 0; j < 4u; ++j) {
      const uint four = (v >> (2u * j)) & 0x03030303u;
      for (uint r = 0; r < BN_ROWS; ++r) acc[r] = BN_DOT4(row[r][w * 4u + j], four, acc[r]);
    }
  }
#if BN_SPLIT > 1
  __local int parts[BN_ROWS][BN_SPLIT][BN_OUT_WG];
  for (uint r = 0; r < BN_ROWS; ++r) parts[r][part][get_local_id(0)] = acc[r];
  barrier(CLK_LOCAL_MEM_FENCE);
  if (part != 0u) return;
  for (uint r = 0; r < BN_ROWS; ++r)
    for (uint p = 1; p < BN_SPLIT; ++p) acc[r] += parts[r][p][get_local_id(0)];
#endif
  if (o >= out) return;
  const float scale = scales[o / rows_per_scale];
  for (uint r = 0; r < BN_ROWS && first + r < rows; ++r) {
    const uint at = first + r;
    y[y_offset + (ulong)at * out + o] = (float)(acc[r] - sums[at]) * (scale * inv_scales[at]);
  }
}

#endif
