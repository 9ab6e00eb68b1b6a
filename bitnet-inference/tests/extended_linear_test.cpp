// Linears of two planes, of groups of columns and of int8 on the CPU against plain sums in double over the
// same integers; models in which they stand beside others; backends that cannot run them.
#include <algorithm>
#include <cmath>

#include "bitnet/core/rng.hpp"
#include "bitnet/inference/fallback_backend.hpp"
#include "bitnet/quant/packing.hpp"
#include "bitnet/quant/post_training.hpp"
#include "bitnet/quant/quantizer.hpp"
#include "bitnet/testing/forwarding_backend.hpp"
#include "support.hpp"

namespace bitnet::inference {
namespace {

std::vector<float> random_floats(std::size_t n, std::uint64_t seed) {
  Rng rng(seed);
  std::vector<float> v(n);
  for (float& x : v) x = static_cast<float>(rng.normal());
  return v;
}

/// y[r, o] = Σ q·(1/a)·W over the quantised rows, in double, and the sum of the terms' sizes.
struct Plain {
  std::vector<double> y, sizes;
};

Plain plain(const ExecutionContext& context, const std::vector<float>& x, const std::vector<float>& w,
            std::int64_t rows, std::int64_t out, std::int64_t in) {
  Plain p;
  std::vector<std::int8_t> q(static_cast<std::size_t>(in));
  for (std::int64_t r = 0; r < rows; ++r) {
    const auto row = std::span(x).subspan(static_cast<std::size_t>(r * in), static_cast<std::size_t>(in));
    const double a = static_cast<double>(quant::quantize_row(context, row, q));
    for (std::int64_t o = 0; o < out; ++o) {
      double sum = 0, size = 0;
      for (std::int64_t i = 0; i < in; ++i) {
        const double term =
            q[static_cast<std::size_t>(i)] / a * static_cast<double>(w[static_cast<std::size_t>(o * in + i)]);
        sum += term;
        size += std::abs(term);
      }
      p.y.push_back(sum);
      p.sizes.push_back(size);
    }
  }
  return p;
}

std::vector<float> product(Backend& backend, const LinearWeights& weights, const std::vector<float>& x,
                           std::int64_t rows) {
  const PreparedPtr w = backend.prepare(weights);
  const BufferPtr in = backend.allocate(x.size() * sizeof(float)),
                  out = backend.allocate(static_cast<std::size_t>(rows * weights.out) * sizeof(float));
  backend.upload(*in, 0, std::as_bytes(std::span(x)));
  const PreparedWeights* const one = w.get();
  const Matrix to{out.get(), 0, rows, weights.out};
  backend.linear({&one, 1}, {in.get(), 0, rows, weights.in}, {&to, 1});
  std::vector<float> y(static_cast<std::size_t>(rows * weights.out));
  backend.download(*out, 0, std::as_writable_bytes(std::span(y)));
  return y;
}

LinearWeights view(const quant::TernaryWeights& t) {
  LinearWeights w;
  w.out = t.out;
  w.in = t.in;
  w.trits = t.trits;
  w.scales = t.scales;
  w.rows_per_scale = t.rows_per_scale;
  w.cols_per_scale = t.cols_per_scale;
  return w;
}

class ExtendedLinears : public ::testing::Test {
 protected:
  void expect_product(const LinearWeights& weights, const std::vector<float>& dense, std::int64_t parts) {
    for (const Isa isa : compiled_isas()) {
      if (!is_supported(isa)) continue;
      SCOPED_TRACE(to_string(isa));
      for (const std::size_t threads : {1u, 3u}) {
        const auto context = std::make_shared<const ExecutionContext>(
            ExecutionContext::Options{.threads = threads, .isa = isa});
        const auto backend = make_cpu_backend(context);
        const std::vector<float> y = product(*backend, weights, x_, kRows);
        const Plain expected = plain(*context, x_, dense, kRows, kOut, kIn);
        // A part's sum is an exact integer, rounded with its two scales; then parts are added.
        const double unit = static_cast<double>(4 + parts) * 0x1p-24;
        for (std::size_t i = 0; i < y.size(); ++i)
          ASSERT_NEAR(y[i], expected.y[i], unit * expected.sizes[i]) << i;
        if (first_.empty()) first_ = y;
        EXPECT_EQ(y, first_);  // the same bits on every instruction set and number of threads
      }
    }
    first_.clear();
  }

  static constexpr std::int64_t kRows = 5, kOut = 37, kIn = 192;
  const ExecutionContext context_;
  const std::vector<float> w_ = random_floats(kOut * kIn, 1), x_ = random_floats(kRows * kIn, 2);
  std::vector<float> first_;
};

TEST_F(ExtendedLinears, GroupsOfColumns) {
  for (const std::int64_t group : {32, 64, 96}) {
    const auto t = quant::least_squares(context_, w_, kOut, kIn, quant::ScaleGroups::columns(group));
    expect_product(view(t), quant::dequantise(t), kIn / group);
  }
}

TEST_F(ExtendedLinears, BlocksOfTqTypesAreTheirWeightsWithinTheRoundingOfTheScales) {
  constexpr std::int64_t kWide = 768, kGroups = kWide / 256;
  const std::vector<float> w = random_floats(kOut * kWide, 3), x = random_floats(kRows * kWide, 4);
  const auto exact = quant::least_squares(context_, w, kOut, kWide, quant::ScaleGroups::columns(256));
  const auto backend = make_cpu_backend(std::make_shared<const ExecutionContext>());
  const std::vector<float> before = product(*backend, view(exact), x, kRows);
  const Plain sums = plain(context_, x, quant::dequantise(exact), kRows, kOut, kWide);
  for (const auto layout : {quant::TernaryLayout::kTQ1_0, quant::TernaryLayout::kTQ2_0}) {
    const auto stored = quant::unpack(layout, quant::pack(layout, exact), kOut, kWide);
    ASSERT_EQ(stored.cols_per_scale, 256);
    const std::vector<float> y = product(*backend, view(stored), x, kRows);
    EXPECT_NE(y, before);
    // 2^-11 of each term for its scale, and the roundings of both products (as in expect_product).
    const double unit = 0x1p-11 + static_cast<double>(2 * (4 + kGroups)) * 0x1p-24;
    for (std::size_t i = 0; i < y.size(); ++i) ASSERT_NEAR(y[i], before[i], unit * sums.sizes[i]) << i;
  }
}

TEST_F(ExtendedLinears, TwoPlanes) {
  for (const auto groups :
       {quant::ScaleGroups::tensor(), quant::ScaleGroups::row(), quant::ScaleGroups::columns(64)}) {
    const quant::TwoPlanes p = quant::two_planes(context_, w_, kOut, kIn, groups);
    LinearWeights w = view(p.first);
    w.second = std::make_shared<const LinearWeights>(view(p.second));
    // The planes' terms by themselves bound the error, not those of their sum.
    std::vector<float> dense = quant::dequantise(p.first);
    const std::vector<float> second = quant::dequantise(p.second);
    for (std::size_t i = 0; i < dense.size(); ++i) dense[i] += second[i];
    expect_product(w, dense, 2 * 8);
  }
}

TEST_F(ExtendedLinears, Int8) {
  quant::QuantConfig config;
  config.scheme = quant::QuantScheme::kMixedPrecision;
  const auto q = quant::quantize_linear(context_, {}, w_, kOut, kIn, {quant::WeightMethod::kInt8}, config);
  const std::vector<float> dense = q.tensor.to_f32();
  LinearWeights w;
  w.out = kOut;
  w.in = kIn;
  w.dense = std::as_bytes(std::span(dense));
  w.dense_form = DenseForm::kInt8;
  expect_product(w, dense, 1);
}

/// Rows rounded to 4 bits and back, by the definition, so that 8 bits of these lose next to nothing.
std::vector<float> rounded(const std::vector<float>& x, std::int64_t rows, bool absmean) {
  std::vector<float> out = x;
  const std::size_t n = x.size() / static_cast<std::size_t>(rows);
  for (std::size_t r = 0; r < static_cast<std::size_t>(rows); ++r) {
    double sum = 0;
    float peak = 0;
    for (std::size_t i = r * n; i < (r + 1) * n; ++i) {
      sum += std::fabs(static_cast<double>(x[i]));
      peak = std::max(peak, std::fabs(x[i]));
    }
    const float mean = static_cast<float>(sum / static_cast<double>(n));
    const float a = absmean ? std::sqrt(7.0f) / mean : 7.0f / peak, back = 1.0f / a;
    for (std::size_t i = r * n; i < (r + 1) * n; ++i)
      out[i] = std::clamp(std::nearbyint(x[i] * a), -8.0f, 7.0f) * back;
  }
  return out;
}

TEST_F(ExtendedLinears, ActivationsOfFourBits) {
  const auto groups = quant::least_squares(context_, w_, kOut, kIn, quant::ScaleGroups::columns(64)),
             rows = quant::least_squares(context_, w_, kOut, kIn, quant::ScaleGroups::row());
  const quant::TwoPlanes planes = quant::two_planes(context_, w_, kOut, kIn, quant::ScaleGroups::row());
  const std::vector<float> dense = quant::dequantise(rows);
  std::vector<LinearWeights> all{view(rows), view(groups), view(planes.first), {}};
  all[2].second = std::make_shared<const LinearWeights>(view(planes.second));
  all[3].out = kOut;
  all[3].in = kIn;
  all[3].dense = std::as_bytes(std::span(dense));
  all[3].dense_form = DenseForm::kInt8;
  for (LinearWeights& w : all) {
    for (const bool absmean : {false, true}) {
      w.activations = absmean ? ActivationForm::kInt4Absmean : ActivationForm::kInt4Absmax;
      const std::vector<float> x = rounded(x_, kRows, absmean);
      std::vector<float> first;
      for (const Isa isa : compiled_isas()) {
        if (!is_supported(isa)) continue;
        SCOPED_TRACE(to_string(isa));
        for (const std::size_t threads : {1u, 3u}) {
          const auto backend = make_cpu_backend(std::make_shared<const ExecutionContext>(
              ExecutionContext::Options{.threads = threads, .isa = isa}));
          const std::vector<float> y = product(*backend, w, x_, kRows);
          if (first.empty()) first = y;
          EXPECT_EQ(y, first);
        }
      }
      // A plain sum over the rounded rows.
      const std::vector<float> matrix = [&] {
        if (!w.ternary()) {
          quant::QuantConfig config;
          config.scheme = quant::QuantScheme::kMixedPrecision;
          return quant::quantize_linear(context_, {}, dense, kOut, kIn, {quant::WeightMethod::kInt8}, config)
              .tensor.to_f32();
        }
        if (w.cols_per_scale != 0) return quant::dequantise(groups);
        if (w.second == nullptr) return dense;
        std::vector<float> sum = quant::dequantise(planes.first);
        const std::vector<float> more = quant::dequantise(planes.second);
        for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += more[i];
        return sum;
      }();
      for (std::int64_t r = 0; r < kRows; ++r)
        for (std::int64_t o = 0; o < kOut; ++o) {
          double sum = 0, size = 0;
          for (std::int64_t i = 0; i < kIn; ++i) {
            const double term = static_cast<double>(x[static_cast<std::size_t>(r * kIn + i)]) *
                                static_cast<double>(matrix[static_cast<std::size_t>(o * kIn + i)]);
            sum += term;
            size += std::abs(term);
          }
          // Roundings of x, of the products' scales and sums, and of two planes whose terms cancel in part.
          ASSERT_NEAR(first[static_cast<std::size_t>(r * kOut + o)], sum, 32 * 0x1p-24 * size + 1e-6);
        }
    }
  }
}

TEST_F(ExtendedLinears, EachLinearOfACallHasItsOwnActivations) {
  const auto t = quant::least_squares(context_, w_, kOut, kIn, quant::ScaleGroups::row());
  const auto backend = make_cpu_backend(make_context(2));
  std::vector<PreparedPtr> weights;
  std::vector<const PreparedWeights*> list;
  std::vector<std::vector<float>> alone;
  for (const ActivationForm form :
       {ActivationForm::kInt4Absmean, ActivationForm::kInt8, ActivationForm::kInt4Absmax}) {
    LinearWeights w = view(t);
    w.activations = form;
    weights.push_back(backend->prepare(w));
    list.push_back(weights.back().get());
    alone.push_back(product(*backend, w, x_, kRows));
  }
  EXPECT_NE(alone[0], alone[1]);
  EXPECT_NE(alone[1], alone[2]);
  const std::size_t bytes = static_cast<std::size_t>(kRows * kOut) * sizeof(float);
  const BufferPtr in = backend->allocate(x_.size() * sizeof(float)), out = backend->allocate(3 * bytes);
  backend->upload(*in, 0, std::as_bytes(std::span(x_)));
  const std::vector<Matrix> outs{
      {out.get(), 0, kRows, kOut}, {out.get(), bytes, kRows, kOut}, {out.get(), 2 * bytes, kRows, kOut}};
  backend->linear(list, {in.get(), 0, kRows, kIn}, outs);
  for (std::size_t i = 0; i < 3; ++i) {
    std::vector<float> y(static_cast<std::size_t>(kRows * kOut));
    backend->download(*out, i * bytes, std::as_writable_bytes(std::span(y)));
    EXPECT_EQ(y, alone[i]) << i;
  }
}

TEST_F(ExtendedLinears, BackendsWithoutThemSayWhatWouldDo) {
  class Single final : public testing::ForwardingBackend {
   public:
    Single() : ForwardingBackend(make_cpu_backend(make_context(1))) {}
    std::string_view name() const noexcept override { return "plain"; }
    bool supports(BackendOp op) const noexcept override { return op != BackendOp::kEmbed; }
    bool supports_extended_linears() const noexcept override { return false; }
  };
  const auto t = quant::least_squares(context_, w_, kOut, kIn, quant::ScaleGroups::columns(32));
  Single backend;
  BITNET_EXPECT_ERROR(backend.prepare(view(t)), ErrorCode::kUnsupported,
                      "plain runs linears in one ternary plane with scales of whole rows");
  // Beside a CPU it runs the others, and the CPU these.
  const auto both = with_cpu_fallback(std::make_unique<Single>(), make_cpu_backend(make_context(1)));
  const auto cpu = make_cpu_backend(make_context(1));
  EXPECT_EQ(product(*both, view(t), x_, kRows), product(*cpu, view(t), x_, kRows));
  EXPECT_EQ(refused_weights(*both), 1);
  // One that runs every op is left alone until such linears are to come, and may not pass them on if alone.
  class Whole final : public testing::ForwardingBackend {
   public:
    Whole() : ForwardingBackend(make_cpu_backend(make_context(1))) {}
    bool supports_extended_linears() const noexcept override { return false; }
  };
  const auto mixed =
      with_cpu_fallback(std::make_unique<Whole>(), make_cpu_backend(make_context(1)), false, true);
  EXPECT_EQ(product(*mixed, view(t), x_, kRows), product(*cpu, view(t), x_, kRows));
  EXPECT_EQ(refused_weights(*mixed), 1);
  EXPECT_NE(mixed->description().find("linears that it does not hold"), std::string::npos);
  for (const auto& [alone, extended] : {std::pair(false, false), std::pair(true, true)}) {
    const auto plain =
        with_cpu_fallback(std::make_unique<Whole>(), make_cpu_backend(make_context(1)), alone, extended);
    BITNET_EXPECT_ERROR(plain->prepare(view(t)), ErrorCode::kUnsupported, "expected the CPU");
  }
  LinearWeights bad = view(t);
  bad.cols_per_scale = 40;
  BITNET_EXPECT_ERROR(cpu->prepare(bad), ErrorCode::kInvalidArgument, "columns that divide `in`");
  bad.cols_per_scale = 64;
  BITNET_EXPECT_ERROR(cpu->prepare(bad), ErrorCode::kInvalidArgument, "222 scales for 37 × 192");
  LinearWeights planes = view(t);
  planes.second = std::make_shared<const LinearWeights>();
  BITNET_EXPECT_ERROR(cpu->prepare(planes), ErrorCode::kInvalidArgument, "a second plane of 0 × 0");
}

/// A dense model whose linears are quantised by `config`, and the same with what they stand for as floats.
TEST(ExtendedModels, RunAsTheirWeightsSay) {
  ModelConfig config = testing::tiny_config();
  config.weights = WeightKind::kDense;
  config.hidden_size = 64;
  config.intermediate_size = 96;
  const testing::TensorModel floats = testing::random_model(config, 5);
  const ExecutionContext context;
  quant::QuantConfig plan = quant::QuantConfig::from_yaml(
      "scheme: mixed_precision\n"
      "weights: {method: ls, scales: group32}\n"
      "layers:\n"
      "  - {match: ['blk.0.attn_k', 'blk.1.ffn_up'], method: int8}\n"
      "  - {match: ['blk.0.attn_v', 'blk.*.ffn_down'], method: two-plane, scales: row}\n"
      "  - {match: '*attn_output', method: ls, scales: tensor}\n"
      "keep: [blk.1.attn_q]\n",
      "plan");
  // attn_output has 40 columns: no groups of 32.
  testing::TensorModel mixed{config, {}}, dense{config, {}};
  for (const quant::PlannedLinear& l : quant::plan_linears(plan, config)) {
    const quant::LogicalTensor& t = floats.at(l.id.role, l.id.layer);
    auto q = quant::quantize_linear(context, l.id, t.to_f32(), t.shape[0], t.shape[1], l.plan, plan);
    quant::LogicalTensor as = t;
    const std::vector<float> values = q.tensor.to_f32();
    as.dtype = DType::kF32;
    as.dense.resize(values.size() * sizeof(float));
    std::memcpy(as.dense.data(), values.data(), as.dense.size());
    dense.tensors[gguf_name(l.id)] = as;
    mixed.tensors[gguf_name(l.id)] = q.tensor;
  }
  for (const auto& [name, t] : floats.tensors) {
    mixed.tensors.try_emplace(name, t);
    dense.tensors.try_emplace(name, t);
  }
  const auto a = make_model(mixed, 2, nullptr, HeadType::kStored),
             b = make_model(dense, 2, nullptr, HeadType::kStored);
  EXPECT_TRUE(a->ternary());
  std::vector<TokenId> ids;
  for (TokenId i = 0; i < 40; ++i) ids.push_back(static_cast<TokenId>((7 * i + 3) % 61));
  Session x(a), y(b);
  const std::span<const float> got = x.evaluate(ids, 8), expected = y.evaluate(ids, 8);
  double error = 0, size = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    error += std::pow(static_cast<double>(got[i]) - static_cast<double>(expected[i]), 2);
    size += std::pow(static_cast<double>(expected[i]), 2);
  }
  // They differ by the rounding of the linears' inputs to int8 alone: 1/254 of a row's peak at most, some 3
  // of its rms, for each of seven linears in two layers.
  EXPECT_LT(std::sqrt(error / size), 14 * 3.0 / 254);
  EXPECT_GT(error, 0);
  // The float model with these linears in place of its own is the same; without any it is itself.
  const auto plain = make_model(floats, 2, nullptr, HeadType::kStored);
  EXPECT_FALSE(plain->ternary());
  std::size_t asked = 0;
  const auto swapped = plain->with_linears([&](TensorId id) {
    ++asked;
    return std::optional(mixed.at(id.role, id.layer));
  });
  EXPECT_EQ(asked, 14u);
  EXPECT_TRUE(swapped->ternary());
  EXPECT_EQ(swapped->weight_bytes(), a->weight_bytes());
  Session z(swapped), untouched(plain->with_linears([](TensorId) { return std::nullopt; })), own(plain);
  const std::span<const float> of_swapped = z.evaluate(ids, 8);
  EXPECT_TRUE(std::equal(of_swapped.begin(), of_swapped.end(), got.begin()));
  const std::span<const float> same = untouched.evaluate(ids, 8), before = own.evaluate(ids, 8);
  EXPECT_TRUE(std::equal(same.begin(), same.end(), before.begin()));
  // One token after the other gives the same bits as all at once.
  Session single(a);
  std::span<const float> last;
  for (const TokenId id : ids) last = single.evaluate({&id, 1});
  EXPECT_TRUE(std::equal(last.begin(), last.end(), got.end() - static_cast<std::ptrdiff_t>(last.size())));
}

}  // namespace
}  // namespace bitnet::inference
