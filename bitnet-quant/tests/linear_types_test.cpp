// Which types of files hold which linears, and what is found before a model is written.
#include "bitnet/quant/linear_types.hpp"

#include <fstream>

#include "bitnet/testing/testing.hpp"
#include "contexts.hpp"
#include "memory_reader.hpp"

namespace bitnet::quant {
namespace {

using bitnet::testing::TempDir;
using testing::dense_config;

TensorRows kind(std::int64_t out, std::int64_t in, std::size_t scales, std::int64_t cols_per_scale = 0) {
  TensorRows r;
  r.shape = Shape{out, in};
  r.ternary = true;
  for (std::size_t i = 0; i < scales; ++i) r.scales.push_back(1 + static_cast<float>(i));
  r.rows_per_scale = scales == 1 ? out : 1;
  r.cols_per_scale = cols_per_scale;
  return r;
}

/// The names of the types that hold it.
std::string held_by(const TensorRows& linear, ScaleValues values = ScaleValues::kStay) {
  std::string names;
  for (const LinearType type : {LinearType::kHf, LinearType::kI2_S, LinearType::kTQ1_0, LinearType::kTQ2_0,
                                LinearType::kDense, LinearType::kExtended})
    if (why_not_held(linear, type, values).empty()) names += std::string(to_string(type)) + " ";
  return names;
}

TEST(LinearTypes, HoldWhatTheirLayoutsHold) {
  EXPECT_EQ(held_by(kind(8, 512, 1)), "hf i2_s tq1_0 tq2_0 extended ");
  EXPECT_EQ(held_by(kind(8, 128, 1)), "hf i2_s extended ");
  EXPECT_EQ(held_by(kind(8, 96, 1)), "hf extended ");
  EXPECT_EQ(held_by(kind(8, 512, 8)), "tq1_0 tq2_0 extended ");
  EXPECT_EQ(held_by(kind(8, 512, 16, 256)), "tq1_0 tq2_0 extended ");
  EXPECT_EQ(held_by(kind(8, 512, 32, 128)), "extended ");
  TensorRows other = kind(8, 512, 1);
  other.activations = ActivationForm::kInt4Absmax;
  EXPECT_EQ(held_by(other), "extended ");
  other = kind(8, 512, 1);
  other.ternary = false;
  EXPECT_EQ(held_by(other), "dense extended ");
  other.int8 = true;
  EXPECT_EQ(held_by(other), "extended ");
  other.int8 = false;
  other.planes = {kind(8, 512, 1), kind(8, 512, 1)};
  EXPECT_EQ(held_by(other), "extended ");
  EXPECT_EQ(why_not_held(other, LinearType::kI2_S), "i2_s holds no two ternary planes");
}

TEST(LinearTypes, ScalesThatAreEqualNowMayDifferAfterATraining) {
  TensorRows equal = kind(8, 512, 8);
  equal.scales.assign(8, 0.5f);
  EXPECT_EQ(held_by(equal), "hf i2_s tq1_0 tq2_0 extended ");
  EXPECT_EQ(held_by(equal, ScaleValues::kChange), "tq1_0 tq2_0 extended ");
  EXPECT_EQ(held_by(kind(8, 512, 1), ScaleValues::kChange), "hf i2_s tq1_0 tq2_0 extended ");
}

TEST(LinearTypes, WhatAModelCannotBeWrittenAsIsFoundBeforeATensorIsAskedFor) {
  const TempDir dir;
  const ModelConfig config = dense_config();
  const auto expect = [&](const std::filesystem::path& path, WriteOptions options, ErrorCode code,
                          const char* message) {
    BITNET_EXPECT_ERROR(check_write(path, config, nullptr, options), code, message);
    BITNET_EXPECT_ERROR(write_model(
                            path, config, nullptr,
                            [](TensorId) -> LogicalTensor {
                              ADD_FAILURE() << "a tensor was asked for";
                              return {};
                            },
                            options),
                        code, message);
  };
  const WriteOptions hf{.type = LinearType::kHf, .gguf = false};
  expect(dir.path() / "m.gguf", {.type = LinearType::kTQ1_0}, ErrorCode::kUnsupported,
         "tq1_0 holds multiples of 256 only; types that would do: hf");
  expect(dir.path() / "m.gguf", {.dense_type = DType::kI8}, ErrorCode::kInvalidArgument,
         "expected f32, f16 or bf16");
  const auto place = [&](const char* name, const char* inside) {
    std::filesystem::create_directories(dir.path() / name);
    std::ofstream(dir.path() / name / inside) << "x";
    return dir.path() / name;
  };
  expect(place("shards", "model-00001-of-00002.safetensors"), hf, ErrorCode::kInvalidArgument,
         "the directory holds another model's 'model-00001-of-00002.safetensors'");
  expect(place("index", "model.safetensors.index.json"), hf, ErrorCode::kInvalidArgument,
         "holds another model's");
  WriteOptions several = hf;
  several.shard_bytes = 1;
  expect(place("used", "notes.txt"), several, ErrorCode::kInvalidArgument, "is not empty");
  expect(place("used", "notes.txt"), {.type = LinearType::kExtended}, ErrorCode::kInvalidArgument,
         "is not empty");
  expect(dir.path() / "used" / "notes.txt", hf, ErrorCode::kInvalidArgument, "is not a directory");
  check_write(dir.path() / "used", config, nullptr, hf);  // beside other files one file more is fine
  check_write(dir.path() / "new", config, nullptr, several);
}

}  // namespace
}  // namespace bitnet::quant
