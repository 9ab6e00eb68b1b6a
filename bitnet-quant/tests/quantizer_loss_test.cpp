// What a Quantizer says was lost, and what its output takes: bytes and errors of what is stored, not of what
// was read.

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

TEST(QuantizerTest, ReportsSayWhatWasLost) {
  const MemoryReader reader = dense_reader();
  RandomActivations source(reader.config(), 400);
  StreamedCalibration calibration(context(), source, reader.config());
  std::vector<TensorId> told;
  QuantizerOptions options;
  options.calibration = &calibration;
  options.on_linear = [&](const LinearReport& r) { told.push_back(r.id); };
  Quantizer q(context(), reader, mixed(WeightMethod::kLeastSquares, ScaleUnit::kRow), options);
  const std::vector<LogicalTensor> tensors = linears_of(q, reader.config());
  ASSERT_EQ(told.size(), 14u);
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const LinearReport& r = q.reports()[i];
    EXPECT_TRUE(r.id == tensors[i].id && told[i] == r.id);
    const std::vector<float> w = reader.read(r.id).to_f32();
    EXPECT_EQ(r.bytes, w.size() / 4 + 4 * static_cast<std::uint64_t>(r.out));
    EXPECT_DOUBLE_EQ(r.bits_per_weight(), 2 + 32.0 / static_cast<double>(r.in));
    const Hessian& h = calibration.find({input_role(r.id.role), r.id.layer})->hessian;
    const WeightMetrics expected = measure(context(), w, tensors[i].weights, &h);
    EXPECT_EQ(r.metrics.noise, expected.noise);
    EXPECT_EQ(r.metrics.output_noise, expected.output_noise);
    EXPECT_EQ(r.metrics.trits, expected.trits);
    EXPECT_FALSE(r.kept);
    EXPECT_TRUE(r.warnings.empty());
  }
}

/// A dense model whose linears every type can hold.
ModelConfig wide_config() {
  ModelConfig c = dense_config();
  c.hidden_size = c.intermediate_size = 256;
  c.head_dim = 64;
  c.n_kv_heads = 4;
  return c;
}

TEST(QuantizerTest, ReportsCountWhatTheOutputStores) {
  const MemoryReader reader(wide_config(), MemoryModel(wide_config(), Linears::kFloat, 3));
  const TensorId up{TensorRole::kFfnUp, 1};
  const auto bits = [&](std::optional<WriteOptions> output, WeightMethod method, ScaleUnit scales,
                        int activation_bits = 8) {
    QuantConfig c = mixed(method, scales);
    c.linears.activation_bits = activation_bits;
    Quantizer q(context(), reader, c, {.output = output});
    const LogicalTensor t = q.read(up);
    for (const LinearReport& r : q.reports())
      if (r.id == up) return r.bits_per_weight();
    return 0.0;
  };
  const double n = 256 * 256;
  const auto type = [](LinearType t) { return WriteOptions{.type = t}; };
  const auto ls = WeightMethod::kLeastSquares;
  EXPECT_EQ(bits(type(LinearType::kTQ1_0), ls, ScaleUnit::kTensor), 1.6875);
  EXPECT_EQ(bits(type(LinearType::kTQ1_0), ls, ScaleUnit::kGroup256), 1.6875);
  EXPECT_EQ(bits(type(LinearType::kTQ2_0), ls, ScaleUnit::kRow), 2.0625);
  EXPECT_EQ(bits(type(LinearType::kI2_S), ls, ScaleUnit::kTensor), 2 + 8 * 32 / n);
  EXPECT_EQ(bits(type(LinearType::kHf), ls, ScaleUnit::kTensor), 2 + 8 * 4 / n);
  for (const std::optional<WriteOptions>& output : {std::optional(type(LinearType::kExtended)), {}}) {
    EXPECT_EQ(bits(output, ls, ScaleUnit::kTensor), 2 + 8 * 4 / n);
    EXPECT_EQ(bits(output, ls, ScaleUnit::kGroup32), 3);
    EXPECT_EQ(bits(output, WeightMethod::kTwoPlane, ScaleUnit::kRow), 2 * (2 + 32.0 / 256));
    EXPECT_EQ(bits(output, WeightMethod::kInt8, ScaleUnit::kRow), 8 + 32.0 / 256);
    EXPECT_EQ(bits(output, WeightMethod::kInt8, ScaleUnit::kRow, 4), 8 + 32.0 / 256 + 8 / n);
  }
  EXPECT_EQ(bits({}, WeightMethod::kKeep, {}), 32);  // as they are
  EXPECT_EQ(bits(type(LinearType::kExtended), WeightMethod::kKeep, {}), 16);
  EXPECT_EQ(
      bits(WriteOptions{.type = LinearType::kExtended, .dense_type = DType::kF32}, WeightMethod::kKeep, {}),
      32);
  BITNET_EXPECT_ERROR(bits(type(LinearType::kI2_S), ls, ScaleUnit::kRow), ErrorCode::kUnsupported,
                      "i2_s cannot hold the plan of blk.0.attn_q");
}

TEST(QuantizerTest, ReportsHaveTheErrorOfWhatTheOutputRounds) {
  MemoryReader reader(wide_config(), MemoryModel(wide_config(), Linears::kFloat, 3));
  const TensorId up{TensorRole::kFfnUp, 1};
  std::vector<float> w = reader.read(up).to_f32();
  for (float& v : w) v = v * 1.001f + 1e-4f;  // no values of 16 bits
  set_values(reader.model()[up], w);
  RandomActivations source(reader.config(), 300);
  StreamedCalibration calibration(context(), source, reader.config());
  const auto report = [&](WriteOptions output, WeightMethod method, ScaleUnit scales, LogicalTensor* to) {
    Quantizer q(context(), reader, mixed(method, scales), {.calibration = &calibration, .output = output});
    *to = q.read(up);
    for (const LinearReport& r : q.reports())
      if (r.id == up) return r;
    return LinearReport{};
  };
  LogicalTensor t;
  for (const DType type : {DType::kF16, DType::kBF16, DType::kF32}) {
    const auto r = report({.type = LinearType::kExtended, .dense_type = type}, WeightMethod::kKeep, {}, &t);
    EXPECT_TRUE(r.kept);
    EXPECT_EQ(t.dtype, type);
    double noise = 0;
    for (const float v : w) {
      const float stored = type == DType::kF16    ? f16_to_f32(f32_to_f16(v))
                           : type == DType::kBF16 ? bf16_to_f32(f32_to_bf16(v))
                                                  : v;
      noise += static_cast<double>(v - stored) * static_cast<double>(v - stored);
    }
    EXPECT_EQ(noise == 0, type == DType::kF32);
    EXPECT_EQ(r.metrics.output_noise == 0, type == DType::kF32);
    EXPECT_NEAR(r.metrics.noise, noise, 1e-6 * noise);
  }
  // Scales as f16 are what is stored, and what the figures are of.
  const auto exact =
      report({.type = LinearType::kExtended}, WeightMethod::kLeastSquares, ScaleUnit::kGroup256, &t);
  const std::vector<float> scales = t.weights.scales;
  const auto rounded =
      report({.type = LinearType::kTQ1_0}, WeightMethod::kLeastSquares, ScaleUnit::kGroup256, &t);
  EXPECT_NE(t.weights.scales, scales);
  for (std::size_t i = 0; i < scales.size(); ++i)
    EXPECT_EQ(t.weights.scales[i], f16_to_f32(f32_to_f16(scales[i])));
  EXPECT_GT(rounded.metrics.noise, exact.metrics.noise);  // least squares were the best
  EXPECT_EQ(rounded.metrics.noise, measure(context(), w, t, nullptr).noise);
  EXPECT_TRUE(pack(TernaryLayout::kTQ1_0, t.weights) ==
              pack(TernaryLayout::kTQ1_0,
                   unpack(TernaryLayout::kTQ1_0, pack(TernaryLayout::kTQ1_0, t.weights), 256, 256)));
  // What 16 bits cannot hold is an error with the tensor's name.
  w[3] = 1e6f;
  set_values(reader.model()[up], w);
  BITNET_EXPECT_ERROR(report({.type = LinearType::kExtended}, WeightMethod::kKeep, {}, &t),
                      ErrorCode::kUnsupported, "blk.1.ffn_up");
}

}  // namespace
}  // namespace bitnet::quant
