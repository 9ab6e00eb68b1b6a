// The CPU backend's fused ops against the single ops that they stand for, bit for bit, on every instruction
// set.
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "bitnet/core/rng.hpp"
#include "support.hpp"

namespace bitnet::inference {
namespace {

class FusedOps : public ::testing::TestWithParam<std::size_t> {
 protected:
  // One context for each ISA that this CPU has.
  template <class Body>
  void on_every_isa(Body body) {
    for (const Isa isa : compiled_isas()) {
      if (!is_supported(isa)) continue;
      SCOPED_TRACE(to_string(isa));
      const auto backend = make_cpu_backend(std::make_shared<const ExecutionContext>(
          ExecutionContext::Options{.threads = GetParam(), .isa = isa}));
      body(*backend);
    }
  }

  Matrix random(Backend& backend, std::int64_t rows, std::int64_t cols) {
    std::vector<float> values(static_cast<std::size_t>(rows * cols));
    for (float& v : values) v = static_cast<float>(rng_.normal());
    return upload(backend, values, rows, cols);
  }

  Matrix upload(Backend& backend, const std::vector<float>& values, std::int64_t rows, std::int64_t cols) {
    buffers_.push_back(backend.allocate(values.size() * sizeof(float)));
    backend.upload(*buffers_.back(), 0, std::as_bytes(std::span<const float>(values)));
    return {buffers_.back().get(), 0, rows, cols};
  }

  static std::vector<float> values(Backend& backend, const Matrix& m) {
    std::vector<float> to(static_cast<std::size_t>(m.rows * m.cols));
    backend.download(*m.buffer, m.offset, std::as_writable_bytes(std::span<float>(to)));
    return to;
  }

  PreparedPtr linear(Backend& backend, std::int64_t out, std::int64_t in, bool ternary) {
    std::vector<std::int8_t> trits(static_cast<std::size_t>(out * in));
    std::vector<float> dense(trits.size());
    for (std::size_t i = 0; i < trits.size(); ++i) {
      trits[i] = static_cast<std::int8_t>(rng_.below(3)) - 1;
      dense[i] = static_cast<float>(rng_.normal());
    }
    const float scale = 0.07f;
    LinearWeights w{.out = out, .in = in, .trits = {}, .scales = {}, .dense = {}};
    if (ternary) {
      w.trits = trits;
      w.scales = {&scale, 1};
      w.rows_per_scale = out;
    } else {
      w.dense = std::as_bytes(std::span<const float>(dense));
    }
    return backend.prepare(w);
  }

  static bool same(const std::vector<float>& a, const std::vector<float>& b) {
    return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
  }

  Rng rng_{7};
  std::vector<BufferPtr> buffers_;
};

constexpr float kEps = 1e-5f;

TEST_P(FusedOps, NormLinear) {
  on_every_isa([&](Backend& b) {
    for (const bool ternary : {true, false}) {
      for (const std::int64_t rows : {1, 3, 40}) {
        const std::int64_t in = 203;
        const Matrix x = random(b, rows, in), norm = random(b, 1, in), normed = random(b, rows, in);
        const PreparedPtr q = linear(b, 33, in, ternary), k = linear(b, 16, in, ternary);
        const std::array<const PreparedWeights*, 2> weights{q.get(), k.get()};
        const std::array<Matrix, 2> fused{random(b, rows, 33), random(b, rows, 16)},
            single{random(b, rows, 33), random(b, rows, 16)};
        b.norm_linear(weights, x, *norm.buffer, kEps, random(b, rows, in), fused);
        b.rms_norm(x, *norm.buffer, kEps, normed);
        b.linear(weights, normed, single);
        for (int i = 0; i < 2; ++i) EXPECT_TRUE(same(values(b, fused[i]), values(b, single[i]))) << rows;
      }
    }
  });
}

TEST_P(FusedOps, GatedLinear) {
  on_every_isa([&](Backend& b) {
    for (const bool ternary : {true, false}) {
      for (const Activation f : {Activation::kRelu2, Activation::kSilu}) {
        for (const std::int64_t rows : {1, 50}) {
          const std::int64_t in = 333;
          const PreparedPtr down = linear(b, 47, in, ternary);
          const PreparedWeights* const one = down.get();
          const Matrix norm = random(b, 1, in), up = random(b, rows, in), gate = random(b, rows, in);
          const Matrix gate2 = upload(b, values(b, gate), rows, in),
                       gate3 = upload(b, values(b, gate), rows, in);
          const Matrix fused = random(b, rows, 47), plain = random(b, rows, 47), single = random(b, rows, 47);
          b.gated_linear(f, gate, up, norm.buffer, kEps, *down, fused);
          b.gated_linear(f, gate2, up, nullptr, kEps, *down, plain);
          b.gated_activation(f, gate3, up, gate3);
          b.linear({&one, 1}, gate3, {&single, 1});
          EXPECT_TRUE(same(values(b, plain), values(b, single))) << rows;
          b.rms_norm(gate3, *norm.buffer, kEps, gate3);
          b.linear({&one, 1}, gate3, {&single, 1});
          EXPECT_TRUE(same(values(b, fused), values(b, single))) << rows;
        }
      }
    }
  });
}

// A model that goes wrong must not end in values that look right.
TEST_P(FusedOps, TernaryProductsOfARowThatIsNotFiniteAreNaN) {
  on_every_isa([&](Backend& b) {
    const std::int64_t out = 40, in = 35;
    const std::vector<std::int8_t> trits(static_cast<std::size_t>(out * in), 0);  // even of zeros alone
    const std::vector<float> scale{0.5f};
    LinearWeights w{
        .out = out, .in = in, .trits = trits, .scales = scale, .rows_per_scale = out, .dense = {}};
    const PreparedPtr weights = b.prepare(w);
    const std::array<const PreparedWeights*, 1> one{weights.get()};
    for (const float bad :
         {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::infinity()}) {
      std::vector<float> x(static_cast<std::size_t>(3 * in), 1.0f);
      x[static_cast<std::size_t>(in + 34)] = bad;
      const std::array<Matrix, 1> y{random(b, 3, out)};
      b.linear(one, upload(b, x, 3, in), y);
      const std::vector<float> products = values(b, y[0]);
      for (std::size_t i = 0; i < products.size(); ++i)
        ASSERT_EQ(std::isnan(products[i]), i / static_cast<std::size_t>(out) == 1) << i << ", " << bad;
    }
  });
}

TEST_P(FusedOps, LogitsOfARowWithNaNAreNaN) {
  on_every_isa([&](Backend& b) {
    const std::int64_t vocab = 40, hidden = 35;
    std::vector<float> table(static_cast<std::size_t>(vocab * hidden), 0.5f),
        x(static_cast<std::size_t>(3 * hidden), 1.0f);
    x[static_cast<std::size_t>(hidden + 34)] = std::numeric_limits<float>::quiet_NaN();
    for (const DenseForm form : {DenseForm::kAsGiven, DenseForm::kInt8}) {
      LinearWeights w{.out = vocab, .in = hidden, .trits = {}, .scales = {}, .dense = {}};
      w.dense = std::as_bytes(std::span<const float>(table));
      w.dense_form = form;
      const PreparedPtr head = b.prepare_embedding(w);
      const Matrix out = random(b, 3, vocab);
      const std::vector<std::int32_t> rows{0, 1, 2};
      b.logits(*head, upload(b, x, 3, hidden), rows, out);
      const std::vector<float> logits = values(b, out);
      for (std::size_t i = 0; i < logits.size(); ++i)
        ASSERT_EQ(std::isnan(logits[i]), i / static_cast<std::size_t>(vocab) == 1) << i;
    }
  });
}

INSTANTIATE_TEST_SUITE_P(Threads, FusedOps, ::testing::Values(1, 2));

}  // namespace
}  // namespace bitnet::inference
