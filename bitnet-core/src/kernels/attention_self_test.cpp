// The test of the attention kernels that self_test.hpp describes: one odd tile of each type of the KV cache,
// of enough rows for two row blocks of AMX, and another one merged into it. Compiled without contraction:
// what is fused is written.
#include <algorithm>
#include <cmath>
#include <limits>

#include "bitnet/core/dtype.hpp"
#include "bitnet/core/rng.hpp"
#include "kernels/self_test.hpp"

namespace bitnet {
namespace {

using namespace kernel_test;

constexpr std::size_t kRows = 19, kDim = 10, kDim4 = 12, kDim16 = 16, kKeys = 2 * kAttentionBlock;
/// What row r sees of the first and of the second block of keys on: the last row 20 and 10.
constexpr std::size_t keys_of(std::size_t r, std::size_t tile) { return (tile == 0 ? 11 : 1) + r / 2; }

/// Queries, keys and values in the forms of one type. Rows of keys and values are [kKeys, kDim].
struct Problem {
  DType type;
  std::vector<float> q, keys, values;           // q: [kRows, 128], scaled
  std::vector<std::int8_t> q8, keys8, values8;  // q8: [kRows, kDim4]
  std::vector<std::int32_t> q8_sums;            // [kRows]
  std::vector<float> q8_scales, key_scales, value_scales;
};

std::int8_t random_byte(Rng& rng) { return static_cast<std::int8_t>(static_cast<int>(rng.below(255)) - 127); }

Problem make_problem(DType type) {
  Problem p{type,
            random_floats(kRows * 128, 1),
            random_floats(kKeys * kDim, 2),
            random_floats(kKeys * kDim, 3),
            {},
            {},
            {},
            {},
            {},
            {},
            {}};
  if (type == DType::kF16) {
    for (auto* v : {&p.keys, &p.values})
      for (float& x : *v) x = f16_to_f32(f32_to_f16(x));
  }
  Rng rng(4);
  for (std::size_t i = 0; i < kKeys * kDim; ++i) {
    p.keys8.push_back(random_byte(rng));
    p.values8.push_back(random_byte(rng));
  }
  for (std::size_t r = 0; r < kRows; ++r) {
    p.q8_sums.push_back(0);
    for (std::size_t d = 0; d < kDim4; ++d) {
      p.q8.push_back(d < kDim ? random_byte(rng) : std::int8_t{0});
      p.q8_sums[r] += p.q8.back();
    }
    p.q8_scales.push_back(0.004f + static_cast<float>(rng.uniform()) * 0.001f);
  }
  for (std::size_t t = 0; t < kKeys; ++t) {
    p.key_scales.push_back(0.004f + static_cast<float>(rng.uniform()) * 0.004f);
    p.value_scales.push_back(0.004f + static_cast<float>(rng.uniform()) * 0.004f);
  }
  return p;
}

/// The blocks of a Problem as AttentionTile wants them.
struct Blocks {
  std::vector<float> keys, values;
  std::vector<std::uint16_t> half_keys, half_values;
  std::vector<std::int8_t> keys8, values8;
  const void *key[2], *value[2];
  const float *key_scale[2], *value_scale[2];

  explicit Blocks(const Problem& p)
      : keys(2 * kDim * 16), values(2 * 16 * kDim16), keys8(2 * kDim4 * 16), values8(2 * 16 * kDim16) {
    for (std::size_t t = 0; t < kKeys; ++t)
      for (std::size_t d = 0; d < kDim; ++d) {
        const std::size_t block = t / 16, i = t % 16, at = t * kDim + d;
        keys[(block * kDim + d) * 16 + i] = p.keys[at];
        values[(block * 16 + i) * kDim16 + d] = p.values[at];
        keys8[block * kDim4 * 16 + d / 4 * 64 + i * 4 + d % 4] = p.keys8[at];
        values8[block * 16 * kDim16 + (i / 4 * kDim16 + d) * 4 + i % 4] = p.values8[at];
      }
    for (const float v : keys) half_keys.push_back(f32_to_f16(v));
    for (const float v : values) half_values.push_back(f32_to_f16(v));
    for (std::size_t b = 0; b < 2; ++b) {
      const std::size_t k = b * kDim * 16, v = b * 16 * kDim16;
      key[b] = p.type == DType::kF32   ? static_cast<const void*>(keys.data() + k)
               : p.type == DType::kF16 ? static_cast<const void*>(half_keys.data() + k)
                                       : keys8.data() + b * kDim4 * 16;
      value[b] = p.type == DType::kF32   ? static_cast<const void*>(values.data() + v)
                 : p.type == DType::kF16 ? static_cast<const void*>(half_values.data() + v)
                                         : values8.data() + v;
      key_scale[b] = p.key_scales.data() + 16 * b;
      value_scale[b] = p.value_scales.data() + 16 * b;
    }
  }
};

struct State {
  std::vector<float> largest = std::vector<float>(32), sum = std::vector<float>(32),
                     values = std::vector<float>(kRows * kDim16);
  AttentionState view() { return {largest.data(), sum.data(), values.data()}; }
};

/// docs/numerics.md ("Attention"), one operation after the other.
class Reference {
 public:
  Reference(const F32Kernels& floats, const Problem& p)
      : floats_(floats), fma_(multiply_add_of(floats)), p_(p) {}

  /// Keys [first, first + n) of row r, alone.
  void tile(std::size_t r, std::size_t first, std::size_t n, float& largest, float& sum,
            float* values) const {
    std::vector<float> w;
    for (std::size_t t = first; t < first + n; ++t) w.push_back(score(r, t));
    largest = *std::max_element(w.begin(), w.end());
    for (float& x : w) floats_.exp_sum(&x, largest, 1);
    sum = sixteen_lanes(n, [&](float acc, std::size_t i) { return acc + w[i]; });
    if (p_.type == DType::kI8) return byte_values(w, first, values);
    for (std::size_t d = 0; d < kDim; ++d) {
      values[d] = 0;
      for (std::size_t t = 0; t < n; ++t)
        values[d] = fma_(w[t], p_.values[(first + t) * kDim + d], values[d]);
    }
  }
  /// Step 5: `part` into `into`, row by row.
  void merge(const State& part, State& into) const {
    for (std::size_t r = 0; r < kRows; ++r) {
      const float both = std::max(into.largest[r], part.largest[r]);
      float old_factor = into.largest[r], new_factor = part.largest[r];
      floats_.exp_sum(&old_factor, both, 1);
      floats_.exp_sum(&new_factor, both, 1);
      into.largest[r] = both;
      into.sum[r] = fma_(part.sum[r], new_factor, into.sum[r] * old_factor);
      for (std::size_t d = 0; d < kDim; ++d) {
        float& v = into.values[r * kDim16 + d];
        v = fma_(part.values[r * kDim16 + d], new_factor, v * old_factor);
      }
    }
  }

 private:
  float score(std::size_t r, std::size_t t) const {
    if (p_.type == DType::kI8) {
      std::int32_t s = 0;
      for (std::size_t d = 0; d < kDim; ++d) s += p_.q8[r * kDim4 + d] * p_.keys8[t * kDim + d];
      return static_cast<float>(s) * p_.q8_scales[r] * p_.key_scales[t];
    }
    float s = 0;
    for (std::size_t d = 0; d < kDim; ++d) s = fma_(p_.q[r * 128 + d], p_.keys[t * kDim + d], s);
    return s;
  }
  void byte_values(std::vector<float>& w, std::size_t first, float* values) const {
    float most = 0;
    for (std::size_t t = 0; t < w.size(); ++t) {
      w[t] *= p_.value_scales[first + t];
      most = std::max(most, w[t]);
    }
    const float units = 255.0f / most;
    for (std::size_t d = 0; d < kDim; ++d) {
      std::int32_t s = 0;
      for (std::size_t t = 0; t < w.size(); ++t)
        s += static_cast<std::int32_t>(std::nearbyint(w[t] * units)) * p_.values8[(first + t) * kDim + d];
      values[d] = static_cast<float>(s) * (most * (1.0f / 255.0f));
    }
  }

  const F32Kernels& floats_;
  MultiplyAdd fma_;
  const Problem& p_;
};

void compare_states(const char* isa, const char* kernel, const State& got, const State& expected) {
  const auto rows = [](const std::vector<float>& v) { return std::span<const float>(v).first(kRows); };
  compare(isa, kernel, rows(got.largest), rows(expected.largest));
  compare(isa, kernel, rows(got.sum), rows(expected.sum));
  for (std::size_t r = 0; r < kRows; ++r)  // beyond head_dim anything may be
    compare(isa, kernel, std::span<const float>(got.values).subspan(r * kDim16, kDim),
            std::span<const float>(expected.values).subspan(r * kDim16, kDim));
}

void test_tiles(const AttentionKernels& kernels, const F32Kernels& floats, DType type) {
  const Problem p = make_problem(type);
  const Blocks blocks(p);
  const auto run = type == DType::kF32   ? kernels.tile_f32
                   : type == DType::kF16 ? kernels.tile_f16
                                         : kernels.tile_i8;
  const char* const name = type == DType::kF32 ? "tile_f32" : type == DType::kF16 ? "tile_f16" : "tile_i8";
  const Reference reference(floats, p);
  std::vector<float> scores(kRows * kAttentionTile);
  std::vector<std::uint8_t> weights(scores.size());
  State expected[2], got, alone;
  std::int32_t n_keys[2][kRows];
  for (std::size_t tile = 0; tile < 2; ++tile)
    for (std::size_t r = 0; r < kRows; ++r) {
      const std::size_t n = keys_of(r, tile);
      n_keys[tile][r] = static_cast<std::int32_t>(n);
      State& e = expected[tile];
      reference.tile(r, tile * 16, n, e.largest[r], e.sum[r], e.values.data() + r * kDim16);
    }
  const auto call = [&](std::size_t tile, State& into, bool merge) {
    AttentionTile t;
    t.rows = kRows;
    t.head_dim = kDim;
    t.n_keys = n_keys[tile];
    t.q = p.q.data();
    t.q_chunk_stride = kRows * 128;
    t.q8 = p.q8.data();
    t.q8_scales = p.q8_scales.data();
    t.q8_sums = p.q8_sums.data();
    t.keys = blocks.key + tile;
    t.values = blocks.value + tile;
    t.key_scales = blocks.key_scale + tile;
    t.value_scales = blocks.value_scale + tile;
    t.scores = scores.data();
    t.weights = weights.data();
    t.state = into.view();
    t.merge = merge;
    run(t);
  };
  call(0, got, false);
  compare_states(kernels.isa, name, got, expected[0]);
  call(1, alone, false);
  compare_states(kernels.isa, name, alone, expected[1]);
  State merged = got;
  call(1, got, true);
  kernels.merge(alone.view(), merged.view(), kRows, kDim);
  reference.merge(expected[1], expected[0]);
  compare_states(kernels.isa, name, got, expected[0]);
  compare_states(kernels.isa, "merge", merged, expected[0]);
}

void test_f16(const AttentionKernels& kernels) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  // Ties either way, the largest and what rounds beyond it, subnormals of f16 and of f32, signs.
  std::vector<float> x{1 + 0x1p-11f, 1 + 0x3p-11f, -1 - 0x1p-11f, 65504,    65519.99f, 65520,
                       -65520,       1e30f,        kInfinity,     0x1p-14f, 0x1p-24f,  0x1p-25f,
                       0x3p-25f,     0x1.01p-25f,  -0x1p-130f,    -0.0f,    0,         -kInfinity};
  for (const float v : random_floats(19, 5)) x.push_back(v);
  std::vector<std::uint16_t> y(x.size());
  kernels.f32_to_f16(x.data(), y.data(), x.size());
  std::vector<std::int32_t> expected;
  for (const float v : x) expected.push_back(f32_to_f16(v));
  compare(kernels.isa, "f32_to_f16", std::vector<std::int32_t>(y.begin(), y.end()), expected);
}

void test_quantize(const AttentionKernels& kernels) {
  std::vector<float> x{127, 0.5f, 1.5f, -2.5f, -126.5f};  // a factor of 1: ties
  for (const float v : random_floats(32, 6)) x.push_back(100 * v);
  for (const float factor : {1.0f, 0.37f}) {
    float largest = 1e-30f;
    for (float& v : x) largest = std::max(largest, std::fabs(v *= factor));
    std::vector<std::int32_t> expected;
    for (const float v : x)
      expected.push_back(static_cast<std::int32_t>(std::nearbyint(v * (127.0f / largest))));
    std::vector<std::int8_t> y(x.size());
    const float scale = kernels.quantize(x.data(), y.data(), x.size());
    compare(kernels.isa, "quantize", std::vector<std::int32_t>(y.begin(), y.end()), expected);
    compare(kernels.isa, "quantize's scale", scale, largest * (1.0f / 127.0f));
  }
}

}  // namespace

void self_test(const AttentionKernels& kernels, const F32Kernels& floats) {
  test_f16(kernels);
  test_quantize(kernels);
  for (const DType type : {DType::kF32, DType::kF16, DType::kI8}) test_tiles(kernels, floats, type);
}

}  // namespace bitnet
