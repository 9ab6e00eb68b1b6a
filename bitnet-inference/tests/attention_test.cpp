// Attention of the CPU backend against a slow and plain implementation of the order that docs/numerics.md
// defines (to the bit, for any chunks, batches, threads and page sizes), and that order against a softmax in
// double within a derived bound.
#include <cmath>
#include <cstring>
#include <numeric>

#include "bitnet/core/attention_kernels.hpp"
#include "bitnet/core/f32_kernels.hpp"
#include "bitnet/testing/isa_class.hpp"
#include "support.hpp"

namespace bitnet::inference {
namespace {

constexpr std::int64_t kTile = 128;

struct Shape {
  std::int64_t heads, kv_heads, dim, tokens;
  std::int64_t q_dim() const { return heads * dim; }
  std::int64_t kv_dim() const { return kv_heads * dim; }
};

std::vector<float> normals(std::int64_t n, std::uint32_t seed, float spread = 1) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, spread);
  std::vector<float> v(static_cast<std::size_t>(n));
  for (float& x : v) x = normal(random);
  return v;
}

/// Queries, keys and values of one sequence, [tokens, …].
struct Input {
  Input(const Shape& s, std::uint32_t seed)
      : shape(s),
        q(normals(s.tokens * s.q_dim(), seed)),
        k(normals(s.tokens * s.kv_dim(), seed + 1)),
        v(normals(s.tokens * s.kv_dim(), seed + 2)) {}
  Shape shape;
  std::vector<float> q, k, v;
};

/// A row of keys or values as the cache has it: value = element · scale.
struct Stored {
  std::vector<float> element;
  float scale = 1;
};

Stored quantised(const float* x, std::int64_t n) {
  float largest = 1e-30f;
  for (std::int64_t i = 0; i < n; ++i) largest = std::max(largest, std::abs(x[i]));
  Stored s{{}, largest * (1.0f / 127.0f)};
  const float factor = 127.0f / largest;
  for (std::int64_t i = 0; i < n; ++i) s.element.push_back(std::nearbyint(x[i] * factor));
  return s;
}

Stored stored(const float* x, std::int64_t n, DType type) {
  if (type == DType::kI8) return quantised(x, n);
  Stored s;
  for (std::int64_t i = 0; i < n; ++i)
    s.element.push_back(type == DType::kF16 ? f16_to_f32(f32_to_f16(x[i])) : x[i]);
  return s;
}

/// What one (token, head) sees.
struct View {
  const float* q;
  std::vector<Stored> k, v;
};

View view(const Input& in, std::int64_t token, std::int64_t head, DType type) {
  const Shape& s = in.shape;
  const std::int64_t kv = head / (s.heads / s.kv_heads) * s.dim;
  View w{in.q.data() + token * s.q_dim() + head * s.dim, {}, {}};
  for (std::int64_t t = 0; t <= token; ++t) {
    w.k.push_back(stored(in.k.data() + t * s.kv_dim() + kv, s.dim, type));
    w.v.push_back(stored(in.v.data() + t * s.kv_dim() + kv, s.dim, type));
  }
  return w;
}

/// The order of docs/numerics.md, one operation after the other.
class Reference {
 public:
  explicit Reference(Isa isa) : floats_(f32_kernels(isa)), fused_(testing::is_fused(floats_)) {}

  std::vector<float> operator()(const View& w, std::int64_t dim, DType type) const {
    const auto n = static_cast<std::int64_t>(w.k.size());
    const auto d = static_cast<std::size_t>(dim);
    float largest = 0, sum = 0;
    std::vector<float> values(d);
    for (std::int64_t begin = 0; begin < n; begin += kTile) {
      const auto end = static_cast<std::size_t>(std::min(n, begin + kTile));
      std::vector<float> p;
      for (auto t = static_cast<std::size_t>(begin); t < end; ++t) p.push_back(score(w, t, dim, type));
      const float m = *std::max_element(p.begin(), p.end());
      float lane[16] = {};
      for (std::size_t i = 0; i < p.size(); ++i) {
        p[i] = exp(p[i] - m);
        lane[i % 16] += p[i];
      }
      for (std::size_t width = 8; width > 0; width /= 2)
        for (std::size_t i = 0; i < width; ++i) lane[i] += lane[i + width];
      const std::vector<float> part = type == DType::kI8
                                          ? byte_values(p, w, static_cast<std::size_t>(begin), d)
                                          : float_values(p, w, static_cast<std::size_t>(begin), d);
      if (begin == 0) {
        largest = m;
        sum = lane[0];
        values = part;
        continue;
      }
      const float both = std::max(largest, m), f0 = exp(largest - both), f1 = exp(m - both);
      largest = both;
      sum = fma(lane[0], f1, sum * f0);
      for (std::size_t i = 0; i < d; ++i) values[i] = fma(part[i], f1, values[i] * f0);
    }
    for (float& x : values) x *= 1.0f / sum;
    return values;
  }

 private:
  float fma(float a, float b, float c) const { return fused_ ? std::fma(a, b, c) : a * b + c; }
  float exp(float x) const {
    floats_.exp_sum(&x, 0, 1);
    return x;
  }
  float score(const View& w, std::size_t t, std::int64_t dim, DType type) const {
    const auto scale = static_cast<float>(1 / std::sqrt(static_cast<double>(dim)));
    if (type == DType::kI8) {
      const Stored q = quantised(w.q, dim);
      std::int32_t sum = 0;
      for (std::size_t i = 0; i < q.element.size(); ++i)
        sum += static_cast<std::int32_t>(q.element[i]) * static_cast<std::int32_t>(w.k[t].element[i]);
      return static_cast<float>(sum) * (q.scale * scale) * w.k[t].scale;
    }
    float s = 0;
    for (std::size_t i = 0; i < w.k[t].element.size(); ++i) s = fma(w.q[i] * scale, w.k[t].element[i], s);
    return s;
  }
  std::vector<float> float_values(const std::vector<float>& p, const View& w, std::size_t first,
                                  std::size_t dim) const {
    std::vector<float> a(dim);
    for (std::size_t t = 0; t < p.size(); ++t)
      for (std::size_t i = 0; i < dim; ++i) a[i] = fma(p[t], w.v[first + t].element[i], a[i]);
    return a;
  }
  static std::vector<float> byte_values(std::vector<float> p, const View& w, std::size_t first,
                                        std::size_t dim) {
    float largest = 0;
    for (std::size_t t = 0; t < p.size(); ++t)
      largest = std::max(largest, p[t] = p[t] * w.v[first + t].scale);
    const float units = largest > 0 ? 255.0f / largest : 0;
    std::vector<std::int32_t> sums(dim);
    for (std::size_t t = 0; t < p.size(); ++t)
      for (std::size_t i = 0; i < dim; ++i)
        sums[i] += static_cast<std::int32_t>(std::nearbyint(p[t] * units)) *
                   static_cast<std::int32_t>(w.v[first + t].element[i]);
    std::vector<float> a(dim);
    for (std::size_t i = 0; i < dim; ++i) a[i] = static_cast<float>(sums[i]) * (largest * (1.0f / 255.0f));
    return a;
  }

  const F32Kernels& floats_;
  bool fused_;
};

std::vector<float> reference(const Input& in, DType type) {
  const Reference row(default_isa());
  std::vector<float> out;
  for (std::int64_t t = 0; t < in.shape.tokens; ++t) {
    for (std::int64_t h = 0; h < in.shape.heads; ++h) {
      const std::vector<float> one = row(view(in, t, h, type), in.shape.dim, type);
      out.insert(out.end(), one.begin(), one.end());
    }
  }
  return out;
}

/// The backend's attention with a cache of its own, for sequences of one shape.
class Attention {
 public:
  Attention(const Shape& shape, std::size_t n_sequences, DType type, std::int64_t page_size,
            std::size_t threads)
      : shape_(shape), backend_(make_cpu_backend(make_context(threads))) {
    const std::int64_t per = (shape.tokens + page_size - 1) / page_size;
    const auto n = static_cast<std::int64_t>(n_sequences) * per;
    const auto bytes =
        static_cast<std::size_t>(n) * kv_page_bytes(type, page_size, shape.kv_heads, shape.dim);
    keys_ = backend_->allocate(bytes);
    values_ = backend_->allocate(bytes);
    // Memory that other sequences have used: nothing may depend on what was there.
    const std::vector<std::byte> garbage(bytes, std::byte{0xff});
    backend_->upload(*keys_, 0, garbage);
    backend_->upload(*values_, 0, garbage);
    layer_ = {keys_.get(), values_.get(), n, page_size, type};
    for (std::size_t i = 0; i < n_sequences; ++i) {
      pages_.emplace_back();  // interleaved, descending
      for (std::int64_t p = 0; p < per; ++p)
        pages_.back().push_back(static_cast<std::int32_t>(n - 1 - p * static_cast<std::int64_t>(n_sequences) -
                                                          static_cast<std::int64_t>(i)));
    }
  }

  struct Step {
    std::size_t sequence;
    std::int64_t past, rows;
    std::int64_t first = 0;  // the first row that is queried
  };
  /// One call; each sequence's rows of the output, appended to out[sequence].
  void run(const std::vector<const Input*>& inputs, const std::vector<Step>& steps,
           std::vector<std::vector<float>>& out) {
    std::vector<float> q, k, v;
    std::vector<SequenceSlice> slices, queries;
    std::int64_t row = 0, query = 0;
    for (const Step& s : steps) {
      const auto append = [&](std::vector<float>& to, const std::vector<float>& from, std::int64_t dim,
                              std::int64_t first) {
        to.insert(to.end(), from.begin() + (s.past + first) * dim, from.begin() + (s.past + s.rows) * dim);
      };
      append(q, inputs[s.sequence]->q, shape_.q_dim(), s.first);
      append(k, inputs[s.sequence]->k, shape_.kv_dim(), 0);
      append(v, inputs[s.sequence]->v, shape_.kv_dim(), 0);
      slices.push_back({row, s.rows, s.past, pages_[s.sequence]});
      row += s.rows;
      if (s.first == s.rows) continue;
      queries.push_back({query, s.rows - s.first, s.past + s.first, pages_[s.sequence]});
      query += s.rows - s.first;
    }
    const BufferPtr bq = upload(q), bk = upload(k), bv = upload(v), bo = backend_->allocate(4 * q.size());
    backend_->attention({{bq.get(), 0, query, shape_.q_dim()},
                         {bk.get(), 0, row, shape_.kv_dim()},
                         {bv.get(), 0, row, shape_.kv_dim()},
                         {bo.get(), 0, query, shape_.q_dim()},
                         layer_,
                         slices,
                         shape_.heads,
                         shape_.kv_heads,
                         shape_.dim,
                         queries});
    std::vector<float> all(q.size());
    backend_->download(*bo, 0, std::as_writable_bytes(std::span(all)));
    auto from = all.begin();
    for (const Step& s : steps) {
      const std::int64_t n = (s.rows - s.first) * shape_.q_dim();
      out[s.sequence].insert(out[s.sequence].end(), from, from + n);
      from += n;
    }
  }

 private:
  BufferPtr upload(const std::vector<float>& values) {
    BufferPtr buffer = backend_->allocate(values.size() * sizeof(float));
    backend_->upload(*buffer, 0, std::as_bytes(std::span(values)));
    return buffer;
  }

  Shape shape_;
  std::unique_ptr<Backend> backend_;
  BufferPtr keys_, values_;
  KvLayer layer_;
  std::vector<std::vector<std::int32_t>> pages_;
};

/// One sequence, cut into steps of `chunk` tokens.
std::vector<float> run(const Input& in, DType type, std::int64_t page_size, std::size_t threads,
                       std::int64_t chunk) {
  Attention attention(in.shape, 1, type, page_size, threads);
  std::vector<std::vector<float>> out(1);
  for (std::int64_t past = 0; past < in.shape.tokens; past += chunk)
    attention.run({&in}, {{0, past, std::min(chunk, in.shape.tokens - past)}}, out);
  return out[0];
}

void expect_same(const std::vector<float>& a, const std::vector<float>& b) {
  ASSERT_EQ(a.size(), b.size());
  for (std::size_t i = 0; i < a.size(); ++i)
    ASSERT_EQ(std::bit_cast<std::uint32_t>(a[i]), std::bit_cast<std::uint32_t>(b[i]))
        << "element " << i << ": " << a[i] << " and " << b[i];
}

constexpr DType kTypes[] = {DType::kF16, DType::kI8, DType::kF32};

TEST(Attention, IsTheDefinedOrderForAnyShape) {
  const Shape shapes[] = {{4, 1, 128, 150}, {8, 4, 64, 70}, {3, 1, 16, 300}, {2, 2, 32, 40},
                          {4, 2, 10, 140},  {6, 1, 14, 20}, {2, 1, 144, 33}, {1, 1, 260, 18}};
  for (const Shape& shape : shapes) {
    const Input in(shape, 7);
    for (const DType type : kTypes) {
      SCOPED_TRACE(std::string(to_string(type)) + " head_dim " + std::to_string(shape.dim));
      const std::vector<float> expected = reference(in, type);
      for (const std::int64_t page_size : {16, 48, 5}) {
        expect_same(run(in, type, page_size, 1, shape.tokens), expected);
        expect_same(run(in, type, page_size, 2, 37), expected);
      }
      expect_same(run(in, type, 16, 1, 1), expected);
    }
  }
}

TEST(Attention, IsTheSameInAnyBatchOnAnyThreads) {
  const Shape shape{4, 2, 32, 300};
  const Input a(shape, 1), b(shape, 2), c(shape, 3);
  const std::vector<const Input*> inputs{&a, &b, &c};
  for (const DType type : kTypes) {
    std::vector<std::vector<float>> alone;
    for (const Input* in : inputs) alone.push_back(run(*in, type, 16, 1, shape.tokens));
    for (const std::size_t threads : {1, 2, 3, 8}) {
      Attention attention(shape, 3, type, 16, threads);
      std::vector<std::vector<float>> out(3);
      std::vector<std::int64_t> past(3);
      std::mt19937 random(5);
      while (past[0] + past[1] + past[2] < 3 * shape.tokens) {
        std::vector<Attention::Step> steps;
        for (std::size_t i = 0; i < 3; ++i) {
          const std::int64_t rows =
              std::min<std::int64_t>(shape.tokens - past[i], random() % 4 == 0 ? 100 : random() % 9);
          if (rows > 0) steps.push_back({i, past[i], rows});
          past[i] += rows;
        }
        if (!steps.empty()) attention.run(inputs, steps, out);
      }
      for (std::size_t i = 0; i < 3; ++i) {
        SCOPED_TRACE(std::string(to_string(type)) + ", threads " + std::to_string(threads) + ", sequence " +
                     std::to_string(i));
        expect_same(out[i], alone[i]);
      }
    }
  }
}

TEST(Attention, OfSomeOfTheRowsIsTheSame) {
  const Shape shape{4, 2, 32, 300};
  const Input a(shape, 1), b(shape, 2);
  const auto last = [&](const std::vector<float>& all, std::int64_t rows) {
    return std::vector<float>(all.end() - rows * shape.q_dim(), all.end());
  };
  for (const DType type : kTypes) {
    const std::vector<float> of_a = run(a, type, 16, 1, shape.tokens),
                             of_b = run(b, type, 16, 1, shape.tokens);
    for (const std::size_t threads : {1, 2, 3}) {
      SCOPED_TRACE(std::string(to_string(type)) + ", threads " + std::to_string(threads));
      Attention attention(shape, 2, type, 16, threads);
      std::vector<std::vector<float>> out(2);
      attention.run({&a, &b}, {{0, 0, 140, 140}, {1, 0, 200, 200}}, out);  // stored and not queried
      EXPECT_TRUE(out[0].empty() && out[1].empty());
      attention.run({&a, &b}, {{0, 140, 160, 159}, {1, 200, 100, 63}}, out);
      expect_same(out[0], last(of_a, 1));
      expect_same(out[1], last(of_b, 37));
    }
  }
}

// One sequence, fewer heads than threads: the tiles of a head are shared between threads, in several waves.
TEST(Attention, LongContextsAreCutAtTilesWithoutATrace) {
  const Shape shape{6, 3, 16, 4500};
  const Input in(shape, 4);
  for (const DType type : kTypes) {
    std::vector<std::vector<float>> results;
    for (const std::size_t threads : {1, 2, 4, 7}) {
      Attention attention(shape, 1, type, 16, threads);
      std::vector<std::vector<float>> out(1);
      attention.run({&in}, {{0, 0, 4490}}, out);
      out[0].clear();
      for (std::int64_t past = 4490; past < 4500; past += 2) attention.run({&in}, {{0, past, 2}}, out);
      results.push_back(std::move(out[0]));
    }
    for (const std::vector<float>& r : results) expect_same(r, results[0]);
  }
}

/// Softmax over stored values, in double, and what float arithmetic may do to it.
struct Exact {
  std::vector<double> out, bound;
};

/// With u = 2^-24, γ(n) = n·u / (1 − n·u), T tiles and S = max |score|: a score is off by at most
/// e = γ(D + 2)·Σ|q·k|·scale, the argument of exp by another 2·S·u, and exp by 4·u (2 ulp); each merge adds
/// an exp and an argument again. A weight is therefore off by w = e + 4·S·u + 4·u·(T + 1) of itself, as is
/// their sum; the sums add γ(128 + 2·T + 4) each.
Exact exact(const View& w, std::int64_t dim, DType type) {
  constexpr double kU = 0x1p-24;
  const auto gamma = [](double n) { return n * kU / (1 - n * kU); };
  const auto d = static_cast<std::size_t>(dim);
  const double scale = 1 / std::sqrt(static_cast<double>(dim));
  Stored q{{w.q, w.q + dim}, 1};
  if (type == DType::kI8) q = quantised(w.q, dim);
  std::vector<double> p;
  double largest = 0, error = 0;
  for (const Stored& k : w.k) {
    double s = 0, magnitude = 0;
    for (std::size_t i = 0; i < d; ++i) {
      const double term = static_cast<double>(q.element[i]) * q.scale * k.element[i] * k.scale * scale;
      s += term;
      magnitude += std::abs(term);
    }
    p.push_back(s);
    largest = std::max(largest, std::abs(s));
    error = std::max(error, gamma(static_cast<double>(dim) + 4) * magnitude);
  }
  const double tiles = std::ceil(static_cast<double>(p.size()) / kTile);
  const double weight = error + 4 * largest * kU + 4 * kU * (tiles + 1);
  const double relative = 2 * (weight + gamma(kTile + 2 * tiles + 4));
  double sum = 0;
  for (double& x : p) sum += x = std::exp(x);
  Exact r{std::vector<double>(d), std::vector<double>(d)};
  for (std::size_t t = 0; t < p.size(); ++t) {
    for (std::size_t i = 0; i < d; ++i) {
      const double v = static_cast<double>(w.v[t].element[i]) * w.v[t].scale;
      r.out[i] += p[t] / sum * v;
      r.bound[i] += 1.01 * relative * p[t] / sum * std::abs(v);
    }
  }
  if (type != DType::kI8) return r;
  // Bytes: a weight of a tile is off by half a unit, 1/255 of the largest p · scale in the tile.
  for (std::size_t begin = 0; begin < p.size(); begin += kTile) {
    const std::size_t end = std::min(p.size(), begin + static_cast<std::size_t>(kTile));
    double most = 0;
    for (std::size_t t = begin; t < end; ++t) most = std::max(most, p[t] / sum * w.v[t].scale);
    for (std::size_t t = begin; t < end; ++t)
      for (std::size_t i = 0; i < d; ++i)
        r.bound[i] += 0.501 * most / 255 * std::abs(static_cast<double>(w.v[t].element[i]));
  }
  return r;
}

TEST(Attention, IsTheSoftmaxWithinADerivedBound) {
  for (const Shape& shape : {Shape{2, 1, 128, 400}, Shape{1, 1, 10, 150}}) {
    const Input in(shape, 11);
    for (const DType type : kTypes) {
      const std::vector<float> out = run(in, type, 16, 2, shape.tokens);
      double worst = 0;
      for (const std::int64_t t : {std::int64_t{0}, std::int64_t{5}, shape.tokens - 1}) {
        for (std::int64_t h = 0; h < shape.heads; ++h) {
          const Exact e = exact(view(in, t, h, type), shape.dim, type);
          for (std::int64_t i = 0; i < shape.dim; ++i) {
            const auto at = static_cast<std::size_t>(i);
            const double got = out[static_cast<std::size_t>(t * shape.q_dim() + h * shape.dim + i)];
            ASSERT_LE(std::abs(got - e.out[at]), e.bound[at]) << to_string(type) << " token " << t;
            worst = std::max(worst, std::abs(got - e.out[at]) / e.bound[at]);
          }
        }
      }
      std::printf("%s, head_dim %d: at most %.2f of the bound\n", std::string(to_string(type)).c_str(),
                  static_cast<int>(shape.dim), worst);
    }
  }
}

// Keys of very different size: rescaling at tile borders, weights that underflow, equal scores.
TEST(Attention, ExtremeScoresStayFiniteAndOrdered) {
  const Shape shape{2, 1, 32, 400};
  for (const float size : {0.0f, 1e-20f, 30.0f, 1000.0f}) {
    Input in(shape, 13);
    for (std::size_t i = 0; i < in.k.size(); ++i) in.k[i] *= size * static_cast<float>(i % 7);
    for (const DType type : kTypes) {
      const std::vector<float> out = run(in, type, 16, 1, 64);
      expect_same(out, reference(in, type));
      for (const float x : out) ASSERT_TRUE(std::isfinite(x)) << to_string(type) << ' ' << size;
    }
  }
}

TEST(Attention, RoundsToF16HalfToEvenEverywhere) {
  std::vector<float> x;
  for (std::uint32_t h = 0; h < 0x10000; ++h) {  // every f16, the ties between neighbours, and what is beside
    const float a = f16_to_f32(static_cast<std::uint16_t>(h)),
                b = f16_to_f32(static_cast<std::uint16_t>(h + 1));
    const float tie = a + (b - a) / 2;
    for (const float f : {a, tie, std::nextafter(tie, a), std::nextafter(tie, b)}) x.push_back(f);
  }
  for (std::uint32_t i = 0; i < 100001; ++i) x.push_back(std::bit_cast<float>(i * 2654435761u));
  std::vector<std::uint16_t> y(x.size());
  attention_kernels(default_isa()).f32_to_f16(x.data(), y.data(), x.size());
  for (std::size_t i = 0; i < x.size(); ++i)
    ASSERT_EQ(y[i], f32_to_f16(x[i])) << std::bit_cast<std::uint32_t>(x[i]);
}

TEST(Attention, PagesHaveTheBytesOfTheirType) {
  EXPECT_EQ(kv_page_bytes(DType::kF32, 16, 2, 64), 16u * 2 * 64 * 4);
  EXPECT_EQ(kv_page_bytes(DType::kF16, 16, 2, 64), 16u * 2 * 64 * 2);
  EXPECT_EQ(kv_page_bytes(DType::kI8, 16, 2, 64), 16u * 2 * (64 + 4));
  EXPECT_EQ(kv_page_bytes(DType::kI8, 16, 2, 33), 16u * 2 * (36 + 4));  // the scales stay aligned
  BITNET_EXPECT_ERROR(kv_page_bytes(DType::kBF16, 16, 2, 64), ErrorCode::kInvalidArgument,
                      "expected one of f16, i8, f32");
  BITNET_EXPECT_ERROR(kv_page_bytes(DType::kF16, 0, 2, 64), ErrorCode::kInvalidArgument, "0 tokens");
}

}  // namespace
}  // namespace bitnet::inference
