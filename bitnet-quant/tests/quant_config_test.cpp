// Configurations: what yaml says, what a model makes of it, and every way to get it wrong.
#include "bitnet/quant/quant_config.hpp"

#include <filesystem>

#include "bitnet/core/io/atomic_file.hpp"
#include "bitnet/testing/testing.hpp"

namespace bitnet::quant {
namespace {

ModelConfig small_model() {
  ModelConfig m;
  m.family = ModelFamily::kLlama;
  m.weights = WeightKind::kDense;
  m.architecture = "llama";
  m.vocab_size = 100;
  m.hidden_size = 256;
  m.intermediate_size = 384;
  m.n_layers = 3;
  m.n_heads = m.n_kv_heads = 4;
  m.head_dim = 64;
  m.max_position = 64;
  m.sub_norms = false;
  return m;
}

QuantConfig parse(const std::string& text) { return QuantConfig::from_yaml(text, "q.yaml"); }

LinearPlan plan_of(const QuantConfig& c, TensorId id) {
  for (const PlannedLinear& l : plan_linears(c, small_model()))
    if (l.id == id) return l.plan;
  ADD_FAILURE() << "no such linear";
  return {};
}

constexpr const char* kFull = R"(
scheme: mixed_precision
weights: {method: gptq, scales: group128}
activations:
  bits: 4
  rule: absmean
layers:
  - match: "blk.*.ffn_down"
    method: two-plane
    scales: row
  - match: [model.layers.1.self_attn.q_proj, "blk.1.attn_?.weight"]
    method: int8
    activation_bits: 8
    activation_rule: absmax
keep: ["blk.2.*", token_embd]
protect: false
gptq: {damping: 0.05, multipliers: [1, 1.5], activation_order: true, refit: false}
two_plane: {rounds: 7}
)";

TEST(QuantConfigTest, EveryKeyReachesTheLinearsItNames) {
  const QuantConfig c = parse(kFull);
  EXPECT_EQ(plan_of(c, {TensorRole::kAttnQ, 0}),
            (LinearPlan{WeightMethod::kGptq, ScaleUnit::kGroup128, 4, ActivationRule::kAbsmean}));
  EXPECT_EQ(plan_of(c, {TensorRole::kFfnDown, 0}),
            (LinearPlan{WeightMethod::kTwoPlane, ScaleUnit::kRow, 4, ActivationRule::kAbsmean}));
  for (const TensorRole role : {TensorRole::kAttnQ, TensorRole::kAttnK, TensorRole::kAttnV}) {
    EXPECT_EQ(plan_of(c, {role, 1}).method, WeightMethod::kInt8);
    EXPECT_EQ(plan_of(c, {role, 1}).activation_bits, 8);
  }
  EXPECT_EQ(plan_of(c, {TensorRole::kAttnOutput, 1}).method, WeightMethod::kGptq);  // attn_output, not attn_?
  EXPECT_EQ(plan_of(c, {TensorRole::kFfnDown, 2}).method, WeightMethod::kKeep);     // keep wins
  EXPECT_EQ(c.gptq.damping, 0.05);
  EXPECT_EQ(c.gptq.multipliers, (std::vector<double>{1, 1.5}));
  EXPECT_TRUE(c.gptq.activation_order);
  EXPECT_FALSE(c.gptq.refit);
  EXPECT_EQ(c.two_plane_rounds, 7);
  EXPECT_FALSE(c.protect);
  EXPECT_TRUE(parse("").protect);
}

TEST(QuantConfigTest, NothingSaidIsBitNet) {
  for (const char* const text : {"", "# a comment\n", "scheme: bitnet158\nlayers:\n"})
    for (const PlannedLinear& l : plan_linears(parse(text), small_model()))
      EXPECT_EQ(l.plan, LinearPlan()) << text;
  EXPECT_EQ(plan_linears(QuantConfig(), small_model()).size(), 21u);
}

TEST(QuantConfigTest, LaterEntriesWinAndAbsmeanBringsItsScale) {
  const QuantConfig c = parse(
      "weights: {method: ls, scales: row}\n"
      "layers:\n"
      "  - {match: '*ffn*', method: absmean}\n"
      "  - {match: blk.1.ffn_up, method: gptq}\n"
      "  - {match: blk.1.ffn_up, scales: group64}\n");
  EXPECT_EQ(plan_of(c, {TensorRole::kAttnQ, 0}).scales, ScaleUnit::kRow);
  EXPECT_EQ(plan_of(c, {TensorRole::kFfnUp, 0}).scales, ScaleUnit::kTensor);
  EXPECT_EQ(plan_of(c, {TensorRole::kFfnUp, 1}), (LinearPlan{WeightMethod::kGptq, ScaleUnit::kGroup64}));
}

TEST(QuantConfigTest, CalibrationMayChooseActivationsInTwoSchemes) {
  const auto adaptive = [](const QuantConfig& c) {
    std::size_t n = 0;
    for (const PlannedLinear& l : plan_linears(c, small_model())) n += l.adaptive ? 1 : 0;
    return n;
  };
  constexpr const char* kLayers =
      "activations: {tolerance: 0.25}\nweights: {method: ls, scales: row}\n"
      "layers: [{match: '*ffn_down', activation_bits: 8}]\n";
  const QuantConfig c = parse(std::string("scheme: adaptive\n") + kLayers);
  EXPECT_EQ(adaptive(c), 18u);
  EXPECT_EQ(c.activation_tolerance, 0.25);
  // In mixed_precision, with what that has more.
  const QuantConfig mixed = as_mixed(c);
  EXPECT_EQ(mixed.scheme, QuantScheme::kMixedPrecision);
  EXPECT_EQ(adaptive(mixed), 18u);
  const QuantConfig kept = parse("scheme: mixed_precision\nactivations: {bits: auto}\nkeep: ['blk.0.*']\n");
  EXPECT_EQ(adaptive(kept), 14u);  // floats are kept as floats
  for (const QuantConfig& each : {c, mixed, kept}) {
    const QuantConfig again = parse(each.to_yaml());
    EXPECT_EQ(again.to_yaml(), each.to_yaml());
    EXPECT_EQ(adaptive(again), adaptive(each));
    EXPECT_EQ(again.activation_tolerance, each.activation_tolerance);
  }
  EXPECT_EQ(adaptive(as_mixed(QuantConfig())), 0u);
  const auto expect = [](const char* text, const char* message) {
    BITNET_EXPECT_ERROR(parse(text), ErrorCode::kInvalidArgument, message);
  };
  expect("scheme: adaptive\nactivations: {bits: 4}",
         "q.yaml: activations.bits: calibration says which inputs");
  expect("activations: {bits: auto}", "q.yaml: activations.bits: the scheme bitnet158 has 8 bits");
  for (const char* scheme : {"bitnet158", "mixed_precision"})
    expect((std::string("scheme: ") + scheme + "\nactivations:\n  tolerance: 0.1\n").c_str(),
           "q.yaml:3: 'activations.tolerance': says which inputs bear 4 bits");
}

TEST(QuantConfigTest, WhatIsWrittenIsReadAgain) {
  QuantConfig c = parse(kFull);
  c.layers[0].match.push_back("odd \"name\" \\ with\ttab");
  const QuantConfig again = parse(c.to_yaml());
  EXPECT_EQ(again.to_yaml(), c.to_yaml());
  EXPECT_EQ(again.layers[0].match, c.layers[0].match);
  EXPECT_EQ(again.keep, c.keep);
  EXPECT_EQ(again.gptq.multipliers, c.gptq.multipliers);
  EXPECT_EQ(parse(QuantConfig().to_yaml()).to_yaml(), QuantConfig().to_yaml());
}

TEST(QuantConfigTest, TheExamplesFitAModelOfFourLayers) {
  ModelConfig m = small_model();
  m.n_layers = 4;
  std::size_t n = 0;
  for (const auto& file : std::filesystem::directory_iterator(testing::source_path("configs/quant"))) {
    EXPECT_EQ(plan_linears(QuantConfig::from_yaml_file(file.path()), m).size(), 28u) << file.path();
    ++n;
  }
  EXPECT_GE(n, 2u);
}

TEST(QuantConfigTest, MistakesComeWithTheirLineAndTheNearestWord) {
  const auto expect = [](const char* text, const char* message) {
    BITNET_EXPECT_ERROR(parse(text), ErrorCode::kInvalidArgument, message);
  };
  expect("scheme: bitnet158\nwieghts: {}\n", "q.yaml:2: unknown key 'wieghts', did you mean 'weights'?");
  expect("weights:\n  metod: ls\n", "q.yaml:2: unknown key 'metod' in 'weights', did you mean 'method'?");
  expect("weights:\n  method: gtpq\n",
         "q.yaml:2: 'weights.method': unknown method 'gtpq', did you mean 'gptq'?");
  expect("weights: {scales: group96}", "unknown scale granularity 'group96', did you mean 'group");
  expect("weights: {scales: group96}", "(there are tensor, row, group32, group64, group128, group256)");
  expect("scheme: adaptiv", "did you mean 'adaptive'?");
  expect("activations: {rule: absmin}", "did you mean 'absm");
  expect("activations:\n  bits: eight\n", "q.yaml:2: 'activations.bits': expected 8, 4 or auto");
  expect("activations: {bits: 5}", "weights: activations of 5 bits: expected 8 or 4");
  expect("scheme: adaptive\nactivations: {rule: absmean}", "for activations of 4 bits");
  expect("activations: {bits: 4}", "adaptive and mixed_precision allow 4");
  expect("weights: {scales: row}", "absmean has one scale a tensor");
  expect("weights: {method: int8}", "the scheme bitnet158 has one ternary plane");
  expect("layers:\n  - {match: 'x', method: two-plane}",
         "q.yaml:2: layers 'x': the scheme bitnet158 has one");
  expect("layers:\n  - method: ls\n", "q.yaml:2: an entry of 'layers' needs the key 'match'");
  expect("layers:\n  - {match: x, methd: ls}\n", "q.yaml:2: unknown key 'methd' in 'layers', did you mean");
  expect("layers: {match: x}", "'layers' must be a list");
  expect("scheme: bitnet158\nkeep: [x]", "q.yaml:2: keep: the scheme bitnet158");
  expect("keep: {a: b}", "expected a word or a list of words");
  expect("gptq: {damping: -1}", "gptq.damping: expected 0 … 1");
  expect("gptq: {multipliers: []}", "gptq.multipliers");
  expect("gptq: {multipliers: [1, x]}", "expected a list of numbers");
  expect("gptq: {refit: maybe}", "expected true or false");
  expect("two_plane: {rounds: -1}", "two_plane.rounds");
  expect("scheme: adaptive\nactivations: {tolerance: .nan}", "activations.tolerance");
  expect("weights: 3", "q.yaml:1: 'weights' must be a mapping");
  expect("[1, 2]", "must be a mapping");
  expect("scheme: adaptive\nscheme: adaptive\n", "q.yaml:2: 'scheme' is given twice, first in line 1");
  expect("a: 1\n---\nb: 2\n", "a second document");
  expect(", a\n", "no document can begin here");  // yaml-cpp alone would never come back
  expect("weights: {method: ls", "q.yaml:");
  expect("? [a]\n: b\n", "expected a word as key");
  BITNET_EXPECT_ERROR(QuantConfig::from_yaml_file("/nowhere/q.yaml"), ErrorCode::kNotFound,
                      "/nowhere/q.yaml");
}

TEST(QuantConfigTest, PatternsThatNameNothingListNearMisses) {
  const auto expect = [](const std::string& pattern, const char* message) {
    QuantConfig c;
    c.layers.push_back({{pattern}, WeightMethod::kLeastSquares, {}, {}, {}});
    BITNET_EXPECT_ERROR(plan_linears(c, small_model()), ErrorCode::kInvalidArgument, message);
  };
  expect(
      "blk.0.ffn_dwon",
      "the pattern 'blk.0.ffn_dwon' names no linear of this model of 3 layers; near ones are blk.0.ffn_down");
  expect("blk.*.ffn_dwon", "near ones are blk.*.ffn_down");
  expect("blk.7.ffn_down", "near ones are blk.0.ffn_down, blk.1.ffn_down, blk.2.ffn_down");
  expect("model.layers.0.self_attn.w_proj", "model.layers.0.self_attn.q_proj");
  expect("zebra", "they are called e.g. blk.0.attn_q");
  expect("token_embd", "names no linear");  // only in keep
  QuantConfig c;
  c.scheme = QuantScheme::kMixedPrecision;
  c.keep = {"output_nrom"};
  BITNET_EXPECT_ERROR(plan_linears(c, small_model()), ErrorCode::kInvalidArgument,
                      "near ones are output_norm");
  c.keep = {"output_norm"};
  EXPECT_EQ(plan_linears(c, small_model()).size(), 21u);
  // Of a file it says where they stand.
  BITNET_EXPECT_ERROR(plan_linears(parse("scheme: mixed_precision\nkeep: [zebra]\n"), small_model()),
                      ErrorCode::kInvalidArgument, "q.yaml:2: the pattern 'zebra' names no tensor");
  BITNET_EXPECT_ERROR(
      plan_linears(parse("layers:\n  - {match: '*', method: ls}\n  - {match: zebra, scales: row}\n"),
                   small_model()),
      ErrorCode::kInvalidArgument, "q.yaml:3: the pattern 'zebra' names no linear");
}

TEST(QuantConfigTest, GroupsMustDivideTheColumns) {
  ModelConfig m = small_model();
  m.intermediate_size = 416;  // 13 · 32
  QuantConfig c;
  c.linears = {WeightMethod::kLeastSquares, ScaleUnit::kGroup64};
  BITNET_EXPECT_ERROR(plan_linears(c, m), ErrorCode::kInvalidArgument,
                      "blk.0.ffn_down: its 416 columns cannot be cut into groups of 64");
  c.linears.scales = ScaleUnit::kGroup32;
  EXPECT_EQ(plan_linears(c, m).size(), 21u);
}

TEST(QuantConfigTest, ATargetThatCannotHoldThePlanSaysWhichCan) {
  const ModelConfig m = small_model();  // ffn_down has 384 columns, no multiple of 256
  const auto check = [&](const QuantConfig& c, LinearType type) {
    check_target(plan_linears(c, m), m, type);
  };
  QuantConfig c;
  c.linears.method = WeightMethod::kGptq;
  check(c, LinearType::kHf);
  check(c, LinearType::kI2_S);
  BITNET_EXPECT_ERROR(
      check(c, LinearType::kTQ2_0), ErrorCode::kUnsupported,
      "tq2_0 cannot hold the plan of blk.0.ffn_down: 384 columns, no multiple of 256; types that "
      "would do: hf, i2_s");
  BITNET_EXPECT_ERROR(check(c, LinearType::kDense), ErrorCode::kUnsupported, "not written as floats");
  c.linears.scales = ScaleUnit::kRow;
  BITNET_EXPECT_ERROR(
      check(c, LinearType::kI2_S), ErrorCode::kUnsupported,
      "i2_s cannot hold the plan of blk.0.attn_q: scales by row; types that would do: extended");
  ModelConfig wide = m;
  wide.intermediate_size = 512;
  check_target(plan_linears(c, wide), wide, LinearType::kTQ1_0);
  c.linears.scales = ScaleUnit::kGroup256;
  wide.hidden_size = 512;
  wide.head_dim = wide.hidden_size / wide.n_heads;
  for (const LinearType type : {LinearType::kTQ1_0, LinearType::kTQ2_0, LinearType::kExtended})
    check_target(plan_linears(c, wide), wide, type);
  BITNET_EXPECT_ERROR(
      check_target(plan_linears(c, wide), wide, LinearType::kI2_S), ErrorCode::kUnsupported,
      "i2_s cannot hold the plan of blk.0.attn_q: scales by group256; types that would do: tq1_0, tq2_0, "
      "extended");
  c.linears.scales = ScaleUnit::kGroup128;
  BITNET_EXPECT_ERROR(
      check_target(plan_linears(c, wide), wide, LinearType::kTQ2_0), ErrorCode::kUnsupported,
      "tq2_0 cannot hold the plan of blk.0.attn_q: scales by group128; types that would do: extended");
  c.linears.scales = ScaleUnit::kRow;
  BITNET_EXPECT_ERROR(check_target(plan_linears(c, wide), wide, LinearType::kHf), ErrorCode::kUnsupported,
                      "types that would do: tq1_0, tq2_0");
  c.scheme = QuantScheme::kMixedPrecision;
  c.linears = {};
  for (const auto& [method, why] : std::vector<std::pair<WeightMethod, const char*>>{
           {WeightMethod::kTwoPlane, "two ternary planes"},
           {WeightMethod::kInt8, "an int8 linear"},
           {WeightMethod::kKeep, "a linear in full precision"}}) {
    c.layers = {{{"blk.1.attn_v"}, method, {}, {}, {}}};
    BITNET_EXPECT_ERROR(check(c, LinearType::kHf), ErrorCode::kUnsupported, why);
  }
  c.layers.clear();
  c.linears = {WeightMethod::kTwoPlane, ScaleUnit::kGroup64};
  c.keep = {"blk.0.*"};
  check(c, LinearType::kExtended);
  c = QuantConfig();
  c.scheme = QuantScheme::kMixedPrecision;
  c.layers = {{{"blk.1.attn_v"}, {}, {}, 4, {}}};
  check(c, LinearType::kExtended);
  BITNET_EXPECT_ERROR(check(c, LinearType::kHf), ErrorCode::kUnsupported,
                      "blk.1.attn_v: activations of 4 bits; types that would do: extended");
  c = QuantConfig();
  c.scheme = QuantScheme::kAdaptive;
  check(c, LinearType::kExtended);
  BITNET_EXPECT_ERROR(check(c, LinearType::kHf), ErrorCode::kUnsupported,
                      "activations of 8 or 4 bits, as calibration says; types that would do: extended");
  c.layers = {{{"*attn_v"}, {}, {}, 8, {}}, {{"blk.1.*"}, {}, ScaleUnit::kTensor, {}, {}}};
  for (const PlannedLinear& l : plan_linears(c, m)) EXPECT_EQ(l.adaptive, l.id.role != TensorRole::kAttnV);
  EXPECT_EQ(activation_form({}), ActivationForm::kInt8);
  EXPECT_EQ(activation_form({{}, {}, 4, ActivationRule::kAbsmax}), ActivationForm::kInt4Absmax);
  EXPECT_EQ(activation_form({{}, {}, 4, ActivationRule::kAbsmean}), ActivationForm::kInt4Absmean);
}

TEST(QuantConfigTest, Patterns) {
  const TensorId q{TensorRole::kAttnQ, 12};
  for (const char* const pattern : {"blk.12.attn_q", "blk.12.attn_q.weight", "*", "blk.1?.attn_q", "blk.*",
                                    "*attn_q", "**q*", "blk.*.attn_?", "model.layers.12.self_attn.q_proj",
                                    "*.self_attn.*", "model.layers.12.self_attn.q_proj.weight"})
    EXPECT_TRUE(names_tensor(pattern, q, ModelFamily::kLlama)) << pattern;
  for (const char* const pattern :
       {"", "blk.1.attn_q", "blk.12.attn_", "?", "blk.12.attn_q.bias", "attn_q", "*k_proj"})
    EXPECT_FALSE(names_tensor(pattern, q, ModelFamily::kLlama)) << pattern;
}

}  // namespace
}  // namespace bitnet::quant
