// LoRA adapters in PEFT's files, and merged into ternary and dense weights: against the plain sums.
#include "bitnet/quant/adapter.hpp"

#include <cmath>
#include <cstring>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>

#include "bitnet/core/io/atomic_file.hpp"
#include "bitnet/core/io/safetensors.hpp"
#include "bitnet/quant/quantizer.hpp"
#include "bitnet/testing/mutate.hpp"
#include "bitnet/testing/reference_forward.hpp"
#include "bitnet/testing/testing.hpp"
#include "contexts.hpp"
#include "quant_support.hpp"

namespace bitnet::quant {
namespace {

using bitnet::testing::random_adapter;
using bitnet::testing::TempDir;
using Json = nlohmann::ordered_json;

const std::vector<TensorRole> kAll{TensorRole::kAttnQ,      TensorRole::kAttnK,   TensorRole::kAttnV,
                                   TensorRole::kAttnOutput, TensorRole::kFfnGate, TensorRole::kFfnUp,
                                   TensorRole::kFfnDown};

const LoraLinear* find(const LoraAdapter& adapter, TensorId id) {
  for (const LoraLinear& l : adapter.linears)
    if (l.id == id) return &l;
  return nullptr;
}

void expect_equal(const LoraAdapter& a, const LoraAdapter& b) {
  ASSERT_EQ(a.linears.size(), b.linears.size());
  for (const LoraLinear& l : a.linears) {
    const LoraLinear* const other = find(b, l.id);
    ASSERT_NE(other, nullptr) << gguf_name(l.id);
    EXPECT_EQ(l.rank, other->rank);
    EXPECT_EQ(l.scaling, other->scaling);
    EXPECT_EQ(l.a, other->a);
    EXPECT_EQ(l.b, other->b);
  }
}

struct AdapterTest : ::testing::Test {
  TempDir folder;
  ModelConfig config = bitnet::testing::tiny_config();
  LoraAdapter adapter = random_adapter(config, kAll, 3, 1);
  std::filesystem::path path = folder / "lora";

  AdapterTest() {
    adapter.base_model = "some/model";
    write_adapter(path, adapter, config);
  }
  Json config_json() const { return Json::parse(read_file(path / "adapter_config.json")); }
  void write_config(const Json& json) const { write_file(path / "adapter_config.json", json.dump()); }

  /// The file's tensors under the names that `rename` gives, as `dtype`.
  void rewrite(const std::function<std::string(const std::string&)>& rename, SafeDType dtype) const {
    const auto files = SafeTensors::open(path / "adapter_model.safetensors");
    std::vector<SafeTensorInfo> infos;
    std::vector<std::string> bytes;
    for (const SafeTensorInfo& info : files->tensors()) {
      const std::string name = rename(info.name);
      if (name.empty()) continue;
      SafeTensorInfo to = info;
      to.name = name;
      to.dtype = dtype;
      infos.push_back(to);
      const auto data = files->data(info);
      std::string out;
      for (std::size_t i = 0; i < data.size(); i += 4) {
        float v;
        std::memcpy(&v, data.data() + i, 4);
        const std::uint16_t h = dtype == SafeDType::kBF16 ? f32_to_bf16(v) : f32_to_f16(v);
        if (dtype == SafeDType::kF32)
          out.append(reinterpret_cast<const char*>(&v), 4);
        else
          out.append(reinterpret_cast<const char*>(&h), 2);
      }
      bytes.push_back(std::move(out));
    }
    SafeTensorsWriter writer(path / "adapter_model.safetensors", infos);
    for (std::size_t i = 0; i < infos.size(); ++i)
      writer.write(infos[i].name, std::as_bytes(std::span<const char>(bytes[i])));
    writer.finish();
  }
};

TEST_F(AdapterTest, ComesBackAsItWasWritten) {
  const LoraAdapter back = read_adapter(path, config);
  EXPECT_EQ(back.base_model, "some/model");
  expect_equal(adapter, back);
}

TEST_F(AdapterTest, FilesHaveThePeftNames) {
  const auto files = SafeTensors::open(path / "adapter_model.safetensors");
  const SafeTensorInfo* const a =
      files->find("base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight");
  const SafeTensorInfo* const b = files->find("base_model.model.model.layers.0.mlp.down_proj.lora_B.weight");
  ASSERT_NE(a, nullptr);
  ASSERT_NE(b, nullptr);
  EXPECT_EQ(a->shape, (std::vector<std::int64_t>{3, config.hidden_size}));
  EXPECT_EQ(b->shape, (std::vector<std::int64_t>{config.hidden_size, 3}));
  const Json json = config_json();
  EXPECT_EQ(json["peft_type"], "LORA");
  EXPECT_EQ(json["r"], 3);
  EXPECT_EQ(json["lora_alpha"], 6.0);
  EXPECT_EQ(json["target_modules"],
            (Json{"down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"}));
}

TEST_F(AdapterTest, LinearsOfSomeLayersOnlyAreNamedInFull) {
  const LoraAdapter some = random_adapter(config, {TensorRole::kAttnQ}, 2, 4, 0.5f, 1);
  write_adapter(folder / "some", some, config);
  path = folder / "some";
  EXPECT_EQ(config_json()["target_modules"], Json{"model.layers.1.self_attn.q_proj"});
  expect_equal(some, read_adapter(path, config));
}

TEST_F(AdapterTest, TakesRawNamesHalfTypesAndScalingsOfPeft) {
  rewrite([](std::string name) { return name.replace(name.rfind(".weight"), 7, ".default.weight"); },
          SafeDType::kBF16);
  Json json = config_json();
  json["lora_alpha"] = 16;
  json["use_rslora"] = true;
  json["alpha_pattern"] = {{"layers.1.self_attn.q_proj", 4}, {"down_proj", 8}};
  write_config(json);
  const LoraAdapter back = read_adapter(path, config);
  const float root = std::sqrt(3.0f);
  EXPECT_FLOAT_EQ(find(back, {TensorRole::kAttnQ, 0})->scaling, 16 / root);
  EXPECT_FLOAT_EQ(find(back, {TensorRole::kAttnQ, 1})->scaling, 4 / root);
  EXPECT_FLOAT_EQ(find(back, {TensorRole::kFfnDown, 0})->scaling, 8 / root);
  const float first = find(adapter, {TensorRole::kAttnQ, 0})->a[0];
  EXPECT_EQ(find(back, {TensorRole::kAttnQ, 0})->a[0], bf16_to_f32(f32_to_bf16(first)));
}

TEST_F(AdapterTest, WhatIsNotLoraOfLinearsIsRefusedByName) {
  const Json good = config_json();
  const auto refused = [&](const char* key, const Json& value, ErrorCode code, const char* text) {
    SCOPED_TRACE(key);
    Json json = good;
    json[key] = value;
    write_config(json);
    BITNET_EXPECT_ERROR(read_adapter(path, config), code, text);
  };
  refused("peft_type", "IA3", ErrorCode::kUnsupported, "LORA");
  refused("use_dora", true, ErrorCode::kUnsupported, "use_dora");
  refused("bias", "all", ErrorCode::kUnsupported, "biases");
  refused("modules_to_save", Json{"lm_head"}, ErrorCode::kUnsupported, "modules_to_save");
  refused("alpha_pattern", Json{{"layers.*", 3}}, ErrorCode::kUnsupported, "regular expressions");
  refused("lora_alpha", "much", ErrorCode::kCorruptFile, "expected a number");
  refused("lora_alpha", 1e300, ErrorCode::kCorruptFile, "makes a scaling beyond 1000000");
  Json without = good;
  without.erase("lora_alpha");
  write_config(without);
  BITNET_EXPECT_ERROR(read_adapter(path, config), ErrorCode::kCorruptFile, "lora_alpha");
  write_config(good);

  BITNET_EXPECT_ERROR(read_adapter(folder / "none", config), ErrorCode::kNotFound, "adapter_config.json");
  BITNET_EXPECT_ERROR(read_adapter(path / "adapter_config.json", config), ErrorCode::kInvalidArgument,
                      "directory");
  ModelConfig other = config;
  other.hidden_size *= 2;
  BITNET_EXPECT_ERROR(read_adapter(path, other), ErrorCode::kCorruptFile, "expected shape");
  other = config;
  other.n_layers = 1;
  BITNET_EXPECT_ERROR(read_adapter(path, other), ErrorCode::kCorruptFile, "the model has 1 layers");

  rewrite([](const std::string& name) { return name.find("1.mlp.up_proj.lora_B") != name.npos ? "" : name; },
          SafeDType::kF32);
  BITNET_EXPECT_ERROR(read_adapter(path, config), ErrorCode::kCorruptFile, "up_proj' has no lora_B");
  rewrite([](const std::string&) { return std::string(); }, SafeDType::kF32);
  BITNET_EXPECT_ERROR(read_adapter(path, config), ErrorCode::kCorruptFile, "no LoRA tensors");
  write_adapter(path, adapter, config);
  rewrite(
      [](const std::string& name) {
        return name.ends_with("0.self_attn.q_proj.lora_A.weight") ? "base_model.model.lm_head.lora_A.weight"
                                                                  : name;
      },
      SafeDType::kF32);
  BITNET_EXPECT_ERROR(read_adapter(path, config), ErrorCode::kUnsupported, "lm_head");
}

TEST_F(AdapterTest, NumbersThatAreNotFiniteAreRefused) {
  adapter.linears[2].b[5] = std::numeric_limits<float>::quiet_NaN();
  write_adapter(path, adapter, config);
  BITNET_EXPECT_ERROR(read_adapter(path, config), ErrorCode::kCorruptFile, "element 5 is nan");
}

TEST_F(AdapterTest, DamagedFilesThrowNothingButErrors) {
  Rng rng(3);
  for (const char* name : {"adapter_config.json", "adapter_model.safetensors"}) {
    const std::string whole = read_file(path / name);
    for (int i = 0; i < 200; ++i) {
      std::ofstream(path / name, std::ios::binary | std::ios::trunc) << bitnet::testing::mutate(whole, rng);
      try {
        (void)read_adapter(path, config);
      } catch (const Error&) {
      }
    }
    std::ofstream(path / name, std::ios::binary | std::ios::trunc) << whole;
  }
  expect_equal(adapter, read_adapter(path, config));
}

TEST_F(AdapterTest, WhatTheFormatCannotHoldIsNotWritten) {
  const auto refused = [&](const LoraAdapter& wrong, const char* text) {
    BITNET_EXPECT_ERROR(write_adapter(folder / "wrong", wrong, config), ErrorCode::kInvalidArgument, text);
    EXPECT_FALSE(std::filesystem::exists(folder / "wrong"));
  };
  refused({}, "without linears");
  LoraAdapter wrong = adapter;
  wrong.linears[1].a.pop_back();
  refused(wrong, "elements");
  wrong = adapter;
  wrong.linears[1].scaling = 3;
  refused(wrong, "scaling 3");
  wrong = adapter;
  wrong.linears.push_back(wrong.linears[0]);
  refused(wrong, "at most once");
}

/// ΔW of one element by the definition.
double delta(const LoraLinear& l, std::size_t in, std::size_t row, std::size_t col) {
  double sum = 0;
  for (std::int64_t r = 0; r < l.rank; ++r)
    sum += static_cast<double>(l.b[row * static_cast<std::size_t>(l.rank) + static_cast<std::size_t>(r)]) *
           static_cast<double>(l.a[static_cast<std::size_t>(r) * in + col]);
  return sum * static_cast<double>(l.scaling);
}

TEST(Merge, DenseWeightsAreTheSum) {
  ModelConfig config = bitnet::testing::tiny_config();
  config.weights = WeightKind::kDense;
  const auto model = bitnet::testing::random_model(config, 1);
  const LoraAdapter one = random_adapter(config, kAll, 2, 1), two = random_adapter(config, kAll, 5, 2);
  const std::vector<WeightedAdapter> both{{&one, 1.0f}, {&two, -0.5f}};
  std::vector<MergeReport> reports;
  const TensorId id{TensorRole::kFfnDown, 1};
  const LogicalTensor before = model(id), after = merge(before, both, reports);
  const std::vector<float> w = before.to_f32(), m = after.to_f32();
  const auto in = static_cast<std::size_t>(before.shape[1]);
  double ww = 0, dd = 0;
  for (std::size_t i = 0; i < w.size(); ++i) {
    const double d =
        delta(*find(one, id), in, i / in, i % in) - 0.5 * delta(*find(two, id), in, i / in, i % in);
    ASSERT_EQ(m[i], static_cast<float>(static_cast<double>(w[i]) + d));
    ww += static_cast<double>(w[i]) * static_cast<double>(w[i]);
    dd += d * d;
  }
  ASSERT_EQ(reports.size(), 1u);
  EXPECT_EQ(reports[0].id, id);
  EXPECT_NEAR(reports[0].update, std::sqrt(dd / ww), 1e-9);
  EXPECT_NEAR(reports[0].kept, 1, 1e-6);
  EXPECT_LT(reports[0].error, 1e-6);
  EXPECT_EQ(reports[0].flips, 0);
  EXPECT_EQ(reports[0].weights, static_cast<std::int64_t>(w.size()));
}

TEST(Merge, TernaryWeightsBecomeTernaryAgainByTheirOwnScale) {
  const ModelConfig config = bitnet::testing::tiny_config();
  const auto model = bitnet::testing::random_model(config, 1);
  const LoraAdapter adapter = random_adapter(config, kAll, 4, 7, 0.3f);
  const WeightedAdapter weighted{&adapter, 1.0f};
  for (const TensorRole role : kAll) {
    for (const std::int64_t rows : {std::int64_t{0}, std::int64_t{5}}) {
      const TensorId id{role, 0};
      LogicalTensor before = model(id);
      if (rows > 0) {  // scales of groups of rows, the last one smaller
        before.weights.rows_per_scale = rows;
        before.weights.scales.resize(static_cast<std::size_t>((before.shape[0] + rows - 1) / rows), 0.1f);
        before.weights.scales[1] = 0.3f;
      }
      std::vector<MergeReport> reports;
      const LogicalTensor after = merge(before, {&weighted, 1}, reports);
      ASSERT_TRUE(after.ternary);
      const auto in = static_cast<std::size_t>(before.shape[1]);
      const auto group_rows = static_cast<std::size_t>(before.weights.rows_per_scale);
      std::vector<double> along(before.weights.scales.size()), nonzero(before.weights.scales.size());
      std::int64_t flips = 0;
      for (std::size_t i = 0; i < before.weights.trits.size(); ++i) {
        const std::size_t group = i / in / group_rows;
        const auto s = static_cast<double>(before.weights.scales[group]);
        const double sum = s * before.weights.trits[i] + delta(*find(adapter, id), in, i / in, i % in);
        const double rounded = std::clamp(std::nearbyint(sum / s), -1.0, 1.0);
        ASSERT_EQ(after.weights.trits[i], static_cast<int>(rounded));
        flips += after.weights.trits[i] != before.weights.trits[i];
        along[group] += sum * rounded;
        nonzero[group] += std::abs(rounded);
      }
      for (std::size_t g = 0; g < along.size(); ++g)
        EXPECT_FLOAT_EQ(after.weights.scales[g], static_cast<float>(along[g] / nonzero[g]));
      ASSERT_EQ(reports.size(), 1u);
      EXPECT_EQ(reports[0].flips, flips);
      EXPECT_GT(flips, 0);
      EXPECT_GT(reports[0].kept, 0);
      EXPECT_GT(reports[0].error, 0);
    }
  }
}

/// W + Δ in double, as the definition says.
std::vector<double> sum_of(const LogicalTensor& t, const LoraAdapter& adapter) {
  const auto in = static_cast<std::size_t>(t.shape[1]);
  const std::vector<float> w = t.to_f32();
  std::vector<double> sum;
  for (std::size_t i = 0; i < w.size(); ++i)
    sum.push_back(static_cast<double>(w[i]) + delta(*find(adapter, t.id), in, i / in, i % in));
  return sum;
}

double squared_error(const LogicalTensor& t, const std::vector<double>& of) {
  const std::vector<float> w = t.to_f32();
  double sum = 0;
  for (std::size_t i = 0; i < w.size(); ++i)
    sum += (static_cast<double>(w[i]) - of[i]) * (static_cast<double>(w[i]) - of[i]);
  return sum;
}

/// A linear of random floats made what a method makes of it.
LogicalTensor made(TensorId id, const ModelConfig& config, LinearPlan plan) {
  const Shape shape = tensor_shape(id, config);
  const std::vector<float> w = test::random_floats(shape.numel(), 5);
  return quantize_linear(test::context(), id, w, shape[0], shape[1], plan, {}).tensor;
}

ModelConfig wide_config() {
  ModelConfig c = bitnet::testing::tiny_config();
  c.intermediate_size = 96;
  return c;
}

TEST(Merge, EveryKindOfLinearStaysWhatItIsAndNoOtherScalesAreBetter) {
  const ModelConfig config = wide_config();
  const TensorId id{TensorRole::kFfnDown, 1};
  const LoraAdapter adapter = random_adapter(config, kAll, 4, 7, 1.5f);
  const WeightedAdapter weighted{&adapter, 1.0f};
  for (const WeightMethod method : {WeightMethod::kLeastSquares, WeightMethod::kTwoPlane}) {
    for (const ScaleUnit scales : {ScaleUnit::kTensor, ScaleUnit::kRow, ScaleUnit::kGroup32}) {
      SCOPED_TRACE(std::string(to_string(method)) + " " + std::string(to_string(scales)));
      LogicalTensor before = made(id, config, {method, scales});
      before.activations = ActivationForm::kInt4Absmean;
      std::vector<MergeReport> reports;
      const LogicalTensor after = merge(before, {&weighted, 1}, reports);
      EXPECT_EQ(after.ternary, before.ternary);
      EXPECT_EQ(after.planes.has_value(), before.planes.has_value());
      EXPECT_EQ(after.activations, before.activations);
      const std::vector<double> target = sum_of(before, adapter);
      const double error = squared_error(after, target);
      EXPECT_LT(error, squared_error(before, target));
      EXPECT_GT(reports.at(0).flips, 0);
      EXPECT_EQ(reports[0].trits, (method == WeightMethod::kTwoPlane ? 2 : 1) * before.shape.numel());
      double all = 0;
      for (const double v : target) all += v * v;
      EXPECT_NEAR(reports[0].error, std::sqrt(error / all), 1e-5);
      // Each scale a little up or down is worse, with these trits.
      for (const float factor : {0.99f, 1.01f}) {
        LogicalTensor other = after;
        auto& planes = other.planes ? other.planes->first : other.weights;
        planes.scales.back() *= factor;
        EXPECT_GT(squared_error(other, target), error);
      }
    }
  }
}

TEST(Merge, OfTwoPlanesThePairNearestToTheSumIsTaken) {
  const ModelConfig config = wide_config();
  const TensorId id{TensorRole::kFfnDown, 1};
  const LoraAdapter adapter = random_adapter(config, kAll, 4, 7, 0.3f);
  const WeightedAdapter weighted{&adapter, 1.0f};
  const LogicalTensor before = made(id, config, {WeightMethod::kTwoPlane, ScaleUnit::kRow});
  std::vector<MergeReport> reports;
  const LogicalTensor after = merge(before, {&weighted, 1}, reports);
  const std::vector<double> target = sum_of(before, adapter);
  const TwoPlanes &old = *before.planes, &now = *after.planes;
  const auto in = static_cast<std::size_t>(before.shape[1]);
  for (std::size_t i = 0; i < target.size(); ++i) {
    const auto a = static_cast<double>(old.first.scales[i / in]),
               b = static_cast<double>(old.second.scales[i / in]);
    const auto off = [&](int t, int u) { return std::fabs(target[i] - a * t - b * u); };
    const double got = off(now.first.trits[i], now.second.trits[i]);
    for (int t = -1; t <= 1; ++t)
      for (int u = -1; u <= 1; ++u) ASSERT_LE(got, off(t, u) * (1 + 1e-6) + 1e-9);
  }
}

TEST(Merge, RowsOfInt8AreRoundedAnewWhereTheyChange) {
  const ModelConfig config = wide_config();
  const TensorId id{TensorRole::kFfnDown, 1};
  LoraAdapter adapter = random_adapter(config, kAll, 4, 7, 0.3f);
  for (LoraLinear& l : adapter.linears)
    for (std::int64_t r = 0; r < l.rank; ++r) l.b[static_cast<std::size_t>(2 * l.rank + r)] = 0;  // row 2
  const WeightedAdapter weighted{&adapter, 1.0f};
  const LogicalTensor before = made(id, config, {WeightMethod::kInt8, {}});
  std::vector<MergeReport> reports;
  const LogicalTensor after = merge(before, {&weighted, 1}, reports);
  const std::vector<double> target = sum_of(before, adapter);
  const std::vector<float> now = after.to_f32(), was = before.to_f32();
  const auto in = static_cast<std::size_t>(before.shape[1]);
  for (std::size_t i = 0; i < target.size(); ++i) {
    const double half = 0.5 * static_cast<double>(after.int8.value().scales[i / in]);
    ASSERT_NEAR(now[i], target[i], half * (1 + 1e-5));
    if (i / in == 2) {
      ASSERT_EQ(now[i], was[i]);
    }
  }
  EXPECT_NEAR(reports.at(0).kept, 1, 0.01);
  EXPECT_EQ(reports[0].trits, 0);
  EXPECT_EQ(reports[0].flips, 0);
}

TEST(Merge, NothingChangesWithoutAnUpdate) {
  const ModelConfig config = bitnet::testing::tiny_config();
  const auto model = bitnet::testing::random_model(config, 1);
  LoraAdapter zeros = random_adapter(config, {TensorRole::kAttnQ}, 2, 1);
  for (LoraLinear& l : zeros.linears) std::fill(l.b.begin(), l.b.end(), 0.0f);
  const WeightedAdapter weighted{&zeros, 1.0f};
  std::vector<MergeReport> reports;
  for (const TensorId id : model_tensors(config)) {
    const LogicalTensor before = model(id), after = merge(before, {&weighted, 1}, reports);
    EXPECT_EQ(before.dense, after.dense);
    EXPECT_EQ(before.weights.trits, after.weights.trits);
    EXPECT_EQ(before.weights.scales, after.weights.scales);
  }
  ASSERT_EQ(reports.size(), 2u);  // of q in two layers
  const TensorId q{TensorRole::kAttnQ, 0};
  for (const WeightMethod method : {WeightMethod::kTwoPlane, WeightMethod::kInt8}) {
    const LogicalTensor before = made(q, config, {method, ScaleUnit::kRow});
    EXPECT_EQ(merge(before, {&weighted, 1}, reports).to_f32(), before.to_f32());
  }
  EXPECT_EQ(reports[0].update, 0);
  EXPECT_EQ(reports[0].flips, 0);
}

TEST(Merge, WhatDoesNotFitIsRefused) {
  const ModelConfig config = bitnet::testing::tiny_config();
  const auto model = bitnet::testing::random_model(config, 1);
  LoraAdapter adapter = random_adapter(config, {TensorRole::kAttnQ}, 2, 1);
  const WeightedAdapter weighted{&adapter, 1.0f};
  std::vector<MergeReport> reports;
  const LogicalTensor q = model({TensorRole::kAttnQ, 0});
  LogicalTensor odd = q;
  odd.ternary = false;
  odd.planes = TwoPlanes{q.weights, q.weights};
  odd.planes->second.rows_per_scale = 1;
  odd.planes->second.scales.assign(static_cast<std::size_t>(q.weights.out), 0.5f);
  BITNET_EXPECT_ERROR(merge(odd, {&weighted, 1}, reports), ErrorCode::kUnsupported,
                      "two planes whose scales have other groups");
  adapter.linears[0].b[0] = 1e38f;
  adapter.linears[0].a[0] = 1e38f;
  BITNET_EXPECT_ERROR(merge(q, {&weighted, 1}, reports), ErrorCode::kInvalidArgument,
                      "merged weight at [0, 0]");
  adapter.linears[0].b.pop_back();
  BITNET_EXPECT_ERROR(merge(q, {&weighted, 1}, reports), ErrorCode::kInvalidArgument, "for a linear [");
}

}  // namespace
}  // namespace bitnet::quant
