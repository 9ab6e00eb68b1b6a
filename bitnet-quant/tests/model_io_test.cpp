// Whole models written and read back in every type, the models of an independent implementation in
// tests/data/models, and what is refused. How files are replaced is model_io_writing_test.cpp, damaged model
// files are model_io_damage_test.cpp.
#include "bitnet/quant/model_io.hpp"

#include <cmath>
#include <set>

#include "bitnet/core/error.hpp"
#include "bitnet/core/io/atomic_file.hpp"
#include "bitnet/core/io/gguf.hpp"
#include "bitnet/core/io/safetensors.hpp"
#include "bitnet/core/text/bpe_trainer.hpp"
#include "bitnet/testing/testing.hpp"
#include "model_io/stored_tensor.hpp"
#include "model_io_fixture.hpp"

namespace bitnet::quant {
namespace {

using bitnet::testing::source_path;
using bitnet::testing::TempDir;
using ::testing::HasSubstr;
using testing::Linears;
using testing::MemoryModel;
using ::testing::Not;
using testing::rows_are_those_of_read;
using testing::small_config;

TEST_F(ModelIo, TernaryRoundTripInEveryTypeAndFamily) {
  for (const ModelFamily family : kFamilies) {
    const ModelConfig config = small_config(family);
    const MemoryModel model(config, Linears::kTernary);
    for (const LinearType type :
         {LinearType::kHf, LinearType::kI2_S, LinearType::kTQ1_0, LinearType::kTQ2_0}) {
      const auto reader = round_trip(config, model, options_of(type));
      EXPECT_EQ(reader->format(), type == LinearType::kHf ? ModelFormat::kHf : ModelFormat::kGguf);
      expect_config(reader->config(), config);
      const bool half = type == LinearType::kTQ1_0 || type == LinearType::kTQ2_0;
      expect_tensors(*reader, model, [&](float s) { return half ? kHalf(s) : s; });
      EXPECT_TRUE(reader->notes().empty()) << reader->notes()[0];
      EXPECT_EQ(reader->tokenizer(), nullptr);
      EXPECT_GT(reader->file_bytes(), 0u);
    }
  }
}

TEST_F(ModelIo, DivideFormHoldsTheInverse) {
  const ModelConfig config = small_config(ModelFamily::kLlama, false);
  const MemoryModel model(config, Linears::kTernary);
  WriteOptions options = options_of(LinearType::kHf);
  options.scale_form = WeightScaleForm::kDivide;
  const auto reader = round_trip(config, model, options);
  EXPECT_EQ(reader->config().scale_form, WeightScaleForm::kDivide);
  expect_tensors(*reader, model, [](float s) { return 1.0f / (1.0f / s); });
}

TEST_F(ModelIo, OddSizesAsHuggingFace) {
  for (const ModelFamily family : kFamilies) {
    const ModelConfig config = small_config(family, false);
    const MemoryModel model(config, Linears::kTernary);
    const auto reader = round_trip(config, model, options_of(LinearType::kHf));
    expect_tensors(*reader, model, kSame);
    EXPECT_EQ(reader->stored_type({TensorRole::kAttnQ, 0}), "U8 packed");
    EXPECT_EQ(reader->stored_bytes({TensorRole::kAttnQ, 0}), 24u * 60 + 4);
  }
}

TEST_F(ModelIo, DenseRoundTrip) {
  ModelConfig config = small_config(ModelFamily::kLlama, false);
  config.weights = WeightKind::kDense;
  const MemoryModel model(config, Linears::kFloat);
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    for (const bool gguf : {true, false}) {
      WriteOptions options = options_of(LinearType::kDense, gguf);
      options.dense_type = dtype;
      options.norm_type = gguf ? DType::kF32 : dtype;
      const auto reader = round_trip(config, model, options);
      expect_config(reader->config(), config);
      expect_tensors(*reader, model, kSame);
      EXPECT_EQ(reader->read({TensorRole::kAttnQ, 1}).dtype, dtype);
    }
  }
}

TEST_F(ModelIo, LatentWeightsAreTernarisedWhereTheConfigSaysBitNet) {
  for (const ModelFamily family : {ModelFamily::kBitNet25, ModelFamily::kBitNetOld}) {
    const ModelConfig config = small_config(family, false);
    const MemoryModel model(config, Linears::kFloat);
    const TensorId id{TensorRole::kFfnDown, 1};
    for (const bool gguf : {true, false}) {
      const auto options = options_of(LinearType::kDense, gguf);
      const auto reader = round_trip(config, model, options);
      const LogicalTensor got = reader->read(id);
      ASSERT_TRUE(got.ternary);
      const TernaryWeights expected = absmean(model[id].to_f32(), got.shape[0], got.shape[1]);
      EXPECT_EQ(got.weights.trits, expected.trits);
      EXPECT_EQ(got.weights.scales, expected.scales);
      EXPECT_TRUE(rows_are_those_of_read(*reader, id, 7));
      EXPECT_EQ(reader->stored_type(id), "F16 → ternary");
      EXPECT_THAT(reader->notes().at(0), HasSubstr("14 float linears are ternarised"));
      const auto kept = round_trip(config, model, options, FloatLinears::kKeep);
      EXPECT_FALSE(kept->read(id).ternary);
      EXPECT_EQ(kept->read(id).to_f32(), model[id].to_f32());
    }
  }
}

TEST_F(ModelIo, PlainFloatModelsAreTernarisedOnlyOnRequest) {
  ModelConfig config = small_config(ModelFamily::kLlama, false);
  config.weights = WeightKind::kDense;
  const MemoryModel model(config, Linears::kFloat);
  const auto options = options_of(LinearType::kDense);
  const TensorId id{TensorRole::kAttnQ, 0};
  EXPECT_FALSE(round_trip(config, model, options)->read(id).ternary);
  const auto forced = round_trip(config, model, options, FloatLinears::kTernarise);
  EXPECT_EQ(forced->config().weights, WeightKind::kTernary);
  EXPECT_EQ(forced->read(id).weights.trits, absmean(model[id].to_f32(), 96, 60).trits);
  EXPECT_THAT(forced->notes().at(1), HasSubstr("destroys"));
}

TEST_F(ModelIo, ScalesPerRowLiveInTheTqTypesOnly) {
  for (const ModelFamily family : kFamilies) {
    const ModelConfig config = small_config(family);
    const MemoryModel model(config, Linears::kTernaryPerRow);
    for (const LinearType type : {LinearType::kTQ1_0, LinearType::kTQ2_0})
      expect_tensors(*round_trip(config, model, options_of(type)), model, kHalf);
    for (const LinearType type : {LinearType::kI2_S, LinearType::kHf}) {
      BITNET_EXPECT_ERROR(write_model(dir_ / "none", config, nullptr, model.source(), options_of(type)),
                          ErrorCode::kUnsupported, "types that would do: tq1_0, tq2_0, extended");
      EXPECT_FALSE(std::filesystem::exists(dir_ / "none"));
    }
  }
}

TEST_F(ModelIo, ScalesPerBlockLiveInTheTqTypesAndMoveWithTheirRows) {
  for (const ModelFamily family : kFamilies) {
    ModelConfig config = small_config(family);
    config.hidden_size = 512;  // two blocks of q and k, whose rows a llama file interleaves
    config.head_dim = 128;
    const MemoryModel model(config, Linears::kTernaryByBlock);
    for (const LinearType type : {LinearType::kTQ1_0, LinearType::kTQ2_0}) {
      const auto reader = round_trip(config, model, options_of(type));
      expect_tensors(*reader, model, kHalf);
      EXPECT_TRUE(reader->extended_linears());
    }
    for (const LinearType type : {LinearType::kI2_S, LinearType::kHf}) {
      BITNET_EXPECT_ERROR(write_model(dir_ / "none", config, nullptr, model.source(), options_of(type)),
                          ErrorCode::kUnsupported, "");
      EXPECT_FALSE(std::filesystem::exists(dir_ / "none"));
    }
    const MemoryModel rows(config, Linears::kTernaryPerRow);
    EXPECT_FALSE(round_trip(config, rows, options_of(LinearType::kTQ2_0))->extended_linears());
    EXPECT_FALSE(round_trip(config, MemoryModel(config, Linears::kTernary), options_of(LinearType::kI2_S))
                     ->extended_linears());
  }
}

TEST_F(ModelIo, ColumnsThatDoNotFitAreRefusedBeforeTheFirstTensor) {
  const ModelConfig config = small_config(ModelFamily::kBitNet25, false);
  const auto never = [](TensorId) -> LogicalTensor { throw std::logic_error("called"); };
  for (const LinearType type : {LinearType::kI2_S, LinearType::kTQ1_0, LinearType::kTQ2_0})
    BITNET_EXPECT_ERROR(write_model(dir_ / "x.gguf", config, nullptr, never, options_of(type)),
                        ErrorCode::kUnsupported, "types that would do: hf");
  ModelConfig half = small_config(ModelFamily::kBitNet25);
  half.intermediate_size = 384;
  BITNET_EXPECT_ERROR(write_model(dir_ / "x.gguf", half, nullptr, never, options_of(LinearType::kTQ2_0)),
                      ErrorCode::kUnsupported, "types that would do: hf, i2_s");
  EXPECT_TRUE(std::filesystem::is_empty(dir_.path()));
}

TEST_F(ModelIo, KindsThatDoNotFitTheTypeAreRefused) {
  const ModelConfig config = small_config(ModelFamily::kBitNet25);
  const MemoryModel ternary(config, Linears::kTernary), dense(config, Linears::kFloat);
  BITNET_EXPECT_ERROR(
      write_model(dir_ / "x", config, nullptr, ternary.source(), options_of(LinearType::kDense)),
      ErrorCode::kUnsupported, "types that would do: hf, i2_s, tq1_0, tq2_0");
  BITNET_EXPECT_ERROR(write_model(dir_ / "x", config, nullptr, dense.source(), options_of(LinearType::kI2_S)),
                      ErrorCode::kInvalidArgument, "quantised first");
  MemoryModel big(config, Linears::kTernary);
  const float huge = 1e5f;
  std::memcpy(big[{TensorRole::kTokenEmbedding, -1}].dense.data(), &huge, sizeof(huge));
  BITNET_EXPECT_ERROR(write_model(dir_ / "x", config, nullptr, big.source(), options_of(LinearType::kI2_S)),
                      ErrorCode::kUnsupported, "f16");
  EXPECT_TRUE(std::filesystem::is_empty(dir_.path()));
}

TEST_F(ModelIo, LlamaGgufHoldsInterleavedRows) {
  const ModelConfig config = small_config(ModelFamily::kLlama);
  const MemoryModel model(config, Linears::kTernary);
  write_model(dir_ / "x.gguf", config, nullptr, model.source(), options_of(LinearType::kI2_S));
  const auto file = GgufFile::open(dir_ / "x.gguf");
  const auto raw = unpack(TernaryLayout::kI2_S, file->data(*file->find("blk.0.attn_k.weight")), 128, 256);
  const auto& k = model[{TensorRole::kAttnK, 0}].weights.trits;
  for (std::size_t head = 0; head < 2; ++head)
    for (std::size_t i = 0; i < 32; ++i)
      for (std::size_t j = 0; j < 2; ++j)
        for (std::size_t c = 0; c < 256; ++c)
          ASSERT_EQ(raw.trits[(head * 64 + 2 * i + j) * 256 + c], k[(head * 64 + j * 32 + i) * 256 + c]);
  EXPECT_EQ(file->metadata().string("general.architecture"), "llama");
  EXPECT_EQ(file->metadata().integer("general.file_type"), 40);
}

TEST_F(ModelIo, BlocksDecodeAsThePythonPackageDecodesThem) {
  const auto file = GgufFile::open(source_path("tests/data/gguf/golden.gguf"));
  const auto floats = [&](const char* name) {
    const auto* t = file->find(name);
    return model_io::decode_floats(model_io::Encoding::kF32, file->data(*t), t->bytes / 4);
  };
  EXPECT_EQ(model_io::decode_floats(model_io::Encoding::kQ8_0, file->data(*file->find("q8_0")), 256),
            floats("q8_0.f32"));
  EXPECT_EQ(model_io::decode_floats(model_io::Encoding::kQ6_K, file->data(*file->find("q6_k")), 1024),
            floats("q6_k.f32"));
  EXPECT_EQ(model_io::decode_floats(model_io::Encoding::kBF16, file->data(*file->find("bf16")), 16),
            floats("bf16.f32"));
  for (const auto& [name, layout] :
       {std::pair("tq1_0", TernaryLayout::kTQ1_0), std::pair("tq2_0", TernaryLayout::kTQ2_0)}) {
    LogicalTensor t;
    t.ternary = true;
    t.weights = unpack(layout, file->data(*file->find(name)), 3, 512);
    EXPECT_EQ(t.to_f32(), floats((std::string(name) + ".f32").c_str()));
    const auto bytes = pack(layout, t.weights);
    EXPECT_TRUE(std::memcmp(bytes.data(), file->data(*file->find(name)).data(), bytes.size()) == 0);
  }
}

TEST_F(ModelIo, PathsThatAreNoModels) {
  BITNET_EXPECT_ERROR(ModelReader::open(dir_ / "none"), ErrorCode::kNotFound, "none");
  BITNET_EXPECT_ERROR(ModelReader::open(dir_.path()), ErrorCode::kNotFound, "config.json");
  BITNET_EXPECT_ERROR(ModelReader::open(dir_ / "model.safetensors"), ErrorCode::kNotFound, "no file");
  write_file(dir_ / "model.safetensors", "");
  BITNET_EXPECT_ERROR(ModelReader::open(dir_ / "model.safetensors"), ErrorCode::kInvalidArgument,
                      "directory");
}

TEST_F(ModelIo, EndOfTextTokensOfGenerationConfig) {
  const ModelConfig config = small_config(ModelFamily::kBitNet25);
  const MemoryModel model(config, Linears::kTernary);
  write_model(dir_ / "m", config, nullptr, model.source(), options_of(LinearType::kHf));
  write_file(dir_ / "m" / "generation_config.json", R"({"eos_token_id": [2, 5]})");
  EXPECT_EQ(ModelReader::open(dir_ / "m")->config().eos_ids, (std::vector<std::int64_t>{2, 3, 5}));
  write_file(dir_ / "m" / "generation_config.json", R"({"eos_token_id": 7})");
  BITNET_EXPECT_ERROR(ModelReader::open(dir_ / "m"), ErrorCode::kCorruptFile, "generation_config.json");
  const std::string deep =
      "{\"eos_token_id\": " + std::string(400'000, '[') + std::string(400'000, ']') + "}";
  const std::string after_nul = std::string("{}") + '\0' + "more";
  for (const std::string& bad :
       {deep, std::string("{\"eos_token_id\": 1e999}"), std::string("{"), after_nul}) {
    write_file(dir_ / "m" / "generation_config.json", bad);
    BITNET_EXPECT_ERROR(ModelReader::open(dir_ / "m"), ErrorCode::kCorruptFile, "generation_config.json': ");
  }
}

TEST_F(ModelIo, ModelsOfAnIndependentImplementation) {
  const std::pair<const char*, const char*> models[] = {{"1bitllm-float", "F32 → ternary"},
                                                        {"bitnet-25-online", "BF16 → ternary"},
                                                        {"bitnet-25-packed", "U8 packed"},
                                                        {"bitnet-b1.58-i2_s.gguf", "I2_S"},
                                                        {"llama-dense", "F32"},
                                                        {"llama-packed-divide", "U8 packed"},
                                                        {"llama-tq1_0.gguf", "TQ1_0"},
                                                        {"llama-tq2_0.gguf", "TQ2_0"}};
  for (const auto& [name, type] : models) {
    SCOPED_TRACE(name);
    const auto reader = ModelReader::open(source_path("tests/data/models") / name);
    EXPECT_EQ(reader->stored_type({TensorRole::kFfnDown, 0}), type);
    for (const TensorId id : reader->tensors()) {
      const LogicalTensor t = reader->read(id);
      for (const float v : t.to_f32()) ASSERT_TRUE(std::isfinite(v));
      EXPECT_EQ(t.ternary, is_linear(id.role) && std::string(name) != "llama-dense");
    }
    for (const auto& note : reader->notes()) EXPECT_THAT(note, HasSubstr("ternarised"));
  }
}

TEST_F(ModelIo, TheTokenizerTravelsBothWays) {
  BpeTrainer trainer({.vocab_size = 262, .min_frequency = 1});
  trainer.feed("abcab abcab ab");
  const auto tokenizer = Tokenizer::from_json(trainer.train());
  const auto ids = tokenizer->encode("abcab ∀", {});
  ModelConfig config = small_config(ModelFamily::kBitNet25);
  config.vocab_size = 264;  // more rows than tokens, as padded embeddings have
  const MemoryModel model(config, Linears::kTernary);
  write_model(dir_ / "m", config, tokenizer.get(), model.source(), options_of(LinearType::kHf));
  const auto hf = ModelReader::open(dir_ / "m");
  ASSERT_NE(hf->tokenizer(), nullptr);
  write_model(
      dir_ / "m.gguf", hf->config(), hf->tokenizer().get(), [&](TensorId id) { return hf->read(id); },
      options_of(LinearType::kI2_S));
  const auto gguf = ModelReader::open(dir_ / "m.gguf");
  write_model(
      dir_ / "n", gguf->config(), gguf->tokenizer().get(), [&](TensorId id) { return gguf->read(id); },
      options_of(LinearType::kHf));
  const auto again = ModelReader::open(dir_ / "n");
  expect_tensors(*again, model, kSame);
  for (const auto& reader : {hf.get(), gguf.get(), again.get()})
    EXPECT_EQ(reader->tokenizer()->encode("abcab ∀", {}), ids);
  ModelConfig small = config;
  small.vocab_size = 100;
  BITNET_EXPECT_ERROR(
      write_model(dir_ / "x", small, tokenizer.get(), model.source(), options_of(LinearType::kHf)),
      ErrorCode::kInvalidArgument, "the tokenizer has 26");
}

// Also where the tokenizer's own end of text, which GGUF keeps under the first key, is another.
TEST_F(ModelIo, EveryEosIdTravelsBothWays) {
  BpeTrainer trainer({.vocab_size = 262, .min_frequency = 1});
  trainer.feed("abcab abcab ab");
  const auto tokenizer = Tokenizer::from_json(trainer.train());
  ASSERT_FALSE(tokenizer->eos().empty());
  const std::vector<TokenId> own(tokenizer->eos().begin(), tokenizer->eos().end());
  ModelConfig config = small_config(ModelFamily::kBitNet25);
  config.vocab_size = 264;
  const MemoryModel model(config, Linears::kTernary);
  for (const std::vector<std::int64_t>& ids :
       {std::vector<std::int64_t>{10}, {10, 11}, {10, 11, 12}, {own[0]}, {own[0], 10}, {own[0], 10, 11}}) {
    config.eos_ids = ids;
    write_model(dir_ / "m.gguf", config, tokenizer.get(), model.source(), options_of(LinearType::kI2_S));
    const auto gguf = ModelReader::open(dir_ / "m.gguf");
    EXPECT_EQ(gguf->config().eos_ids, ids);
    EXPECT_EQ(gguf->tokenizer()->eos()[0], own[0]);
    write_model(dir_ / "m", gguf->config(), gguf->tokenizer().get(), model.source(),
                options_of(LinearType::kHf));
    const auto hf = ModelReader::open(dir_ / "m");
    EXPECT_EQ(hf->config().eos_ids, ids);
    EXPECT_EQ(hf->tokenizer()->eos()[0], own[0]);
  }
}

TEST_F(ModelIo, AnOlderModelsTokenizerDoesNotStay) {
  BpeTrainer trainer({.vocab_size = 262, .min_frequency = 1});
  trainer.feed("abcab abcab ab");
  const auto tokenizer = Tokenizer::from_json(trainer.train());
  ModelConfig config = small_config(ModelFamily::kBitNet25);
  config.vocab_size = 264;
  const MemoryModel model(config, Linears::kTernary);
  write_model(dir_ / "m", config, tokenizer.get(), model.source(), options_of(LinearType::kHf));
  write_file(dir_ / "m" / "chat_template.jinja", "of the older model");
  write_file(dir_ / "m" / "README.md", "kept");
  write_model(dir_ / "m", config, nullptr, model.source(), options_of(LinearType::kHf));
  EXPECT_EQ(ModelReader::open(dir_ / "m")->tokenizer(), nullptr);
  std::set<std::string> names;
  for (const auto& e : std::filesystem::directory_iterator(dir_ / "m"))
    names.insert(e.path().filename().string());
  EXPECT_THAT(names, ::testing::ElementsAre("README.md", "config.json", "generation_config.json",
                                            "model.safetensors"));
  // A tokenizer that was put into a directory without a model is not an older one's.
  std::filesystem::create_directory(dir_ / "n");
  write_file(dir_ / "n" / "tokenizer.json", tokenizer->to_json());
  write_model(dir_ / "n", config, nullptr, model.source(), options_of(LinearType::kHf));
  EXPECT_NE(ModelReader::open(dir_ / "n")->tokenizer(), nullptr);
}

/// The model of the stored files: trits by formula, so that check_with_gguf_py.py can recompute them.
LogicalTensor formula_tensor(TensorId id, const ModelConfig& config) {
  LogicalTensor t;
  t.id = id;
  t.shape = tensor_shape(id, config);
  const auto n = static_cast<std::uint64_t>(t.shape.numel());
  if (!is_linear(id.role)) {
    std::vector<float> values(n);
    for (std::uint64_t i = 0; i < n; ++i) values[i] = static_cast<float>(i % 17) / 16.0f;
    t.dense = model_io::encode_floats(DType::kF32, values);
    return t;
  }
  t.ternary = true;
  t.weights = {t.shape[0], t.shape[1], {}, {0.5f}, t.shape[0]};
  const auto role = static_cast<std::uint64_t>(id.role);
  for (std::uint64_t i = role; i < n + role; ++i)
    t.weights.trits.push_back(static_cast<std::int8_t>((i * i + 3 * i) % 7 % 3) - 1);
  return t;
}

TEST_F(ModelIo, FilesAreTheStoredOnesThatPythonReads) {
  ModelConfig config = small_config(ModelFamily::kBitNet25);
  config.intermediate_size = 256;
  config.n_layers = 1;
  for (const auto& [name, type] :
       {std::pair("ours-tq1_0.gguf", LinearType::kTQ1_0), std::pair("ours-tq2_0.gguf", LinearType::kTQ2_0)}) {
    write_model(
        dir_ / name, config, nullptr, [&](TensorId id) { return formula_tensor(id, config); },
        options_of(type));
    EXPECT_EQ(read_file(dir_ / name), read_file(source_path(std::string("tests/data/gguf/") + name)));
  }
}

TEST_F(ModelIo, DirectoryIsTheStoredOneThatPythonReads) {
  ModelConfig config = small_config(ModelFamily::kBitNet25, false);
  config.n_layers = 1;
  WriteOptions options = options_of(LinearType::kHf);
  options.norm_type = DType::kBF16;
  write_model(
      dir_ / "ours-hf", config, nullptr, [&](TensorId id) { return formula_tensor(id, config); }, options);
  for (const char* name : {"model.safetensors", "config.json", "generation_config.json"})
    EXPECT_EQ(read_file(dir_ / "ours-hf" / name),
              read_file(source_path(std::string("tests/data/safetensors/ours-hf/") + name)));
}

}  // namespace
}  // namespace bitnet::quant
