// Layers: that they are the ops that they say, against double precision where a layer is more than one op,
// and that weights move between latent, ternary and dense.
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "bitnet/testing/testing.hpp"
#include "bitnet/training/attention.hpp"
#include "bitnet/training/convolution.hpp"
#include "bitnet/training/modules.hpp"
#include "gradient_check.hpp"

namespace bitnet::training {
namespace {

using namespace reference;

std::vector<Parameter*> parameters_of(Module& m) {
  std::vector<Parameter*> all;
  m.parameters(all);
  return all;
}

std::vector<std::string> names_of(Module& m) {
  std::vector<std::string> names;
  for (const Parameter* p : parameters_of(m)) names.push_back(p->name());
  return names;
}

std::vector<float> copy_of(std::span<const float> v) { return {v.begin(), v.end()}; }

/// Values of y, then the gradients of all parameters, of the loss Σ coefficient · y.
std::vector<float> pass(Tape& tape, Variable y, const std::vector<Parameter*>& parameters) {
  std::vector<float> all = copy_of(y.value());
  for (Parameter* p : parameters) p->zero_grad();
  tape.backward(reference::weighted_sum(tape, y));
  for (Parameter* p : parameters) {
    p->finish_grad();
    all.insert(all.end(), p->grad().begin(), p->grad().end());
  }
  tape.reset();
  return all;
}

TEST(Linear, WithBiasIsItsOps) {
  const ExecutionContext context;
  Rng rng(1);
  Tape tape(context);
  Linear layer(context, "l", 5, 9, true);
  EXPECT_EQ(names_of(layer), (std::vector<std::string>{"l", "l.bias"}));
  layer.initialize(rng);
  const auto parameters = parameters_of(layer);
  EXPECT_FALSE(parameters[1]->decay());
  for (std::size_t i = 0; i < 5; ++i) parameters[1]->value()[i] = static_cast<float>(i);
  Parameter x(context, "x", 4, 9, false);
  fill(x, random(rng, 4, 9));
  std::vector<Parameter*> all = parameters;
  all.push_back(&x);
  const auto layers = pass(tape, layer(tape, x.variable()), all);
  const auto ops = pass(
      tape, add_bias(tape, linear(tape, x.variable(), parameters[0]->variable()), parameters[1]->variable()),
      all);
  EXPECT_EQ(layers, ops);
}

TEST(BitLinear, BothBlockShapesAndAllOptionsAreTheirOps) {
  const ExecutionContext context;
  Rng rng(2);
  Tape tape(context);
  Parameter x(context, "x", 6, 160, false);
  fill(x, random(rng, 6, 160));
  for (const BlockShape shape : {BlockShape::k2B4T, BlockShape::k2024})
    for (const bool hadamards : {false, true})
      for (const auto gradient : {StraightThrough::kIdentity, StraightThrough::kLearnedScale}) {
        BitLinearOptions options;
        options.shape = shape;
        options.bias = true;
        options.quantizer.hadamard = hadamards;
        options.quantizer.gradient = gradient;
        options.quantizer.activation_bits = hadamards ? 4 : 8;
        options.quantizer.granularity = ScaleGranularity::kRow;
        BitLinear layer(context, "l", 7, 160, options);
        layer.initialize(rng);
        auto parameters = parameters_of(layer);
        std::vector<std::string> names = {"l", "l.bias"};
        if (shape == BlockShape::k2024) names.push_back("l.norm");
        if (gradient == StraightThrough::kLearnedScale) names.push_back("l.scale");
        EXPECT_EQ(names_of(layer), names);
        RmsNorm before(context, "before", 160, 1e-5f);  // of the block
        fill(before.weight(), random(rng, 1, 160));
        parameters.insert(parameters.end(), {&x, &before.weight()});
        for (const float lambda : {0.5f, 1.0f}) {
          layer.set_lambda(lambda);
          layer.refresh(context);
          const auto by_ops = [&](Variable y) {
            if (shape == BlockShape::k2024) y = rms_norm(tape, y, parameters[2]->variable(), 1e-5f);
            if (hadamards) y = hadamard(tape, y);
            y = bit_linear(tape, quantize_activations(tape, y, options.quantizer.activation_bits, lambda),
                           parameters[0]->variable(), *layer.ternary(),
                           layer.scale() ? layer.scale()->variable() : Variable());
            return add_bias(tape, y, parameters[1]->variable());
          };
          const auto layers = pass(tape, layer(tape, x.variable()), parameters);
          EXPECT_EQ(layers, pass(tape, by_ops(x.variable()), parameters));
          const LinearInput normalized = layer.prepare_normalized(tape, x.variable(), before);
          // A norm right before a whole quantiser is not kept.
          EXPECT_EQ(normalized.rows.value().empty(), lambda == 1 && !hadamards);
          const auto of_layer = pass(tape, layer.forward(tape, normalized), parameters);
          EXPECT_EQ(of_layer, pass(tape, by_ops(before.forward(tape, x.variable())), parameters));
        }
      }
}

TEST(BitLinear, AnInputIsSharedWhereQuantisersAreAlike) {
  const ExecutionContext context;
  Rng rng(5);
  Tape tape(context);
  Parameter x(context, "x", 6, 160, false);
  fill(x, random(rng, 6, 160));
  RmsNorm norm(context, "norm", 160, 1e-5f);
  BitLinear a(context, "a", 7, 160), b(context, "b", 7, 160);
  for (BitLinear* l : {&a, &b}) l->initialize(rng);
  for (const float lambda : {1.0f, 0.25f}) {  // of b: the first is whole
    b.set_lambda(lambda);
    for (BitLinear* l : {&a, &b}) l->refresh(context);
    const std::vector<Parameter*> all = {&x, &norm.weight(), &a.weight(), &b.weight()};
    const auto [ya, yb] = forward_with_shared_input<2>(tape, x.variable(), &norm, {&a, &b});
    const auto together = pass(tape, add(tape, ya, yb), all);
    const Variable normalized = norm.forward(tape, x.variable());
    const Variable first = a(tape, normalized);
    const auto apart = pass(tape, add(tape, first, b(tape, normalized)), all);
    ASSERT_EQ(together.size(), apart.size());
    for (std::size_t i = 0; i < apart.size(); ++i) EXPECT_NEAR(together[i], apart[i], 1e-5) << i;
  }
}

TEST(BitLinear, WeightsMoveBetweenLatentTernaryAndDense) {
  const ExecutionContext context;
  Rng rng(3);
  BitLinear layer(context, "l", 8, 64), other(context, "l", 8, 64);
  layer.initialize(rng);
  layer.refresh(context);
  const quant::TernaryWeights ternary = layer.ternary()->weights();
  std::vector<float> dense(ternary.trits.size());
  layer.ternary()->effective(context, {}, dense);
  for (std::size_t i = 0; i < dense.size(); ++i)
    ASSERT_EQ(dense[i], ternary.scales[0] * static_cast<float>(ternary.trits[i]));
  other.set_weights(context, ternary);
  EXPECT_EQ(other.ternary()->weights().trits, ternary.trits);
  EXPECT_NEAR(other.ternary()->scale(), ternary.scales[0], 3e-7 * ternary.scales[0]);
  // Trits can be learnt on: a step away from zero does not move them all.
  other.weight().value()[0] += 0.1f * ternary.scales[0];
  other.refresh(context);
  EXPECT_LE(other.ternary()->flips(), 1);
  BITNET_EXPECT_ERROR(other.set_weights(context, {2, 2, {0, 0, 0, 1}, {1.0f}, 2}),
                      ErrorCode::kInvalidArgument, "latent weights: 4 trits for 512");
}

TEST(Gradient, AttentionLayerWithGroupedHeadsRopeAndSubNorm) {
  const ExecutionContext context(ExecutionContext::Options{2, {}});
  const std::int64_t hidden = 12, heads = 4, kv = 2, dim = 4, length = 7;
  Rng rng(4);
  Attention::Layers layers{std::make_unique<Linear>(context, "q", heads * dim, hidden),
                           std::make_unique<Linear>(context, "k", kv * dim, hidden),
                           std::make_unique<Linear>(context, "v", kv * dim, hidden),
                           std::make_unique<Linear>(context, "o", hidden, heads * dim),
                           std::make_unique<RmsNorm>(context, "n", heads * dim, 1e-5f)};
  Attention attention(std::move(layers), {0, heads, kv, dim});
  EXPECT_EQ(names_of(attention), (std::vector<std::string>{"q", "k", "v", "o", "n"}));
  const RopeTable table(length, dim, 10000.0);
  std::vector<Matrix> m;
  for (Parameter* p : parameters_of(attention)) {
    m.push_back(random(rng, p->rows(), p->cols(), 0.5));
    fill(*p, m.back());
  }
  Parameter x(context, "x", 2 * length, hidden, false);
  m.push_back(random(rng, 2 * length, hidden));
  fill(x, m.back());
  const auto value = [&] {
    const auto turned = [&](const Matrix& y) { return reference::rope(y, dim, 10000.0, length); };
    const Matrix a =
        reference::attention(turned(reference::linear(m[5], m[0])), turned(reference::linear(m[5], m[1])),
                             reference::linear(m[5], m[2]), {length, heads, kv, dim});
    return reference::linear(reference::rms_norm(a, m[4], static_cast<double>(1e-5f)), m[3]);
  };
  Tape tape(context);
  const Variable y = attention.forward(tape, x.variable(), table, {length});
  EXPECT_LT(relative_error(y.value(), value().v), kTolerance);
  tape.backward(reference::weighted_sum(tape, y));
  auto all = parameters_of(attention);
  all.push_back(&x);
  for (std::size_t i = 0; i < all.size(); ++i)
    EXPECT_LT(relative_error(all[i]->grad(),
                             central_differences(m[i], [&] { return reference::weighted_sum(value()); })),
              5e-5)
        << all[i]->name();
}

TEST(Attention, LayersWithNormsOfTheirOwnPrepareTheirOwnInputs) {
  const ExecutionContext context;
  Rng rng(5);
  BitLinearOptions options;
  options.shape = BlockShape::k2024;
  const auto make = [&](const char* name, std::int64_t out, std::int64_t in) {
    auto l = std::make_unique<BitLinear>(context, name, out, in, options);
    l->initialize(rng);
    for (float& w : parameters_of(*l)[1]->value()) w = static_cast<float>(rng.normal());  // norms that differ
    l->refresh(context);
    return l;
  };
  Attention attention({make("q", 8, 16), make("k", 4, 16), make("v", 4, 16), make("o", 16, 8), nullptr},
                      {0, 2, 1, 4});
  const RopeTable table(3, 4, 10000.0);
  Parameter x(context, "x", 3, 16, false);
  fill(x, random(rng, 3, 16));
  auto all = parameters_of(attention);
  EXPECT_EQ(all.size(), 8u);
  all.push_back(&x);
  Tape tape(context);
  const auto layer = pass(tape, attention.forward(tape, x.variable(), table, {3}), all);
  const auto& l = attention.layers();
  const Variable q = rope(tape, (*l.q)(tape, x.variable()), table, {3}),
                 k = rope(tape, (*l.k)(tape, x.variable()), table, {3});
  const Variable v = (*l.v)(tape, x.variable());
  EXPECT_EQ(layer, pass(tape, (*l.o)(tape, causal_attention(tape, q, k, v, {3, 2, 1, 4})), all));
  BITNET_EXPECT_ERROR(
      Attention({make("q", 8, 16), make("k", 8, 16), make("v", 4, 16), make("o", 16, 8), nullptr},
                {0, 2, 1, 4}),
      ErrorCode::kInvalidArgument, "2 heads over 1");
}

TEST(Attention, LayersOfDifferentKindsGoTogether) {
  const ExecutionContext context;
  Rng rng(8);
  auto k = std::make_unique<BitLinear>(context, "k", 4, 16);
  k->initialize(rng);
  k->refresh(context);
  Attention attention(
      {std::make_unique<Linear>(context, "q", 8, 16), std::move(k),
       std::make_unique<Linear>(context, "v", 4, 16), std::make_unique<Linear>(context, "o", 16, 8), nullptr},
      {0, 2, 1, 4});
  const auto& l = attention.layers();
  for (Linear* layer : {l.q.get(), l.v.get(), l.o.get()}) layer->initialize(rng);
  const RopeTable table(3, 4, 10000.0);
  Parameter x(context, "x", 3, 16, false);
  fill(x, random(rng, 3, 16));
  Tape tape(context, false);
  const auto ours = copy_of(attention.forward(tape, x.variable(), table, {3}).value());
  const Variable query = rope(tape, (*l.q)(tape, x.variable()), table, {3});
  const Variable key = rope(tape, (*l.k)(tape, x.variable()), table, {3});
  const Variable value = (*l.v)(tape, x.variable());
  EXPECT_EQ(ours, copy_of((*l.o)(tape, causal_attention(tape, query, key, value, {3, 2, 1, 4})).value()));
}

/// A convolution by its definition; weights [out, ky, kx, in].
Matrix convolution(const Matrix& x, const Matrix& w, const Matrix& b, ImageShape s, const ImageWindow& k) {
  const ImageShape places = k.places(s);
  const std::int64_t images = x.rows / s.pixels(), c = x.cols;
  Matrix y(images * places.pixels(), w.rows);
  for (std::int64_t n = 0; n < images; ++n)
    for (std::int64_t py = 0; py < places.height; ++py)
      for (std::int64_t px = 0; px < places.width; ++px)
        for (std::int64_t o = 0; o < w.rows; ++o) {
          double sum = b.at(0, o);
          for (std::int64_t ky = 0; ky < k.height; ++ky)
            for (std::int64_t kx = 0; kx < k.width; ++kx) {
              const std::int64_t iy = py * k.stride + ky - k.padding, ix = px * k.stride + kx - k.padding;
              if (iy < 0 || ix < 0 || iy >= s.height || ix >= s.width) continue;
              for (std::int64_t i = 0; i < c; ++i)
                sum += x.at(n * s.pixels() + iy * s.width + ix, i) * w.at(o, (ky * k.width + kx) * c + i);
            }
          y.at(n * places.pixels() + py * places.width + px, o) = sum;
        }
  return y;
}

TEST(Gradient, Conv2d) {
  const ExecutionContext context(ExecutionContext::Options{2, {}});
  for (const auto& [shape, window] :
       {std::pair<ImageShape, ImageWindow>{{5, 6}, {3, 3, 1, 1}}, {{6, 5}, {3, 2, 2, 0}}}) {
    Rng rng(6);
    Conv2d layer(context, "c", 4, 3, window);
    auto all = parameters_of(layer);
    std::vector<Matrix> m;
    Parameter x(context, "x", 2 * shape.pixels(), 3, false);
    all.push_back(&x);
    for (Parameter* p : all) {
      m.push_back(random(rng, p->rows(), p->cols()));
      fill(*p, m.back());
    }
    const auto value = [&, s = shape, k = window] { return convolution(m[2], m[0], m[1], s, k); };
    Tape tape(context);
    const Variable y = layer.forward(tape, x.variable(), shape);
    EXPECT_EQ(y.rows(), 2 * layer.output(shape).pixels());
    EXPECT_LT(relative_error(y.value(), value().v), kTolerance);
    tape.backward(reference::weighted_sum(tape, y));
    for (std::size_t i = 0; i < all.size(); ++i)
      EXPECT_LT(relative_error(all[i]->grad(),
                               central_differences(m[i], [&] { return reference::weighted_sum(value()); })),
                kTolerance)
          << i;
  }
}

TEST(BitConv2d, IsTheConvolutionOfQuantisedPatchesAndTrits) {
  const ExecutionContext context;
  Rng rng(7);
  const ImageShape shape{6, 6};
  const ImageWindow window{3, 3, 1, 1};
  BitConv2d layer(context, "c", 4, 3, window);
  layer.linear().initialize(rng);
  layer.refresh(context);
  Parameter x(context, "x", 2 * shape.pixels(), 3, false);
  fill(x, random(rng, 2 * shape.pixels(), 3));
  auto all = parameters_of(layer);
  all.push_back(&x);
  Tape tape(context);
  const auto ours = pass(tape, layer.forward(tape, x.variable(), shape), all);
  const Variable p = patches(tape, x.variable(), shape, window);
  EXPECT_EQ(ours, pass(tape,
                       bit_linear(tape, quantize_activations(tape, p), all[0]->variable(),
                                  *layer.linear().ternary()),
                       all));
}

TEST(Dropout, DrawsAnewEachTimeAndGoesOnFromItsCount) {
  const ExecutionContext context;
  Tape tape(context), evaluation(context, false);
  Parameter x(context, "x", 20, 20, false);
  std::fill(x.value().begin(), x.value().end(), 1.0f);
  Dropout a(0.5, 9), b(0.5, 9);
  const auto first = copy_of(a.forward(tape, x.variable()).value()),
             second = copy_of(a.forward(tape, x.variable()).value());
  EXPECT_NE(first, second);
  EXPECT_EQ(a.uses(), 2u);
  b.set_uses(1);
  EXPECT_EQ(copy_of(b.forward(tape, x.variable()).value()), second);
  EXPECT_EQ(a.forward(evaluation, x.variable()).node(), x.variable().node());
  EXPECT_EQ(a.uses(), 2u);
}

}  // namespace
}  // namespace bitnet::training
