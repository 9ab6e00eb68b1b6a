// One ISA's kernel objects without any library: checks the integers against naive products and the floats
// against double, then prints a hash of every result. Built with a cross compiler and run under qemu
// (run.sh), it shows that another processor gives the bits that standalone_hashes.txt names. The native tests
// of the same kernels are in bitnet-core/tests and bitnet-quant/tests.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <vector>

#include "bitnet/core/attention_kernels.hpp"
#include "bitnet/core/dtype.hpp"
#include "bitnet/core/f32_kernels.hpp"
#include "kernels/int8_table.hpp"
#include "kernels/peak_table.hpp"
#include "kernels/read_table.hpp"
#include "kernels/tensor_table.hpp"
#include "kernels/ternary_table.hpp"

#define BITNET_STR2(x) #x
#define BITNET_STR(x) BITNET_STR2(x)

namespace bitnet::kernels::BITNET_ISA {
extern const F32Kernels kKernels;
extern const AttentionKernels kAttentionKernels;
extern const ReadKernels kReads;
extern const TensorKernels kTensorKernels;
}  // namespace bitnet::kernels::BITNET_ISA
namespace bitnet::quant::kernels::BITNET_ISA {
extern const TernaryKernels kKernels;
extern const Int8Kernels kInt8Kernels;
extern const PeakKernels kPeaks;
}  // namespace bitnet::quant::kernels::BITNET_ISA

namespace {

const bitnet::F32Kernels& floats = bitnet::kernels::BITNET_ISA::kKernels;
const bitnet::AttentionKernels& attention = bitnet::kernels::BITNET_ISA::kAttentionKernels;
const bitnet::TensorKernels& tensor_ops = bitnet::kernels::BITNET_ISA::kTensorKernels;
const bitnet::ReadKernels& reads = bitnet::kernels::BITNET_ISA::kReads;
const bitnet::quant::TernaryKernels& ternary = bitnet::quant::kernels::BITNET_ISA::kKernels;
const bitnet::quant::Int8Kernels& int8 = bitnet::quant::kernels::BITNET_ISA::kInt8Kernels;
const bitnet::quant::PeakKernels& peaks = bitnet::quant::kernels::BITNET_ISA::kPeaks;
int failures = 0;

void expect(bool ok, const char* what, long i) {
  if (ok) return;
  if (++failures < 20) std::printf("FAILED: %s at %ld\n", what, i);
}

struct Hash {
  std::uint64_t value = 0xcbf29ce484222325u;
  void add(const void* data, std::size_t bytes) {
    for (std::size_t i = 0; i < bytes; ++i)
      value = (value ^ static_cast<const unsigned char*>(data)[i]) * 0x100000001b3u;
  }
  void add(const std::vector<float>& v) { add(v.data(), v.size() * sizeof(float)); }
};

/// A linear congruential generator (Knuth's MMIX constants), upper bits.
struct Random {
  std::uint64_t state = 1;
  std::uint32_t next() {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return static_cast<std::uint32_t>(state >> 33);
  }
  float uniform() { return static_cast<float>(next()) * 0x1p-30f - 1; }  // [−1, 1]
};

std::vector<float> random_floats(std::size_t n, std::uint64_t seed) {
  Random random{seed};
  std::vector<float> v(n);
  for (float& x : v) x = random.uniform();
  return v;
}

void check_gemm(Hash& hash, long m, long n, long k, bool accumulate) {
  const auto a = random_floats(static_cast<std::size_t>(m * k), 1),
             b = random_floats(static_cast<std::size_t>(n * k), 2);
  auto c = random_floats(static_cast<std::size_t>(m * n), 3);
  const auto before = c;
  std::vector<float> scratch(floats.gemm_scratch);
  floats.gemm(m, n, k, a.data(), k, 1, b.data(), 1, k, c.data(), n, accumulate, scratch.data());
  for (long i = 0; i < m * n; ++i) {
    const auto at = static_cast<std::size_t>(i);
    double sum = accumulate ? before[at] : 0, magnitude = std::fabs(sum);
    for (long q = 0; q < k; ++q) {
      const double term = static_cast<double>(a[static_cast<std::size_t>(i / n * k + q)]) *
                          b[static_cast<std::size_t>(i % n * k + q)];
      sum += term;
      magnitude += std::fabs(term);
    }
    expect(std::fabs(c[at] - sum) <= 1.01 * static_cast<double>(k + 1) * 0x1p-24 * magnitude, "gemm", i);
  }
  hash.add(c);
}

void check_rows(Hash& hash, std::size_t n) {
  const auto x = random_floats(n, 4), w = random_floats(n, 5);
  auto y = random_floats(n, 6);
  std::vector<std::uint16_t> half(n);
  for (std::size_t i = 0; i < n; ++i)
    half[i] = static_cast<std::uint16_t>(i * 2654435761u & 0xbbff);  // finite
  double dot = 0, magnitude = 0;
  for (std::size_t i = 0; i < n; ++i) {
    dot += static_cast<double>(x[i]) * w[i];
    magnitude += std::fabs(static_cast<double>(x[i]) * w[i]);
  }
  const float scalars[] = {floats.dot(x.data(), w.data(), n),
                           floats.dot_f16(half.data(), w.data(), n),
                           floats.dot_bf16(half.data(), w.data(), n),
                           floats.sum(x.data(), n),
                           floats.sum_squares(x.data(), n),
                           floats.max(x.data(), n),
                           floats.max_abs(x.data(), n)};
  expect(std::fabs(scalars[0] - dot) <= 1.01 * static_cast<double>(n / 16 + 6) * 0x1p-24 * magnitude, "dot",
         0);
  hash.add(scalars, sizeof scalars);
  floats.axpy(0.3f, x.data(), y.data(), n);
  hash.add(y);
  floats.rms_norm(x.data(), w.data(), 1e-5f, y.data(), n);
  hash.add(y);
  floats.relu2_gate(x.data(), w.data(), y.data(), n);
  hash.add(y);
  floats.silu_gate(x.data(), w.data(), y.data(), n);
  for (std::size_t i = 0; i < n; ++i) {
    const double expected = x[i] / (1 + std::exp(-static_cast<double>(x[i]))) * w[i];
    expect(std::fabs(y[i] - expected) <= 4 * 0x1p-23 * std::fabs(expected) + 1e-37, "silu",
           static_cast<long>(i));
  }
  hash.add(y);
  y = x;
  const float sum = floats.exp_sum(y.data(), 0.5f, n);
  for (std::size_t i = 0; i < n; ++i) {
    const double expected = std::exp(static_cast<double>(x[i] - 0.5f));
    expect(std::fabs(y[i] - expected) <= 2 * 0x1p-23 * expected, "exp", static_cast<long>(i));
  }
  hash.add(&sum, sizeof sum);
  hash.add(y);
  floats.scale(0.7f, y.data(), n);
  floats.add(x.data(), y.data(), n);
  floats.mul(w.data(), y.data(), n);
  floats.rope(y.data(), x.data(), w.data(), n / 2);
  hash.add(y);
  floats.f16_to_f32(half.data(), y.data(), n);
  hash.add(y);
  floats.bf16_to_f32(half.data(), y.data(), n);
  hash.add(y);
}

void check_narrow(std::size_t n) {
  std::vector<float> x(n);
  for (std::size_t i = 0; i < n; ++i) {
    const auto bits = static_cast<std::uint32_t>(i) * 2654435761u;
    std::memcpy(&x[i], &bits, sizeof bits);
  }
  std::vector<std::uint16_t> y(n);
  attention.f32_to_f16(x.data(), y.data(), n);
  for (std::size_t i = 0; i < n; ++i)
    expect(y[i] == bitnet::f32_to_f16(x[i]), "f32_to_f16", static_cast<long>(i));
}

/// Two tiles, merged, of `rows` rows: row r sees all of the first and r + 1 keys of the second.
void check_attention(Hash& hash, std::int64_t rows, std::int64_t dim) {
  const auto r = static_cast<std::size_t>(rows), d16 = static_cast<std::size_t>((dim + 15) / 16 * 16);
  const std::size_t block = 16 * d16, padded = (r + 15) / 16 * 16;
  std::vector<float> q = random_floats(r * 128, 1), keys = random_floats(16 * block, 2),
                     values = random_floats(16 * block, 3), scales = random_floats(256, 4), scores(r * 128);
  std::vector<float> largest(padded), sum(padded), out(r * d16), q_scales(r);
  std::vector<std::uint16_t> half_keys(keys.size()), half_values(values.size());
  std::vector<std::int8_t> q8(r * d16), byte_keys(keys.size()), byte_values(values.size());
  std::vector<std::uint8_t> weights(r * 128);
  std::vector<std::int32_t> sums(r), n_keys(r);
  for (std::size_t i = 0; i < r; ++i) {
    std::int8_t* const row = q8.data() + i * static_cast<std::size_t>(dim);
    q_scales[i] = attention.quantize(q.data() + i * 128, row, static_cast<std::size_t>(dim));
    for (std::int64_t k = 0; k < dim; ++k) sums[i] += row[k];
  }
  for (float& s : scales) s = s * s;
  attention.f32_to_f16(keys.data(), half_keys.data(), keys.size());
  attention.f32_to_f16(values.data(), half_values.data(), values.size());
  attention.quantize(keys.data(), byte_keys.data(), keys.size());
  attention.quantize(values.data(), byte_values.data(), values.size());
  for (int type = 0; type < 3; ++type) {
    for (std::size_t tile = 0; tile < 2; ++tile) {
      const void *k[8], *v[8];
      const float* s[8];
      for (std::size_t b = 0; b < 8; ++b) {
        const std::size_t at = (tile * 8 + b) * block;
        k[b] = type == 0   ? static_cast<const void*>(keys.data() + at)
               : type == 1 ? static_cast<const void*>(half_keys.data() + at)
                           : byte_keys.data() + at;
        v[b] = type == 0   ? static_cast<const void*>(values.data() + at)
               : type == 1 ? static_cast<const void*>(half_values.data() + at)
                           : byte_values.data() + at;
        s[b] = scales.data() + (tile * 8 + b) * 16;
      }
      for (std::size_t i = 0; i < r; ++i) n_keys[i] = tile == 0 ? 128 : static_cast<std::int32_t>(i) + 1;
      bitnet::AttentionTile t;
      t.rows = rows;
      t.head_dim = dim;
      t.n_keys = n_keys.data();
      t.q = q.data();
      t.q_chunk_stride = rows * 128;
      t.q8 = q8.data();
      t.q8_scales = q_scales.data();
      t.q8_sums = sums.data();
      t.keys = k;
      t.values = v;
      t.key_scales = t.value_scales = s;
      t.scores = scores.data();
      t.weights = weights.data();
      t.state = {largest.data(), sum.data(), out.data()};
      t.merge = tile > 0;
      (type == 0 ? attention.tile_f32 : type == 1 ? attention.tile_f16 : attention.tile_i8)(t);
    }
    hash.add(largest.data(), r * sizeof(float));
    hash.add(sum.data(), r * sizeof(float));
    hash.add(out);
  }
}

using bitnet::quant::TernaryProduct;
using bitnet::quant::TileCode;

/// Tiles as ternary_table.hpp describes them. trits: [out, in]
std::vector<std::uint8_t> pack(TileCode code, const std::vector<int>& trits, std::int64_t out,
                               std::int64_t in) {
  const bool two_bit = code == TileCode::kTwoBit;
  const std::int64_t columns = two_bit ? 16 : 20, lines = (in + columns - 1) / columns;
  std::vector<std::uint8_t> packed;
  for (std::int64_t at = 0; at < (out + 15) / 16 * lines * 64; ++at) {
    unsigned d[5] = {};
    for (std::int64_t i = 0; i < columns / 4; ++i) {
      const std::int64_t o = at / 64 / lines * 16 + at % 64 / 4,
                         k = at / 64 % lines * columns + 4 * i + at % 4;
      if (o < out && k < in) d[i] = static_cast<unsigned>(trits[static_cast<std::size_t>(o * in + k)] + 1);
    }
    const unsigned t = d[0] + 3 * d[1] + 9 * d[2] + 27 * d[3];
    const unsigned base3 = t < 64 ? t + 64 * d[4] : 192 + 3 * (t - 64) + d[4];
    packed.push_back(static_cast<std::uint8_t>(two_bit ? d[0] + 4 * d[1] + 16 * d[2] + 64 * d[3] : base3));
  }
  return packed;
}

struct Rows {
  std::int64_t rows, stride;
  std::vector<std::int8_t> x;      // [rows, stride], zero beyond the columns
  std::vector<std::int32_t> sums;  // [rows]
};

/// The integers and what they are scaled to have one right answer on every processor: they are checked, not
/// hashed. trits: [out, in]
void check_product(TileCode code, const Rows& x, const std::vector<int>& trits, std::int64_t out,
                   std::int64_t in) {
  const std::int64_t columns = code == TileCode::kTwoBit ? 16 : 20;
  const auto packed = pack(code, trits, out, in);
  std::vector<std::int32_t> acc(static_cast<std::size_t>(x.rows * out));
  std::vector<float> y(acc.size()), scales, inverse;
  for (std::int64_t o = 0; o < out; ++o) scales.push_back(0.7f + static_cast<float>(o));
  for (std::int64_t r = 0; r < x.rows; ++r) inverse.push_back(1.0f / static_cast<float>(r + 3));
  TernaryProduct product{.code = code,
                         .tiles = packed.data(),
                         .lines = (in + columns - 1) / columns,
                         .out = out,
                         .tile_begin = 0,
                         .tile_end = (out + 15) / 16,
                         .x = x.x.data(),
                         .stride = x.stride,
                         .rows = x.rows,
                         .sums = x.sums.data(),
                         .acc = acc.data(),
                         .y = nullptr,
                         .scales = scales.data(),
                         .inv_scales = inverse.data()};
  ternary.multiply(product);
  product.acc = nullptr;
  product.y = y.data();
  ternary.multiply(product);
  for (std::int64_t i = 0; i < x.rows * out; ++i) {
    std::int32_t sum = 0;
    for (std::int64_t k = 0; k < in; ++k)
      sum += x.x[static_cast<std::size_t>(i / out * x.stride + k)] *
             trits[static_cast<std::size_t>(i % out * in + k)];
    const auto at = static_cast<std::size_t>(i), o = static_cast<std::size_t>(i % out),
               r = static_cast<std::size_t>(i / out);
    expect(acc[at] == sum, "product", i);
    expect(y[at] == static_cast<float>(sum) * (scales[o] * inverse[r]), "scaled product", i);
  }
}

Rows empty_rows(std::int64_t rows, std::int64_t in) {
  const std::int64_t stride = (in + 19 + 63) / 64 * 64;  // whole lines of either code
  return {rows, stride, std::vector<std::int8_t>(static_cast<std::size_t>(rows * stride)), {}};
}

/// Random trits and rows, by the quantiser, which is checked on the way.
void check_ternary(std::int64_t rows, std::int64_t out, std::int64_t in) {
  Random random{7};
  std::vector<int> trits(static_cast<std::size_t>(out * in));
  for (int& t : trits) t = static_cast<int>(random.next() % 3) - 1;
  Rows x = empty_rows(rows, in);
  for (std::int64_t r = 0; r < rows; ++r) {
    const auto values = random_floats(static_cast<std::size_t>(in), 8 + static_cast<std::uint64_t>(r));
    std::int8_t* const q = x.x.data() + r * x.stride;
    x.sums.push_back(ternary.quantize(values.data(), 127.0f, q, static_cast<std::size_t>(in)));
    std::int32_t sum = 0;
    for (std::int64_t k = 0; k < in; ++k) {
      expect(q[k] == std::nearbyint(values[static_cast<std::size_t>(k)] * 127.0f), "quantize", k);
      sum += q[k];
    }
    expect(sum == x.sums.back(), "sum", r);
  }
  check_product(TileCode::kTwoBit, x, trits, out, in);
  check_product(TileCode::kBase3, x, trits, out, in);
}

/// The largest sums: 16-bit ones that are widened too late overflow.
void check_largest(std::int64_t rows, int trit, int value) {
  constexpr std::int64_t kOut = 20, kIn = 2077;
  const std::vector<int> trits(static_cast<std::size_t>(kOut * kIn), trit);
  Rows x = empty_rows(rows, kIn);
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t k = 0; k < kIn; ++k)
      x.x[static_cast<std::size_t>(r * x.stride + k)] = static_cast<std::int8_t>(value);
    x.sums.push_back(static_cast<std::int32_t>(value * kIn));
  }
  check_product(TileCode::kTwoBit, x, trits, kOut, kIn);
  check_product(TileCode::kBase3, x, trits, kOut, kIn);
}

/// All of int8 against weights of −127 … 127, the extremes among them.
void check_int8(std::int64_t rows, std::int64_t out, std::int64_t in) {
  Random random{9};
  const std::int64_t lines = (in + 3) / 4, tiles = (out + 15) / 16, stride = (lines * 4 + 63) / 64 * 64;
  std::vector<std::int8_t> w(static_cast<std::size_t>(out * in));
  std::vector<std::int8_t> packed(static_cast<std::size_t>(tiles * lines * 64));
  for (std::int64_t i = 0; i < out * in; ++i) {
    const std::int64_t o = i / in, k = i % in;
    const auto v = static_cast<std::int8_t>(k % 7 < 2 ? 127 : static_cast<int>(random.next() % 255) - 127);
    w[static_cast<std::size_t>(i)] = v;
    packed[static_cast<std::size_t>((o / 16 * lines + k / 4) * 64 + o % 16 * 4 + k % 4)] = v;
  }
  std::vector<std::int8_t> x(static_cast<std::size_t>(rows * stride));
  std::vector<std::int32_t> sums, acc(static_cast<std::size_t>(rows * out));
  for (std::int64_t r = 0; r < rows; ++r) {
    std::int32_t sum = 0;
    for (std::int64_t k = 0; k < in; ++k) {
      const auto v = static_cast<std::int8_t>(k % 7 < 3 ? -128 : static_cast<int>(random.next() % 256) - 128);
      x[static_cast<std::size_t>(r * stride + k)] = v;
      sum += v;
    }
    sums.push_back(sum);
  }
  int8.multiply({.tiles = packed.data(),
                 .lines = lines,
                 .out = out,
                 .tile_begin = 0,
                 .tile_end = tiles,
                 .x = x.data(),
                 .stride = stride,
                 .rows = rows,
                 .sums = sums.data(),
                 .acc = acc.data(),
                 .y = nullptr,
                 .scales = nullptr,
                 .inv_scales = nullptr});
  for (std::int64_t i = 0; i < rows * out; ++i) {
    std::int32_t sum = 0;
    for (std::int64_t k = 0; k < in; ++k)
      sum +=
          x[static_cast<std::size_t>(i / out * stride + k)] * w[static_cast<std::size_t>(i % out * in + k)];
    expect(acc[static_cast<std::size_t>(i)] == sum, "int8 product", i);
  }
}

/// Rows of w, one float apart, times the first elements of x: chains like axpy's.
void check_matvec(const std::vector<float>& w, const std::vector<float>& x) {
  const std::size_t n = w.size() / 3 + 1, rows = w.size() - n + 1;
  std::vector<float> y(rows), expected(rows);
  tensor_ops.matvec(w.data(), 1, static_cast<std::int64_t>(rows), x.data(), static_cast<std::int64_t>(n),
                    y.data());
  for (std::size_t k = 0; k < n; ++k) floats.axpy(x[k], w.data() + k, expected.data(), rows);
  for (std::size_t r = 0; r < rows; ++r) expect(y[r] == expected[r], "matvec", static_cast<long>(r));
}

/// The tensor ops' table: functions of one float against double, everything into the hash.
void check_tensor_ops(Hash& hash, std::size_t n) {
  const auto x = random_floats(n, 10), y = random_floats(n, 11);
  std::vector<float> wide(n), z(n);
  std::vector<std::int8_t> bytes(n);
  std::vector<std::uint16_t> halves(n);
  std::vector<std::int32_t> ints(n);
  for (std::size_t i = 0; i < n; ++i) wide[i] = 30 * x[i];
  for (int one = 0; one < 4; ++one) {
    for (const auto f : tensor_ops.binary) {
      f(x.data(), (one & 1) != 0, y.data(), (one & 2) != 0, z.data(), n);
      hash.add(z);
    }
    for (const auto f : tensor_ops.compare) {
      f(x.data(), (one & 1) != 0, y.data(), (one & 2) != 0, bytes.data(), n);
      hash.add(bytes.data(), n);
    }
  }
  for (const auto f : tensor_ops.unary) {
    f(wide.data(), z.data(), n);
    for (float& v : z)
      if (v != v) v = 0;  // a NaN's bits are nobody's
    hash.add(z);
  }
  tensor_ops.unary[7](wide.data(), z.data(), n);  // tanh
  for (std::size_t i = 0; i < n; ++i) {
    const double expected = std::tanh(static_cast<double>(wide[i]));
    expect(std::fabs(z[i] - expected) <= 4 * 0x1p-23 * std::fabs(expected), "tanh", static_cast<long>(i));
  }
  tensor_ops.normalize(wide.data(), 0.1f, 0.3f, x.data(), y.data(), z.data(), n);
  hash.add(z);
  tensor_ops.clamp(wide.data(), -2, 5, z.data(), n);
  hash.add(z);
  const float rows[] = {tensor_ops.max(wide.data(), n), tensor_ops.min(wide.data(), n),
                        tensor_ops.sum_abs(wide.data(), n), tensor_ops.sum_deviations(wide.data(), 0.2f, n)};
  hash.add(rows, sizeof rows);
  expect(wide[tensor_ops.arg_max(wide.data(), n)] == rows[0], "arg max", static_cast<long>(n));
  expect(wide[tensor_ops.arg_min(wide.data(), n)] == rows[1], "arg min", static_cast<long>(n));
  check_matvec(x, y);
  tensor_ops.f32_to_f16(wide.data(), halves.data(), n);
  hash.add(halves.data(), n * sizeof(std::uint16_t));
  tensor_ops.f32_to_bf16(wide.data(), halves.data(), n);
  hash.add(halves.data(), n * sizeof(std::uint16_t));
  tensor_ops.f32_to_i8(wide.data(), bytes.data(), n);
  hash.add(bytes.data(), n);
  tensor_ops.f32_to_i32(wide.data(), ints.data(), n);
  hash.add(ints.data(), n * sizeof(std::int32_t));
}

/// The loops of the probes: of arithmetic, each round counts; of reading, each byte.
void check_probes() {
  for (const bitnet::quant::PeakLoop& loop : {peaks.int8, peaks.f32})
    for (const std::int32_t rounds : {0, 1, 3})
      expect(loop.run(static_cast<std::size_t>(rounds)) == rounds * loop.first, "peak loop", rounds);
  std::vector<std::uint32_t> words(2 * bitnet::kReadUnit / sizeof(std::uint32_t));
  Random random{11};
  for (std::uint32_t& w : words) w = random.next();
  for (const bitnet::ReadLoop& loop : reads.loops) {
    std::uint32_t parity = 0;
    for (const std::uint32_t w : words) parity ^= w;
    expect(loop.read(words.data(), words.size() * sizeof(std::uint32_t)) == parity, loop.name, 0);
  }
}

}  // namespace

int main() {
  expect(std::strcmp(floats.isa, BITNET_STR(BITNET_ISA)) == 0, "isa", 0);
  Hash hash;
  check_gemm(hash, 33, 47, 300, false);
  check_gemm(hash, 5, 130, 70, true);
  for (const std::size_t n : {1u, 6u, 16u, 37u, 300u}) check_rows(hash, n);
  for (const std::size_t n : {1u, 6u, 37u, 300u}) check_tensor_ops(hash, n);
  check_narrow(100003);
  for (const std::int64_t rows : {1, 4, 13}) check_attention(hash, rows, 64);
  check_attention(hash, 7, 16);
  const std::int64_t sizes[][3] = {{1, 1, 1},     {1, 33, 100},  {2, 16, 17},   {5, 40, 256},
                                   {9, 20, 1000}, {1, 17, 3200}, {20, 18, 1300}};
  for (const auto& s : sizes) {
    check_ternary(s[0], s[1], s[2]);
    check_int8(s[0], s[1], s[2]);
  }
  for (const std::int64_t rows : {1, 3, 20})
    for (const int trit : {-1, 1})
      for (const int value : {-128, 127}) check_largest(rows, trit, value);
  check_probes();
  const float one = 1 + 0x1p-12f;
  float fused = -(1 + 0x1p-11f);  // 2^-24 remains if the multiply-add rounds once
  floats.axpy(one, &one, &fused, 1);
  std::printf("%s %016llx\n", fused != 0 ? "fused" : "unfused", static_cast<unsigned long long>(hash.value));
  return failures == 0 ? 0 : 1;
}
