// Whole models through the Quantizer: what reaches which linear, what is kept, what is warned of, and that
// neither threads nor memory change a bit.
#include "bitnet/quant/quantizer.hpp"

#include <fmt/format.h>

#include <atomic>
#include <cmath>
#include <filesystem>
#include <limits>
#include <map>

#include "bitnet/core/io/atomic_file.hpp"
#include "bitnet/quant/int8_linear.hpp"
#include "bitnet/testing/testing.hpp"
#include "contexts.hpp"
#include "memory_reader.hpp"
#include "quantizer_support.hpp"

namespace bitnet::quant {
namespace {

using test::context;
using testing::dense_config;
using testing::dense_reader;
using testing::Linears;
using testing::linears_of;
using testing::MemoryModel;
using testing::MemoryReader;
using testing::mixed;
using testing::RandomActivations;
using testing::set_values;

TEST(QuantizerTest, EveryMethodIsTheOneOfItsFunction) {
  const MemoryReader reader = dense_reader();
  RandomActivations source(reader.config(), 400);
  StreamedCalibration calibration(context(), source, reader.config());
  QuantConfig c = mixed(WeightMethod::kGptq, ScaleUnit::kRow);
  c.layers = {{{"blk.0.attn_k"}, WeightMethod::kAbsmean, {}, {}, {}},
              {{"blk.0.attn_v"}, WeightMethod::kLeastSquares, ScaleUnit::kGroup32, {}, {}},
              {{"blk.0.attn_output"}, WeightMethod::kLeastSquaresRefit, {}, {}, {}},
              {{"blk.0.ffn_up"}, WeightMethod::kTwoPlane, {}, {}, {}},
              {{"blk.1.ffn_up"}, WeightMethod::kInt8, {}, {}, {}}};
  c.keep = {"blk.1.attn_*"};
  Quantizer q(context(), reader, c, {.calibration = &calibration});
  const auto floats = [&](TensorId id) { return reader.read(id).to_f32(); };
  const auto same = [](const TernaryWeights& a, const TernaryWeights& b) {
    EXPECT_EQ(a.trits, b.trits);
    EXPECT_EQ(a.scales, b.scales);
    EXPECT_EQ(a.cols_per_scale, b.cols_per_scale);
  };
  for (const TensorId id : model_tensors(reader.config())) {
    const LogicalTensor t = q.read(id);
    if (!is_linear(id.role)) {
      EXPECT_EQ(t.dense, reader.read(id).dense);
      continue;
    }
    const std::vector<float> w = floats(id);
    const std::int64_t out = t.shape[0], in = t.shape[1];
    const Hessian& h = calibration.find({input_role(id.role), id.layer})->hessian;
    const LinearPlan plan = q.reports().back().plan;
    if (id.layer == 1 && (id.role <= TensorRole::kAttnOutput)) {
      EXPECT_EQ(t.dense, reader.read(id).dense);
    } else if (id == TensorId{TensorRole::kAttnK, 0}) {
      same(t.weights, absmean(w, out, in));
    } else if (id == TensorId{TensorRole::kAttnV, 0}) {
      same(t.weights, least_squares(context(), w, out, in, ScaleGroups::columns(32)));
    } else if (id == TensorId{TensorRole::kAttnOutput, 0}) {
      TernaryWeights expected = least_squares(context(), w, out, in, ScaleGroups::row());
      refit_scales(context(), w, h, expected);
      same(t.weights, expected);
    } else if (id == TensorId{TensorRole::kFfnUp, 0}) {
      const TwoPlanes expected = two_planes(context(), w, out, in, ScaleGroups::row());
      same(t.planes.value().first, expected.first);
      same(t.planes.value().second, expected.second);
    } else if (id == TensorId{TensorRole::kFfnUp, 1}) {
      const Int8Linear expected(context(), out, in, w);
      for (std::int64_t r = 0; r < out; ++r) {
        const auto values = expected.values(r);
        EXPECT_TRUE(std::equal(values.begin(), values.end(), t.int8.value().values.begin() + r * in));
        EXPECT_EQ(expected.scales()[static_cast<std::size_t>(r)],
                  t.int8->scales[static_cast<std::size_t>(r)]);
      }
    } else {
      GptqOptions options;
      options.groups = ScaleGroups::row();
      same(t.weights, gptq(context(), w, out, in, h, options));
    }
    (void)plan;
  }
  EXPECT_EQ(q.reports().size(), 14u);
  EXPECT_EQ(calibration.passes(), 1);
}

TEST(QuantizerTest, NeitherThreadsNorMemoryChangeABit) {
  const MemoryReader reader = dense_reader();
  std::vector<std::vector<std::int8_t>> trits;
  std::vector<std::vector<float>> scales;
  for (const std::size_t threads : {1u, 2u, 3u}) {
    for (const std::uint64_t memory : {std::uint64_t{1}, std::uint64_t{1} << 30}) {
      RandomActivations source(reader.config(), 200);
      StreamedCalibration calibration(context(threads), source, reader.config());
      Quantizer q(context(threads), reader, mixed(WeightMethod::kGptq, ScaleUnit::kGroup32),
                  {.calibration = &calibration, .memory = memory});
      std::size_t i = 0;
      for (const LogicalTensor& t : linears_of(q, reader.config())) {
        if (trits.size() < 14) {
          trits.push_back(t.weights.trits);
          scales.push_back(t.weights.scales);
        }
        EXPECT_EQ(t.weights.trits, trits[i]);
        EXPECT_EQ(t.weights.scales, scales[i]);
        ++i;
      }
    }
  }
}

TEST(QuantizerTest, WhatIsTernaryAlreadyIsKept) {
  // Packed, or floats that are trits times a scale.
  ModelConfig config = dense_config();
  for (const bool packed : {true, false}) {
    MemoryReader reader(config, MemoryModel(config, packed ? Linears::kTernary : Linears::kFloat, 3));
    const TensorId up{TensorRole::kFfnUp, 0};
    std::vector<float> w = reader.model()[up].to_f32();
    if (!packed)
      for (float& v : w) v = v > 0.5f ? 0.37f : v < -0.5f ? -0.37f : 0.0f;
    if (!packed) set_values(reader.model()[up], w);
    QuantConfig c = mixed(WeightMethod::kLeastSquares);
    Quantizer q(context(), reader, c);
    const LogicalTensor t = q.read(up);
    EXPECT_EQ(t.to_f32(), w);
    for (const LinearReport& r : q.reports()) {
      if (!packed && !(r.id == up)) {
        EXPECT_FALSE(r.kept);
        continue;
      }
      EXPECT_TRUE(r.kept);
      ASSERT_EQ(r.warnings.size(), 1u);
      EXPECT_EQ(r.warnings[0], "already ternary, kept as it is");
      EXPECT_EQ(r.metrics.noise, 0);
    }
  }
}

TEST(QuantizerTest, TernaryWithFinerScalesThanAskedForIsNotDestroyed) {
  MemoryReader reader = dense_reader();
  const TensorId up{TensorRole::kFfnUp, 0};
  std::vector<float> w = reader.model()[up].to_f32();
  for (std::size_t i = 0; i < w.size(); ++i)
    w[i] = (w[i] > 0.5f ? 1.0f : w[i] < -0.5f ? -1.0f : 0.0f) * (0.1f + 0.01f * static_cast<float>(i / 64));
  set_values(reader.model()[up], w);
  Quantizer coarse(context(), reader, mixed(WeightMethod::kLeastSquares));
  BITNET_EXPECT_ERROR(
      coarse.read(up), ErrorCode::kInvalidArgument,
      "tensor 'blk.0.ffn_up.weight': the weights are ternary already, with scales by row, "
      "which ls with scales by tensor would destroy: expected 'method: ls' with 'scales: row'");
  // absmean, the default, has no scales by row: the advice names a method that does.
  Quantizer absmean(context(), reader, QuantConfig{});
  BITNET_EXPECT_ERROR(
      absmean.read(up), ErrorCode::kInvalidArgument,
      "which absmean with scales by tensor would destroy: expected 'method: ls' with 'scales: row'");
  Quantizer fine(context(), reader, mixed(WeightMethod::kLeastSquares, ScaleUnit::kRow));
  EXPECT_EQ(fine.read(up).to_f32(), w);
}

TEST(QuantizerTest, MasterWeightsOfABitNetModelGetAbsmean) {
  ModelConfig config = dense_config();
  config.weights = WeightKind::kTernary;
  const MemoryReader reader(config, MemoryModel(config, Linears::kFloat, 3));
  QuantConfig c;
  c.linears = {WeightMethod::kGptq, ScaleUnit::kRow};
  Quantizer q(context(), reader, c);  // and no calibration is missing
  const TensorId id{TensorRole::kAttnV, 1};
  const LogicalTensor t = q.read(id);
  const TernaryWeights expected = absmean(reader.read(id).to_f32(), t.shape[0], t.shape[1]);
  EXPECT_EQ(t.weights.trits, expected.trits);
  EXPECT_EQ(t.weights.scales, expected.scales);
  for (const LinearReport& r : q.reports()) {
    EXPECT_EQ(r.plan.method, WeightMethod::kAbsmean);
    EXPECT_TRUE(r.master_weights);
    ASSERT_EQ(r.warnings.size(), 1u);
    EXPECT_NE(r.warnings[0].find("absmean, which it was trained with, in place of gptq"), std::string::npos);
  }
  c.protect = false;  // a model of that architecture trained in full precision
  BITNET_EXPECT_ERROR(Quantizer(context(), reader, c), ErrorCode::kInvalidArgument, "needs calibration data");
  c.linears = {WeightMethod::kLeastSquares};
  Quantizer floats(context(), reader, c);
  const LogicalTensor ls = floats.read(id);
  const auto by_ls =
      least_squares(context(), reader.read(id).to_f32(), ls.shape[0], ls.shape[1], ScaleGroups::tensor());
  EXPECT_EQ(ls.weights.trits, by_ls.trits);
  EXPECT_TRUE(floats.reports().back().warnings.empty());
  EXPECT_FALSE(floats.reports().back().master_weights);
}

TEST(QuantizerTest, AdaptiveChoosesActivationBitsFromCalibration) {
  const MemoryReader reader = dense_reader();
  RandomActivations source(reader.config(), 400);
  StreamedCalibration calibration(context(), source, reader.config());
  QuantConfig c;
  c.scheme = QuantScheme::kAdaptive;
  c.linears = {WeightMethod::kLeastSquares, ScaleUnit::kRow};
  BITNET_EXPECT_ERROR(Quantizer(context(), reader, c), ErrorCode::kInvalidArgument,
                      "blk.0.attn_q.weight: the scheme adaptive needs calibration data");
  const auto noise = [&](TensorId id, ActivationForm form) {
    return calibration.find({input_role(id.role), id.layer})->statistics.relative_noise(form);
  };
  std::vector<double> best;  // of each input
  for (const TensorId id : linear_inputs(reader.config()))
    best.push_back(std::min(noise(id, ActivationForm::kInt4Absmax), noise(id, ActivationForm::kInt4Absmean)));
  std::sort(best.begin(), best.end());
  const double middle = (best[best.size() / 2 - 1] + best[best.size() / 2]) / 2;
  for (const double tolerance : {0.0, middle, 1.0}) {
    c.activation_tolerance = tolerance;
    Quantizer q(context(), reader, c, {.calibration = &calibration});
    std::size_t four = 0;
    for (const LogicalTensor& t : linears_of(q, reader.config())) {
      const double absmax = noise(t.id, ActivationForm::kInt4Absmax),
                   absmean = noise(t.id, ActivationForm::kInt4Absmean);
      const ActivationForm expected = std::min(absmax, absmean) > tolerance ? ActivationForm::kInt8
                                      : absmean < absmax                    ? ActivationForm::kInt4Absmean
                                                                            : ActivationForm::kInt4Absmax;
      EXPECT_EQ(t.activations, expected) << gguf_name(t.id);
      const auto at = std::find_if(q.reports().begin(), q.reports().end(),
                                   [&](const LinearReport& r) { return r.id == t.id; });
      EXPECT_EQ(activation_form(at->plan), expected);
      four += expected != ActivationForm::kInt8 ? 1 : 0;
    }
    EXPECT_EQ(four > 0, tolerance > 0);
    EXPECT_EQ(four == 14, tolerance == 1.0);
  }
  // What an override says stays; the rest is chosen.
  c.layers = {{{"*ffn_down"}, {}, {}, 8, {}}};
  Quantizer q(context(), reader, c, {.calibration = &calibration});
  for (const LogicalTensor& t : linears_of(q, reader.config()))
    EXPECT_EQ(t.activations == ActivationForm::kInt8, t.id.role == TensorRole::kFfnDown);
}

TEST(QuantizerTest, ActivationBitsFromFewTokensAreWarnedOf) {
  const MemoryReader reader = dense_reader();
  QuantConfig c;
  c.scheme = QuantScheme::kAdaptive;
  c.linears = {WeightMethod::kLeastSquares, ScaleUnit::kRow};
  c.layers = {{{"*ffn_down"}, {}, {}, 8, {}}};
  for (const std::int64_t rows : {std::int64_t{511}, std::int64_t{512}}) {
    RandomActivations source(reader.config(), rows);
    StreamedCalibration calibration(context(), source, reader.config());
    Quantizer q(context(), reader, c, {.calibration = &calibration});
    linears_of(q, reader.config());
    for (const LinearReport& r : q.reports()) {
      if (rows == 512 || r.id.role == TensorRole::kFfnDown) {
        EXPECT_THAT(r.warnings, ::testing::IsEmpty()) << gguf_name(r.id);
      } else {
        EXPECT_THAT(r.warnings,
                    ::testing::ElementsAre("calibrated on 511 tokens: at least 512 are needed for "
                                           "activation bits, better 2048"));
      }
    }
  }
}

TEST(QuantizerTest, OddWeightsAndLittleData) {
  MemoryReader reader = dense_reader();
  const TensorId up{TensorRole::kFfnUp, 0}, gate{TensorRole::kFfnGate, 0};
  set_values(reader.model()[up], std::vector<float>(64 * 96, 0.0f));
  set_values(reader.model()[gate], std::vector<float>(64 * 96, 0.5f));
  RandomActivations source(reader.config(), 40);
  StreamedCalibration calibration(context(), source, reader.config());
  QuantConfig c = mixed(WeightMethod::kInt8);
  c.layers = {{{"blk.0.ffn_down"}, WeightMethod::kGptq, {}, {}, {}}};
  Quantizer q(context(), reader, c, {.calibration = &calibration});
  EXPECT_EQ(q.read(up).to_f32(), std::vector<float>(64 * 96, 0.0f));
  std::map<TensorRole, std::string> warned;
  for (const LinearReport& r : q.reports())
    if (!r.warnings.empty()) warned[r.id.role] = r.warnings[0];
  ASSERT_EQ(warned.size(), 3u);
  EXPECT_EQ(warned[TensorRole::kFfnUp], "every weight is 0: the linear has no effect");
  EXPECT_EQ(warned[TensorRole::kFfnGate], "every weight is 0.5: it cannot have been trained");
  EXPECT_NE(warned[TensorRole::kFfnDown].find("calibrated on 40 tokens for 96 inputs"), std::string::npos);
  EXPECT_NE(warned[TensorRole::kFfnDown].find("at least 96 are needed for gptq, better 384"),
            std::string::npos);
}

TEST(QuantizerTest, ZeroAndConstantLinearsAreWarnedOfByEveryMethod) {
  MemoryReader reader = dense_reader();
  const TensorId up{TensorRole::kFfnUp, 0}, gate{TensorRole::kFfnGate, 0};
  set_values(reader.model()[up], std::vector<float>(64 * 96, 0.0f));
  set_values(reader.model()[gate], std::vector<float>(64 * 96, 0.5f));
  RandomActivations source(reader.config(), 400);
  StreamedCalibration calibration(context(), source, reader.config());
  for (const WeightMethod method :
       {WeightMethod::kLeastSquares, WeightMethod::kGptq, WeightMethod::kTwoPlane, WeightMethod::kKeep}) {
    Quantizer q(context(), reader, mixed(method), {.calibration = &calibration});
    q.read(up);
    std::map<TensorRole, std::string> warned;
    for (const LinearReport& r : q.reports())
      if (!r.warnings.empty()) warned[r.id.role] = r.warnings[0];
    EXPECT_EQ(warned.size(), 2u) << to_string(method);
    EXPECT_EQ(warned[TensorRole::kFfnUp], "every weight is 0: the linear has no effect") << to_string(method);
    EXPECT_EQ(warned[TensorRole::kFfnGate], "every weight is 0.5: it cannot have been trained")
        << to_string(method);
  }
}

TEST(QuantizerTest, WhatIsNotFiniteIsRefusedInEveryTensor) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (const TensorId id : {TensorId{TensorRole::kTokenEmbedding}, TensorId{TensorRole::kFfnNorm, 1},
                            TensorId{TensorRole::kOutputNorm}}) {
    MemoryReader reader = dense_reader();
    LogicalTensor& t = reader.model()[id];
    const std::string expected = fmt::format("tensor '{}': the weight in row {}, column 3 is nan, not finite",
                                             gguf_name(id), t.shape.rank() > 1 ? 2 : 0);
    std::vector<float> w = t.to_f32();
    w[3 + static_cast<std::size_t>(t.shape.rank() > 1 ? 2 * t.shape[1] : 0)] = nan;
    t.dtype = DType::kF32;
    set_values(t, w);
    BITNET_EXPECT_ERROR(Quantizer(context(), reader, mixed(WeightMethod::kLeastSquares)).read(id),
                        ErrorCode::kInvalidArgument, expected);
    for (const DType type : {DType::kF16, DType::kBF16}) {
      t.dtype = type;
      t.dense.clear();
      for (const float v : w) {
        const std::uint16_t h = type == DType::kF16 ? f32_to_f16(v) : f32_to_bf16(v);
        const auto* bytes = reinterpret_cast<const std::byte*>(&h);
        t.dense.insert(t.dense.end(), bytes, bytes + sizeof h);
      }
      BITNET_EXPECT_ERROR(Quantizer(context(), reader, mixed(WeightMethod::kLeastSquares)).read(id),
                          ErrorCode::kInvalidArgument, expected);
    }
  }
  // A linear that stays in full precision.
  MemoryReader reader = dense_reader();
  const TensorId up{TensorRole::kFfnUp, 0};
  std::vector<float> w = reader.model()[up].to_f32();
  w[65] = nan;
  set_values(reader.model()[up], w);
  BITNET_EXPECT_ERROR(Quantizer(context(), reader, mixed(WeightMethod::kKeep)).read(up),
                      ErrorCode::kInvalidArgument, "tensor 'blk.0.ffn_up.weight': the weight in row 1");
}

TEST(QuantizerTest, Refusals) {
  MemoryReader reader = dense_reader();
  BITNET_EXPECT_ERROR(Quantizer(context(), reader, mixed(WeightMethod::kGptq)), ErrorCode::kInvalidArgument,
                      "blk.0.attn_q.weight: the method gptq needs calibration data");
  Quantizer q(context(), reader, mixed(WeightMethod::kInt8));
  q.read({TensorRole::kAttnQ, 0});
  BITNET_EXPECT_ERROR(q.read({TensorRole::kAttnQ, 0}), ErrorCode::kInvalidArgument, "was given out");
  BITNET_EXPECT_ERROR(q.read({TensorRole::kAttnQ, 9}), ErrorCode::kInvalidArgument, "not in the model");
  std::vector<float> w = reader.model()[{TensorRole::kAttnK, 1}].to_f32();
  w[65] = std::numeric_limits<float>::infinity();
  set_values(reader.model()[{TensorRole::kAttnK, 1}], w);
  BITNET_EXPECT_ERROR(q.read({TensorRole::kAttnQ, 1}), ErrorCode::kInvalidArgument,
                      "tensor 'blk.1.attn_k.weight': the weight in row 1, column 1 is inf, not finite");
  BITNET_EXPECT_ERROR(quantize_linear(context(), {}, std::vector<float>(5), 2, 3, {}, {}),
                      ErrorCode::kInvalidArgument, "5 weights for a matrix [2, 3]");
}

TEST(QuantizerTest, TellsARunningModelWhatWasQuantised) {
  const MemoryReader reader = dense_reader();
  RandomActivations source(reader.config(), 200);
  StreamedCalibration calibration(context(), source, reader.config(), {.through_quantised = true});
  Quantizer q(context(), reader, mixed(WeightMethod::kLeastSquaresRefit),
              {.calibration = &calibration, .activations = &source});
  linears_of(q, reader.config());
  EXPECT_EQ(calibration.passes(), 2);
  ASSERT_EQ(source.replaced.size(), 14u);
  EXPECT_TRUE((source.replaced[7] == TensorId{TensorRole::kAttnQ, 1}));
}

/// Sets a flag when inputs are asked for: in the middle of a layer.
class Interrupting final : public CalibrationSource {
 public:
  Interrupting(CalibrationSource& from, std::atomic<bool>& flag, int after)
      : from_(from), flag_(flag), left_(after) {}
  std::shared_ptr<const InputCalibration> find(TensorId input) override {
    if (left_-- == 0) flag_ = true;
    return from_.find(input);
  }

 private:
  CalibrationSource& from_;
  std::atomic<bool>& flag_;
  int left_;
};

TEST(QuantizerTest, IsCancelledWithinALayer) {
  const MemoryReader reader = dense_reader();
  RandomActivations source(reader.config(), 400);
  StreamedCalibration streamed(context(), source, reader.config());
  for (const WeightMethod method : {WeightMethod::kKeep, WeightMethod::kLeastSquares, WeightMethod::kTwoPlane,
                                    WeightMethod::kLeastSquaresRefit, WeightMethod::kGptq}) {
    SCOPED_TRACE(to_string(method));
    const bitnet::testing::TempDir dir;
    std::atomic<bool> flag{false};
    Interrupting calibration(streamed, flag, 5);  // the second input of the second layer
    int reported = 0;
    QuantizerOptions options;
    options.calibration = &calibration;
    options.memory = 0;
    options.work = dir.path() / "work";
    options.cancelled = &flag;
    options.on_linear = [&](const LinearReport&) { ++reported; };
    Quantizer q(context(), reader, mixed(method), options);
    BITNET_EXPECT_ERROR(linears_of(q, reader.config()), ErrorCode::kCancelled, "cancelled");
    EXPECT_EQ(reported, 7);  // the first layer
    EXPECT_TRUE(std::filesystem::exists(options.work / "layer-00000.safetensors"));
    EXPECT_FALSE(std::filesystem::exists(options.work / "layer-00001.safetensors"));
  }
}

TEST(QuantizerTest, GoesOnWhereItWasStopped) {
  const MemoryReader reader = dense_reader();
  const bitnet::testing::TempDir dir;
  QuantConfig c = mixed(WeightMethod::kLeastSquares, ScaleUnit::kGroup32);
  c.layers = {{{"*attn_k"}, WeightMethod::kTwoPlane, {}, {}, {}},
              {{"*ffn_up"}, WeightMethod::kInt8, {}, {}, {}},
              {{"*attn_v"}, WeightMethod::kAbsmean, {}, 4, ActivationRule::kAbsmean}};
  c.keep = {"*attn_q"};
  const auto same = [](const LogicalTensor& a, const LogicalTensor& b) {
    EXPECT_EQ(a.ternary, b.ternary);
    EXPECT_EQ(a.weights.trits, b.weights.trits);
    EXPECT_EQ(a.weights.scales, b.weights.scales);
    EXPECT_EQ(a.planes.has_value(), b.planes.has_value());
    EXPECT_EQ(a.int8.has_value(), b.int8.has_value());
    EXPECT_EQ(a.activations, b.activations);
    EXPECT_EQ(a.dense, b.dense);
    EXPECT_EQ(a.to_f32(), b.to_f32());
  };
  const QuantizerOptions options{.work = dir.path() / "work", .identity = "this model"};
  {
    Quantizer stopped(context(), reader, c, options);
    stopped.read({TensorRole::kAttnQ, 0});
  }
  Quantizer whole(context(), reader, c), resumed(context(), reader, c, options);
  const std::vector<LogicalTensor> a = linears_of(whole, reader.config()),
                                   b = linears_of(resumed, reader.config());
  EXPECT_EQ(resumed.resumed_layers(), 1);
  ASSERT_EQ(b.size(), a.size());
  for (std::size_t i = 0; i < a.size(); ++i) {
    same(a[i], b[i]);
    const LinearReport &x = whole.reports()[i], &y = resumed.reports()[i];
    EXPECT_TRUE(x.id == y.id);
    EXPECT_EQ(x.plan, y.plan);
    EXPECT_EQ(x.kept, y.kept);
    EXPECT_EQ(x.bytes, y.bytes);
    EXPECT_EQ(x.metrics.noise, y.metrics.noise);
    EXPECT_EQ(x.metrics.trits, y.metrics.trits);
    EXPECT_EQ(x.histogram.counts, y.histogram.counts);
    EXPECT_EQ(x.histogram.ternary, y.histogram.ternary);
    EXPECT_EQ(x.histogram.threshold(), y.histogram.threshold());
  }
  const auto resumed_by = [&](const QuantConfig& config, const std::string& identity) {
    Quantizer q(context(), reader, config, {.work = dir.path() / "work", .identity = identity});
    for (const LogicalTensor& t : linears_of(q, reader.config())) EXPECT_FALSE(t.shape.rank() != 2);
    return q.resumed_layers();
  };
  EXPECT_EQ(resumed_by(c, "this model"), 2);
  EXPECT_EQ(resumed_by(c, "another model"), 0);
  EXPECT_EQ(resumed_by(c, "another model"), 2);
  c.two_plane_rounds = 3;
  EXPECT_EQ(resumed_by(c, "another model"), 0);
  // Another type of files finds the layers where it rounds alike, with its own sizes.
  const auto written_as = [&](LinearType type, DType floats) {
    Quantizer q(context(), reader, c,
                {.output = WriteOptions{.type = type, .dense_type = floats},
                 .work = dir.path() / "work",
                 .identity = "another model"});
    linears_of(q, reader.config());
    EXPECT_EQ(q.reports()[0].bits_per_weight(), static_cast<double>(bits_of(floats)));
    return q.resumed_layers();
  };
  EXPECT_EQ(written_as(LinearType::kExtended, DType::kF16), 0);
  EXPECT_EQ(written_as(LinearType::kExtended, DType::kF16), 2);
  EXPECT_EQ(written_as(LinearType::kExtended, DType::kF32), 0);
  EXPECT_EQ(resumed_by(c, "another model"), 0);
  // A damaged file is as good as none.
  const std::filesystem::path file = dir.path() / "work" / "layer-00001.safetensors";
  std::string bytes = read_file(file);
  bytes[bytes.size() - 5] ^= 1;
  write_file(file, bytes);
  EXPECT_EQ(resumed_by(c, "another model"), 1);
  write_file(file, "no such format");
  EXPECT_EQ(resumed_by(c, "another model"), 1);
  BITNET_EXPECT_ERROR(Quantizer(context(), reader, c, {.work = file / "x", .identity = ""}), ErrorCode::kIo,
                      "layer-00001");
}

TEST(ExactlyTernary, FindsTritsAndNothingElse) {
  const float a = 0.3f, b = std::nextafter(a, 1.0f);
  const std::vector<float> w{a, 0, -a, a, 0, -b, 0, b};
  const auto found = exactly_ternary(w, 2, 4, ScaleGroups::tensor(), 0x1p-23f);
  ASSERT_TRUE(found.has_value());
  EXPECT_EQ(found->scales, std::vector<float>{b});
  EXPECT_EQ(found->trits, (std::vector<std::int8_t>{1, 0, -1, 1, 0, -1, 0, 1}));
  EXPECT_FALSE(exactly_ternary(w, 2, 4, ScaleGroups::tensor(), 0).has_value());
  EXPECT_EQ(exactly_ternary(w, 2, 4, ScaleGroups::row(), 0)->scales, (std::vector<float>{a, b}));
  EXPECT_FALSE(exactly_ternary(std::vector<float>{1, 2}, 1, 2, ScaleGroups::row(), 0.5f).has_value());
  EXPECT_FALSE(
      exactly_ternary(std::vector<float>{1, std::nanf("")}, 1, 2, ScaleGroups::row(), 0).has_value());
  EXPECT_EQ(exactly_ternary(std::vector<float>{0, 0}, 1, 2, ScaleGroups::row(), 0)->scales,
            std::vector<float>{0});
}

}  // namespace
}  // namespace bitnet::quant
