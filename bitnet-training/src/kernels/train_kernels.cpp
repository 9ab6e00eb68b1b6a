// Training's elementwise loops, compiled once per ISA (cmake/BitNetIsa.cmake). Plain 16-wide vectors of the
// compiler: each ISA splits them as it can. Which object runs is decided in kernels/dispatch.cpp.
#include "kernels/train_kernels.hpp"

#define BITNET_STRING_(x) #x
#define BITNET_STRING(x) BITNET_STRING_(x)

namespace bitnet::training::BITNET_ISA {
namespace {

typedef float V __attribute__((vector_size(64), aligned(4), may_alias));
typedef std::int32_t I __attribute__((vector_size(64)));
typedef std::int8_t Bytes __attribute__((vector_size(16)));
constexpr std::size_t kLanes = 16;

inline V load(const float* p) { return *reinterpret_cast<const V*>(p); }
inline void store(float* p, V v) { *reinterpret_cast<V*>(p) = v; }
inline V splat(float a) { return V{} + a; }
inline V load_tail(const float* p, std::size_t n) {
  V v{};
  for (std::size_t i = 0; i < n; ++i) v[i] = p[i];
  return v;
}
inline void store_tail(float* p, V v, std::size_t n) {
  for (std::size_t i = 0; i < n; ++i) p[i] = v[i];
}
/// Integers of at most seven bits and a sign.
inline void store_bytes(std::int8_t* p, I v) {
  const Bytes b = __builtin_convertvector(v, Bytes);
  __builtin_memcpy(p, &b, sizeof b);
}
inline I load_bytes(const std::int8_t* p) {
  Bytes b;
  __builtin_memcpy(&b, p, sizeof b);
  return __builtin_convertvector(b, I);
}
inline V max_of(V a, V b) { return a > b ? a : b; }
inline V min_of(V a, V b) { return a < b ? a : b; }
inline V abs_of(V a) { return a < 0.0f ? -a : a; }
/// Half to even for |a| < 2^22: adding 1.5·2^23 leaves no fraction bits.
inline V round_of(V a) { return (a + 12582912.0f) - 12582912.0f; }

inline float sum_lanes(V v) {
  float a[kLanes];
  for (std::size_t i = 0; i < kLanes; ++i) a[i] = v[i];
  for (std::size_t width = kLanes / 2; width > 0; width /= 2)
    for (std::size_t i = 0; i < width; ++i) a[i] = a[i] + a[i + width];
  return a[0];
}

/// Calls f(i, count) for whole vectors (count = 16) and the tail.
template <class Full, class Tail>
inline void for_lanes(std::size_t n, Full&& full, Tail&& tail) {
  std::size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) full(i);
  if (i < n) tail(i, n - i);
}

double abs_sum(const float* w, std::size_t n) noexcept {
  double s = 0;
  for (std::size_t i = 0; i < n; ++i) s += static_cast<double>(__builtin_fabsf(w[i]));
  return s;
}

void ternarize(const float* w, float inv, std::int8_t* trits, std::size_t n, std::int64_t* zeros,
               std::int64_t* flips) noexcept {
  I zero_count{}, flip_count{};
  const V one = splat(1.0f), f = splat(inv);
  // Clamping to ±2 first keeps round_of in its range and changes no result.
  const auto trit_of = [&](V x) {
    return max_of(min_of(round_of(max_of(min_of(x * f, one + one), -one - one)), one), -one);
  };
  for_lanes(
      n,
      [&](std::size_t i) {
        const V t = trit_of(load(w + i));
        const I trit = __builtin_convertvector(t, I);
        zero_count -= (trit == 0);
        flip_count -= (trit != load_bytes(trits + i));
        store_bytes(trits + i, trit);
      },
      [&](std::size_t i, std::size_t c) {
        const V t = trit_of(load_tail(w + i, c));
        for (std::size_t j = 0; j < c; ++j) {
          const auto trit = static_cast<std::int8_t>(t[j]);
          *zeros += trit == 0;
          *flips += trit != trits[i + j];
          trits[i + j] = trit;
        }
      });
  for (std::size_t j = 0; j < kLanes; ++j) {
    *zeros += zero_count[j];
    *flips += flip_count[j];
  }
}

float quantize_row(const float* x, float levels, std::int8_t* q, std::int32_t* sum, std::size_t n) noexcept {
  V m{};
  I nan{};  // max_of loses them, and no integer stands for one
  const auto look = [&](V v) {
    m = max_of(m, abs_of(v));
    nan |= v != v;
  };
  for_lanes(
      n, [&](std::size_t i) { look(load(x + i)); },
      [&](std::size_t i, std::size_t c) { look(load_tail(x + i, c)); });
  float largest = 1e-5f;
  std::int32_t any_nan = 0;
  for (std::size_t j = 0; j < kLanes; ++j) {
    largest = m[j] > largest ? m[j] : largest;
    any_nan |= nan[j];
  }
  if (any_nan != 0) {
    for (std::size_t i = 0; i < n; ++i) q[i] = 0;
    *sum = 0;
    return __builtin_nanf("");
  }
  const float a = levels / largest;
  I sums{};
  const auto quantised = [&](V v) {
    const V rounded = max_of(min_of(round_of(v * a), splat(levels)), splat(-levels - 1.0f));
    const I integers = __builtin_convertvector(rounded, I);
    sums += integers;
    return integers;
  };
  for_lanes(
      n, [&](std::size_t i) { store_bytes(q + i, quantised(load(x + i))); },
      [&](std::size_t i, std::size_t c) {
        const I v = quantised(load_tail(x + i, c));
        for (std::size_t j = 0; j < c; ++j) q[i + j] = static_cast<std::int8_t>(v[j]);
      });
  *sum = 0;
  for (std::size_t j = 0; j < kLanes; ++j) *sum += sums[j];
  return 1.0f / a;
}

void widen(const std::int8_t* q, float* y, std::size_t n) noexcept {
  std::size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(y + i, __builtin_convertvector(load_bytes(q + i), V));
  for (; i < n; ++i) y[i] = static_cast<float>(q[i]);
}

void blend(float lambda, const float* x, float* y, std::size_t n) noexcept {
  const auto at = [lambda](V a, V b) { return a + (b - a) * lambda; };
  for_lanes(
      n, [&](std::size_t i) { store(y + i, at(load(x + i), load(y + i))); },
      [&](std::size_t i, std::size_t c) {
        store_tail(y + i, at(load_tail(x + i, c), load_tail(y + i, c)), c);
      });
}

/// to = at(x, dy), or to += it.
template <class At>
inline void gradient(const float* x, const float* dy, float* to, bool accumulate, std::size_t n, At at) {
  for_lanes(
      n,
      [&](std::size_t i) {
        const V g = at(load(x + i), load(dy + i));
        store(to + i, accumulate ? load(to + i) + g : g);
      },
      [&](std::size_t i, std::size_t c) {
        const V g = at(load_tail(x + i, c), load_tail(dy + i, c));
        store_tail(to + i, accumulate ? load_tail(to + i, c) + g : g, c);
      });
}

void clip_gradient(float limit, float lambda, const float* w, const float* d, float* dw, bool accumulate,
                   std::size_t n) noexcept {
  const float rest = 1.0f - lambda;
  const auto at = [limit, rest](V weight, V g) { return abs_of(weight) <= limit ? g : g * rest; };
  gradient(w, d, dw, accumulate, n, at);
}

double scale_gradient(float s, float clip, const float* w, const std::int8_t* trits, const float* d,
                      std::size_t n) noexcept {
  const float limit = clip * s, inv = 1.0f / s;
  double sum = 0;
  for (std::size_t i = 0; i < n; ++i) {
    const auto trit = static_cast<float>(trits[i]);
    const float slope = __builtin_fabsf(w[i]) <= limit ? trit - w[i] * inv : trit;
    sum += static_cast<double>(d[i]) * static_cast<double>(slope);
  }
  return sum;
}

void scale_to(float a, const float* x, float* y, std::size_t n) noexcept {
  for_lanes(
      n, [&](std::size_t i) { store(y + i, load(x + i) * a); },
      [&](std::size_t i, std::size_t c) { store_tail(y + i, load_tail(x + i, c) * a, c); });
}

void add_to(const float* x, const float* y, float* z, std::size_t n) noexcept {
  for_lanes(
      n, [&](std::size_t i) { store(z + i, load(x + i) + load(y + i)); },
      [&](std::size_t i, std::size_t c) { store_tail(z + i, load_tail(x + i, c) + load_tail(y + i, c), c); });
}

void rms_norm_backward(const float* x, const float* w, const float* dy, float eps, float* dx, bool accumulate,
                       float* dw, std::size_t n) noexcept {
  V squares{}, products{};
  for_lanes(
      n,
      [&](std::size_t i) {
        const V v = load(x + i);
        squares = squares + v * v;
        products = products + v * load(w + i) * load(dy + i);
      },
      [&](std::size_t i, std::size_t c) {
        const V v = load_tail(x + i, c);
        squares = squares + v * v;
        products = products + v * load_tail(w + i, c) * load_tail(dy + i, c);
      });
  const float count = static_cast<float>(n);
  const float r = 1.0f / __builtin_sqrtf(sum_lanes(squares) / count + eps);
  const float pull = sum_lanes(products) * r * r / count;  // dx = r · (w·dy − x · pull)
  const auto at = [&](V v, V weight, V d) { return (weight * d - v * pull) * r; };
  for_lanes(
      n,
      [&](std::size_t i) {
        const V v = load(x + i), d = load(dy + i), g = at(v, load(w + i), d);
        store(dx + i, accumulate ? load(dx + i) + g : g);
        store(dw + i, load(dw + i) + d * v * r);
      },
      [&](std::size_t i, std::size_t c) {
        const V v = load_tail(x + i, c), d = load_tail(dy + i, c), g = at(v, load_tail(w + i, c), d);
        store_tail(dx + i, accumulate ? load_tail(dx + i, c) + g : g, c);
        store_tail(dw + i, load_tail(dw + i, c) + d * v * r, c);
      });
}

void relu2_gate_backward(const float* g, const float* u, const float* dh, float* dg, bool add_g, float* du,
                         bool add_u, std::size_t n) noexcept {
  const auto both = [&](V gate, V up, V d, V& gate_grad, V& up_grad) {
    const V positive = max_of(V{}, gate);  // of a NaN: the NaN
    gate_grad = d * up * (positive + positive);
    up_grad = d * (positive * positive);
  };
  for_lanes(
      n,
      [&](std::size_t i) {
        V a, b;
        both(load(g + i), load(u + i), load(dh + i), a, b);
        store(dg + i, add_g ? load(dg + i) + a : a);
        store(du + i, add_u ? load(du + i) + b : b);
      },
      [&](std::size_t i, std::size_t c) {
        V a, b;
        both(load_tail(g + i, c), load_tail(u + i, c), load_tail(dh + i, c), a, b);
        store_tail(dg + i, add_g ? load_tail(dg + i, c) + a : a, c);
        store_tail(du + i, add_u ? load_tail(du + i, c) + b : b, c);
      });
}

void softmax_backward(const float* p, float* dp, float scale, std::size_t n) noexcept {
  V products{};
  for_lanes(
      n, [&](std::size_t i) { products = products + load(p + i) * load(dp + i); },
      [&](std::size_t i, std::size_t c) {
        products = products + load_tail(p + i, c) * load_tail(dp + i, c);
      });
  const float mean = sum_lanes(products);
  const auto at = [&](V probability, V d) { return probability * (d - mean) * scale; };
  for_lanes(
      n, [&](std::size_t i) { store(dp + i, at(load(p + i), load(dp + i))); },
      [&](std::size_t i, std::size_t c) {
        store_tail(dp + i, at(load_tail(p + i, c), load_tail(dp + i, c)), c);
      });
}

void rotate(const float* x, const float* cos, const float* sin, float sin_sign, float* y, bool accumulate,
            std::size_t half) noexcept {
  const auto both = [&](V a, V b, V c, V s, V& low, V& high) {
    s = s * sin_sign;
    low = a * c - b * s;
    high = b * c + a * s;
  };
  for_lanes(
      half,
      [&](std::size_t i) {
        V low, high;
        both(load(x + i), load(x + half + i), load(cos + i), load(sin + i), low, high);
        store(y + i, accumulate ? load(y + i) + low : low);
        store(y + half + i, accumulate ? load(y + half + i) + high : high);
      },
      [&](std::size_t i, std::size_t c) {
        V low, high;
        both(load_tail(x + i, c), load_tail(x + half + i, c), load_tail(cos + i, c), load_tail(sin + i, c),
             low, high);
        store_tail(y + i, accumulate ? load_tail(y + i, c) + low : low, c);
        store_tail(y + half + i, accumulate ? load_tail(y + half + i, c) + high : high, c);
      });
}

void relu(const float* x, float* y, std::size_t n) noexcept {
  for_lanes(
      n, [&](std::size_t i) { store(y + i, max_of(V{}, load(x + i))); },
      [&](std::size_t i, std::size_t c) { store_tail(y + i, max_of(V{}, load_tail(x + i, c)), c); });
}

void relu_backward(const float* x, const float* dy, float* dx, bool accumulate, std::size_t n) noexcept {
  const auto at = [](V v, V d) { return v > 0.0f ? d : V{}; };
  gradient(x, dy, dx, accumulate, n, at);
}

/// Two rounds of multiply and shift ("lowbias32", C. Wellons) over the index and both halves of the key.
inline std::uint32_t hash_of(std::uint64_t key, std::uint32_t i) {
  std::uint32_t h = i * 0x9E3779B9u + static_cast<std::uint32_t>(key);
  h = (h ^ (h >> 16)) * 0x7FEB352Du;
  h = (h ^ (h >> 15)) * 0x846CA68Bu;
  h = (h ^ (h >> 16)) + static_cast<std::uint32_t>(key >> 32);
  h = (h ^ (h >> 16)) * 0x7FEB352Du;
  h = (h ^ (h >> 15)) * 0x846CA68Bu;
  return h ^ (h >> 16);
}

void dropout(std::uint64_t key, std::uint64_t first, double dropped, float scale, const float* x, float* y,
             bool accumulate, std::size_t n) noexcept {
  const auto threshold = static_cast<std::uint32_t>(dropped * 4294967296.0);
  for (std::size_t i = 0; i < n; ++i) {
    const bool kept = hash_of(key, static_cast<std::uint32_t>(first + i)) >= threshold;
    const float v = kept ? x[i] * scale : 0.0f;
    y[i] = accumulate ? y[i] + v : v;
  }
}

void hadamard(float* x, float scale, std::size_t n) noexcept {
  for (std::size_t half = 1; half < n; half *= 2)
    for (std::size_t begin = 0; begin < n; begin += 2 * half)
      for (std::size_t i = begin; i < begin + half; ++i) {
        const float a = x[i], b = x[i + half];
        x[i] = a + b;
        x[i + half] = a - b;
      }
  scale_to(scale, x, x, n);
}

void adamw(const TrainKernels::AdamW& a, const float* g, float* w, float* m, float* v,
           std::size_t n) noexcept {
  const float rest1 = 1.0f - a.beta1, rest2 = 1.0f - a.beta2;
  for (std::size_t i = 0; i < n; ++i) {
    const float d = g[i] * a.g_scale;
    const float m1 = a.beta1 * m[i] + rest1 * d;
    const float v1 = a.beta2 * v[i] + rest2 * (d * d);
    m[i] = m1;
    v[i] = v1;
    w[i] = w[i] * a.shrink - a.step_size * m1 / (__builtin_sqrtf(v1) * a.inv_bias2 + a.eps);
  }
}

}  // namespace

extern const TrainKernels kKernels;
constinit const TrainKernels kKernels = {
    .isa = BITNET_STRING(BITNET_ISA),
    .abs_sum = abs_sum,
    .ternarize = ternarize,
    .quantize_row = quantize_row,
    .widen = widen,
    .blend = blend,
    .clip_gradient = clip_gradient,
    .scale_gradient = scale_gradient,
    .scale_to = scale_to,
    .add_to = add_to,
    .rms_norm_backward = rms_norm_backward,
    .relu2_gate_backward = relu2_gate_backward,
    .softmax_backward = softmax_backward,
    .rotate = rotate,
    .relu = relu,
    .relu_backward = relu_backward,
    .dropout = dropout,
    .hadamard = hadamard,
    .adamw = adamw,
};

}  // namespace bitnet::training::BITNET_ISA
