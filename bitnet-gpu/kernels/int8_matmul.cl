// int8 rows times an int8 matrix with a scale a row of it: output heads. The rows come from normalize_quantize.cl; the
// packing is src/packing.cpp's; the same table serves embed_i8 of rows.cl.
//
//   y[r, o] = float(sum_k w[o, k] * q[r, k]) * (scale[o] * inv_scale[r])
//
// Layout:
//   table       u32 [tiles, words, 16]: word w of column o = 16 * tile + lane holds k = 4 w … 4 w + 3 as signed bytes, the
//               first one lowest. Columns past `out` and k past the matrix's inner size are 0. words is a multiple of 4.
//   q           as normalize_quantize.cl writes it, [rows, 4 words]
//   scales      f32 [out]       inv_scales  f32 [rows]
//   y           f32 [rows, out], row-major, y_offset elements into the buffer
// Bound: |sum w * q| <= 127 * 128 * 4 words < 2^31 for 4 words <= 131,072; prepare_embedding() refuses more.
//
// BN_WIDE 0: a work-item computes one column for BN_ROWS rows; global size {tiles * 16 rounded up to BN_OUT_WG,
//   ceil(rows / BN_ROWS)}, local size {BN_OUT_WG, 1}. BN_WIDE 1: a work-item computes each items-th tile for BN_ROWS rows;
//   global size {ceil(rows / BN_ROWS), items}.
//
// Tunables: BN_OUT_WG and BN_ROWS as in ternary_matmul.cl.
#ifndef BN_OUT_WG
#define BN_OUT_WG 64
#endif
#ifndef BN_ROWS
#define BN_ROWS 1
#endif

#if BN_WIDE

__kernel __attribute__((reqd_work_group_size(1, 1, 1)))
void int8_matmul(__global const uint* restrict table, __global const char* restrict q,
                 __global const float* restrict inv_scales, __global const float* restrict scales, uint words, uint out,
                 uint rows, __global float* restrict y, ulong y_offset) {
  const uint first = get_global_id(0) * BN_ROWS;
  for (uint tile = get_global_id(1); tile * 16u < out; tile += get_global_size(1)) {
    __global const uint* const tile_values = table + (ulong)tile * words * 16u;
    __global const uint* fours[BN_ROWS];
    bn_ints acc[BN_ROWS][BN_PIECES];
    BN_UNROLL for (uint r = 0; r < BN_ROWS; ++r) {
      fours[r] = (__global const uint*)(q + (ulong)min(first + r, rows - 1u) * words * 4u);
      BN_UNROLL for (uint p = 0; p < BN_PIECES; ++p) acc[r][p] = (bn_ints)(0);
    }
    for (uint w = 0; w < words; ++w) {
      BN_UNROLL for (uint p = 0; p < BN_PIECES; ++p) {
        const bn_words v = BN_LOAD_WORDS(BN_PIECES * w + p, tile_values);
        BN_UNROLL for (uint r = 0; r < BN_ROWS; ++r) acc[r][p] += bn_signed_dots(v, fours[r][w]);
      }
    }
    const uint columns = min(out - tile * 16u, 16u);
    const float16 scale = bn_load16(scales + tile * 16u, 0, columns, 0.0f);
    for (uint r = 0; r < BN_ROWS && first + r < rows; ++r) {
      const float16 result = convert_float16(BN_JOIN(acc[r])) * (scale * (float16)(inv_scales[first + r]));
      bn_store16(result, y + y_offset + (ulong)(first + r) * out + tile * 16u, 0, columns);
    }
  }
}

#else

__kernel __attribute__((reqd_work_group_size(BN_OUT_WG, 1, 1)))
void int8_matmul(__global const uint* restrict table, __global const uint* restrict q,
                 __global const float* restrict inv_scales, __global const float* restrict scales, uint words, uint out,
                 uint rows, __global float* restrict y, ulong y_offset) {
  const uint o = get_global_id(0);
  const uint first = get_global_id(1) * BN_ROWS;
  if (o >= out) return;
  __global const uint* const column = table + (ulong)(o / 16u) * words * 16u + o % 16u;
  __global const uint* row[BN_ROWS];
  int acc[BN_ROWS];
  for (uint r = 0; r < BN_ROWS; ++r) {
    row[r] = q + (ulong)min(first + r, rows - 1u) * words;
    acc[r] = 0;
  }
  for (uint w = 0; w < words; ++w) {
    const uint v = column[(ulong)w * 16u];
    for (uint r = 0; r < BN_ROWS; ++r) acc[r] = BN_DOT4_SIGNED(row[r][w], v, acc[r]);
  }
  for (uint r = 0; r < BN_ROWS && first + r < rows; ++r)
    y[y_offset + (ulong)(first + r) * out + o] = (float)acc[r] * (scales[o] * inv_scales[first + r]);
}

#endif
