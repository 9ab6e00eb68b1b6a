// ModelConfig from the config.json of each public family and from GGUF keys, and the table of tensor names.
#include "bitnet/core/model/model_config.hpp"

#include <fstream>
#include <set>

#include "bitnet/core/io/atomic_file.hpp"
#include "bitnet/core/model/tensor_names.hpp"
#include "bitnet/testing/mutate.hpp"
#include "bitnet/testing/testing.hpp"
#include "readers.hpp"

namespace bitnet {
namespace {

using testing::TempDir;

// The keys of microsoft/bitnet-b1.58-2B-4T that decide something.
constexpr const char* k2B4T = R"({
  "architectures": ["BitNetForCausalLM"], "model_type": "bitnet", "bos_token_id": 128000, "eos_token_id": 128001,
  "hidden_act": "relu2", "hidden_size": 2560, "intermediate_size": 6912, "max_position_embeddings": 4096,
  "num_attention_heads": 20, "num_hidden_layers": 30, "num_key_value_heads": 5, "rms_norm_eps": 1e-05,
  "rope_theta": 500000.0, "tie_word_embeddings": true, "torch_dtype": "bfloat16", "use_cache": true, "vocab_size": 128256,
  "quantization_config": {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "offline"}})";
constexpr const char* k1bitLLM = R"({
  "architectures": ["BitnetForCausalLM"], "model_type": "llama", "attention_bias": false, "bos_token_id": 1,
  "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 3200, "input_bits": 8, "weight_bits": 1,
  "intermediate_size": 8640, "max_position_embeddings": 2048, "num_attention_heads": 32, "num_hidden_layers": 26,
  "num_key_value_heads": 32, "pad_token_id": 32000, "rms_norm_eps": 1e-05, "rope_scaling": null, "rope_theta": 10000.0,
  "tie_word_embeddings": true, "vocab_size": 32002})";
constexpr const char* kFalcon = R"({
  "architectures": ["LlamaForCausalLM"], "model_type": "llama", "attention_bias": false, "mlp_bias": false,
  "eos_token_id": [11, 12], "head_dim": 256, "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 8192,
  "max_position_embeddings": 8192, "num_attention_heads": 8, "num_hidden_layers": 18, "num_key_value_heads": 4,
  "rms_norm_eps": 1e-06, "rope_scaling": {"rope_type": "default"}, "rope_theta": 1000042, "vocab_size": 131072,
  "quantization_config": {"modules_to_not_convert": ["lm_head"], "quant_method": "bitnet"}})";

class Config : public ::testing::Test {
 protected:
  ModelConfig read(std::string_view json) {
    write_file(dir_ / "config.json", json);
    return ModelConfig::from_json_file(dir_ / "config.json");
  }
  /// `base` with the first `from` replaced.
  ModelConfig edited(const char* base, std::string_view from, std::string_view to) {
    std::string text = base;
    text.replace(text.find(from), from.size(), to);
    return read(text);
  }
  TempDir dir_;
};

void expect_same(const ModelConfig& a, const ModelConfig& b) {
  EXPECT_EQ(a.family, b.family);
  EXPECT_EQ(a.weights, b.weights);
  EXPECT_EQ(a.vocab_size, b.vocab_size);
  EXPECT_EQ(a.hidden_size, b.hidden_size);
  EXPECT_EQ(a.intermediate_size, b.intermediate_size);
  EXPECT_EQ(a.n_layers, b.n_layers);
  EXPECT_EQ(a.n_heads, b.n_heads);
  EXPECT_EQ(a.n_kv_heads, b.n_kv_heads);
  EXPECT_EQ(a.head_dim, b.head_dim);
  EXPECT_EQ(a.max_position, b.max_position);
  EXPECT_EQ(a.activation, b.activation);
  EXPECT_EQ(a.sub_norms, b.sub_norms);
  EXPECT_EQ(a.tied_embeddings, b.tied_embeddings);
  EXPECT_EQ(a.rms_norm_eps, b.rms_norm_eps);
  EXPECT_EQ(a.rope_theta, b.rope_theta);
  EXPECT_EQ(a.bos_id, b.bos_id);
  EXPECT_EQ(a.eos_ids, b.eos_ids);
}

TEST_F(Config, BitNet2B4T) {
  const ModelConfig c = read(k2B4T);
  EXPECT_EQ(c.family, ModelFamily::kBitNet25);
  EXPECT_EQ(c.weights, WeightKind::kTernary);
  EXPECT_EQ(c.scale_form, WeightScaleForm::kMultiply);
  EXPECT_EQ(c.head_dim, 128);
  EXPECT_EQ(c.kv_dim(), 640);
  EXPECT_EQ(c.activation, Activation::kRelu2);
  EXPECT_TRUE(c.sub_norms && c.tied_embeddings && !c.input_norms);
  EXPECT_EQ(c.rope_theta, 500000.0);
  EXPECT_EQ(c.eos_ids, std::vector<std::int64_t>{128001});
}

TEST_F(Config, OneBitLLM) {
  const ModelConfig c = read(k1bitLLM);
  EXPECT_EQ(c.family, ModelFamily::kBitNetOld);
  EXPECT_EQ(c.weights, WeightKind::kTernary);
  EXPECT_EQ(c.head_dim, 100);
  EXPECT_EQ(c.activation, Activation::kSilu);
  EXPECT_TRUE(c.sub_norms);
}

TEST_F(Config, PackedAndPlainLlama) {
  const ModelConfig c = read(kFalcon);
  EXPECT_EQ(c.family, ModelFamily::kLlama);
  EXPECT_EQ(c.weights, WeightKind::kTernary);
  EXPECT_EQ(c.scale_form, WeightScaleForm::kDivide);
  EXPECT_EQ(c.head_dim, 256);
  EXPECT_EQ(c.eos_ids, (std::vector<std::int64_t>{11, 12}));
  EXPECT_FALSE(c.sub_norms || c.tied_embeddings);
  const ModelConfig plain = edited(kFalcon, "\"quantization_config\"", "\"ignored\"");
  EXPECT_EQ(plain.weights, WeightKind::kDense);
}

TEST_F(Config, DirectionOfTheScale) {
  const auto form = [&](const char* to) {
    return edited(kFalcon, "\"quant_method\": \"bitnet\"", to).scale_form;
  };
  EXPECT_EQ(form(R"("quant_method": "bitnet", "linear_class": "bitlinear")"), WeightScaleForm::kDivide);
  EXPECT_EQ(form(R"("quant_method": "bitnet", "linear_class": "autobitlinear")"), WeightScaleForm::kMultiply);
  EXPECT_TRUE(
      edited(kFalcon, "\"quant_method\": \"bitnet\"", R"("quant_method": "bitnet", "use_rms_norm": true)")
          .input_norms);
}

TEST_F(Config, WhatIsNotSupportedIsRefused) {
  const auto refuse = [&](const char* base, const char* from, const char* to, const char* text) {
    BITNET_EXPECT_ERROR(edited(base, from, to), ErrorCode::kUnsupported, text);
  };
  refuse(kFalcon, "\"rope_type\": \"default\"", "\"rope_type\": \"llama3\"", "rope_scaling");
  refuse(kFalcon, "\"rope_type\": \"default\"", "\"type\": \"linear\"", "rope_scaling");
  refuse(kFalcon, "\"attention_bias\": false", "\"attention_bias\": true", "attention_bias");
  refuse(kFalcon, "\"mlp_bias\": false", "\"mlp_bias\": true", "mlp_bias");
  refuse(kFalcon, "\"silu\"", "\"gelu\"", "gelu");
  refuse(kFalcon, "\"quant_method\": \"bitnet\"", "\"quant_method\": \"awq\"", "awq");
  refuse(kFalcon, "[\"lm_head\"]", "[\"model.layers.0\"]", "modules_to_not_convert");
  refuse(kFalcon, "\"model_type\": \"llama\"", "\"model_type\": \"qwen3\"", "qwen3");
  refuse(k1bitLLM, "\"weight_bits\": 1", "\"weight_bits\": 4", "weight_bits");
}

TEST_F(Config, BadFiles) {
  const auto corrupt = [&](const char* from, const char* to, const char* text) {
    BITNET_EXPECT_ERROR(edited(kFalcon, from, to), ErrorCode::kCorruptFile, text);
    BITNET_EXPECT_ERROR(edited(kFalcon, from, to), ErrorCode::kCorruptFile, "config.json");
  };
  corrupt("\"hidden_size\"", "\"hidden\"", "hidden_size");
  corrupt("\"hidden_size\": 2048", "\"hidden_size\": -1", "hidden_size");
  corrupt("\"hidden_size\": 2048", "\"hidden_size\": 1e300", "hidden_size");
  corrupt("\"hidden_size\": 2048", "\"hidden_size\": 18446744073709551615", "hidden_size");
  corrupt("\"num_hidden_layers\": 18", "\"num_hidden_layers\": 1000000000", "n_layers");
  corrupt("\"num_key_value_heads\": 4", "\"num_key_value_heads\": 3", "divisor");
  corrupt("\"num_key_value_heads\": 4", "\"num_key_value_heads\": 0", "n_kv_heads");
  corrupt("\"head_dim\": 256", "\"head_dim\": 255", "even");
}

TEST_F(Config, JsonRoundTrip) {
  for (const char* text : {k2B4T, k1bitLLM, kFalcon}) {
    const ModelConfig c = read(text);
    for (const auto form : {WeightScaleForm::kMultiply, WeightScaleForm::kDivide}) {
      const ModelConfig back = read(c.to_json(form));
      expect_same(c, back);
      EXPECT_EQ(back.scale_form, form);
    }
    expect_same(c, read(c.to_json(std::nullopt)));
  }
}

TEST_F(Config, GgufRoundTrip) {
  for (const char* text : {k2B4T, k1bitLLM, kFalcon}) {
    ModelConfig c = read(text);
    GgufMetadata m;
    c.to_gguf(m);
    m.set_u32("general.file_type", 40);
    ModelConfig back = ModelConfig::from_gguf(m);
    back.tied_embeddings = c.tied_embeddings;  // the keys cannot say; the presence of output.weight does
    expect_same(c, back);
    c.activation = c.activation == Activation::kSilu ? Activation::kRelu2 : Activation::kSilu;
    GgufMetadata other;
    c.to_gguf(other);
    EXPECT_EQ(ModelConfig::from_gguf(other).activation, c.activation);
  }
}

TEST_F(Config, ABitNetInFullPrecisionSaysSo) {
  for (const char* text : {k2B4T, k1bitLLM}) {
    ModelConfig c = read(text);
    c.weights = WeightKind::kDense;
    const std::string json = c.to_json(std::nullopt);
    EXPECT_EQ(json.find("quantization_config"), std::string::npos);
    expect_same(c, read(json.c_str()));
    BITNET_EXPECT_ERROR(edited(json.c_str(), "full_precision", "latent"), ErrorCode::kUnsupported,
                        "key 'float_linears': expected full_precision, got 'latent'");
    BITNET_EXPECT_ERROR(edited(json.c_str(), "\"float_linears\"",
                               R"("quantization_config": {"quant_method": "bitnet"}, "float_linears")"),
                        ErrorCode::kCorruptFile, "contradict each other");
    GgufMetadata m;
    c.to_gguf(m);
    ModelConfig back = ModelConfig::from_gguf(m);
    back.tied_embeddings = c.tied_embeddings;
    expect_same(c, back);
    GgufMetadata packed = m;
    packed.set_u32("general.file_type", 40);
    BITNET_EXPECT_ERROR(ModelConfig::from_gguf(packed), ErrorCode::kCorruptFile, "is a ternary one");
    const std::string arch = *m.string("general.architecture");
    m.set_string(arch + ".float_linears", "latent");
    BITNET_EXPECT_ERROR(ModelConfig::from_gguf(m), ErrorCode::kUnsupported, arch + ".float_linears");
  }
  // Where nothing is to be said, nothing is.
  EXPECT_EQ(read(k2B4T).to_json(std::nullopt).find("float_linears"), std::string::npos);
  ModelConfig llama = read(kFalcon);
  llama.weights = WeightKind::kDense;
  EXPECT_EQ(llama.to_json(std::nullopt).find("float_linears"), std::string::npos);
}

TEST_F(Config, BadGgufKeys) {
  GgufMetadata good;
  read(k2B4T).to_gguf(good);
  const auto with = [&](const char* key, GgufValue v) {
    GgufMetadata m = good;
    m.set(key, std::move(v));
    return ModelConfig::from_gguf(m);
  };
  const auto u = [](std::uint64_t v) { return GgufValue{10, 0, v}; };
  const auto s = [](const char* v) { return GgufValue{8, 0, std::string(v)}; };
  BITNET_EXPECT_ERROR(ModelConfig::from_gguf({}), ErrorCode::kCorruptFile, "general.architecture");
  BITNET_EXPECT_ERROR(with("general.architecture", s("qwen3")), ErrorCode::kUnsupported, "qwen3");
  BITNET_EXPECT_ERROR(with("general.architecture", s("llama")), ErrorCode::kCorruptFile, "llama.");
  BITNET_EXPECT_ERROR(with("bitnet-b1.58.rope.scaling.type", s("yarn")), ErrorCode::kUnsupported, "yarn");
  BITNET_EXPECT_ERROR(with("bitnet-b1.58.rope.dimension_count", u(64)), ErrorCode::kUnsupported, "64");
  BITNET_EXPECT_ERROR(with("bitnet-b1.58.expert_count", u(8)), ErrorCode::kUnsupported, "experts");
  BITNET_EXPECT_ERROR(with("bitnet-b1.58.block_count", u(1u << 31)), ErrorCode::kCorruptFile, "n_layers");
  BITNET_EXPECT_ERROR(with("bitnet-b1.58.block_count", s("30")), ErrorCode::kCorruptFile,
                      "expected an integer");
  BITNET_EXPECT_ERROR(
      with("bitnet-b1.58.feed_forward_length", {9, 10, GgufArray(std::vector<std::uint64_t>{1})}),
      ErrorCode::kUnsupported, "per layer");
}

TEST_F(Config, BothFormatsHoldTheSameRotaryBase) {
  const ModelConfig c = edited(k2B4T, "500000.0", "10000.3");  // no f32
  EXPECT_EQ(c.rope_theta, double{10000.3f});
  GgufMetadata m;
  c.to_gguf(m);
  EXPECT_EQ(ModelConfig::from_gguf(m).rope_theta, c.rope_theta);
  EXPECT_EQ(read(c.to_json(WeightScaleForm::kMultiply)).rope_theta, c.rope_theta);
  m.set("bitnet-b1.58.rope.freq_base", GgufValue{12, 0, 10000.3});  // an f64
  EXPECT_EQ(ModelConfig::from_gguf(m).rope_theta, c.rope_theta);
}

TEST_F(Config, GgufHoldsAnyNumberOfEosIds) {
  ModelConfig c = read(k2B4T);
  for (const std::vector<std::int64_t>& ids :
       {std::vector<std::int64_t>{7}, {7, 8}, {9, 8, 7}, {1, 2, 3, 4, 5}}) {
    c.eos_ids = ids;
    GgufMetadata m;
    c.to_gguf(m);
    EXPECT_EQ(ModelConfig::from_gguf(m).eos_ids, ids);
    EXPECT_EQ(m.contains("tokenizer.ggml.eos_token_ids"), ids.size() > 2);
    m.set_i32s("tokenizer.ggml.eos_token_ids", std::vector<std::int32_t>{3, -1});
    BITNET_EXPECT_ERROR(ModelConfig::from_gguf(m), ErrorCode::kCorruptFile, "eos_ids");
    m.set_u32("tokenizer.ggml.eos_token_ids", 3);
    BITNET_EXPECT_ERROR(ModelConfig::from_gguf(m), ErrorCode::kCorruptFile, "eos_token_ids");
  }
}

/// The rotary keys as llama.cpp's converter writes them for every BitNet: "linear" scaling by 1.
TEST_F(Config, GgufRotaryScalingByOneIsNone) {
  GgufMetadata good;
  read(k2B4T).to_gguf(good);
  const std::string rope = "bitnet-b1.58.rope.";
  const auto with = [&](const char* type, const char* factor_key, float factor) {
    GgufMetadata m = good;
    if (type) m.set_string(rope + "scaling.type", type);
    m.set_f32(rope + factor_key, factor);
    return ModelConfig::from_gguf(m);
  };
  for (const char* key : {"scaling.factor", "scale_linear"}) {
    for (const float factor : {0.0f, 1.0f}) expect_same(with("linear", key, factor), read(k2B4T));
    BITNET_EXPECT_ERROR(with("linear", key, 4.0f), ErrorCode::kUnsupported, key);
    BITNET_EXPECT_ERROR(with(nullptr, key, 4.0f), ErrorCode::kUnsupported, key);
  }
  expect_same(with("none", "scaling.factor", 1.0f), read(k2B4T));
  BITNET_EXPECT_ERROR(with("yarn", "scaling.factor", 1.0f), ErrorCode::kUnsupported, "yarn");
}

TEST_F(Config, GgufWithoutBosAndEosSaysMinusOne) {
  GgufMetadata m;
  read(k2B4T).to_gguf(m);
  for (const char* key : {"bos_token_id", "eos_token_id", "eot_token_id"})
    m.set_u32(std::string("tokenizer.ggml.") + key, 0xffffffffu);
  EXPECT_EQ(ModelConfig::from_gguf(m).bos_id, -1);
  EXPECT_TRUE(ModelConfig::from_gguf(m).eos_ids.empty());
  m.set_u32("tokenizer.ggml.eos_token_id", 1u << 30);
  BITNET_EXPECT_ERROR(ModelConfig::from_gguf(m), ErrorCode::kCorruptFile, "eos");
}

TEST_F(Config, DamagedFilesGiveOnlyErrors) {
  Rng rng(3);
  std::size_t accepted = 0;
  for (const char* text : {k2B4T, k1bitLLM, kFalcon}) {
    for (int i = 0; i < 1000; ++i) {
      std::ofstream(dir_ / "config.json", std::ios::binary) << testing::mutate(text, rng);
      accepted += fuzzing::read_model_config(dir_ / "config.json");
    }
  }
  EXPECT_GT(accepted, 0u);
}

TEST_F(Config, NamesRoundTripAndAreDistinct) {
  for (const char* text : {k2B4T, k1bitLLM, kFalcon}) {
    const ModelConfig c = read(text);
    std::set<std::string> hf, gguf;
    const auto ids = model_tensors(c);
    for (const TensorId id : ids) {
      EXPECT_EQ(tensor_from_hf_name(hf_name(id, c.family)), id);
      EXPECT_EQ(tensor_from_gguf_name(gguf_name(id)), id);
      hf.insert(hf_name(id, c.family));
      gguf.insert(gguf_name(id));
    }
    EXPECT_EQ(hf.size(), ids.size());
    EXPECT_EQ(gguf.size(), ids.size());
    const std::size_t per_layer = c.sub_norms ? 11 : 9;
    EXPECT_EQ(ids.size(), static_cast<std::size_t>(c.n_layers) * per_layer + (c.tied_embeddings ? 2 : 3));
  }
}

TEST_F(Config, NamesAsPublished) {
  const TensorId sub{TensorRole::kAttnSubNorm, 3}, down{TensorRole::kFfnDown, 12};
  EXPECT_EQ(hf_name(sub, ModelFamily::kBitNet25), "model.layers.3.self_attn.attn_sub_norm.weight");
  EXPECT_EQ(hf_name(sub, ModelFamily::kBitNetOld), "model.layers.3.self_attn.inner_attn_ln.weight");
  EXPECT_EQ(hf_name(down, ModelFamily::kLlama), "model.layers.12.mlp.down_proj.weight");
  EXPECT_EQ(gguf_name(down), "blk.12.ffn_down.weight");
  for (const char* name :
       {"", "model.layers.", "model.layers.x.mlp.down_proj.weight", "model.layers.01.mlp.down_proj.weight",
        "model.layers.-1.mlp.down_proj.weight", "model.layers.9999999.mlp.down_proj.weight",
        "model.layers.1.mlp.down_proj.weight_scale", "mlp.down_proj.weight", "model.layers.1.lm_head.weight"})
    EXPECT_EQ(tensor_from_hf_name(name), std::nullopt) << name;
  EXPECT_EQ(tensor_from_gguf_name("blk.1.attn_q.scale"), std::nullopt);
}

TEST_F(Config, Shapes) {
  const ModelConfig c = read(kFalcon);
  EXPECT_EQ(tensor_shape({TensorRole::kAttnK, 0}, c), (Shape{1024, 2048}));
  EXPECT_EQ(tensor_shape({TensorRole::kAttnOutput, 0}, c), (Shape{2048, 2048}));
  EXPECT_EQ(tensor_shape({TensorRole::kFfnDown, 0}, c), (Shape{2048, 8192}));
  EXPECT_EQ(tensor_shape({TensorRole::kTokenEmbedding, -1}, c), (Shape{131072, 2048}));
}

}  // namespace
}  // namespace bitnet
