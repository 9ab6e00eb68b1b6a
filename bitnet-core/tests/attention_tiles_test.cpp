// One tile of int8 attention on emulated matrix tiles (emulated_attention.cpp): what AMX computes, tested on
// processors without it. The reference is docs/numerics.md ("Attention") element by element; the arrays end
// at pages that cannot be touched.
#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>
#include <memory>
#include <random>
#include <vector>

#include "bitnet/core/attention_kernels.hpp"
#include "bitnet/core/f32_kernels.hpp"
#include "bitnet/testing/emulated_tiles.hpp"
#include "bitnet/testing/guarded_buffer.hpp"
#include "bitnet/testing/testing.hpp"

namespace bitnet {
namespace testing {
int tile_misuses = 0;
}
namespace emulated {
namespace scalar {
extern const AttentionKernels kOnTiles, kByRows;
}
#if defined(__x86_64__)
namespace avx512_vbmi {
extern const AttentionKernels kOnTiles, kByRows;
}
#endif
}  // namespace emulated

namespace {

using testing::Guard;
using testing::GuardedBuffer;

struct Variant {
  Isa isa;  // of the floats
  const AttentionKernels *on_tiles, *by_rows;
};

std::vector<Variant> variants() {
  std::vector<Variant> all;
  for (const Isa isa : compiled_isas()) {
    if (to_string(isa) == "scalar")
      all.push_back({isa, &emulated::scalar::kOnTiles, &emulated::scalar::kByRows});
#if defined(__x86_64__)
    if (to_string(isa) == "avx512_vbmi" && is_supported(isa))
      all.push_back({isa, &emulated::avx512_vbmi::kOnTiles, &emulated::avx512_vbmi::kByRows});
#endif
  }
  return all;
}

/// How large the elements are.
enum class Fill { kRandom, kLargest, kNoValues };

std::size_t index(std::int64_t i) { return static_cast<std::size_t>(i); }
std::int64_t round_up(std::int64_t n, std::int64_t to) { return (n + to - 1) / to * to; }

/// Queries, keys and values as plain matrices.
struct Problem {
  std::int64_t dim;
  std::vector<std::int32_t> n_keys;            // [rows]
  std::vector<std::vector<std::int8_t>> q;     // [rows][dim]
  std::vector<std::vector<std::int8_t>> k, v;  // [keys][dim]
  std::vector<float> q_scale, k_scale, v_scale;
  std::int64_t rows() const { return static_cast<std::int64_t>(n_keys.size()); }
  std::int64_t keys() const { return n_keys.back(); }
};

Problem make_problem(std::int64_t dim, std::vector<std::int32_t> n_keys, Fill fill, std::uint32_t seed) {
  std::mt19937 random(seed);
  Problem p{dim, std::move(n_keys), {}, {}, {}, {}, {}, {}};
  const auto row = [&] {
    std::vector<std::int8_t> x;
    for (std::int64_t d = 0; d < dim; ++d)
      x.push_back(
          static_cast<std::int8_t>(fill == Fill::kLargest ? 127 : static_cast<int>(random() % 255) - 127));
    return x;
  };
  std::uniform_real_distribution<float> scale(0.001f, 0.02f);
  for (std::int64_t r = 0; r < p.rows(); ++r) {
    p.q.push_back(row());
    p.q_scale.push_back(scale(random) / std::sqrt(static_cast<float>(dim)));
  }
  for (std::int64_t t = 0; t < p.keys(); ++t) {
    p.k.push_back(row());
    p.v.push_back(row());
    if (fill == Fill::kLargest)  // sums of both signs
      for (std::int8_t& x : t % 2 == 0 ? p.k.back() : p.v.back()) x = -127;
    p.k_scale.push_back(scale(random));
    p.v_scale.push_back(fill == Fill::kNoValues ? 0.0f : scale(random));
  }
  return p;
}

/// What a tile leaves behind: [rows], [rows], [rows, dim].
struct Result {
  std::vector<float> largest, sum, values;
};

/// The definition of a tile's own result, one operation after the other.
Result reference(const Problem& p, Isa isa) {
  const auto exp = [&](float x) {
    f32_kernels(isa).exp_sum(&x, 0, 1);
    return x;
  };
  Result out;
  for (std::size_t r = 0; r < p.n_keys.size(); ++r) {
    const auto n = index(p.n_keys[r]);
    std::vector<float> w;
    for (std::size_t t = 0; t < n; ++t) {
      std::int32_t s = 0;
      for (std::size_t d = 0; d < index(p.dim); ++d) s += p.q[r][d] * p.k[t][d];
      w.push_back(static_cast<float>(s) * p.q_scale[r] * p.k_scale[t]);
    }
    const float m = *std::max_element(w.begin(), w.end());
    std::array<float, 16> lane{};
    float most = 0;
    for (std::size_t t = 0; t < n; ++t) {
      w[t] = exp(w[t] - m);
      lane[t % 16] += w[t];
      w[t] *= p.v_scale[t];
      most = std::max(most, w[t]);
    }
    for (std::size_t width = 8; width > 0; width /= 2)
      for (std::size_t i = 0; i < width; ++i) lane[i] += lane[i + width];
    const float units = most > 0 ? 255.0f / most : 0.0f;
    out.largest.push_back(m);
    out.sum.push_back(lane[0]);
    for (std::size_t d = 0; d < index(p.dim); ++d) {
      std::int32_t s = 0;
      for (std::size_t t = 0; t < n; ++t)
        s += static_cast<std::int32_t>(std::nearbyint(w[t] * units)) * p.v[t][d];
      out.values.push_back(static_cast<float>(s) * (most * (1.0f / 255.0f)));
    }
  }
  return out;
}

/// The arrays of an AttentionTile, each beside a forbidden page. What no row sees is garbage, or not there.
class Arrays {
 public:
  Arrays(const Problem& p, Guard guard) : p_(p), guard_(guard) {
    const std::int64_t dim4 = round_up(p.dim, 4), dim16 = round_up(p.dim, 16);
    for (std::int64_t r = 0; r < p.rows(); ++r) {
      for (std::int64_t d = 0; d < p.dim; ++d) {
        q8_[index(r * dim4 + d)] = p.q[index(r)][index(d)];
        sums_[index(r)] += p.q[index(r)][index(d)];
      }
    }
    for (std::int64_t first = 0; first < p.keys(); first += kAttentionBlock) {
      auto& k = bytes(kAttentionBlock * dim4);
      auto& v = bytes(kAttentionBlock * dim16);
      auto& ks = floats(kAttentionBlock);
      auto& vs = floats(kAttentionBlock);
      for (std::int64_t i = 0; i < kAttentionBlock; ++i) {
        const bool seen = first + i < p.keys();
        const auto t = index(first + i);
        ks[index(i)] = seen ? p.k_scale[t] : std::numeric_limits<float>::quiet_NaN();
        vs[index(i)] = seen ? p.v_scale[t] : std::numeric_limits<float>::quiet_NaN();
        for (std::int64_t d = 0; d < p.dim && seen; ++d) {
          k[index((d / 4 * 16 + i) * 4 + d % 4)] = p.k[t][index(d)];
          v[index((i / 4 * dim16 + d) * 4 + i % 4)] = p.v[t][index(d)];
        }
      }
      const auto b = index(first / kAttentionBlock);
      keys_[b] = k.data();
      values_[b] = v.data();
      key_scales_[b] = ks.data();
      value_scales_[b] = vs.data();
    }
  }

  /// The tile's own result, or, from `before` on, merged into that.
  Result run(const AttentionKernels& kernels, const Result* before) {
    const std::int64_t dim16 = round_up(p_.dim, 16);
    const auto at = [&](std::int64_t r, std::int64_t d) { return index(r * dim16 + d); };
    Result out{std::vector<float>(index(p_.rows())), std::vector<float>(index(p_.rows())), {}};
    if (before != nullptr) {
      std::copy(before->largest.begin(), before->largest.end(), largest_.data());
      std::copy(before->sum.begin(), before->sum.end(), sum_.data());
      for (std::int64_t r = 0; r < p_.rows(); ++r)
        for (std::int64_t d = 0; d < p_.dim; ++d) state_[at(r, d)] = before->values[index(r * p_.dim + d)];
    }
    AttentionTile t;
    t.rows = p_.rows();
    t.head_dim = p_.dim;
    t.n_keys = n_keys_.data();
    t.q8 = q8_.data();
    t.q8_scales = q_scales_.data();
    t.q8_sums = sums_.data();
    t.keys = keys_.data();
    t.values = values_.data();
    t.key_scales = key_scales_.data();
    t.value_scales = value_scales_.data();
    t.scores = scores_.data();
    t.weights = weights_.data();
    t.state = {largest_.data(), sum_.data(), state_.data()};
    t.merge = before != nullptr;
    kernels.tile_i8(t);
    std::copy_n(largest_.data(), out.largest.size(), out.largest.data());
    std::copy_n(sum_.data(), out.sum.size(), out.sum.data());
    for (std::int64_t r = 0; r < p_.rows(); ++r)
      for (std::int64_t d = 0; d < p_.dim; ++d) out.values.push_back(state_[at(r, d)]);
    return out;
  }

 private:
  GuardedBuffer<std::int8_t>& bytes(std::int64_t n) {
    bytes_.push_back(std::make_unique<GuardedBuffer<std::int8_t>>(index(n), guard_));
    for (std::int8_t& x : bytes_.back()->span()) x = static_cast<std::int8_t>(garbage_());
    return *bytes_.back();
  }
  GuardedBuffer<float>& floats(std::int64_t n) {
    floats_.push_back(std::make_unique<GuardedBuffer<float>>(index(n), guard_));
    return *floats_.back();
  }

  const Problem& p_;
  Guard guard_;
  std::mt19937 garbage_{9};
  std::size_t rows_ = index(p_.rows()), padded_ = index(round_up(p_.rows(), 16));
  std::vector<std::unique_ptr<GuardedBuffer<std::int8_t>>> bytes_;
  std::vector<std::unique_ptr<GuardedBuffer<float>>> floats_;
  std::array<const void*, 8> keys_{}, values_{};
  std::array<const float*, 8> key_scales_{}, value_scales_{};
  GuardedBuffer<std::int32_t> n_keys_{std::span<const std::int32_t>(p_.n_keys), guard_}, sums_{rows_, guard_};
  GuardedBuffer<float> q_scales_{std::span<const float>(p_.q_scale), guard_};
  GuardedBuffer<std::int8_t> q8_{rows_ * index(round_up(p_.dim, 4)), guard_};
  GuardedBuffer<float> scores_{rows_ * index(kAttentionTile), guard_};
  GuardedBuffer<std::uint8_t> weights_{rows_ * index(kAttentionTile), guard_};
  GuardedBuffer<float> largest_{padded_, guard_}, sum_{padded_, guard_};
  GuardedBuffer<float> state_{rows_ * index(round_up(p_.dim, 16)), guard_};
};

void expect_same(const std::vector<float>& a, const std::vector<float>& b) {
  ASSERT_EQ(a.size(), b.size());
  for (std::size_t i = 0; i < a.size(); ++i)
    ASSERT_EQ(std::bit_cast<std::uint32_t>(a[i]), std::bit_cast<std::uint32_t>(b[i]))
        << "element " << i << ": " << a[i] << " and " << b[i];
}
void expect_same(const Result& a, const Result& b) {
  expect_same(a.largest, b.largest);
  expect_same(a.sum, b.sum);
  expect_same(a.values, b.values);
}

void expect_defined(const Problem& p) {
  for (const Variant& v : variants()) {
    SCOPED_TRACE(std::to_string(p.rows()) + " rows of " + std::to_string(p.dim) + " against " +
                 std::to_string(p.n_keys.front()) + " … " + std::to_string(p.keys()) + " keys, floats of " +
                 std::string(to_string(v.isa)));
    const Result expected = reference(p, v.isa);
    for (const Guard guard : {Guard::kAfter, Guard::kBefore}) {
      Arrays arrays(p, guard);
      expect_same(arrays.run(*v.on_tiles, nullptr), expected);
      expect_same(arrays.run(*v.on_tiles, &expected), arrays.run(*v.by_rows, &expected));
    }
  }
  EXPECT_EQ(testing::tile_misuses, 0);
}

/// `rows` rows, ascending, the last of which sees `last` keys: each of `group` rows sees one more.
std::vector<std::int32_t> causal(std::int64_t rows, std::int64_t last, std::int64_t group) {
  std::vector<std::int32_t> n;
  for (std::int64_t r = 0; r < rows; ++r)
    n.push_back(static_cast<std::int32_t>(std::max<std::int64_t>(1, last - (rows - 1 - r) / group)));
  return n;
}

TEST(AttentionOnTiles, AnyNumberOfRowsIsTheDefinition) {
  for (std::int64_t rows = 1; rows <= kAttentionRows; rows += rows < 34 ? 1 : 13)
    expect_defined(make_problem(64, causal(rows, 128 - rows % 5, 2), Fill::kRandom, 1));
  expect_defined(make_problem(128, causal(128, 128, 128), Fill::kRandom, 2));
}

TEST(AttentionOnTiles, AnyHeadSizeIsTheDefinition) {
  for (const std::int64_t dim :
       {1, 3, 4, 10, 15, 16, 17, 33, 60, 63, 65, 80, 96, 127, 128, 130, 144, 192, 260})
    for (const std::int64_t rows : {1, 17, 40})
      expect_defined(make_problem(dim, causal(rows, 100, 3), Fill::kRandom, 3));
}

TEST(AttentionOnTiles, AnyPartOfATileIsTheDefinition) {
  for (const std::int64_t last : {1, 2, 4, 5, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100, 127, 128})
    for (const std::int64_t group : {1, 4, 64})
      expect_defined(make_problem(48, causal(37, last, group), Fill::kRandom, 4));
}

TEST(AttentionOnTiles, TheLargestSumsAreExact) {
  expect_defined(make_problem(260, causal(33, 128, 128), Fill::kLargest, 5));
  expect_defined(make_problem(64, causal(16, 77, 4), Fill::kLargest, 6));
}

TEST(AttentionOnTiles, ValuesOfNoSizeGiveNoWeight) {
  expect_defined(make_problem(64, causal(16, 77, 4), Fill::kNoValues, 7));
}

}  // namespace
}  // namespace bitnet
