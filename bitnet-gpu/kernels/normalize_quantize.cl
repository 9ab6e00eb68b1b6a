// One pass over a row on its way to a linear: the gated activation, if there is one, RMSNorm, if there is one, and absmax
// quantisation to int8, or floats where no linear follows. The products are in ternary_matmul.cl and int8_matmul.cl.
// Definitions are those of docs/numerics.md, bit for bit:
//   v = x, or f(x) * up
//   n = v * (1 / sqrt(sum(v^2) / cols + eps)) * weight, the sum over 16 lanes; or v
//   a = 127 / max(max|n|, 1e-5), q = clamp(round_half_even(n * a), -128, 127), inv_scale = 1 / a
//   BN_FORM 1: a = 7 / max(max|n|, 1e-5), q to -8 … 7;  2: a = sqrt(7) / max(mean|n|, 1e-5), q to -8 … 7, where the mean is
//   summed in double in index order and rounded once (cl_khr_fp64)
// A row with a NaN or an infinity has q = 0 and an inv_scale that makes its products NaN.
//
// Layout:
//   x, up       f32 [rows, cols], row-major, at an offset of elements (up: with BN_GATE only)
//   values      f32 [rows, cols] at an offset: v where BN_GATE, else x itself; may be x. Without BN_QUANTIZE the result.
//   weight      f32 [cols] (with BN_NORM only)
//   q           i8 [rows, stride]; stride = cols rounded up to 16, padding zero
//   inv_scales  f32 [rows]
//   sums        i32 [rows], the sum of q's row: |sum| <= 128 * cols
// BN_WIDE 0: a work-group a row, global size {rows * BN_QUANT_WG}, local size {BN_QUANT_WG}.
// BN_WIDE 1: a work-item a row, global size {rows}, local size {1}.
//
// Variants: BN_GATE 0 none, 1 relu^2, 2 silu; BN_NORM 0, 1; BN_QUANTIZE 0, 1; BN_FORM 0, 1, 2, as ActivationForm counts.
//
// Tunables:
//   BN_QUANT_WG   work-items a row with BN_WIDE 0; a power of two from 16 on
#ifndef BN_GATE
#define BN_GATE 0
#endif
#ifndef BN_NORM
#define BN_NORM 0
#endif
#ifndef BN_QUANTIZE
#define BN_QUANTIZE 1
#endif
#ifndef BN_FORM
#define BN_FORM 0
#endif
#ifndef BN_QUANT_WG
#define BN_QUANT_WG 64
#endif

#if BN_FORM == 0
#define BN_FULL 127.0f
#define BN_LOWEST -128.0f
#define BN_HIGHEST 127.0f
#else
#define BN_FULL (BN_FORM == 1 ? 7.0f : 2.6457513110645907f)
#define BN_LOWEST -8.0f
#define BN_HIGHEST 7.0f
#endif

float bn_factor(float sum_of_squares, uint cols, float eps) {
  return bn_divide(1.0f, bn_sqrt(bn_divide(sum_of_squares, (float)cols) + eps));
}

// a of a row, of its largest magnitude or of the mean of its magnitudes. A NaN makes one.
float bn_scale(float size) { return bn_divide(BN_FULL, size < 1e-5f ? 1e-5f : size); }

#if BN_FORM == 2
#pragma OPENCL EXTENSION cl_khr_fp64 : enable
float bn_mean(double sum, uint cols) { return convert_float_rte(sum / (double)cols); }
#endif

#if BN_WIDE

float16 bn_gate16(float16 g, float16 u) {
#if BN_GATE == 1
  const float16 relu = g < (float16)(0.0f) ? (float16)(0.0f) : g;
  return relu * relu * u;
#elif BN_GATE == 2
  return bn_divide16(g, (float16)(1.0f) + bn_exp16(-g)) * u;
#else
  return g;
#endif
}

// n of elements i … i + 15; 0 from cols on.
float16 bn_normed16(__global const float* values, __global const float* weight, uint i, uint cols, float factor) {
  const float16 v = bn_load16(values, i, cols, 0.0f);
#if BN_NORM
  const float16 n = v * (float16)(factor) * bn_load16(weight, i, cols, 0.0f);
  if (i + 16u <= cols) return n;
  float part[16];
  vstore16(n, 0, part);
  for (uint j = cols - i; j < 16u; ++j) part[j] = 0.0f;  // an infinite factor would make NaNs of the padding
  return vload16(0, part);
#else
  return v;
#endif
}

__kernel __attribute__((reqd_work_group_size(1, 1, 1)))
void normalize_quantize(__global const float* x, ulong x_offset, __global const float* up, ulong up_offset,
                        __global float* values, ulong values_offset, __global const float* weight, float eps, uint cols,
                        uint stride, __global char* restrict q, __global float* restrict inv_scales,
                        __global int* restrict sums) {
  const uint row = get_global_id(0);
  __global const float* const x_row = x + x_offset + (ulong)row * cols;
  __global float* const v_row = values + values_offset + (ulong)row * cols;
  float factor = 1.0f;
#if BN_GATE || BN_NORM
  __global const float* const up_row = up + up_offset + (ulong)row * cols;
  float16 squares = (float16)(0.0f);
  for (uint i = 0; i < cols; i += 16u) {
    float16 v = bn_load16(x_row, i, cols, 0.0f);
#if BN_GATE
    v = bn_gate16(v, bn_load16(up_row, i, cols, 0.0f));
    bn_store16(v, v_row, i, cols);
#endif
    squares = fma(v, v, squares);
  }
#endif
#if BN_NORM
  factor = bn_factor(bn_fold(squares), cols, eps);
#endif
#if BN_GATE
  __global const float* const from = v_row;
#else
  __global const float* const from = x_row;
#endif
#if BN_QUANTIZE
  uint16 most = (uint16)(0u);  // magnitudes are ordered as their bits are, those of NaNs last
  for (uint i = 0; i < cols; i += 16u)
    most = max(most, as_uint16(bn_normed16(from, weight, i, cols, factor)) & (uint16)(0x7fffffffu));
  const uint8 m8 = max(most.lo, most.hi);
  const uint4 m4 = max(m8.lo, m8.hi);
  const uint2 m2 = max(m4.lo, m4.hi);
  const uint largest = max(m2.x, m2.y);
#if BN_FORM == 2
  double total = 0.0;
  for (uint i = 0; i < cols; i += 16u) {
    float part[16];
    vstore16(bn_normed16(from, weight, i, cols, factor), 0, part);
    for (uint j = 0; j < 16u; ++j) total += (double)fabs(part[j]);  // + 0 from cols on
  }
  const float scale = bn_scale(bn_mean(total, cols));
#else
  const float scale = bn_scale(as_float(largest));
#endif
  const int whole = largest < 0x7f800000u;
  int16 sum = (int16)(0);
  for (uint i = 0; i < stride; i += 16u) {
    int16 k = (int16)(0);
    if (whole) {
      const float16 scaled = bn_normed16(from, weight, i, cols, factor) * (float16)(scale);
      k = bn_round16(clamp(scaled, (float16)(BN_LOWEST), (float16)(BN_HIGHEST)));
    }
    sum += k;
    vstore16(convert_char16(k), 0, q + (ulong)row * stride + i);
  }
  const int8 s8 = sum.lo + sum.hi;
  const int4 s4 = s8.lo + s8.hi;
  const int2 s2 = s4.lo + s4.hi;
  inv_scales[row] = bn_divide(1.0f, scale);
  sums[row] = s2.x + s2.y;
#elif BN_NORM
  for (uint i = 0; i < cols; i += 16u) bn_store16(bn_normed16(from, weight, i, cols, factor), v_row, i, cols);
#endif
}

#else

__kernel __attribute__((reqd_work_group_size(BN_QUANT_WG, 1, 1)))
void normalize_quantize(__global const float* x, ulong x_offset, __global const float* up, ulong up_offset,
                        __global float* values, ulong values_offset, __global const float* weight, float eps, uint cols,
                        uint stride, __global char* restrict q, __global float* restrict inv_scales,
                        __global int* restrict sums) {
  __local float lanes[16];
  __local float row_factor;
  __local uint maxima[BN_QUANT_WG];  // magnitudes are ordered as their bits are, those of NaNs last
  __local int partial[BN_QUANT_WG];
  const uint row = get_group_id(0);
  const uint item = get_local_id(0);
  __global const float* const x_row = x + x_offset + (ulong)row * cols;
  __global float* const v_row = values + values_offset + (ulong)row * cols;
#if BN_GATE
  __global const float* const up_row = up + up_offset + (ulong)row * cols;
  __global const float* const from = v_row;
  for (uint i = item; i < cols; i += BN_QUANT_WG) {
    const float g = x_row[i];
#if BN_GATE == 1
    const float relu = g < 0.0f ? 0.0f : g;
    v_row[i] = relu * relu * up_row[i];
#else
    v_row[i] = bn_divide(g, 1.0f + bn_exp(-g)) * up_row[i];
#endif
  }
  barrier(CLK_GLOBAL_MEM_FENCE);
#else
  __global const float* const from = x_row;
#endif
  float factor = 1.0f;
#if BN_NORM
  if (item < 16u) {
    float squares = 0.0f;
    for (uint i = item; i < cols; i += 16u) squares = fma(from[i], from[i], squares);
    lanes[item] = squares;
  }
  barrier(CLK_LOCAL_MEM_FENCE);
  if (item == 0u) row_factor = bn_factor(bn_fold(vload16(0, lanes)), cols, eps);
  // `values` may be x: what other items have read of it is overwritten below.
  barrier(CLK_LOCAL_MEM_FENCE | CLK_GLOBAL_MEM_FENCE);
  factor = row_factor;
#define BN_VALUE(i) (from[i] * factor * weight[i])
#else
#define BN_VALUE(i) (from[i])
#endif

#if BN_QUANTIZE
  uint most = 0;
  for (uint k = item; k < cols; k += BN_QUANT_WG) most = max(most, as_uint(BN_VALUE(k)) & 0x7fffffffu);
  maxima[item] = most;
  barrier(CLK_LOCAL_MEM_FENCE);
  for (uint n = BN_QUANT_WG / 2; n > 0; n /= 2) {
    if (item < n) maxima[item] = max(maxima[item], maxima[item + n]);
    barrier(CLK_LOCAL_MEM_FENCE);
  }
#if BN_FORM == 2
  __local float mean;
  if (item == 0u) {
    double total = 0.0;
    for (uint k = 0; k < cols; ++k) total += (double)fabs(BN_VALUE(k));
    mean = bn_mean(total, cols);
  }
  barrier(CLK_LOCAL_MEM_FENCE);
  const float scale = bn_scale(mean);
#else
  const float scale = bn_scale(as_float(maxima[0]));
#endif
  const int whole = maxima[0] < 0x7f800000u;

  int sum = 0;
  for (uint k = item; k < stride; k += BN_QUANT_WG) {
    int value = 0;
    if (whole && k < cols) value = bn_round(clamp(BN_VALUE(k) * scale, BN_LOWEST, BN_HIGHEST));
    q[(ulong)row * stride + k] = (char)value;
    sum += value;
  }
  partial[item] = sum;
  barrier(CLK_LOCAL_MEM_FENCE);
  for (uint n = BN_QUANT_WG / 2; n > 0; n /= 2) {
    if (item < n) partial[item] += partial[item + n];
    barrier(CLK_LOCAL_MEM_FENCE);
  }
  if (item == 0) {
    inv_scales[row] = bn_divide(1.0f, scale);
    sums[row] = partial[0];
  }
#elif BN_NORM
  for (uint i = item; i < cols; i += BN_QUANT_WG) v_row[i] = BN_VALUE(i);
#endif
}

#endif
