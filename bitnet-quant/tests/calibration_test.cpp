// Calibration: statistics against their definitions, passes within a memory limit, files and their damage.
#include "bitnet/quant/calibration.hpp"

#include <cmath>
#include <filesystem>
#include <limits>

#include "bitnet/core/io/atomic_file.hpp"
#include "bitnet/testing/testing.hpp"
#include "contexts.hpp"
#include "memory_reader.hpp"

namespace bitnet::quant {
namespace {

using test::context;
using testing::dense_config;
using testing::RandomActivations;

TEST(InputStatisticsTest, AreTheFiguresOfTheRows) {
  const std::vector<float> x{1, -2, 0, 0.5f, 4, -0.25f, 0, 0};
  InputStatistics s;
  s.add(context(), x, 4);
  EXPECT_EQ(s.rows, 2);
  EXPECT_EQ(s.least, -2);
  EXPECT_EQ(s.most, 4);
  EXPECT_DOUBLE_EQ(s.sum, 3.25);
  EXPECT_DOUBLE_EQ(s.sum_abs, 7.75);
  EXPECT_DOUBLE_EQ(s.squares, 1 + 4 + 0.25 + 16 + 0.0625);
  EXPECT_DOUBLE_EQ(s.peaks, 2 + 4);
  EXPECT_DOUBLE_EQ(s.most_peak, 4 / std::sqrt(16.0625 / 4));
  EXPECT_DOUBLE_EQ(s.mean(), 3.25 / 8);
  EXPECT_DOUBLE_EQ(s.rms(), std::sqrt(21.3125 / 8));
  EXPECT_EQ(s.channel_peaks, (std::vector<float>{4, 2, 0, 0.5f}));
  EXPECT_EQ(s.histogram[0], 3);   // zeros
  EXPECT_EQ(s.histogram[40], 1);  // 1 = 2^(40/2 − 20)
  EXPECT_EQ(s.histogram[42], 1);  // 2
  EXPECT_EQ(s.histogram[44], 1);  // 4
  EXPECT_EQ(s.histogram[38], 1);  // 0.5
  EXPECT_EQ(s.histogram[36], 1);  // 0.25
}

TEST(InputStatisticsTest, NoiseIsThatOfEachRule) {
  const RandomActivations source(dense_config(), 40);
  const std::vector<float> x = source.rows_of({TensorRole::kAttnQ, 0});
  InputStatistics s;
  s.add(context(), x, 64);
  std::array<double, 3> expected{};
  for (std::size_t r = 0; r < 40; ++r) {
    double peak = 0, mean = 0;
    for (std::size_t c = 0; c < 64; ++c) {
      peak = std::max(peak, std::abs(static_cast<double>(x[r * 64 + c])));
      mean += std::abs(static_cast<double>(x[r * 64 + c])) / 64;
    }
    for (std::size_t c = 0; c < 64; ++c) {
      const auto v = static_cast<double>(x[r * 64 + c]);
      const auto add = [&](std::size_t i, double a, double low, double high) {
        expected[i] += std::pow(v - std::clamp(std::nearbyint(v * a), low, high) / a, 2);
      };
      add(0, 127 / peak, -128, 127);
      add(1, 7 / peak, -8, 7);
      add(2, std::sqrt(7.0) / mean, -8, 7);
    }
  }
  for (std::size_t i = 0; i < 3; ++i) EXPECT_NEAR(s.noise[i], expected[i], 1e-3 * expected[i]) << i;
  EXPECT_LT(s.relative_noise(ActivationForm::kInt8), 1e-3);
  EXPECT_GT(s.relative_noise(ActivationForm::kInt4Absmax), 10 * s.relative_noise(ActivationForm::kInt8));
  BITNET_EXPECT_ERROR(s.add(context(), x, 60), ErrorCode::kInvalidArgument, "for 60 inputs");
}

TEST(InputStatisticsTest, BitsDoNotDependOnThreadsOrCalls) {
  const RandomActivations source(dense_config(), 300);
  const std::vector<float> x = source.rows_of({TensorRole::kFfnDown, 1});
  InputStatistics one, three;
  one.add(context(1), x, 96);
  three.add(context(3), std::span(x).first(96 * 17), 96);
  three.add(context(3), std::span(x).subspan(96 * 17), 96);
  EXPECT_EQ(one.squares, three.squares);
  EXPECT_EQ(one.noise, three.noise);
  EXPECT_EQ(one.histogram, three.histogram);
  EXPECT_EQ(one.channel_peaks, three.channel_peaks);
  EXPECT_EQ(one.most_peak, three.most_peak);
}

TEST(Streamed, InputsAreSharedAndPassesFitTheMemory) {
  const ModelConfig model = dense_config();
  EXPECT_EQ(linear_inputs(model).size(), 8u);  // four a layer: q for q, k, v; gate for gate, up
  RandomActivations source(model, 50);
  StreamedCalibration all(context(), source, model);
  for (const TensorId id : linear_inputs(model)) EXPECT_EQ(all.find(id)->hessian.n_rows(), 50);
  EXPECT_EQ(all.passes(), 1);
  // The q input of layer 0: 64 columns.
  Hessian expected(64);
  expected.add(context(), source.rows_of({TensorRole::kAttnQ, 0}));
  const auto got = all.find({TensorRole::kAttnQ, 0});
  EXPECT_TRUE(std::equal(expected.values().begin(), expected.values().end(), got->hessian.values().begin()));
  // Room for three of 64 columns (32 KiB and 256 bytes each), or one of 96 beside one.
  RandomActivations again(model, 50);
  StreamedCalibration small(context(), again, model, {.memory = 3 * (8 * 64 * 64 + 4 * 64)});
  for (const TensorId id : linear_inputs(model)) small.find(id);
  ASSERT_EQ(again.asked.size(), 4u);
  EXPECT_EQ(again.asked[0].size(), 3u);
  EXPECT_EQ(again.asked[1].size(), 1u);  // 96 columns; with one of 64 more it were 106,112 bytes
  StreamedCalibration least(context(), again, model, {.memory = 1});
  EXPECT_EQ(least.find({TensorRole::kFfnDown, 1})->hessian.in(), 96);
  BITNET_EXPECT_ERROR(all.find({TensorRole::kAttnK, 0}), ErrorCode::kNotFound, "stands for no input");
}

TEST(Streamed, ThroughTheQuantisedPartEachLayerIsAPass) {
  const ModelConfig model = dense_config();
  RandomActivations source(model, 5);
  StreamedCalibration c(context(), source, model, {.through_quantised = true});
  const double before = c.find({TensorRole::kAttnQ, 0})->statistics.squares;
  c.find({TensorRole::kFfnDown, 0});
  EXPECT_EQ(c.passes(), 1);
  LogicalTensor t;
  t.id = {TensorRole::kAttnQ, 0};
  source.replace(t);
  c.find({TensorRole::kAttnQ, 1});
  EXPECT_EQ(c.passes(), 2);
  ASSERT_EQ(source.asked.size(), 2u);
  for (const TensorId id : source.asked[1]) EXPECT_EQ(id.layer, 1);
  EXPECT_NE(c.find({TensorRole::kAttnQ, 0})->statistics.squares,
            before);  // a third pass, behind what was replaced
}

TEST(Streamed, BadRowsAndNone) {
  const ModelConfig model = dense_config();
  RandomActivations none(model, 0);
  StreamedCalibration empty(context(), none, model);
  BITNET_EXPECT_ERROR(empty.find({TensorRole::kAttnQ, 0}), ErrorCode::kInvalidArgument,
                      "no rows for the input of 'blk.0.attn_q.weight': expected at least 64");
  class Nan final : public ActivationSource {
   public:
    void stream(const std::function<bool(TensorId)>&, const Sink& sink) override {
      std::vector<float> x(64, 1.0f);
      x[3] = std::numeric_limits<float>::quiet_NaN();
      sink({TensorRole::kAttnQ, 0}, x);
    }
    void replace(const LogicalTensor&) override {}
  } nan;
  StreamedCalibration bad(context(), nan, model);
  BITNET_EXPECT_ERROR(
      bad.find({TensorRole::kAttnQ, 0}), ErrorCode::kInvalidArgument,
      "input of 'blk.0.attn_q.weight': calibration: the activation in row 0, column 3 is nan");
}

class CalibrationFiles : public ::testing::Test {
 protected:
  CalibrationFiles() : path_(dir_.path() / "c.safetensors"), source_(model_, 70) {
    StreamedCalibration streamed(context(), source_, model_);
    save_calibration(path_, streamed, model_);
  }
  std::string bytes() const { return read_file(path_); }
  void expect_damage(const std::string& text, ErrorCode code, const char* message) {
    write_file(path_, text);
    const auto read_all = [&] {
      const auto file = open_calibration(path_, model_);
      for (const TensorId id : linear_inputs(model_)) file->find(id);
    };
    BITNET_EXPECT_ERROR(read_all(), code, message);
  }

  const ModelConfig model_ = dense_config();
  bitnet::testing::TempDir dir_;
  std::filesystem::path path_;
  RandomActivations source_;
};

TEST_F(CalibrationFiles, WhatIsReadIsWhatWasCollected) {
  StreamedCalibration streamed(context(), source_, model_);
  const auto file = open_calibration(path_, model_);
  for (const TensorId id : linear_inputs(model_)) {
    const auto a = streamed.find(id), b = file->find(id);
    EXPECT_TRUE(a->id == b->id);
    EXPECT_EQ(a->hessian.n_rows(), b->hessian.n_rows());
    EXPECT_TRUE(std::equal(a->hessian.values().begin(), a->hessian.values().end(),
                           b->hessian.values().begin(), b->hessian.values().end()));
    EXPECT_EQ(a->statistics.histogram, b->statistics.histogram);
    EXPECT_EQ(a->statistics.noise, b->statistics.noise);
    EXPECT_EQ(a->statistics.channel_peaks, b->statistics.channel_peaks);
    EXPECT_EQ(a->statistics.rows, b->statistics.rows);
    EXPECT_EQ(a->statistics.least, b->statistics.least);
    EXPECT_EQ(a->statistics.most_peak, b->statistics.most_peak);
  }
  const std::filesystem::path copy = dir_.path() / "again.safetensors";  // a file can be saved, too
  save_calibration(copy, *file, model_);
  EXPECT_EQ(read_file(copy), bytes());
}

TEST(CalibrationRows, AreTooFewBelowWhatIsNeeded) {
  EXPECT_EQ(rows_needed(CalibrationUse::kSecondMoments, 96), 96);
  EXPECT_EQ(too_few_rows(CalibrationUse::kSecondMoments, 96, 96, "gptq"), "");
  EXPECT_EQ(
      too_few_rows(CalibrationUse::kSecondMoments, 95, 96, "gptq"),
      "calibrated on 95 tokens for 96 inputs, whose second moments they do not determine: at least 96 are "
      "needed for gptq, better 384");
  EXPECT_EQ(too_few_rows(CalibrationUse::kRanges, 512, 4096, "activation bits"), "");
  EXPECT_EQ(too_few_rows(CalibrationUse::kRanges, 511, 4096, "activation bits"),
            "calibrated on 511 tokens: at least 512 are needed for activation bits, better 2048");
}

TEST_F(CalibrationFiles, AreBoundToTheirModel) {
  EXPECT_EQ(open_calibration(path_, model_)->fingerprint(), "");  // saved without one
  EXPECT_NO_THROW(open_calibration(path_, model_, "0123456789abcdef"));
  const auto file = open_calibration(path_, model_);
  const std::filesystem::path bound = dir_.path() / "bound.safetensors";
  save_calibration(bound, *file, model_, "0123456789abcdef");
  EXPECT_EQ(open_calibration(bound, model_, "0123456789abcdef")->fingerprint(), "0123456789abcdef");
  EXPECT_EQ(open_calibration(bound, model_)->fingerprint(), "0123456789abcdef");
  BITNET_EXPECT_ERROR(
      open_calibration(bound, model_, "0123456789abcdee"), ErrorCode::kInvalidArgument,
      "made with another model of the same sizes (fingerprint 0123456789abcdef, this one's is "
      "0123456789abcdee), whose inputs say little of this one's: calibrate with this model");
  const auto a = open_calibration(bound, model_, "0123456789abcdef")->find({TensorRole::kFfnDown, 1});
  const auto b = file->find({TensorRole::kFfnDown, 1});
  EXPECT_TRUE(
      std::equal(a->hessian.values().begin(), a->hessian.values().end(), b->hessian.values().begin()));
}

TEST_F(CalibrationFiles, OfVersionOneAreRead) {
  std::string text = bytes();
  const std::string now = "\"fingerprint\":\"\",\"format\":\"bitnet-calibration\",\"format_version\":\"2\"";
  const std::size_t at = text.find(now);
  ASSERT_NE(at, std::string::npos) << text.substr(0, 300);
  const std::string then = "\"format\":\"bitnet-calibration\",\"format_version\":\"1\"";
  text.replace(at, now.size(), std::string(now.size() - then.size(), ' ') + then);
  write_file(path_, text);
  const auto file = open_calibration(path_, model_, "0123456789abcdef");
  EXPECT_EQ(file->fingerprint(), "");
  for (const TensorId id : linear_inputs(model_)) EXPECT_EQ(file->find(id)->statistics.rows, 70);
}

TEST_F(CalibrationFiles, DamageIsFound) {
  std::string text = bytes();
  ASSERT_GT(text.size(), 100000u);
  text[text.size() / 2] ^= 1;
  expect_damage(text, ErrorCode::kCorruptFile, "is damaged: its checksum does not agree");
  text[text.size() / 2] ^= 1;
  const auto replaced = [&](const std::string& from, const std::string& to) {
    std::string t = text;
    t.replace(t.find(from), from.size(), to);
    return t;
  };
  expect_damage(replaced("\"format_version\":\"2\"", "\"format_version\":\"7\""), ErrorCode::kUnsupported,
                "version '7', expected 1 or 2");
  expect_damage(replaced("\"fingerprint\"", "\"fingerprinT\""), ErrorCode::kCorruptFile,
                "expected the metadata 'fingerprint'");
  expect_damage(replaced("bitnet-calibration", "bitnet-calibratioN"), ErrorCode::kCorruptFile, "'format'");
  expect_damage(replaced("layers 2", "layers 3"), ErrorCode::kInvalidArgument, "made for another model");
  expect_damage(replaced("blk.1.ffn_down.weight.hessian", "blk.1.ffn_dowm.weight.hessian"),
                ErrorCode::kCorruptFile, "expected a tensor 'blk.1.ffn_down.weight.hessian', F64 [4656]");
  expect_damage(text.substr(0, text.size() - 9), ErrorCode::kCorruptFile, "");
  BITNET_EXPECT_ERROR(open_calibration(dir_.path() / "none", model_), ErrorCode::kNotFound, "none");
}

}  // namespace
}  // namespace bitnet::quant
