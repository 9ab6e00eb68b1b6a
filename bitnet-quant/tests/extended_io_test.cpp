// The safetensors extension: what is written is what is read, as a whole and in rows; what others cannot
// hold, and damage.
#include <cstring>
#include <filesystem>

#include "bitnet/core/io/atomic_file.hpp"
#include "bitnet/core/io/safetensors.hpp"
#include "bitnet/quant/quantizer.hpp"
#include "bitnet/testing/testing.hpp"
#include "memory_reader.hpp"
#include "model_io/extended.hpp"

namespace bitnet::quant {
namespace {

namespace fs = std::filesystem;
using testing::dense_config;
using testing::Linears;
using testing::MemoryModel;
using testing::MemoryReader;

class ExtendedFiles : public ::testing::Test {
 protected:
  /// Every kind of linear there is.
  ExtendedFiles() : reader_(dense_config(), MemoryModel(dense_config(), Linears::kFloat, 3)) {
    config_ = QuantConfig::from_yaml(
        "scheme: mixed_precision\n"
        "weights: {method: ls}\n"
        "layers:\n"
        "  - {match: '*attn_k', method: ls, scales: row}\n"
        "  - {match: '*attn_v', method: ls, scales: group32}\n"
        "  - {match: '*ffn_up', method: two-plane, scales: group64}\n"
        "  - {match: '*ffn_gate', method: two-plane}\n"
        "  - {match: '*ffn_down', method: int8}\n"
        "keep: [blk.1.attn_output]\n",
        "config");
    Quantizer q(context_, reader_, config_);
    for (const TensorId id : model_tensors(reader_.config())) tensors_[gguf_name(id)] = q.read(id);
  }
  void write(const fs::path& to, LinearType type = LinearType::kExtended) {
    WriteOptions options;
    options.type = type;
    options.gguf = false;
    options.dense_type = DType::kF32;
    write_model(
        to, reader_.config(), nullptr, [&](TensorId id) { return tensors_.at(gguf_name(id)); }, options);
  }
  /// Replaces a tensor of a shard by others.
  void edit(const std::string& shard, const std::string& name, std::vector<model_io::NamedBytes> by) {
    const fs::path path = dir_.path() / "m" / shard;
    std::vector<model_io::NamedBytes> all;
    {
      const auto file = SafeTensors::open(path);
      for (const SafeTensorInfo& info : file->tensors()) {
        if (info.name == name) {
          for (auto& b : by) all.push_back(std::move(b));
          by.clear();
          continue;
        }
        const auto bytes = file->data(info);
        all.push_back({info, {bytes.begin(), bytes.end()}});
      }
    }
    model_io::write_named(path, all, {});
  }
  static void same(const TernaryWeights& a, const TernaryWeights& b) {
    EXPECT_EQ(a.trits, b.trits);
    EXPECT_EQ(a.scales, b.scales);
    EXPECT_EQ(a.cols_per_scale, b.cols_per_scale);
    EXPECT_EQ(std::min(a.rows_per_scale, a.out), std::min(b.rows_per_scale, b.out));
  }

  const ExecutionContext context_;
  const MemoryReader reader_;
  QuantConfig config_;
  std::map<std::string, LogicalTensor> tensors_;
  bitnet::testing::TempDir dir_;
};

TEST_F(ExtendedFiles, WhatIsWrittenIsRead) {
  write(dir_.path() / "m");
  EXPECT_TRUE(fs::exists(dir_.path() / "m" / "model-00003-of-00004.safetensors"));
  const auto files = ModelReader::open(dir_.path() / "m");
  EXPECT_EQ(files->config().weights, WeightKind::kDense);
  EXPECT_TRUE(files->notes().empty());
  for (const TensorId id : model_tensors(reader_.config())) {
    SCOPED_TRACE(gguf_name(id));
    const LogicalTensor &expected = tensors_.at(gguf_name(id)), got = files->read(id);
    EXPECT_EQ(got.ternary, expected.ternary);
    EXPECT_EQ(got.planes.has_value(), expected.planes.has_value());
    EXPECT_EQ(got.int8.has_value(), expected.int8.has_value());
    EXPECT_EQ(got.to_f32(), expected.to_f32());
    if (expected.ternary) same(got.weights, expected.weights);
    const TensorRows rows = files->rows(id);
    EXPECT_EQ(rows.int8, expected.int8.has_value());
    if (expected.planes) {
      same(got.planes->first, expected.planes->first);
      same(got.planes->second, expected.planes->second);
      ASSERT_EQ(rows.planes.size(), 2u);
      std::vector<std::int8_t> trits(got.planes->second.trits.size());
      rows.planes[1].trits(0, got.shape[0], trits.data());
      EXPECT_EQ(trits, expected.planes->second.trits);
      EXPECT_EQ(rows.planes[1].scales, expected.planes->second.scales);
    }
    if (expected.int8) {
      EXPECT_EQ(got.int8->values, expected.int8->values);
      EXPECT_EQ(got.int8->scales, expected.int8->scales);
    }
    if (!expected.ternary) {  // who does not know of planes and int8 sees what they stand for
      const std::vector<float> values = expected.to_f32();
      ASSERT_EQ(got.dense.size(), values.size() * sizeof(float));
      EXPECT_EQ(std::memcmp(got.dense.data(), values.data(), got.dense.size()), 0);
      if (id.layer >= 0 && is_linear(id.role)) {
        std::vector<float> part(values.size() / static_cast<std::size_t>(got.shape[0]) * 3);
        rows.dense(2, 5, reinterpret_cast<std::byte*>(part.data()));
        const auto at = static_cast<std::ptrdiff_t>(2 * part.size() / 3);
        EXPECT_TRUE(std::equal(part.begin(), part.end(), values.begin() + at));
      }
    }
  }
  EXPECT_EQ(files->stored_type({TensorRole::kFfnUp, 0}), "U8 packed, two planes");
  EXPECT_EQ(files->stored_bytes({TensorRole::kFfnDown, 0}), 64u * 96 + 64 * 4);
  EXPECT_EQ(files->stored_bytes({TensorRole::kFfnUp, 0}), 2 * (24u * 64 + 96 * 4));
}

TEST_F(ExtendedFiles, ActivationsOfFourBits) {
  write(dir_.path() / "eight");
  EXPECT_NE(read_file(dir_.path() / "eight" / "config.json").find("\"format_version\": 1"),
            std::string::npos);
  const auto eight = ModelReader::open(dir_.path() / "eight");
  const TensorId q{TensorRole::kAttnQ, 0}, up{TensorRole::kFfnUp, 0}, down{TensorRole::kFfnDown, 0};
  EXPECT_EQ(eight->read(q).activations, ActivationForm::kInt8);
  tensors_[gguf_name(q)].activations = tensors_[gguf_name(down)].activations = ActivationForm::kInt4Absmax;
  tensors_[gguf_name(up)].activations = ActivationForm::kInt4Absmean;
  write(dir_.path() / "m");
  const fs::path config = dir_.path() / "m" / "config.json";
  std::string text = read_file(config);
  const std::size_t version = text.find("\"format_version\": 2");
  ASSERT_NE(version, std::string::npos);
  const auto files = ModelReader::open(dir_.path() / "m");
  EXPECT_TRUE(files->notes().empty());
  EXPECT_TRUE(files->extended_linears());
  for (const TensorId id : model_tensors(reader_.config())) {
    const ActivationForm expected = tensors_.at(gguf_name(id)).activations;
    EXPECT_EQ(files->read(id).activations, expected);
    EXPECT_EQ(files->rows(id).activations, expected);
    if (is_linear(id.role)) {
      EXPECT_EQ(files->rows(id).weights().activations, expected);
    }
  }
  EXPECT_EQ(files->read(up).to_f32(), eight->read(up).to_f32());
  EXPECT_EQ(files->stored_type(q), "U8 packed, 4-bit activations");
  // What would make a reader compute something else is an error.
  text.replace(version, 19, "\"format_version\": 1");
  write_file(config, text);
  BITNET_EXPECT_ERROR(ModelReader::open(dir_.path() / "m"), ErrorCode::kCorruptFile,
                      "weight_activation' needs format_version 2, config.json says 1");
  const std::string shard = "model-00002-of-00004.safetensors", layer = "model.layers.0.";
  const auto form = [](std::string name, std::uint8_t value) {
    model_io::NamedBytes n;
    n.info.name = std::move(name);
    n.info.dtype = SafeDType::kU8;
    n.info.shape = {1};
    n.bytes = {std::byte{value}};
    return std::vector<model_io::NamedBytes>{std::move(n)};
  };
  const std::string name = layer + "self_attn.q_proj.weight_activation";
  for (const std::uint8_t value : {0, 3}) {
    fs::remove_all(dir_.path() / "m");
    write(dir_.path() / "m");
    edit(shard, name, form(name, value));
    BITNET_EXPECT_ERROR(ModelReader::open(dir_.path() / "m"), ErrorCode::kCorruptFile,
                        "expected one U8, 1 (4");
  }
  const TensorId kept{TensorRole::kAttnOutput, 1};
  tensors_[gguf_name(kept)].activations = ActivationForm::kInt4Absmax;
  BITNET_EXPECT_ERROR(write(dir_.path() / "f"), ErrorCode::kInvalidArgument,
                      "activations of 4 bits for a linear of floats");
  tensors_[gguf_name(kept)].activations = ActivationForm::kInt8;
  for (auto& [n, t] : tensors_)
    if (n != gguf_name(q)) t.activations = ActivationForm::kInt8;
  BITNET_EXPECT_ERROR(write(dir_.path() / "h", LinearType::kHf), ErrorCode::kUnsupported,
                      "activations of 4 bits are held by the type extended alone");
}

TEST_F(ExtendedFiles, OtherTypesRefuseWithTheReason) {
  BITNET_EXPECT_ERROR(write(dir_.path() / "h", LinearType::kHf), ErrorCode::kUnsupported,
                      "holds one scale a matrix");
  write(dir_.path() / "m");
  BITNET_EXPECT_ERROR(write(dir_.path() / "m"), ErrorCode::kInvalidArgument, "another model");
  const auto files = ModelReader::open(dir_.path() / "m");
  WriteOptions options;
  options.type = LinearType::kDense;
  const auto convert = [&] {
    write_model(
        dir_.path() / "d.gguf", files->config(), nullptr, [&](TensorId id) { return files->read(id); },
        options);
  };
  BITNET_EXPECT_ERROR(convert(), ErrorCode::kUnsupported, "blk.0.attn_q.weight");
  for (auto& [name, t] : tensors_)
    if (t.ternary || t.planes) {
      t.dense.resize(static_cast<std::size_t>(t.shape.numel()) * 4);
      t.ternary = false;
      t.planes.reset();
    }
  WriteOptions dense;
  dense.type = LinearType::kDense;
  const auto int8 = [&] {
    write_model(
        dir_.path() / "d.gguf", reader_.config(), nullptr,
        [&](TensorId id) { return tensors_.at(gguf_name(id)); }, dense);
  };
  BITNET_EXPECT_ERROR(int8(), ErrorCode::kUnsupported, "a linear of int8 is held by the type extended alone");
}

TEST_F(ExtendedFiles, DamageIsAnErrorThatNamesTheTensor) {
  const std::string shard = "model-00002-of-00004.safetensors", prefix = "model.layers.0.";
  const auto f32 = [](std::string name, std::vector<std::int64_t> shape, std::vector<float> values) {
    model_io::NamedBytes n;
    n.info.name = std::move(name);
    n.info.dtype = SafeDType::kF32;
    n.info.shape = std::move(shape);
    n.bytes.resize(values.size() * 4);
    std::memcpy(n.bytes.data(), values.data(), n.bytes.size());
    return std::vector<model_io::NamedBytes>{std::move(n)};
  };
  const auto expect = [&](const std::string& name, std::vector<model_io::NamedBytes> by,
                          const char* message) {
    fs::remove_all(dir_.path() / "m");
    write(dir_.path() / "m");
    edit(shard, name, std::move(by));
    BITNET_EXPECT_ERROR(ModelReader::open(dir_.path() / "m"), ErrorCode::kCorruptFile, message);
  };
  const std::string q = prefix + "self_attn.q_proj.weight_scale",
                    down = prefix + "mlp.down_proj.weight_scale";
  expect(q, f32(q, {1, 1}, {-1}), "expected finite scales of at least 0, got -1");
  expect(q, f32(q, {1, 7}, std::vector<float>(7, 1)), "expected F32 [1 or rows, 1 or groups of columns]");
  expect(q, f32(q, {64, 7}, std::vector<float>(64 * 7, 1)), "q_proj.weight_scale");
  expect(down, f32(down, {1, 1}, {1}), "expected F32 [rows, 1]");
  const std::string up = prefix + "mlp.up_proj.weight_plane2_scale";
  expect(up, f32(up, {5, 1}, std::vector<float>(5, 1)), "weight_plane2_scale");
  fs::remove_all(dir_.path() / "m");
  write(dir_.path() / "m");
  const fs::path config = dir_.path() / "m" / "config.json";
  std::string text = read_file(config);
  text.replace(text.find("\"format_version\": 1"), 19, "\"format_version\": 3");
  write_file(config, text);
  BITNET_EXPECT_ERROR(ModelReader::open(dir_.path() / "m"), ErrorCode::kUnsupported, "format_version");
}

}  // namespace
}  // namespace bitnet::quant
