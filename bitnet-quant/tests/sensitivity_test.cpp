// Sensitivity of linears by a model that is made up: its logits move with the errors of the weights, with
// each linear as strongly as the test says. Real models are bitnet-cli's tests' business.
#include "bitnet/quant/sensitivity.hpp"

#include <algorithm>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "bitnet/core/io/atomic_file.hpp"
#include "bitnet/testing/testing.hpp"
#include "memory_reader.hpp"

namespace bitnet::quant {
namespace {

using testing::dense_config;
using testing::Linears;
using testing::MemoryModel;
using testing::MemoryReader;
using testing::RandomActivations;

const ExecutionContext& context() {
  static const ExecutionContext two(ExecutionContext::Options{.threads = 2, .isa = {}});
  return two;
}

MemoryReader dense_reader() { return {dense_config(), MemoryModel(dense_config(), Linears::kFloat, 3)}; }

/// Logits [40, 7] that are the original's plus importance times errors of replaced linears.
class MadeUpModel final : public TrialSource {
 public:
  explicit MadeUpModel(const MemoryReader& reader) : reader_(reader) {}

  std::unique_ptr<LogitSource> run(const Linears& linears) override {
    ++runs;
    std::vector<float> logits(kPositions * kVocab);
    for (std::size_t i = 0; i < logits.size(); ++i) logits[i] = static_cast<float>(i * 31 % 17) / 8.0f;
    for (const TensorId id : model_tensors(reader_.config())) {
      if (!is_linear(id.role) || !linears) continue;
      const auto tensor = linears(id);
      if (!tensor) continue;
      ++replaced;
      const std::vector<float> w = reader_.read(id).to_f32(), q = tensor->to_f32();
      for (std::size_t i = 0; i < logits.size(); ++i) {
        const std::size_t at = (i * 13 + static_cast<std::size_t>(id.layer)) % w.size();
        logits[i] += importance(id) * (q[at] - w[at]);
      }
    }
    return std::make_unique<Rows>(std::move(logits));
  }

  /// Layer 1's down projection matters the most.
  static float importance(TensorId id) {
    return id == TensorId{TensorRole::kFfnDown, 1} ? 2.0f : 0.05f * static_cast<float>(1 + id.layer);
  }
  std::size_t runs = 0, replaced = 0;

 private:
  static constexpr std::size_t kPositions = 40, kVocab = 7;
  class Rows final : public LogitSource {
   public:
    explicit Rows(std::vector<float> logits) : logits_(std::move(logits)) {}
    std::int64_t vocab_size() const override { return kVocab; }
    bool next(std::vector<float>& rows, std::vector<std::int32_t>& targets) override {
      rows.clear();
      targets.clear();
      for (; at_ < kPositions && targets.size() < 16; ++at_) {
        rows.insert(rows.end(), logits_.begin() + static_cast<std::ptrdiff_t>(at_ * kVocab),
                    logits_.begin() + static_cast<std::ptrdiff_t>((at_ + 1) * kVocab));
        targets.push_back(static_cast<std::int32_t>(at_ % kVocab));
      }
      return !targets.empty();
    }

   private:
    std::vector<float> logits_;
    std::size_t at_ = 0;
  };
  const MemoryReader& reader_;
};

QuantConfig base() {
  QuantConfig c;
  c.scheme = QuantScheme::kMixedPrecision;
  c.linears = {WeightMethod::kLeastSquares, ScaleUnit::kRow};
  return c;
}

SensitivityOptions by(TrialSource& trials) {
  SensitivityOptions o;
  o.ways = {{WeightMethod::kTwoPlane}, {WeightMethod::kInt8}};
  o.trials = &trials;
  return o;
}

void expect_same(const std::vector<LinearSensitivity>& a, const std::vector<LinearSensitivity>& b) {
  ASSERT_EQ(a.size(), b.size());
  for (std::size_t i = 0; i < a.size(); ++i) {
    EXPECT_TRUE(a[i].id == b[i].id);
    ASSERT_EQ(a[i].candidates.size(), b[i].candidates.size());
    for (std::size_t j = 0; j < a[i].candidates.size(); ++j) {
      const Candidate &x = a[i].candidates[j], &y = b[i].candidates[j];
      EXPECT_EQ(x.plan, y.plan);
      EXPECT_EQ(x.bytes, y.bytes);
      EXPECT_EQ(x.output_error, y.output_error);
      EXPECT_EQ(x.kl, y.kl);
      EXPECT_EQ(x.loss_change, y.loss_change);
      EXPECT_EQ(x.cost, y.cost);
    }
  }
}

TEST(Sensitivity, EachLinearAloneInEachWay) {
  const MemoryReader reader = dense_reader();
  MadeUpModel model(reader);
  const auto all = measure_sensitivity(context(), reader, base(), by(model));
  ASSERT_EQ(all.size(), 14u);
  EXPECT_EQ(model.replaced, 42u);      // one at a time
  EXPECT_EQ(model.runs, 1u + 3 * 14);  // the original's logits were kept
  const auto plans = plan_linears(base(), reader.config());
  for (std::size_t i = 0; i < all.size(); ++i) {
    EXPECT_TRUE(all[i].id == plans[i].id);
    const Shape shape = tensor_shape(all[i].id, reader.config());
    const auto cells = static_cast<std::uint64_t>(shape.numel()), rows = static_cast<std::uint64_t>(shape[0]);
    ASSERT_EQ(all[i].candidates.size(), 3u);
    const Candidate &ls = all[i].candidates[0], &two = all[i].candidates[1], &int8 = all[i].candidates[2];
    EXPECT_EQ(ls.plan, base().linears);
    EXPECT_EQ(two.plan.method, WeightMethod::kTwoPlane);
    EXPECT_EQ(int8.plan.method, WeightMethod::kInt8);
    EXPECT_EQ(ls.bytes, cells / 4 + 4 * rows);
    EXPECT_EQ(two.bytes, cells / 2 + 8 * rows);
    EXPECT_EQ(int8.bytes, cells + 4 * rows);
    EXPECT_GT(ls.kl, two.kl);
    EXPECT_GT(two.kl, int8.kl);
    EXPECT_GT(int8.kl, 0);
    EXPECT_EQ(ls.cost, ls.kl);
    EXPECT_EQ(ls.output_error, 0);  // no calibration
    EXPECT_NE(ls.loss_change, 0);
  }
  // The one that matters costs the most.
  const auto worst = std::max_element(all.begin(), all.end(), [](const auto& a, const auto& b) {
    return a.candidates[0].cost < b.candidates[0].cost;
  });
  EXPECT_TRUE((worst->id == TensorId{TensorRole::kFfnDown, 1}));
  // Its own figures, from the definition.
  Quantizer quantizer(context(), reader, base());
  std::map<std::int64_t, LogicalTensor> tensors;
  for (const auto& l : plans)
    tensors[l.id.layer * 100 + static_cast<std::int64_t>(l.id.role)] = quantizer.read(l.id);
  const auto before = model.run({});
  const auto after = model.run([&](TensorId id) -> std::optional<LogicalTensor> {
    if (!(id == worst->id)) return std::nullopt;
    return tensors.at(id.layer * 100 + static_cast<std::int64_t>(id.role));
  });
  EXPECT_EQ(compare_logits(*before, *after).mean_kl(), worst->candidates[0].kl);
}

TEST(Sensitivity, WithoutRoomForLogitsTheOriginalRunsBesideEachTrial) {
  const MemoryReader reader = dense_reader();
  MadeUpModel kept(reader), again(reader);
  SensitivityOptions o = by(kept);
  const auto a = measure_sensitivity(context(), reader, base(), o);
  o.trials = &again;
  o.logit_memory = 100;
  expect_same(measure_sensitivity(context(), reader, base(), o), a);
  EXPECT_EQ(again.runs, 1u + 2 * 42);
}

TEST(Sensitivity, KnownLayersAreNotMeasuredAgain) {
  const MemoryReader reader = dense_reader();
  MadeUpModel model(reader);
  std::vector<std::size_t> seen;
  SensitivityOptions o = by(model);
  std::vector<LinearSensitivity> half;
  o.on_layer = [&](const std::vector<LinearSensitivity>& done, std::size_t linears) {
    EXPECT_EQ(linears, 14u);
    seen.push_back(done.size());
    if (seen.size() == 1) half = done;
  };
  const auto all = measure_sensitivity(context(), reader, base(), o);
  EXPECT_EQ(seen, (std::vector<std::size_t>{7, 14}));
  o.known = half;
  model.replaced = 0;
  expect_same(measure_sensitivity(context(), reader, base(), o), all);
  EXPECT_EQ(model.replaced, 21u);
  o.known = all;
  expect_same(measure_sensitivity(context(), reader, base(), o), all);
  EXPECT_EQ(model.replaced, 21u);
}

TEST(Sensitivity, TheEstimateIsTheErrorOfTheOutput) {
  const MemoryReader reader = dense_reader();
  RandomActivations source(reader.config(), 400);
  StreamedCalibration calibration(context(), source, reader.config());
  SensitivityOptions o;
  o.ways = {{WeightMethod::kGptq, ScaleUnit::kGroup32}, {WeightMethod::kInt8}};
  BITNET_EXPECT_ERROR(measure_sensitivity(context(), reader, base(), o), ErrorCode::kInvalidArgument,
                      "needs a model that runs, or calibration data");
  o.calibration = &calibration;
  const auto all = measure_sensitivity(context(), reader, base(), o);
  QuantizerOptions how;
  how.calibration = &calibration;
  Quantizer quantizer(context(), reader, base(), how);
  for (const LinearSensitivity& l : all) {
    quantizer.read(l.id);
    const auto at = std::find_if(quantizer.reports().begin(), quantizer.reports().end(),
                                 [&](const LinearReport& r) { return r.id == l.id; });
    ASSERT_NE(at, quantizer.reports().end());
    ASSERT_EQ(l.candidates.size(), 3u);
    EXPECT_EQ(l.candidates[0].cost, at->metrics.output_error());
    EXPECT_EQ(l.candidates[0].output_error, l.candidates[0].cost);
    EXPECT_EQ(l.candidates[1].plan.scales, ScaleUnit::kGroup32);
    EXPECT_LT(l.candidates[1].cost, l.candidates[0].cost);
    EXPECT_EQ(l.candidates[0].kl, 0);
  }
}

TEST(Sensitivity, WhatIsKeptHasNoChoice) {
  MemoryReader reader = dense_reader();
  const TensorId up{TensorRole::kFfnUp, 0};
  std::vector<float> w = reader.model()[up].to_f32();
  for (float& v : w) v = v > 0.5f ? 0.37f : v < -0.5f ? -0.37f : 0.0f;
  std::memcpy(reader.model()[up].dense.data(), w.data(), w.size() * sizeof(float));
  QuantConfig c = base();
  c.keep = {"blk.1.attn_*"};
  MadeUpModel model(reader);
  SensitivityOptions o = by(model);
  o.float_type = DType::kBF16;
  for (const LinearSensitivity& l : measure_sensitivity(context(), reader, c, o)) {
    const auto cells = static_cast<std::uint64_t>(tensor_shape(l.id, reader.config()).numel());
    if (l.id == up) {
      ASSERT_EQ(l.candidates.size(), 1u);
      EXPECT_EQ(l.candidates[0].bytes, cells / 4 + 4);  // one scale is enough for it
      EXPECT_EQ(l.candidates[0].cost, 0);
    } else if (l.id.layer == 1 && l.id.role <= TensorRole::kAttnOutput) {
      ASSERT_EQ(l.candidates.size(), 1u);
      EXPECT_EQ(l.candidates[0].plan.method, WeightMethod::kKeep);
      EXPECT_EQ(l.candidates[0].bytes, 2 * cells);
    } else {
      EXPECT_EQ(l.candidates.size(), 3u);
    }
  }
}

TEST(Sensitivity, APlanThatKeepsAllLeavesEachTheOtherWays) {
  MemoryReader reader = dense_reader();
  const TensorId up{TensorRole::kFfnUp, 0};
  std::vector<float> w = reader.model()[up].to_f32();
  for (float& v : w) v = v > 0.5f ? 0.37f : v < -0.5f ? -0.37f : 0.0f;
  std::memcpy(reader.model()[up].dense.data(), w.data(), w.size() * sizeof(float));
  MadeUpModel model(reader);
  QuantConfig c = base();
  c.linears.method = WeightMethod::kKeep;
  c.layers = {{{"blk.1.attn_q"}, WeightMethod::kKeep, {}, {}, {}},
              {{"blk.1.ffn_gate"}, WeightMethod::kLeastSquares, {}, {}, {}}};
  c.keep = {"blk.0.attn_k"};
  SensitivityOptions o = by(model);
  o.ways = {{WeightMethod::kInt8}, {WeightMethod::kLeastSquares, ScaleUnit::kRow}};
  const auto all = measure_sensitivity(context(), reader, c, o);
  std::uint64_t kept_bytes = 0;
  for (const LinearSensitivity& l : all) {
    SCOPED_TRACE(gguf_name(l.id));
    kept_bytes += l.candidates[0].bytes;
    if (l.id == TensorId{TensorRole::kAttnQ, 1} || l.id == TensorId{TensorRole::kAttnK, 0}) {
      EXPECT_EQ(l.candidates.size(), 1u);  // kept by name
      EXPECT_EQ(l.candidates[0].plan.method, WeightMethod::kKeep);
    } else if (l.id == TensorId{TensorRole::kFfnGate, 1}) {
      ASSERT_EQ(l.candidates.size(), 2u);  // least squares by row is its plan
      EXPECT_EQ(l.candidates[1].plan.method, WeightMethod::kInt8);
    } else {
      ASSERT_EQ(l.candidates.size(), 3u);
      EXPECT_EQ(l.candidates[0].plan.method, WeightMethod::kKeep);
      EXPECT_EQ(l.candidates[0].cost, 0);
      if (!(l.id == up)) {
        EXPECT_GT(l.candidates[1].cost, 0);
      }
      EXPECT_GT(l.candidates[1].bytes, l.candidates[2].bytes);
      EXPECT_EQ(l.candidates[2].cost == 0, l.id == up) << "trits already: as trits they cost nothing";
    }
  }
  const BitAssignment half = assign_within_bytes(all, kept_bytes / 2);
  EXPECT_LE(half.bytes, kept_bytes / 2);
  const QuantConfig made = assigned_config(c, reader.config(), all, half);
  std::size_t kept = 0;
  for (const PlannedLinear& l : plan_linears(made, reader.config()))
    kept += l.plan.method == WeightMethod::kKeep ? 1 : 0;
  EXPECT_GE(kept, 2u);
  EXPECT_LT(kept, all.size() - 1);
}

TEST(Sensitivity, TooFewTokensAreSaidWithHowManyAreNeeded) {
  const MemoryReader reader = dense_reader();
  RandomActivations few(reader.config(), 70);  // enough for 64 columns, too few for 96
  StreamedCalibration calibration(context(), few, reader.config());
  SensitivityOptions o;
  o.calibration = &calibration;
  o.ways = {{WeightMethod::kGptq}, {WeightMethod::kInt8}};
  for (const LinearSensitivity& l : measure_sensitivity(context(), reader, base(), o)) {
    if (l.id.role != TensorRole::kFfnDown) {
      EXPECT_THAT(l.warnings, ::testing::IsEmpty());
      continue;
    }
    EXPECT_THAT(
        l.warnings,
        ::testing::ElementsAre("calibrated on 70 tokens for 96 inputs, whose second moments they do not "
                               "determine: at least 96 are needed for estimates of output errors, better 384",
                               "calibrated on 70 tokens for 96 inputs, whose second moments they do not "
                               "determine: at least 96 are needed for gptq, better 384"));
  }
  MadeUpModel model(reader);  // which judges by predictions: what it costs is no estimate
  o.trials = &model;
  for (const LinearSensitivity& l : measure_sensitivity(context(), reader, base(), o))
    EXPECT_EQ(l.warnings.size(), l.id.role == TensorRole::kFfnDown ? 1u : 0u);
}

TEST(Sensitivity, KeepingIsACandidateLikeOthers) {
  const MemoryReader reader = dense_reader();
  MadeUpModel model(reader);
  SensitivityOptions o = by(model);
  o.ways = {{WeightMethod::kKeep}, {WeightMethod::kInt8}, {WeightMethod::kTwoPlane}};
  for (const LinearSensitivity& l : measure_sensitivity(context(), reader, base(), o)) {
    ASSERT_EQ(l.candidates.size(), 4u);
    EXPECT_EQ(l.candidates[1].plan.method, WeightMethod::kKeep);
    EXPECT_EQ(l.candidates[1].cost, 0);
    EXPECT_EQ(l.candidates[2].plan.method, WeightMethod::kInt8);
    EXPECT_EQ(l.candidates[3].plan.method, WeightMethod::kTwoPlane);
  }
}

TEST(Budget, TheConfigurationIsReadAgainAndTakesThePredictedBytes) {
  const MemoryReader reader = dense_reader();
  MadeUpModel model(reader);
  const auto all = measure_sensitivity(context(), reader, base(), by(model));
  std::uint64_t least = 0, most = 0;
  for (const LinearSensitivity& l : all) {
    least += l.candidates.front().bytes;
    most += l.candidates.back().bytes;
  }
  WriteOptions as;
  as.type = LinearType::kExtended;
  as.dense_type = DType::kF16;
  const std::uint64_t beside = bytes_beside_linears(reader.config(), as);
  std::set<std::string> seen;
  for (const double share : {0.0, 0.2, 0.5, 1.0}) {
    const auto budget = least + static_cast<std::uint64_t>(share * static_cast<double>(most - least));
    const BitAssignment a = assign_within_bytes(all, budget);
    EXPECT_LE(a.bytes, budget);
    const QuantConfig c = assigned_config(base(), reader.config(), all, a);
    const QuantConfig read = QuantConfig::from_yaml(c.to_yaml(), "written");
    EXPECT_EQ(read.to_yaml(), c.to_yaml());
    seen.insert(c.to_yaml());
    const auto plans = plan_linears(read, reader.config());
    for (std::size_t i = 0; i < all.size(); ++i) {
      const LinearPlan& plan = all[i].candidates[a.chosen[i]].plan;
      EXPECT_EQ(plans[i].plan.method, plan.method);
      if (is_ternary(plan.method)) {
        EXPECT_EQ(plans[i].plan.scales, plan.scales);
      }
      if (share == 0.2 && all[i].id == TensorId{TensorRole::kFfnDown, 1}) {
        EXPECT_EQ(plan.method, WeightMethod::kInt8);  // the one that matters
      }
    }
    const bitnet::testing::TempDir dir;
    Quantizer quantizer(context(), reader, read);
    write_model(
        dir.path() / "m", reader.config(), nullptr, [&](TensorId id) { return quantizer.read(id); }, as);
    const auto index = nlohmann::json::parse(read_file(dir.path() / "m" / "model.safetensors.index.json"));
    EXPECT_EQ(index["metadata"]["total_size"], a.bytes + beside);
  }
  EXPECT_EQ(seen.size(), 4u);
  BITNET_EXPECT_ERROR(assign_within_bytes(all, least - 1), ErrorCode::kInvalidArgument,
                      "the linears' smallest candidates take " + std::to_string(least) + " bytes");
  BITNET_EXPECT_ERROR(assign_within_cost(all, 1e-12), ErrorCode::kInvalidArgument,
                      "the linears' best candidates cost");
}

TEST(Budget, PerplexityIsMeasuredTogether) {
  const MemoryReader reader = dense_reader();
  MadeUpModel model(reader);
  const auto all = measure_sensitivity(context(), reader, base(), by(model));
  const auto measure = [&](const BitAssignment& a) {
    return measure_config(context(), reader, assigned_config(base(), reader.config(), all, a), nullptr,
                          model);
  };
  const auto factor = [](const LogitMetrics& m) { return m.perplexity_other() / m.perplexity_original(); };
  BitAssignment smallest, best;
  smallest.chosen.assign(all.size(), 0);
  best.chosen.assign(all.size(), 2);
  const double worst_factor = factor(measure(smallest)), best_factor = factor(measure(best));
  ASSERT_GT(worst_factor, best_factor);
  const double asked = best_factor + 0.3 * (worst_factor - best_factor);
  const PerplexityAssignment found = assign_within_perplexity(all, asked, measure, 8);
  EXPECT_LE(factor(found.measured), asked);
  EXPECT_EQ(factor(found.measured), factor(measure(found.assignment)));
  EXPECT_LE(found.runs, 8);
  EXPECT_GT(found.runs, 2);
  EXPECT_LT(found.assignment.bytes,
            assign_within_cost(all, 1e-3 + assign_within_bytes(all, 1 << 30).cost).bytes * 4);
  // A generous budget is met by the smallest, without a search.
  const PerplexityAssignment easy = assign_within_perplexity(all, 2 * worst_factor, measure);
  EXPECT_EQ(easy.assignment.chosen, smallest.chosen);
  EXPECT_EQ(easy.runs, 2);
  EXPECT_LT(easy.assignment.bytes, found.assignment.bytes);
  BITNET_EXPECT_ERROR(assign_within_perplexity(all, 0.9 * best_factor, measure), ErrorCode::kInvalidArgument,
                      "times the original's perplexity: expected a budget of at least that");
  BITNET_EXPECT_ERROR(assign_within_perplexity(all, std::nan(""), measure), ErrorCode::kInvalidArgument,
                      "a perplexity budget of nan");
}

TEST(SensitivityFile, ComesBackAndIsChecked) {
  const MemoryReader reader = dense_reader();
  MadeUpModel model(reader);
  const auto all = measure_sensitivity(context(), reader, base(), by(model));
  const std::string text = to_json(all, "this one");
  const auto read = [&](const std::string& t) {
    return sensitivity_from_json(t, "this one", reader.config());
  };
  expect_same(read(text), all);
  expect_same(read(to_json(std::span(all).first(7), "this one")), {all.begin(), all.begin() + 7});
  BITNET_EXPECT_ERROR(sensitivity_from_json(text, "another", reader.config()), ErrorCode::kInvalidArgument,
                      "was measured of another model");
  const auto edited = [&](auto edit) {
    auto j = nlohmann::json::parse(text);
    edit(j);
    return j.dump();
  };
  const auto expect_corrupt = [&](auto edit, const std::string& message) {
    BITNET_EXPECT_ERROR(read(edited(edit)), ErrorCode::kCorruptFile, message);
  };
  BITNET_EXPECT_ERROR(read(edited([](auto& j) { j["format_version"] = 2; })), ErrorCode::kUnsupported,
                      "format_version 2: expected 1");
  BITNET_EXPECT_ERROR(read("{"), ErrorCode::kCorruptFile, "not JSON");
  expect_corrupt([](auto& j) { j.erase("linears"); }, "expected the key 'linears'");
  expect_corrupt([](auto& j) { j["linears"] = 3; }, "'linears': expected a list");
  expect_corrupt([](auto& j) { j["linears"].erase(3); }, "expected the linear 'blk.0.attn_output' next");
  expect_corrupt([](auto& j) { j["linears"].push_back(j["linears"][0]); }, "'blk.0.attn_q' is there twice");
  expect_corrupt([](auto& j) { j["linears"][0]["name"] = "blk.7.attn_q"; }, "is no linear of this model");
  expect_corrupt([](auto& j) { j["linears"][0]["candidates"] = 1; }, "expected a list of candidates");
  const auto candidate = [&](const char* key, auto value, const std::string& message) {
    expect_corrupt([&](auto& j) { j["linears"][0]["candidates"][1][key] = value; }, message);
  };
  candidate("method", "magic", "'method': unknown");
  candidate("bytes", -1, "'bytes': expected a whole number");
  candidate("cost", "x", "'cost': expected a number");
  candidate("cost", -1.0, "'cost': expected 0 or more");
  candidate("activation_bits", 5, "expected 8 or 4");
  candidate("scales", 4, "'scales': expected text");
}

TEST(CandidateWays, AreRead) {
  EXPECT_EQ(candidate_way_from_string("two-plane").method, WeightMethod::kTwoPlane);
  EXPECT_FALSE(candidate_way_from_string("two-plane").scales.has_value());
  EXPECT_EQ(candidate_way_from_string("gptq:group64").scales, ScaleUnit::kGroup64);
  BITNET_EXPECT_ERROR(candidate_way_from_string("gpt"), ErrorCode::kInvalidArgument, "unknown method 'gpt'");
  BITNET_EXPECT_ERROR(candidate_way_from_string("gptq:"), ErrorCode::kInvalidArgument,
                      "unknown scale granularity");
}

}  // namespace
}  // namespace bitnet::quant
