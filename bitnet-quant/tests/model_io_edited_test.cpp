// Models whose tensors another program changed: quantised embeddings, scale tensors, and everything that is
// refused by name. Round trips are model_io_test.cpp.
#include <algorithm>
#include <cmath>

#include "bitnet/core/error.hpp"
#include "bitnet/core/io/atomic_file.hpp"
#include "bitnet/core/io/gguf.hpp"
#include "bitnet/core/io/safetensors.hpp"
#include "bitnet/testing/testing.hpp"
#include "model_io_support.hpp"

namespace bitnet::quant {
namespace {

using bitnet::testing::TempDir;
using ::testing::HasSubstr;
using testing::Linears;
using testing::MemoryModel;
using testing::rows_are_those_of_read;
using testing::small_config;

class ModelIoEdited : public ::testing::Test {
 protected:
  TempDir dir_;
  int n_ = 0;
};

WriteOptions options_of(LinearType type) {
  WriteOptions o;
  o.type = type;
  return o;
}

/// A GGUF model rewritten with some tensors' types and bytes, or keys, changed.
struct Edit {
  std::string tensor;
  GgmlType type;
  std::vector<std::byte> bytes;
};
void rewrite(const std::filesystem::path& from, const std::filesystem::path& to,
             const std::vector<Edit>& edits, const std::vector<GgufTensorInfo>& added = {}) {
  const auto file = GgufFile::open(from);
  std::vector<GgufTensorInfo> infos(file->tensors().begin(), file->tensors().end());
  const auto edit_of = [&](const std::string& name) {
    const Edit* found = nullptr;
    for (const Edit& e : edits)
      if (e.tensor == name) found = &e;
    return found;
  };
  for (auto& info : infos)
    if (const Edit* e = edit_of(info.name)) info.type = e->type;
  infos.insert(infos.end(), added.begin(), added.end());
  GgufWriter writer(to, file->metadata(), infos);
  for (const auto& info : infos) {
    const Edit* e = edit_of(info.name);
    if (e)
      writer.write(info.name, e->bytes);
    else
      writer.write(info.name, file->data(*file->find(info.name)));
  }
  writer.finish();
}

std::vector<std::byte> float_bytes(float v) {
  std::vector<std::byte> b(sizeof(v));
  std::memcpy(b.data(), &v, sizeof(v));
  return b;
}

TEST_F(ModelIoEdited, QuantisedEmbeddingsAndScaleTensors) {
  const ModelConfig config = small_config(ModelFamily::kBitNet25);
  const MemoryModel model(config, Linears::kTernary);
  write_model(dir_ / "a.gguf", config, nullptr, model.source(), options_of(LinearType::kI2_S));
  std::vector<std::byte> q8(7 * 256 / 32 * 34);
  for (std::size_t i = 0; i < q8.size(); ++i)
    q8[i] = static_cast<std::byte>(i % 34 < 2 ? (i % 34 ? 0x38 : 0) : i * 5);
  rewrite(
      dir_ / "a.gguf", dir_ / "b.gguf",
      {{"token_embd.weight", GgmlType::kQ8_0, q8}, {"blk.1.attn_q.scale", GgmlType::kF32, float_bytes(0.5f)}},
      {{"blk.1.attn_q.scale", {1}, GgmlType::kF32, 0, 0}});
  const auto reader = ModelReader::open(dir_ / "b.gguf");
  const TensorId embed{TensorRole::kTokenEmbedding, -1}, q{TensorRole::kAttnQ, 1};
  EXPECT_EQ(reader->stored_type(embed), "Q8_0");
  EXPECT_EQ(reader->float_type(embed), DType::kF32);
  EXPECT_EQ(reader->float_type(q), std::nullopt);
  EXPECT_FALSE(reader->float_linears());
  EXPECT_EQ(reader->read(embed).to_f32()[5], 0.5f * static_cast<float>(static_cast<std::int8_t>(7 * 5)));
  EXPECT_EQ(reader->read(q).weights.scales[0], model[q].weights.scales[0] * 0.5f);
  EXPECT_TRUE(rows_are_those_of_read(*reader, embed, 3));
  EXPECT_TRUE(rows_are_those_of_read(*reader, q, 100));
  EXPECT_EQ(reader->stored_bytes(q), 256u * 256 / 4 + 32 + 4);
  EXPECT_TRUE(reader->notes().empty());
  BITNET_EXPECT_ERROR(reader->read({TensorRole::kAttnQ, 9}), ErrorCode::kNotFound, "blk.9.attn_q.weight");
}

TEST_F(ModelIoEdited, WhatAGgufCannotBeReadForIsRefused) {
  const ModelConfig config = small_config(ModelFamily::kBitNet25);
  const MemoryModel model(config, Linears::kTernary);
  write_model(dir_ / "a.gguf", config, nullptr, model.source(), options_of(LinearType::kI2_S));
  const auto file = GgufFile::open(dir_ / "a.gguf");
  const auto data = file->data(*file->find("blk.0.ffn_up.weight"));
  std::vector<std::byte> broken(data.begin(), data.end());
  broken[100] = std::byte{0xff};
  rewrite(dir_ / "a.gguf", dir_ / "b.gguf", {{"blk.0.ffn_up.weight", GgmlType::kI2_S, broken}});
  BITNET_EXPECT_ERROR(ModelReader::open(dir_ / "b.gguf")->read({TensorRole::kFfnUp, 0}),
                      ErrorCode::kCorruptFile, "byte 100 holds code 3");
  std::vector<std::byte> implausible(data.begin(), data.end());
  const float huge = 500.0f;
  std::memcpy(implausible.data() + implausible.size() - 32, &huge, sizeof(huge));
  rewrite(dir_ / "a.gguf", dir_ / "c.gguf", {{"blk.0.ffn_up.weight", GgmlType::kI2_S, implausible}});
  EXPECT_THAT(ModelReader::open(dir_ / "c.gguf")->notes().at(0), HasSubstr("implausible"));
  rewrite(dir_ / "a.gguf", dir_ / "d.gguf", {{"blk.0.attn_q.bias", GgmlType::kF32, float_bytes(0)}},
          {{"blk.0.attn_q.bias", {1}, GgmlType::kF32, 0, 0}});
  BITNET_EXPECT_ERROR(ModelReader::open(dir_ / "d.gguf"), ErrorCode::kUnsupported, "biases");
  rewrite(dir_ / "a.gguf", dir_ / "e.gguf", {{"extra", GgmlType::kF32, float_bytes(0)}},
          {{"extra", {1}, GgmlType::kF32, 0, 0}});
  EXPECT_THAT(ModelReader::open(dir_ / "e.gguf")->notes().at(0), HasSubstr("extra"));
}

TEST_F(ModelIoEdited, ScalesOfZeroAndBelow) {
  const ModelConfig config = small_config(ModelFamily::kBitNet25);
  const TensorId up{TensorRole::kFfnUp, 0};
  MemoryModel model(config, Linears::kTernary);
  std::fill(model[up].weights.trits.begin(), model[up].weights.trits.end(), std::int8_t{0});
  model[up].weights.scales = {0.0f};
  write_model(dir_ / "zero.gguf", config, nullptr, model.source(), options_of(LinearType::kTQ2_0));
  const auto reader = ModelReader::open(dir_ / "zero.gguf");
  EXPECT_EQ(reader->read(up).weights.trits, model[up].weights.trits);
  for (const auto form : {WeightScaleForm::kMultiply, WeightScaleForm::kDivide}) {
    WriteOptions options = options_of(LinearType::kHf);
    options.scale_form = form;
    const auto path = dir_ / ("z" + std::to_string(++n_));
    write_model(
        path, config, nullptr, [&](TensorId id) { return reader->read(id); }, options);
    EXPECT_EQ(ModelReader::open(path)->read(up).weights.trits, model[up].weights.trits);
  }
  model[up].weights.trits[5] = 1;
  BITNET_EXPECT_ERROR(write_model(dir_ / "no", config, nullptr, model.source(), options_of(LinearType::kHf)),
                      ErrorCode::kUnsupported, "the scale 0 cannot be stored");
  write_model(dir_ / "a.gguf", config, nullptr, model.source(), options_of(LinearType::kI2_S));
  const auto file = GgufFile::open(dir_ / "a.gguf");
  const auto data = file->data(*file->find("blk.0.ffn_up.weight"));
  std::vector<std::byte> negative(data.begin(), data.end());
  const float below = -0.5f;
  std::memcpy(negative.data() + negative.size() - 32, &below, sizeof(below));
  rewrite(dir_ / "a.gguf", dir_ / "b.gguf", {{"blk.0.ffn_up.weight", GgmlType::kI2_S, negative}});
  BITNET_EXPECT_ERROR(ModelReader::open(dir_ / "b.gguf")->read(up), ErrorCode::kCorruptFile, "got -0.5");
}

TEST_F(ModelIoEdited, TypesOfTheForksAreRefusedByName) {
  // The type id sits behind the name and two dims in the tensor's index entry.
  for (const auto& [family, name] :
       {std::pair(ModelFamily::kBitNet25, "TL2"), std::pair(ModelFamily::kLlama, "MXFP4")}) {
    const ModelConfig config = small_config(family);
    const MemoryModel model(config, Linears::kTernary);
    write_model(dir_ / "a.gguf", config, nullptr, model.source(), options_of(LinearType::kI2_S));
    std::string bytes = read_file(dir_ / "a.gguf");
    const std::string tensor = "blk.0.attn_q.weight";
    const std::size_t at = bytes.find(tensor) + tensor.size() + 4 + 16;
    ASSERT_EQ(bytes[at], 36);
    bytes[at] = 39;
    write_file(dir_ / "b.gguf", bytes);
    BITNET_EXPECT_ERROR(ModelReader::open(dir_ / "b.gguf"), ErrorCode::kUnsupported, name);
    bytes[at] = 38;
    write_file(dir_ / "b.gguf", bytes);
    BITNET_EXPECT_ERROR(ModelReader::open(dir_ / "b.gguf"), ErrorCode::kUnsupported, "TL1");
  }
}

/// `model` with its ternary linears as floats: what converters write of a model that is ternary already.
std::function<LogicalTensor(TensorId)> dequantised(const MemoryModel& model) {
  return [&model](TensorId id) {
    LogicalTensor t = model[id];
    if (!t.ternary) return t;
    const std::vector<float> values = t.to_f32();
    t.dense.resize(values.size() * sizeof(float));
    std::memcpy(t.dense.data(), values.data(), t.dense.size());
    t.ternary = false;
    t.weights = {};
    return t;
  };
}

/// The trits of `model` and its scales through `scale`: the model as if it had been stored packed.
template <class Scale>
void expect_linears(const ModelReader& reader, const MemoryModel& model, Scale&& scale) {
  for (const TensorId id : reader.tensors()) {
    if (!is_linear(id.role)) continue;
    SCOPED_TRACE(gguf_name(id) + " " + reader.stored_type(id));
    const LogicalTensor got = reader.read(id);
    ASSERT_TRUE(got.ternary);
    EXPECT_EQ(got.weights.trits, model[id].weights.trits);
    EXPECT_EQ(got.weights.scales, std::vector<float>{scale(model[id].weights.scales[0])});
  }
}

TEST_F(ModelIoEdited, TritsStoredAsFloatsKeepTheirScale) {
  const ModelConfig config = small_config(ModelFamily::kBitNet25);
  const MemoryModel model(config, Linears::kTernary);
  WriteOptions options = options_of(LinearType::kDense);
  for (const bool gguf : {true, false}) {
    for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
      options.gguf = gguf;
      options.dense_type = dtype;
      const auto path = dir_ / ("f" + std::to_string(++n_));
      write_model(path, config, nullptr, dequantised(model), options);
      expect_linears(*ModelReader::open(path), model, [&](float s) {
        return dtype == DType::kF32   ? s
               : dtype == DType::kF16 ? f16_to_f32(f32_to_f16(s))
                                      : bf16_to_f32(f32_to_bf16(s));
      });
    }
  }
}

/// As llama.cpp's converter and quantiser leave a BitNet: floats in Q8_0, rotary scaling "linear" by 1.
TEST_F(ModelIoEdited, AnotherConvertersFloatModel) {
  const ModelConfig config = small_config(ModelFamily::kBitNetOld);
  const MemoryModel model(config, Linears::kTernary);
  write_model(dir_ / "a.gguf", config, nullptr, dequantised(model), options_of(LinearType::kDense));
  const auto file = GgufFile::open(dir_ / "a.gguf");
  GgufMetadata metadata = file->metadata();
  metadata.set_string("bitnet.rope.scaling.type", "linear");
  metadata.set_f32("bitnet.rope.scaling.factor", 1.0f);
  std::vector<GgufTensorInfo> infos(file->tensors().begin(), file->tensors().end());
  const auto linear = [](const GgufTensorInfo& info) {
    return is_linear(tensor_from_gguf_name(info.name).value().role);
  };
  for (auto& info : infos)
    if (linear(info)) info.type = GgmlType::kQ8_0;
  GgufWriter writer(dir_ / "b.gguf", metadata, infos);
  for (const auto& info : infos) {
    if (!linear(info)) {
      writer.write(info.name, file->data(*file->find(info.name)));
      continue;
    }
    const TernaryWeights& w = model[tensor_from_gguf_name(info.name).value()].weights;
    std::vector<std::byte> blocks;
    for (std::size_t i = 0; i < w.trits.size(); i += 32) {
      const std::uint16_t d = f32_to_f16(w.scales[0] / 127.0f);
      blocks.push_back(static_cast<std::byte>(d & 0xff));
      blocks.push_back(static_cast<std::byte>(d >> 8));
      for (std::size_t j = 0; j < 32; ++j) blocks.push_back(static_cast<std::byte>(w.trits[i + j] * 127));
    }
    writer.write(info.name, blocks);
  }
  writer.finish();
  const auto reader = ModelReader::open(dir_ / "b.gguf");
  EXPECT_THAT(reader->notes().at(0), HasSubstr("14 float linears are ternarised"));
  expect_linears(*reader, model, [](float s) { return 127.0f * f16_to_f32(f32_to_f16(s / 127.0f)); });
  for (const TensorId id : reader->tensors()) EXPECT_TRUE(rows_are_those_of_read(*reader, id, 5));
  EXPECT_TRUE(reader->float_linears());
  const TensorId q{TensorRole::kAttnQ, 0};
  EXPECT_EQ(reader->float_type(q), std::nullopt);
  EXPECT_EQ(ModelReader::open(dir_ / "b.gguf", FloatLinears::kKeep)->float_type(q), DType::kF32);
}

/// A Hugging Face directory with one tensor replaced, dropped (no bytes and dtype kOther) or added.
void edit_hf(const std::filesystem::path& dir, const std::string& name, const SafeTensorInfo& info,
             const std::vector<std::byte>& bytes) {
  const auto file = SafeTensors::open(dir);
  std::vector<SafeTensorInfo> infos;
  for (const auto& t : file->tensors())
    if (t.name != name) infos.push_back(t);
  if (info.dtype != SafeDType::kOther) infos.push_back(info);
  SafeTensorsWriter writer(dir / "model.safetensors", infos);
  for (const auto& t : infos)
    writer.write(t.name, t.name == info.name ? std::span(bytes) : file->data(*file->find(t.name)));
  writer.finish();
}

TEST_F(ModelIoEdited, WhatADirectoryCannotBeReadForIsRefused) {
  const ModelConfig config = small_config(ModelFamily::kBitNet25, false);
  const MemoryModel model(config, Linears::kTernary);
  const std::string q = "model.layers.0.self_attn.q_proj.weight";
  const auto edited = [&](const std::string& name, const SafeTensorInfo& info, std::vector<std::byte> bytes) {
    const auto dir = dir_ / ("e" + std::to_string(++n_));
    write_model(dir, config, nullptr, model.source(), options_of(LinearType::kHf));
    edit_hf(dir, name, info, bytes);
    return ModelReader::open(dir);
  };
  const auto drop = [&](const std::string& name) {
    return edited(name, {name, SafeDType::kOther, {}, 0, 0, 0}, {});
  };
  const auto scale = [&](float v) {
    return edited(q + "_scale", {q + "_scale", SafeDType::kF32, {1}, 0, 0, 0}, float_bytes(v));
  };
  BITNET_EXPECT_ERROR(drop(q), ErrorCode::kCorruptFile, "expected the tensor '" + q);
  BITNET_EXPECT_ERROR(drop(q + "_scale"), ErrorCode::kCorruptFile, "weight_scale");
  BITNET_EXPECT_ERROR(scale(0.0f), ErrorCode::kCorruptFile, "above 0");
  BITNET_EXPECT_ERROR(scale(std::nanf("")), ErrorCode::kCorruptFile, "above 0");
  EXPECT_THAT(scale(1000.0f)->notes().at(0), HasSubstr("implausible"));
  BITNET_EXPECT_ERROR(edited(q, {q, SafeDType::kU8, {23, 60}, 0, 0, 0}, std::vector<std::byte>(23 * 60)),
                      ErrorCode::kCorruptFile, "expected shape [24, 60]");
  BITNET_EXPECT_ERROR(edited(q, {q, SafeDType::kI8, {96, 60}, 0, 0, 0}, std::vector<std::byte>(96 * 60)),
                      ErrorCode::kUnsupported, "I8");
  BITNET_EXPECT_ERROR(
      edited(q, {q, SafeDType::kU8, {24, 60}, 0, 0, 0}, std::vector<std::byte>(24 * 60, std::byte{0xff}))
          ->read({TensorRole::kAttnQ, 0}),
      ErrorCode::kCorruptFile, "code 3");
  const auto add = [&](const std::string& name) {
    return edited("", {name, SafeDType::kF32, {1}, 0, 0, 0}, float_bytes(1));
  };
  BITNET_EXPECT_ERROR(add("model.layers.0.self_attn.q_proj.bias"), ErrorCode::kUnsupported, "biases");
  BITNET_EXPECT_ERROR(add("model.layers.0.self_attn.q_proj.rms_norm.weight"), ErrorCode::kUnsupported,
                      "norm");
  EXPECT_THAT(add("model.rotary_emb.inv_freq")->notes().at(0), HasSubstr("inv_freq"));
  EXPECT_THAT(add("lm_head.weight")->notes().at(0), HasSubstr("lm_head"));  // tied
}

}  // namespace
}  // namespace bitnet::quant
