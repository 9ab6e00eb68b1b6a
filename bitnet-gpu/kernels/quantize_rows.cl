// Per-row absmax quantiser: f32 rows to int8 rows, their scale and their sum. The product that reads them is in
// ternary_matmul.cl; the definition is docs/numerics.md, and the results are bit-equal to the CPU's on every device:
//   a = 127 / max(max|x|, 1e-5), q = clamp(round_half_even(x * a), -128, 127), inv_scale = 1 / a; a row
// with a NaN or an infinity has q = 0 and an inv_scale that makes its products NaN (a NaN, or infinity times a sum of 0).
// OpenCL lets a device round a single-precision division by up to 2.5 ulp, so the two divisions of a row are done in
// integers; multiplication, rint and maximum are exact or correctly rounded by the standard.
//
// Layout:
//   x           f32 [rows, cols], row-major, x_offset elements into the buffer
//   q           i8 [rows, stride], stride = cols rounded up to 16, padding zero
//   inv_scales  f32 [rows]
//   sums        i32 [rows], the sum of q's row: |sum| <= 128 * cols
// One work-group a row; global size {rows * BN_QUANT_WG}, local size {BN_QUANT_WG}.
//
// Tunables:
//   BN_QUANT_WG   work-items a row; a power of two, at most the device's maximal work-group size
#ifndef BN_QUANT_WG
#define BN_QUANT_WG 64
#endif

#pragma OPENCL FP_CONTRACT OFF

// numerator / d, correctly rounded (half to even), for a positive numerator and a positive normal d whose quotient is
// normal, which 127 / [1e-5, FLT_MAX] and its reciprocal are. An infinite d gives 0, a zero d infinity, a NaN itself, as IEEE.
float bn_divide(float numerator, float d) {
  if (isnan(d)) return d;
  if (isinf(d)) return 0.0f;
  if (d == 0.0f) return INFINITY;
  const uint n_bits = as_uint(numerator);
  const uint d_bits = as_uint(d);
  const ulong n_man = (n_bits & 0x7fffffu) | 0x800000u;  // [2^23, 2^24)
  const ulong d_man = (d_bits & 0x7fffffu) | 0x800000u;
  int exponent = (int)(n_bits >> 23) - (int)(d_bits >> 23);
  const ulong scaled = n_man << 26;
  ulong quotient = scaled / d_man;                       // (2^25, 2^27)
  const uint inexact = quotient * d_man != scaled;
  uint shift = 3;                                        // bits below the 24 of the result
  if (quotient < (1ul << 26)) {
    shift = 2;
    exponent -= 1;
  }
  uint man = (uint)(quotient >> shift);
  const uint rest = (((uint)quotient & ((1u << shift) - 1u)) << 1) | inexact;
  const uint half_way = 1u << shift;                     // half of the last place, in units of `rest`
  if (rest > half_way || (rest == half_way && (man & 1u))) man += 1;  // 2^24 carries into the exponent below
  return as_float(((uint)(exponent + 127) << 23) + (man - 0x800000u));
}

__kernel __attribute__((reqd_work_group_size(BN_QUANT_WG, 1, 1)))
void quantize_rows(__global const float* restrict x, ulong x_offset, uint cols, uint stride,
                   __global char* restrict q, __global float* restrict inv_scales, __global int* restrict sums) {
  __local uint maxima[BN_QUANT_WG];  // magnitudes are ordered as their bits are, those of NaNs last
  __local int partial[BN_QUANT_WG];
  const uint row = get_group_id(0);
  const uint item = get_local_id(0);
  __global const float* const x_row = x + x_offset + (ulong)row * cols;
  __global char* const q_row = q + (ulong)row * stride;

  uint most = 0;
  for (uint k = item; k < cols; k += BN_QUANT_WG) most = max(most, as_uint(x_row[k]) & 0x7fffffffu);
  maxima[item] = most;
  barrier(CLK_LOCAL_MEM_FENCE);
  for (uint n = BN_QUANT_WG / 2; n > 0; n /= 2) {
    if (item < n) maxima[item] = max(maxima[item], maxima[item + n]);
    barrier(CLK_LOCAL_MEM_FENCE);
  }
  const float largest = as_float(maxima[0]);
  const float scale = bn_divide(127.0f, largest < 1e-5f ? 1e-5f : largest);

  int sum = 0;
  for (uint k = item; k < stride; k += BN_QUANT_WG) {
    int value = 0;
    if (k < cols) {
      const float scaled = rint(x_row[k] * scale);  // NaN where the scale is, and for an infinity times a scale of 0
      value = isnan(scaled) ? 0 : (int)clamp(scaled, -128.0f, 127.0f);
    }
    q_row[k] = (char)value;
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
}
