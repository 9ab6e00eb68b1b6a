// Pointwise and image ops against double precision and central differences; dropout's statistics; that
// neither threads nor instruction sets change a bit.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "bitnet/testing/testing.hpp"
#include "bitnet/training/image_ops.hpp"
#include "gradient_check.hpp"

namespace bitnet::training {
namespace {

using namespace reference;

TEST(Gradient, Relu) {
  Rng rng(1);
  check({{random(rng, 40, 21)},
         [](Tape& t, const auto& v) { return relu(t, v[0]); },
         [](const auto& m) {
           Matrix y = m[0];
           for (double& x : y.v) x = std::max(x, 0.0);
           return y;
         }});
}

TEST(Gradient, AddBias) {
  Rng rng(2);
  // 30 rows: the coefficients of 33 sum to nearly 0, which leaves nothing but roundings.
  check({{random(rng, 30, 70), random(rng, 1, 70)},
         [](Tape& t, const auto& v) { return add_bias(t, v[0], v[1]); },
         [](const auto& m) {
           Matrix y = m[0];
           for (std::int64_t r = 0; r < y.rows; ++r)
             for (std::int64_t c = 0; c < y.cols; ++c) y.at(r, c) += m[1].at(0, c);
           return y;
         }});
}

/// H_n row by row: (−1)^popcount(i & j) / sqrt(n), in blocks of the lowest set bit of cols.
TEST(Gradient, Hadamard) {
  for (const std::int64_t cols : {1, 2, 7, 12, 32, 96}) {
    Rng rng(3);
    const std::int64_t block = cols & -cols;
    check({{random(rng, 9, cols)},
           [](Tape& t, const auto& v) { return hadamard(t, v[0]); },
           [&](const auto& m) {
             Matrix y(m[0].rows, m[0].cols);
             for (std::int64_t r = 0; r < y.rows; ++r)
               for (std::int64_t c = 0; c < y.cols; ++c)
                 for (std::int64_t j = 0; j < block; ++j) {
                   const double sign =
                       __builtin_popcountll(static_cast<unsigned long long>(c % block & j)) % 2 ? -1 : 1;
                   y.at(r, c) +=
                       sign * m[0].at(r, c / block * block + j) / std::sqrt(static_cast<double>(block));
                 }
             return y;
           }});
  }
}

TEST(Gradient, HadamardTwiceIsTheIdentity) {
  Rng rng(4);
  check({{random(rng, 3, 48)},
         [](Tape& t, const auto& v) { return hadamard(t, hadamard(t, v[0])); },
         [](const auto& m) { return m[0]; }});
}

TEST(Gradient, DropoutScalesWhatItKeepsAndItsGradientAlike) {
  const ExecutionContext context(ExecutionContext::Options{2, {}});
  Tape tape(context);
  Parameter x(context, "x", 100, 130, false);
  std::fill(x.value().begin(), x.value().end(), 3.0f);
  for (const double p : {0.1, 0.5, 0.9}) {
    for (int pass = 0; pass < 2; ++pass) {  // overwritten, then added to
      const Variable y = dropout(tape, x.variable(), p, 77);
      const std::vector<float> values(y.value().begin(), y.value().end());
      if (pass == 0) x.zero_grad();
      tape.backward(reference::weighted_sum(tape, y));
      const double kept =
          static_cast<double>(std::count_if(values.begin(), values.end(), [](float v) { return v != 0; }));
      // 13000 independent decisions: five standard deviations are at most 5 · 0.5 / sqrt(13000).
      EXPECT_NEAR(kept / 13000, 1 - p, 0.022);
      for (std::size_t i = 0; i < values.size(); ++i) {
        const double scale = values[i] == 0 ? 0 : 1 / (1 - p);
        ASSERT_NEAR(values[i], 3 * scale, 1e-5);
        ASSERT_NEAR(x.grad()[i], (pass + 1) * scale * coefficient(i), 1e-5);
      }
      tape.reset();
    }
  }
}

TEST(Dropout, AnotherKeyDropsOthersAndEvaluationDropsNone) {
  const ExecutionContext context;
  Tape tape(context), evaluation(context, false);
  Parameter x(context, "x", 64, 64, false);
  std::fill(x.value().begin(), x.value().end(), 1.0f);
  const auto values = [&](std::uint64_t key) {
    const auto v = dropout(tape, x.variable(), 0.5, key).value();
    return std::vector<float>(v.begin(), v.end());
  };
  const auto a = values(1), b = values(2), c = values(1ull << 32);
  EXPECT_EQ(a, values(1));
  for (const auto* other : {&b, &c}) {
    std::size_t same = 0;
    for (std::size_t i = 0; i < a.size(); ++i) same += a[i] == (*other)[i];
    EXPECT_NEAR(static_cast<double>(same) / 4096, 0.5, 0.04);  // independent: five standard deviations
  }
  EXPECT_EQ(dropout(evaluation, x.variable(), 0.5, 1).node(), x.variable().node());
  EXPECT_EQ(dropout(tape, x.variable(), 0.0, 1).node(), x.variable().node());
  BITNET_EXPECT_ERROR(dropout(tape, x.variable(), 1.0, 1), ErrorCode::kInvalidArgument, "below 1");
}

TEST(PointwiseOps, AreTheSameForAnyThreadsAndInstructionSet) {
  Rng rng(5);
  const Matrix m = random(rng, 70, 96), bias = random(rng, 1, 96);
  std::vector<float> first;
  const auto run = [&](std::size_t threads, Isa isa) {
    const ExecutionContext context(ExecutionContext::Options{threads, isa});
    Tape tape(context);
    Parameter x(context, "x", 70, 96, false), b(context, "b", 1, 96, false);
    fill(x, m);
    fill(b, bias);
    const Variable y =
        relu(tape, add_bias(tape, hadamard(tape, dropout(tape, x.variable(), 0.3, 9)), b.variable()));
    std::vector<float> all(y.value().begin(), y.value().end());
    tape.backward(reference::weighted_sum(tape, y));
    all.insert(all.end(), x.grad().begin(), x.grad().end());
    all.insert(all.end(), b.grad().begin(), b.grad().end());
    return all;
  };
  for (const Isa isa : compiled_isas()) {
    if (!is_supported(isa)) continue;
    if (first.empty()) first = run(1, isa);
    EXPECT_EQ(run(3, isa), first) << to_string(isa);
  }
}

/// The value of channel c that a window's tap sees, 0 in padding; found by its definition.
double seen(const Matrix& x, ImageShape s, const ImageWindow& w, std::int64_t image, std::int64_t place_y,
            std::int64_t place_x, std::int64_t ty, std::int64_t tx, std::int64_t c, double outside) {
  const std::int64_t y = place_y * w.stride - w.padding + ty, xx = place_x * w.stride - w.padding + tx;
  if (y < 0 || xx < 0 || y >= s.height || xx >= s.width) return outside;
  return x.at(image * s.pixels() + y * s.width + xx, c);
}

const struct {
  ImageShape image;
  ImageWindow window;
} kWindows[] = {{{1, 1}, {1, 1}},
                {{5, 4}, {3, 3, 1, 1}},
                {{6, 7}, {2, 3, 2, 1}},
                {{4, 4}, {2, 2, 2, 0}},
                {{5, 5}, {3, 3, 3, 2}}};

TEST(Gradient, Patches) {
  for (const auto& [s, w] : kWindows) {
    Rng rng(6);
    const ImageShape places = w.places(s);
    check({{random(rng, 2 * s.pixels(), 3)},
           [&, shape = s, window = w](Tape& t, const auto& v) { return patches(t, v[0], shape, window); },
           [&, shape = s, window = w](const auto& m) {
             Matrix y(2 * places.pixels(), window.height * window.width * 3);
             for (std::int64_t r = 0; r < y.rows; ++r)
               for (std::int64_t k = 0; k < y.cols; ++k) {
                 const std::int64_t place = r % places.pixels(), tap = k / 3;
                 y.at(r, k) = seen(m[0], shape, window, r / places.pixels(), place / places.width,
                                   place % places.width, tap / window.width, tap % window.width, k % 3, 0);
               }
             return y;
           }});
  }
}

/// A loss that is not finite is found; a NaN that becomes a number on the way is not.
TEST(PointwiseOps, KeepNaN) {
  const ExecutionContext context;
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  for (std::size_t at = 0; at < 36; ++at) {
    Tape tape(context, false);
    const Variable x = tape.make(36, 1, false);
    std::fill(x.value().begin(), x.value().end(), 1.0f);
    x.value()[at] = kNan;
    EXPECT_TRUE(std::isnan(relu(tape, x).value()[at])) << at;
    const Variable pooled = max_pool(tape, x, {6, 6}, {2, 2, 2, 0});
    EXPECT_TRUE(std::isnan(pooled.value()[at / 12 * 3 + at % 6 / 2])) << at;
  }
}

TEST(Gradient, MaxPool) {
  for (const auto& [s, w] : kWindows) {
    Rng rng(7);
    const ImageShape places = w.places(s);
    check({{random(rng, 2 * s.pixels(), 3)},
           [&, shape = s, window = w](Tape& t, const auto& v) { return max_pool(t, v[0], shape, window); },
           [&, shape = s, window = w](const auto& m) {
             Matrix y(2 * places.pixels(), 3);
             for (std::int64_t r = 0; r < y.rows; ++r)
               for (std::int64_t c = 0; c < 3; ++c) {
                 const std::int64_t place = r % places.pixels();
                 double largest = -1e300;
                 for (std::int64_t ty = 0; ty < window.height; ++ty)
                   for (std::int64_t tx = 0; tx < window.width; ++tx)
                     largest = std::max(largest,
                                        seen(m[0], shape, window, r / places.pixels(), place / places.width,
                                             place % places.width, ty, tx, c, -1e300));
                 y.at(r, c) = largest;
               }
             return y;
           }});
  }
}

TEST(Gradient, AViewSharesValuesAndGradient) {
  Rng rng(8);
  check({{random(rng, 6, 8)},
         [](Tape& t, const auto& v) {
           const Variable y = add(t, v[0], v[0]);
           return add(t, t.make_view(y, 4, 12), t.make_view(relu(t, y), 4, 12));
         },
         [](const auto& m) {
           Matrix y(4, 12);
           for (std::size_t i = 0; i < y.v.size(); ++i) y.v[i] = 2 * m[0].v[i] + std::max(2 * m[0].v[i], 0.0);
           return y;
         }});
}

TEST(ImageOps, SizesThatDoNotFitAreErrors) {
  const ExecutionContext context;
  Tape tape(context);
  const Variable x = tape.make(10, 3, true);
  BITNET_EXPECT_ERROR(patches(tape, x, {3, 3}, {2, 2}), ErrorCode::kInvalidArgument, "3 x 3");
  BITNET_EXPECT_ERROR(patches(tape, x, {2, 5}, {3, 3}), ErrorCode::kInvalidArgument, "does not fit");
  BITNET_EXPECT_ERROR(max_pool(tape, x, {2, 5}, {2, 2, 0, 0}), ErrorCode::kInvalidArgument, "stride 0");
  BITNET_EXPECT_ERROR(max_pool(tape, x, {2, 5}, {2, 2, 1, 2}), ErrorCode::kInvalidArgument, "padding 2");
  BITNET_EXPECT_ERROR(tape.make_view(x, 4, 8), ErrorCode::kInvalidArgument, "10 x 3");
}

}  // namespace
}  // namespace bitnet::training
