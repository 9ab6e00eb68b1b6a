// The ops of a step that look at one value, or one pair, at a time: token embedding, RoPE, the gated activation and the
// residual's addition. What is summed over a row is normalize_quantize.cl.
//
// Layout: x, y, gate, up, out are f32, row-major, each at an offset of elements into its buffer. The rest is said at each
// kernel. Global size: {items of a row rounded up to BN_ROWS_WG, rows}; local size {BN_ROWS_WG, 1}.
//
// Tunables:
//   BN_ROWS_WG   work-items of a group
#ifndef BN_ROWS_WG
#define BN_ROWS_WG 64
#endif
#define BN_ROWS_KERNEL __kernel __attribute__((reqd_work_group_size(BN_ROWS_WG, 1, 1)))

// out[r] = row ids[r] of an int8 table, laid out as int8_matmul.cl says: value * scales[id].
BN_ROWS_KERNEL
void embed_i8(__global const uint* restrict table, __global const float* restrict scales, __global const int* restrict ids,
              uint words, uint cols, __global float* restrict out, ulong out_offset) {
  const uint c = get_global_id(0);
  const uint r = get_global_id(1);
  if (c >= cols) return;
  const uint id = (uint)ids[r];
  const uint word = table[((ulong)(id / 16u) * words + c / 4u) * 16u + id % 16u];
  out[out_offset + (ulong)r * cols + c] = (float)(char)((word >> (8u * (c % 4u))) & 255u) * scales[id];
}

// The same of a table [vocab, cols] of f32, f16 or bf16.
BN_ROWS_KERNEL
void embed_f32(__global const float* restrict table, __global const int* restrict ids, uint cols,
               __global float* restrict out, ulong out_offset) {
  const uint c = get_global_id(0);
  if (c < cols) out[out_offset + (ulong)get_global_id(1) * cols + c] = table[(ulong)ids[get_global_id(1)] * cols + c];
}

BN_ROWS_KERNEL
void embed_f16(__global const half* restrict table, __global const int* restrict ids, uint cols,
               __global float* restrict out, ulong out_offset) {
  const uint c = get_global_id(0);
  if (c < cols)
    out[out_offset + (ulong)get_global_id(1) * cols + c] = vload_half((ulong)ids[get_global_id(1)] * cols + c, table);
}

BN_ROWS_KERNEL
void embed_bf16(__global const ushort* restrict table, __global const int* restrict ids, uint cols,
                __global float* restrict out, ulong out_offset) {
  const uint c = get_global_id(0);
  if (c < cols)
    out[out_offset + (ulong)get_global_id(1) * cols + c] =
        as_float((uint)table[(ulong)ids[get_global_id(1)] * cols + c] << 16);
}

// Rotate-half RoPE in place. table: f32 [positions, half_dim cosines, half_dim sines]; cols = heads * 2 * half_dim.
// Items of a row: its cols / 2 pairs.
BN_ROWS_KERNEL
void rope(__global float* restrict x, ulong x_offset, __global const int* restrict positions,
          __global const float* restrict table, uint cols, uint half_dim) {
  const uint pair = get_global_id(0);
  const uint r = get_global_id(1);
  if (pair >= cols / 2u) return;
  const uint i = pair % half_dim;
  __global float* const head = x + x_offset + (ulong)r * cols + pair / half_dim * (2u * half_dim);
  __global const float* const angles = table + (ulong)positions[r] * (2u * half_dim);
  const float a = head[i], b = head[half_dim + i];
  const float c = angles[i], s = angles[half_dim + i];
  const float bs = b * s, as = a * s;
  head[i] = fma(a, c, -bs);
  head[half_dim + i] = fma(b, c, as);
}

// out = f(gate) * up; `out` may be `gate`.
BN_ROWS_KERNEL
void relu2_gate(__global const float* gate, ulong gate_offset, __global const float* up, ulong up_offset,
                __global float* out, ulong out_offset, uint cols) {
  const uint c = get_global_id(0);
  if (c >= cols) return;
  const ulong at = (ulong)get_global_id(1) * cols + c;
  const float g = gate[gate_offset + at];
  const float relu = g < 0.0f ? 0.0f : g;  // a NaN stays one
  out[out_offset + at] = relu * relu * up[up_offset + at];
}

BN_ROWS_KERNEL
void silu_gate(__global const float* gate, ulong gate_offset, __global const float* up, ulong up_offset,
               __global float* out, ulong out_offset, uint cols) {
  const uint c = get_global_id(0);
  if (c >= cols) return;
  const ulong at = (ulong)get_global_id(1) * cols + c;
  const float g = gate[gate_offset + at];
  out[out_offset + at] = bn_divide(g, 1.0f + bn_exp(-g)) * up[up_offset + at];
}

// x += y
BN_ROWS_KERNEL
void add_rows(__global float* restrict x, ulong x_offset, __global const float* restrict y, ulong y_offset, uint cols) {
  const uint c = get_global_id(0);
  if (c >= cols) return;
  const ulong at = (ulong)get_global_id(1) * cols + c;
  x[x_offset + at] += y[y_offset + at];
}
