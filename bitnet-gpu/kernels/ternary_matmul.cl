// int8 rows times packed ternary weights, int32 accumulation, one scale at the end: of one row (decode), of a few (decode of
// several sequences) and of many (prefill). Up to three matrices over the same rows in a launch. The rows come from
// normalize_quantize.cl; the packing is src/prepared.cpp's.
//
//   acc[r, o] = sum_k code[o, k] * q[r, k] - sum_k q[r, k]        code = trit + 1, in {0, 1, 2}
//   p[r, o] = float(acc) * (scale[o / rows_per_scale] * inv_scale[r])     the CPU's expression, one rounding each
//   y = p;  added 1: also x = x + p (the residual);  added 2: y = y + p instead (a second plane)
//
// Layout:
//   codes       u32 [tiles, words, 16]: word w of column o = 16 * tile + lane holds k = 16 w + 4 j + b in bits 8 b + 2 j and
//               8 b + 2 j + 1, so that (word >> 2 j) & 0x03030303 is four neighbouring codes as bytes. Columns past `out`
//               and k past the matrix's inner size are code 1, that is 0.
//   q           i8 [rows, 16 words] as normalize_quantize.cl writes it, padding zero
//   sums  i32 [rows]       inv_scales  f32 [rows]       scales  f32 [ceil(out / rows_per_scale)]
//   y           f32 [rows, out], row-major, y_offset elements into the buffer; x the same. out 0: no matrix. `added` is of
//               the first matrix, alone.
// Bound: |sum code * q| <= 2 * 128 * 16 words < 2^31 for words <= 524,287; prepare() refuses more.
//
// BN_WIDE 0, ternary_matmul, up to some 16 rows: a work-item computes one column for BN_ROWS rows; BN_SPLIT work-items share its
//   k, so that few rows fill a device. Each matrix begins a work-group: global size {sum of columns rounded up to BN_OUT_WG,
//   ceil(rows / BN_ROWS) * BN_SPLIT}, local size {BN_OUT_WG, BN_SPLIT}.
// BN_WIDE 0, ternary_gemm, many rows: BN_GEMM_ITEMS work-items compute BN_ROWS rows each of one column; the rows of a work-group
//   pass through local memory, BN_GEMM_WORDS words of k at a time. Global size {sum of columns rounded up to BN_OUT_WG,
//   ceil(rows / (BN_ROWS * BN_GEMM_ITEMS)) * BN_GEMM_ITEMS}, local size {BN_OUT_WG, BN_GEMM_ITEMS}.
// BN_WIDE 1, ternary_matmul, any number of rows: a work-item computes a tile for BN_ROWS rows. Global size
//   {ceil(rows / BN_ROWS), items}, where an item has each items-th tile of all matrices.
//
// Variants: BN_MANY 1 has ternary_gemm, 0 ternary_matmul.
//
// Tunables:
//   BN_OUT_WG   columns a work-group, a multiple of 16
//   BN_SPLIT    parts of k that are computed at the same time (BN_WIDE 0)
//   BN_ROWS     rows a work-item, so that one unpacking serves several
//   BN_GEMM_ITEMS, BN_GEMM_WORDS   as said above; BN_ROWS * BN_GEMM_ITEMS * BN_GEMM_WORDS * 16 bytes of local memory
#ifndef BN_MANY
#define BN_MANY 0
#endif
#ifndef BN_OUT_WG
#define BN_OUT_WG 64
#endif
#ifndef BN_SPLIT
#define BN_SPLIT 1
#endif
#ifndef BN_ROWS
#define BN_ROWS 1
#endif
#ifndef BN_GEMM_ITEMS
#define BN_GEMM_ITEMS 4
#endif
#ifndef BN_GEMM_WORDS
#define BN_GEMM_WORDS 8
#endif

#define BN_MATRIX(n)                                                                                                  \
  __global const uint *restrict codes##n, __global const float *restrict scales##n, uint rows_per_scale##n, uint out##n, \
      __global float *restrict y##n, ulong y_offset##n

// The matrix to which part `i` of a launch belongs, n parts each; leaves its number within the matrix in `i`.
#define BN_CHOOSE(i, PARTS_OF)                                        \
  __global const uint* codes = codes0;                                \
  __global const float* scales = scales0;                             \
  __global float* y = y0 + y_offset0;                                 \
  uint rows_per_scale = rows_per_scale0, out = out0, do_add = added;  \
  if (i >= PARTS_OF(out0)) {                                          \
    i -= PARTS_OF(out0);                                              \
    do_add = 0;                                                       \
    codes = codes1, scales = scales1, y = y1 + y_offset1;             \
    rows_per_scale = rows_per_scale1, out = out1;                     \
    if (i >= PARTS_OF(out1)) {                                        \
      i -= PARTS_OF(out1);                                            \
      codes = codes2, scales = scales2, y = y2 + y_offset2;           \
      rows_per_scale = rows_per_scale2, out = out2;                   \
    }                                                                 \
  }

#if BN_WIDE

#define BN_FOUR(r, i) fours[r][i]
#define BN_TILES(out) (((out) + 15u) / 16u)

float16 bn_scales16(__global const float* scales, uint rows_per_scale, uint first, uint columns, uint out) {
  if (rows_per_scale >= out) return (float16)(scales[0]);
  if (rows_per_scale == 1u) return bn_load16(scales + first, 0, columns, 0.0f);
  float scale[16];
  for (uint c = 0; c < 16u; ++c) scale[c] = scales[min(first + c, out - 1u) / rows_per_scale];
  return vload16(0, scale);
}

__kernel __attribute__((reqd_work_group_size(1, 1, 1)))
void ternary_matmul(__global const char* restrict q, __global const int* restrict sums,
                    __global const float* restrict inv_scales, uint words, uint rows, uint added, __global float* x,
                    ulong x_offset, BN_MATRIX(0), BN_MATRIX(1), BN_MATRIX(2)) {
  const uint first = get_global_id(0) * BN_ROWS;
  const uint all = BN_TILES(out0) + BN_TILES(out1) + BN_TILES(out2);
  for (uint number = get_global_id(1); number < all; number += get_global_size(1)) {
    uint tile = number;
    BN_CHOOSE(tile, BN_TILES)
    __global const uint* const tile_codes = codes + (ulong)tile * words * 16u;
    // Rows past the end read the last row again and are not stored.
    __global const uint* fours[BN_ROWS];
    bn_ints acc[BN_ROWS][BN_PIECES];
    BN_UNROLL for (uint r = 0; r < BN_ROWS; ++r) {
      fours[r] = (__global const uint*)(q + (ulong)min(first + r, rows - 1u) * words * 16u);
      BN_UNROLL for (uint p = 0; p < BN_PIECES; ++p) acc[r][p] = (bn_ints)(0);
    }
    BN_ADD_TERNARY_TILE(acc, tile_codes, words, BN_FOUR)
    const uint columns = min(out - tile * 16u, 16u);
    const float16 scale = bn_scales16(scales, rows_per_scale, tile * 16u, columns, out);
    for (uint r = 0; r < BN_ROWS && first + r < rows; ++r) {
      const uint at = first + r;
      float16 result = convert_float16(BN_JOIN(acc[r]) - (int16)(sums[at])) * (scale * (float16)(inv_scales[at]));
      __global float* const to = y + (ulong)at * out + tile * 16u;
      if (do_add == 2u) result = bn_load16(to, 0, columns, 0.0f) + result;
      bn_store16(result, to, 0, columns);
      if (do_add == 1u) {
        __global float* const sum = x + x_offset + (ulong)at * out + tile * 16u;
        bn_store16(bn_load16(sum, 0, columns, 0.0f) + result, sum, 0, columns);
      }
    }
  }
}

#else

// Work-groups of a matrix.
#define BN_GROUPS(out) (((out) + BN_OUT_WG - 1u) / BN_OUT_WG)
#define BN_GEMM_ROWS (BN_ROWS * BN_GEMM_ITEMS)

void bn_store(int sum, float scale, uint add, __global float* y, __global float* x, ulong at) {
  const float result = (float)sum * scale;
  y[at] = add == 2u ? y[at] + result : result;
  if (add == 1u) x[at] += result;
}

#if !BN_MANY

#define BN_FOUR(r, j) row[r][4u * w + j]

__kernel __attribute__((reqd_work_group_size(BN_OUT_WG, BN_SPLIT, 1)))
void ternary_matmul(__global const uint* restrict q, __global const int* restrict sums,
                    __global const float* restrict inv_scales, uint words, uint rows, uint added, __global float* x,
                    ulong x_offset, BN_MATRIX(0), BN_MATRIX(1), BN_MATRIX(2)) {
  uint group = get_group_id(0);
  BN_CHOOSE(group, BN_GROUPS)
  const uint o = group * BN_OUT_WG + get_local_id(0);
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
    BN_ADD_TERNARY_WORD(acc, v, BN_FOUR)
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
  for (uint r = 0; r < BN_ROWS && first + r < rows; ++r)
    bn_store(acc[r] - sums[first + r], scale * inv_scales[first + r], do_add, y, x + x_offset, (ulong)(first + r) * out + o);
}

#else

#define BN_FOUR(r, j) tile_rows[mine + r][4u * w + j]

__kernel __attribute__((reqd_work_group_size(BN_OUT_WG, BN_GEMM_ITEMS, 1)))
void ternary_gemm(__global const uint* restrict q, __global const int* restrict sums,
                  __global const float* restrict inv_scales, uint words, uint rows, uint added, __global float* x,
                  ulong x_offset, BN_MATRIX(0), BN_MATRIX(1), BN_MATRIX(2)) {
  __local uint tile_rows[BN_GEMM_ROWS][4 * BN_GEMM_WORDS];
  uint group = get_group_id(0);
  BN_CHOOSE(group, BN_GROUPS)
  const uint o = group * BN_OUT_WG + get_local_id(0);
  const uint first_of_group = get_group_id(1) * BN_GEMM_ROWS;
  const uint mine = get_local_id(1) * BN_ROWS, first = first_of_group + mine;
  const uint item = get_local_id(1) * BN_OUT_WG + get_local_id(0);
  const uint tile = min(o / 16u, (out - 1u) / 16u);
  __global const uint* const column = codes + (ulong)tile * words * 16u + o % 16u;
  int acc[BN_ROWS];
  for (uint r = 0; r < BN_ROWS; ++r) acc[r] = 0;
  for (uint begin = 0; begin < words; begin += BN_GEMM_WORDS) {
    const uint n = min(words - begin, (uint)BN_GEMM_WORDS);
    barrier(CLK_LOCAL_MEM_FENCE);
    for (uint i = item; i < BN_GEMM_ROWS * 4u * BN_GEMM_WORDS; i += BN_OUT_WG * BN_GEMM_ITEMS) {
      const uint r = i / (4u * BN_GEMM_WORDS), k = i % (4u * BN_GEMM_WORDS);
      tile_rows[r][k] = k < 4u * n ? q[((ulong)min(first_of_group + r, rows - 1u) * words + begin) * 4u + k] : 0u;
    }
    barrier(CLK_LOCAL_MEM_FENCE);
    for (uint w = 0; w < n; ++w) {
      const uint v = column[(ulong)(begin + w) * 16u];
      BN_ADD_TERNARY_WORD(acc, v, BN_FOUR)
    }
  }
  if (o >= out) return;
  const float scale = scales[o / rows_per_scale];
  for (uint r = 0; r < BN_ROWS && first + r < rows; ++r)
    bn_store(acc[r] - sums[first + r], scale * inv_scales[first + r], do_add, y, x + x_offset, (ulong)(first + r) * out + o);
}

#endif
#endif
