// Ternary weights whose columns share a scale in groups, and planes of weights that add up: the extended linears of
// docs/formats/extended.md. The products of the groups are added in f32 in their order, as the CPU adds them:
//
//   acc[r, o, g] = sum of code[o, k] * q[r, k] - sum of q[r, k]     over the k of group g, an exact integer
//   y[r, o] = (...((p[0] + p[1]) + p[2]) + ...)                     p[g] = float(acc) * (scale[g, o] * inv_scale[r])
//   added 1: y = ((y + p[0]) + p[1]) + ...                          a plane behind another one
//
// Layout:
//   codes       u32 [tiles, groups, group_words, 16], words as in ternary_matmul.cl; a group begins a word, and what its last
//               word has beyond the group is code 1
//   q           i8 [rows, stride] as normalize_quantize.cl writes it, at least 15 bytes longer than that. Group g begins at
//               column g * group_cols, which need not be a multiple of 4. The last word of a group is multiplied with what
//               follows in q, by code 1; sums has the same values, so they cancel.
//   sums        i32 [rows, groups], over the words of a group: what group_sums writes
//   scales      f32 [groups, 16 * tiles]       inv_scales  f32 [rows]
//   y           f32 [rows, out], row-major, y_offset elements into the buffer
// Bound: |sum code * q| <= 2 * 128 * 16 group_words < 2^31, as there.
//
// group_sums: an item a group, global size {groups rounded up to BN_ROWS_WG, rows}, local size {BN_ROWS_WG, 1}.
// ternary_groups, BN_WIDE 0: an item a column, for BN_ROWS rows: global size {tiles * 16 rounded up to BN_OUT_WG,
//   ceil(rows / BN_ROWS)}, local size {BN_OUT_WG, 1}. BN_WIDE 1: an item a tile: global size {ceil(rows / BN_ROWS), tiles}.
//
// Tunables: BN_OUT_WG and BN_ROWS as in ternary_matmul.cl, BN_ROWS_WG as in rows.cl.
#ifndef BN_OUT_WG
#define BN_OUT_WG 64
#endif
#ifndef BN_ROWS
#define BN_ROWS 1
#endif
#ifndef BN_ROWS_WG
#define BN_ROWS_WG 64
#endif

// Bytes 4 i … 4 i + 3 of p, which need not be aligned.
uint bn_four_bytes(__global const char* p, uint i) { return as_uint(vload4(i, p)); }

__kernel __attribute__((reqd_work_group_size(BN_ROWS_WG, 1, 1)))
void group_sums(__global const char* restrict q, uint stride, uint group_cols, uint group_words, uint groups,
                __global int* restrict sums) {
  const uint g = get_global_id(0), r = get_global_id(1);
  if (g >= groups) return;
  __global const char* const from = q + (ulong)r * stride + (ulong)g * group_cols;
  int sum = 0;
  for (uint i = 0; i < 4u * group_words; ++i) sum = BN_DOT4_SIGNED(bn_four_bytes(from, i), 0x01010101u, sum);
  sums[(ulong)r * groups + g] = sum;
}

#if BN_WIDE

#define BN_FOUR(r, i) bn_four_bytes(from[r], i)

__kernel __attribute__((reqd_work_group_size(1, 1, 1)))
void ternary_groups(__global const uint* restrict codes, __global const char* restrict q, uint stride, uint group_cols,
                    uint group_words, uint groups, __global const int* restrict sums,
                    __global const float* restrict inv_scales, __global const float* restrict scales, uint out, uint rows,
                    uint added, __global float* restrict y, ulong y_offset) {
  const uint first = get_global_id(0) * BN_ROWS;
  const uint tile = get_global_id(1), tiles = get_global_size(1);
  const uint columns = min(out - tile * 16u, 16u);
  __global const uint* tile_codes = codes + (ulong)tile * groups * group_words * 16u;
  float16 total[BN_ROWS];
  for (uint r = 0; r < BN_ROWS; ++r)
    if (added) total[r] = bn_load16(y + y_offset + (ulong)min(first + r, rows - 1u) * out + tile * 16u, 0, columns, 0.0f);
  for (uint g = 0; g < groups; ++g, tile_codes += group_words * 16u) {
    __global const char* from[BN_ROWS];
    bn_ints acc[BN_ROWS][BN_PIECES];
    BN_UNROLL for (uint r = 0; r < BN_ROWS; ++r) {
      from[r] = q + (ulong)min(first + r, rows - 1u) * stride + (ulong)g * group_cols;
      BN_UNROLL for (uint p = 0; p < BN_PIECES; ++p) acc[r][p] = (bn_ints)(0);
    }
    BN_ADD_TERNARY_TILE(acc, tile_codes, group_words, BN_FOUR)
    const float16 scale = vload16(tile, scales + (ulong)g * tiles * 16u);
    BN_UNROLL for (uint r = 0; r < BN_ROWS; ++r) {
      const uint at = min(first + r, rows - 1u);
      const float16 product = convert_float16(BN_JOIN(acc[r]) - (int16)(sums[(ulong)at * groups + g])) *
                              (scale * (float16)(inv_scales[at]));
      total[r] = g == 0u && !added ? product : total[r] + product;
    }
  }
  for (uint r = 0; r < BN_ROWS && first + r < rows; ++r)
    bn_store16(total[r], y + y_offset + (ulong)(first + r) * out + tile * 16u, 0, columns);
}

#else

#define BN_FOUR(r, j) bn_four_bytes(from[r], 4u * w + j)

__kernel __attribute__((reqd_work_group_size(BN_OUT_WG, 1, 1)))
void ternary_groups(__global const uint* restrict codes, __global const char* restrict q, uint stride, uint group_cols,
                    uint group_words, uint groups, __global const int* restrict sums,
                    __global const float* restrict inv_scales, __global const float* restrict scales, uint out, uint rows,
                    uint added, __global float* restrict y, ulong y_offset) {
  const uint o = get_global_id(0);
  const uint first = get_global_id(1) * BN_ROWS;
  if (o >= out) return;
  const uint columns = (out + 15u) / 16u * 16u;
  __global const uint* column = codes + (ulong)(o / 16u) * groups * group_words * 16u + o % 16u;
  float total[BN_ROWS];
  for (uint r = 0; r < BN_ROWS; ++r)
    if (added) total[r] = y[y_offset + (ulong)min(first + r, rows - 1u) * out + o];
  for (uint g = 0; g < groups; ++g, column += group_words * 16u) {
    __global const char* from[BN_ROWS];
    int acc[BN_ROWS];
    for (uint r = 0; r < BN_ROWS; ++r) {
      from[r] = q + (ulong)min(first + r, rows - 1u) * stride + (ulong)g * group_cols;
      acc[r] = 0;
    }
    for (uint w = 0; w < group_words; ++w) {
      const uint v = column[(ulong)w * 16u];
      BN_ADD_TERNARY_WORD(acc, v, BN_FOUR)
    }
    const float scale = scales[(ulong)g * columns + o];
    for (uint r = 0; r < BN_ROWS; ++r) {
      const uint at = min(first + r, rows - 1u);
      const float product = (float)(acc[r] - sums[(ulong)at * groups + g]) * (scale * inv_scales[at]);
      total[r] = g == 0u && !added ? product : total[r] + product;
    }
  }
  for (uint r = 0; r < BN_ROWS && first + r < rows; ++r) y[y_offset + (ulong)(first + r) * out + o] = total[r];
}

#endif
