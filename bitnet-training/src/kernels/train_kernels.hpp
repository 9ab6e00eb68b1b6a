#pragma once
// The table of training's own elementwise loops, one per ISA. Everything that inference needs as well (gemm,
// exp, norms, dots) is bitnet/core/f32_kernels.hpp.
#include <cstddef>
#include <cstdint>

namespace bitnet::training {

/// All loops multiply and add separately (no FMA) and reduce over 16 lanes, so every ISA gives the same bits.
struct TrainKernels {
  const char* isa;
  /// Sum of |w| in double, in index order (as quant::absmean does).
  double (*abs_sum)(const float* w, std::size_t n) noexcept;
  /// trit = clamp(round_half_even(w · inv), −1, 1); counts zeros and trits that differ from what `trits` held
  /// before.
  void (*ternarize)(const float* w, float inv, std::int8_t* trits, std::size_t n, std::int64_t* zeros,
                    std::int64_t* flips) noexcept;
  /// a = largest / max(max|x|, 1e-5), q = clamp(round_half_even(x · a), −largest − 1, largest), sum = Σ q.
  /// Returns 1 / a.
  float (*quantize_row)(const float* x, float largest, std::int8_t* q, std::int32_t* sum,
                        std::size_t n) noexcept;
  /// y = q
  void (*widen)(const std::int8_t* q, float* y, std::size_t n) noexcept;
  /// y = x + lambda · (y − x)
  void (*blend)(float lambda, const float* x, float* y, std::size_t n) noexcept;
  /// dw (=, or += if accumulate) d · (|w| ≤ limit ? 1 : 1 − lambda).
  void (*clip_gradient)(float limit, float lambda, const float* w, const float* d, float* dw, bool accumulate,
                        std::size_t n) noexcept;
  /// Σ d · (|w| ≤ clip · s ? trit − w / s : trit), in index order in double.
  double (*scale_gradient)(float s, float clip, const float* w, const std::int8_t* trits, const float* d,
                           std::size_t n) noexcept;
  /// y = x · a
  void (*scale_to)(float a, const float* x, float* y, std::size_t n) noexcept;
  /// z = x + y
  void (*add_to)(const float* x, const float* y, float* z, std::size_t n) noexcept;
  /// Gradient of y = x · r · w, r = 1 / sqrt(mean x² + eps): dx (=, or += if accumulate), dw +=.
  void (*rms_norm_backward)(const float* x, const float* w, const float* dy, float eps, float* dx,
                            bool accumulate, float* dw, std::size_t n) noexcept;
  /// Gradient of h = max(g, 0)² · u: dg and du (=, or += where accumulating).
  void (*relu2_gate_backward)(const float* g, const float* u, const float* dh, float* dg, bool add_g,
                              float* du, bool add_u, std::size_t n) noexcept;
  /// ds = p · (dp − Σ p·dp) · scale, written over dp.
  void (*softmax_backward)(const float* p, float* dp, float scale, std::size_t n) noexcept;
  /// Rotates pairs (x[i], x[i+half]) of one head by the angle into y; += if accumulate.
  void (*rotate)(const float* x, const float* cos, const float* sin, float sin_sign, float* y,
                 bool accumulate, std::size_t half) noexcept;
  /// y = max(x, 0)
  void (*relu)(const float* x, float* y, std::size_t n) noexcept;
  /// dx (=, or += if accumulate) dy where x > 0, else 0.
  void (*relu_backward)(const float* x, const float* dy, float* dx, bool accumulate, std::size_t n) noexcept;
  /// y (=, or += if accumulate) x · scale where hash(key, first + i) ≥ dropped · 2^32, else 0; first + i <
  /// 2^32.
  void (*dropout)(std::uint64_t key, std::uint64_t first, double dropped, float scale, const float* x,
                  float* y, bool accumulate, std::size_t n) noexcept;
  /// Walsh–Hadamard transform in place, n a power of two, then times `scale`.
  void (*hadamard)(float* x, float scale, std::size_t n) noexcept;
  /// One AdamW step; `g` is multiplied by g_scale (clipping) first. step_size = lr / (1 − β1^t),
  /// inv_bias2 = 1 / sqrt(1 − β2^t), shrink = 1 − lr · decay.
  struct AdamW {
    float beta1, beta2, eps, step_size, inv_bias2, shrink, g_scale;
  };
  void (*adamw)(const AdamW& a, const float* g, float* w, float* m, float* v, std::size_t n) noexcept;
};

}  // namespace bitnet::training
