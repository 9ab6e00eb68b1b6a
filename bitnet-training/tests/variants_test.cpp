// Whole runs with other optimisers and quantisers than the default ones; those are trainer_test.cpp.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <string>

#include "bitnet/core/io/safetensors.hpp"
#include "bitnet/quant/model_io.hpp"
#include "bitnet/quant/post_training.hpp"
#include "bitnet/testing/testing.hpp"
#include "bitnet/training/fake_quant.hpp"
#include "bitnet/training/sub_norms.hpp"
#include "bitnet/training/trainer.hpp"
#include "tiny_run.hpp"

namespace bitnet::training {
namespace {

TEST(Trainer, EveryOptimizerLearnsAndResumesToTheSameBits) {
  const Fixture f;
  for (const auto kind : {OptimizerKind::kAdamW8, OptimizerKind::kSgd, OptimizerKind::kMuon}) {
    const std::string name(to_string(kind));
    SCOPED_TRACE(name);
    const auto config = [&](const std::string& output) {
      TrainConfig c = f.config(name + output);
      c.optimizer = kind;
      if (kind == OptimizerKind::kSgd) c.schedule.peak = 0.1;
      return c;
    };
    double first = 0, last = 0;
    TrainCallbacks callbacks;
    callbacks.progress = [&](const Progress& p) { (first == 0 ? first : last) = p.loss; };
    run(config("whole"), false, callbacks);
    EXPECT_LT(last, first - 0.1);
    stop_after(config("stopped"), 5);
    run(config("stopped"), true, {}, 3);
    expect_same_tensors(f.dir / (name + "whole/checkpoint.safetensors"),
                        f.dir / (name + "stopped/checkpoint.safetensors"));
    TrainConfig other = config("stopped");
    other.optimizer = OptimizerKind::kAdamW;
    BITNET_EXPECT_ERROR(run(other, true), ErrorCode::kInvalidArgument, "training.optimizer is " + name);
  }
}

TEST(Trainer, QuantisersOfEveryKindLearnAndResumeToTheSameBits) {
  const Fixture f;
  const auto config = [&](const std::string& output, int kind) {
    TrainConfig c = f.config(output + std::to_string(kind));
    c.quantizer_schedule = {QuantizerScheduleKind::kLinear, 8, kind == 1};
    if (kind == 0) c.quantizer.gradient = StraightThrough::kLearnedScale;
    if (kind == 1) {
      c.quantizer.granularity = ScaleGranularity::kGroup;
      c.quantizer.statistic = ScaleStatistic::kMedian;
      c.quantizer.gradient = StraightThrough::kClipped;
      c.quantizer.activation_bits = 4;
      c.quantizer.hadamard = true;
    }
    return c;
  };
  for (const int kind : {0, 1}) {
    double first = 0, last = 0;
    std::string messages;
    TrainCallbacks callbacks;
    callbacks.message = [&](const std::string& text) { messages += text; };
    callbacks.progress = [&](const Progress& p) { (first == 0 ? first : last) = p.loss; };
    run(config("whole", kind), false, callbacks);
    EXPECT_LT(last, first - 0.3) << kind;
    stop_after(config("stopped", kind), 5);  // in the middle of the warm-up
    run(config("stopped", kind), true, {}, 3);
    const auto name = std::to_string(kind);
    expect_same_tensors(f.dir / ("whole" + name) / "checkpoint.safetensors",
                        f.dir / ("stopped" + name) / "checkpoint.safetensors");
    EXPECT_EQ(std::filesystem::exists(f.dir / ("whole" + name) / "model.gguf"), kind == 0);
    EXPECT_EQ(messages.find("inputs are transformed before they are quantised (hadamard): no model file is "
                            "written") != std::string::npos,
              kind == 1);
    TrainConfig other = config("stopped", kind);
    other.quantizer = {};
    BITNET_EXPECT_ERROR(run(other, true), ErrorCode::kInvalidArgument, "");
  }
  // Scales that were learnt are the file's.
  const auto checkpoint = SafeTensors::open(f.dir / "whole0/checkpoint.safetensors");
  const TensorId id{TensorRole::kAttnQ, 0};
  const auto bytes =
      checkpoint->data(*checkpoint->find("weights/" + hf_name(id, ModelFamily::kBitNet25) + ".scale"));
  float learned = 0;
  std::memcpy(&learned, bytes.data(), sizeof learned);
  EXPECT_THAT(quant::ModelReader::open(f.dir / "whole0/model.gguf")->read(id).weights.scales,
              ::testing::ElementsAre(invertible_scale(std::abs(learned))));
}

/// Configurations whose models not every file holds, what is said of them, and which files there are.
TEST(Trainer, WhichFilesThereWillBeIsSaidBeforeTheFirstStep) {
  const Fixture f;
  const auto config = [&](int kind) {
    TrainConfig c = f.config("out" + std::to_string(kind), kind == 7 ? "none" : "ternary");
    c.schedule.steps = 3;
    if (kind == 0) c.quantizer.granularity = ScaleGranularity::kRow;
    if (kind == 1) c.quantizer.granularity = ScaleGranularity::kGroup;
    if (kind == 2) c.model.intermediate_size = 96;
    if (kind == 3) c.quantizer.activation_bits = 4;
    if (kind == 4) c.quantizer.hadamard = true;
    if (kind == 5) {
      c.quantizer.granularity = ScaleGranularity::kGroup;
      c.model.intermediate_size = 192;
    }
    return c;
  };
  const struct {
    const char* said;
    bool directory, gguf;
  } expected[] = {
      {"model/, and no model.gguf (I2_S holds one scale a tensor, and these have scales by row)", true,
       false},
      {"model/, and no model.gguf (I2_S holds one scale a tensor, and these have scales by group)", true,
       false},
      {"model/, and no model.gguf (I2_S holds columns in multiples of 128 only)", true, false},
      {"model/, and no model.gguf (GGUF does not say that activations have 4 bits)", true, false},
      {"no model file (no file format says that inputs are transformed before they are quantised "
       "(hadamard)): "
       "the checkpoint holds the weights",
       false, false},
      {"no model file (no file format holds groups of 128 columns of which the last in a row is shorter): "
       "the "
       "checkpoint holds the weights",
       false, false},
      {"model/ and model.gguf", true, true},
      {"model/ and model.gguf", true, true},
  };
  for (int kind = 0; kind < 8; ++kind) {
    SCOPED_TRACE(kind);
    const auto& e = expected[kind];
    const TrainConfig c = config(kind);
    std::string before;  // the first step
    bool began = false;
    TrainCallbacks callbacks;
    callbacks.message = [&](const std::string& text) {
      if (!began) before += text + "\n";
    };
    callbacks.progress = [&](const Progress&) { began = true; };
    const ExecutionContext context(ExecutionContext::Options{2, {}});
    const DryRun d = dry_run(c, {}, false, context);
    EXPECT_EQ(d.result, e.said);
    EXPECT_NE(format_dry_run(d).find("\nresult\t" + std::string(e.said) + "\n"), std::string::npos);
    TrainConfig short_run = c;
    short_run.log_every = 1;
    run(short_run, false, callbacks);
    EXPECT_NE(before.find("the result will be " + std::string(e.said) + "\n"), std::string::npos) << before;
    EXPECT_EQ(std::filesystem::exists(c.output / "model/config.json"), e.directory);
    EXPECT_EQ(std::filesystem::exists(c.output / "model.gguf"), e.gguf);
    if (e.directory) {
      const auto reader = quant::ModelReader::open(c.output / "model");
      EXPECT_EQ(reader->tokenizer()->vocab_size(), reader->config().vocab_size);
      for (const TensorId id : reader->tensors())
        EXPECT_EQ(reader->read(id).ternary, kind < 7 && is_linear(id.role));
    }
  }
}

TEST(Trainer, ARunThatGoesOnReplacesAModelOfSeveralFiles) {
  const Fixture f;
  TrainConfig c = f.config("out");
  c.quantizer.granularity = ScaleGranularity::kRow;
  c.schedule.steps = 3;
  run(c);
  const std::string first = read_file(c.output / "model/model-00002-of-00003.safetensors");
  write_file(c.output / "model/notes.md", "mine");
  c.schedule.steps = 6;
  run(c, true);
  EXPECT_NE(read_file(c.output / "model/model-00002-of-00003.safetensors"), first);
  EXPECT_EQ(read_file(c.output / "model/notes.md"), "mine");
  for (const auto& entry : std::filesystem::directory_iterator(c.output))
    EXPECT_NE(entry.path().extension(), ".partial") << entry.path();
  // One file takes the place of several, too.
  std::filesystem::remove(c.output / "checkpoint.safetensors");
  c.quantizer = {};
  run(c);
  EXPECT_FALSE(std::filesystem::exists(c.output / "model/model-00002-of-00003.safetensors"));
  EXPECT_EQ(quant::ModelReader::open(c.output / "model")->tensors().size(),
            quant::ModelReader::open(c.output / "model.gguf")->tensors().size());
}

TEST(Trainer, AModelWithScalesByRowIsATernaryBase) {
  const Fixture f;
  TrainConfig c = f.config("out");
  c.quantizer.granularity = ScaleGranularity::kRow;
  run(c);
  const auto text = [&](const std::string& model) {
    return "model: {base: " + (c.output / "model").string() + model +
           "}\ndata: {train: " + (f.dir / "train.txt").string() +
           ", validation: " + (f.dir / "heldout.txt").string() +
           "}\ntraining: {steps: 8, learning_rate: 1.0e-9, length: 16, batch: 4}\noutput: {directory: " +
           (f.dir / "next").string() + "}\n";
  };
  const TrainConfig next = TrainConfig::from_yaml(text(""), "t.yaml");
  EXPECT_EQ(next.quantizer.granularity, ScaleGranularity::kRow);            // as the base has them
  EXPECT_EQ(next.quantizer_schedule.kind, QuantizerScheduleKind::kAbrupt);  // no growing: it is ternary
  run(next);
  const auto a = quant::ModelReader::open(c.output / "model"),
             b = quant::ModelReader::open(next.output / "model");
  const auto weights = [](const quant::ModelReader& m) { return m.read({TensorRole::kFfnDown, 0}).weights; };
  EXPECT_EQ(weights(*a).trits, weights(*b).trits);
}

/// A model in full precision, and one that its linears were made by `by`, both with their tokenizer.
struct Quantised {
  Fixture f;
  std::filesystem::path original;
  Quantised() {
    const TrainConfig c = f.config("float", "none");
    run(c);
    original = c.output / "model";
  }
  std::filesystem::path made(const std::string& name,
                             const std::function<void(const ExecutionContext&, quant::LogicalTensor&)>& by) {
    const ExecutionContext context;
    const auto reader = quant::ModelReader::open(original, quant::FloatLinears::kKeep);
    quant::WriteOptions options;
    options.type = quant::LinearType::kExtended;
    options.gguf = false;
    options.dense_type = DType::kF32;
    quant::write_model(
        f.dir / name, reader->config(), reader->tokenizer().get(),
        [&](TensorId id) {
          quant::LogicalTensor t = reader->read(id);
          if (is_linear(id.role)) by(context, t);
          return t;
        },
        options);
    return f.dir / name;
  }
  std::string yaml(const std::filesystem::path& base, const std::string& output,
                   const std::string& model = "", const std::string& training = "") const {
    return "model: {base: " + base.string() + model + "}\ndata: {train: " + (f.dir / "train.txt").string() +
           ", validation: " + (f.dir / "heldout.txt").string() +
           "}\ntraining: {steps: 6, learning_rate: 1.0e-3, length: 16, batch: 4" + training +
           "}\noutput: {directory: " + (f.dir / output).string() + ", log_every: 1}\n";
  }
};

/// Messages of a run.
std::string said(const TrainConfig& c, std::vector<double>* losses = nullptr) {
  std::string all;
  TrainCallbacks callbacks;
  callbacks.message = [&](const std::string& text) { all += text + "\n"; };
  callbacks.progress = [&](const Progress& p) {
    if (losses) losses->push_back(p.loss);
  };
  run(c, false, callbacks);
  return all;
}

void make_ternary(const ExecutionContext& context, quant::LogicalTensor& t, quant::ScaleGroups groups) {
  t.weights = quant::least_squares(context, t.to_f32(), t.shape[0], t.shape[1], groups);
  t.ternary = true;
}

TEST(Trainer, QuantisedBasesOfEveryFormAreTrainedOn) {
  Quantised q;
  struct Form {
    const char* name;
    std::function<void(const ExecutionContext&, quant::LogicalTensor&)> by;
    ScaleGranularity scales;
    QuantizerScheduleKind schedule;
    const char* words;
  };
  using S = ScaleGranularity;
  using K = QuantizerScheduleKind;
  const auto ternary = [](quant::ScaleGroups groups) {
    return [groups](const ExecutionContext& context, quant::LogicalTensor& t) {
      make_ternary(context, t, groups);
    };
  };
  const Form forms[] = {
      {"tensor", ternary(quant::ScaleGroups::tensor()), S::kTensor, K::kAbrupt,
       "linears that are ternary and begin with their trits: 7; scales by tensor"},
      {"row", ternary(quant::ScaleGroups::row()), S::kRow, K::kAbrupt,
       "linears that are ternary and begin with their trits: 7; scales by row"},
      {"four_bits",
       [](const ExecutionContext& context, quant::LogicalTensor& t) {
         make_ternary(context, t, quant::ScaleGroups::row());
         t.activations = ActivationForm::kInt4Absmax;
       },
       S::kRow, K::kAbrupt, "begin with their trits: 7; scales by row, activations of 4 bits"},
      {"some_of_four_bits",
       [](const ExecutionContext& context, quant::LogicalTensor& t) {
         make_ternary(context, t, quant::ScaleGroups::row());
         if (t.id.role == TensorRole::kAttnK) t.activations = ActivationForm::kInt4Absmax;
       },
       S::kRow, K::kAbrupt,
       "begin with their trits: 7; linears that have other activations there: 1; scales by"},
      {"group32", ternary(quant::ScaleGroups::columns(32)), S::kGroup, K::kLinear,
       "two planes, int8 or with other scales and begin as the floats that they stand for: 7; scales by "
       "group"},
      {"planes",
       [](const ExecutionContext& context, quant::LogicalTensor& t) {
         t.planes = quant::two_planes(context, t.to_f32(), t.shape[0], t.shape[1], {1, 0}, 10);
       },
       S::kTensor, K::kLinear,
       "two planes, int8 or with other scales and begin as the floats that they stand for: 7; scales by "
       "tensor"},
      {"mixed",
       [](const ExecutionContext& context, quant::LogicalTensor& t) {
         if (t.id.role == TensorRole::kAttnK || t.id.role == TensorRole::kFfnUp) {
           t.int8.emplace();
           t.int8->values.assign(static_cast<std::size_t>(t.shape.numel()), 3);
           t.int8->scales.assign(static_cast<std::size_t>(t.shape[0]), 0.01f);
         } else if (t.id.role != TensorRole::kAttnV) {
           make_ternary(context, t, quant::ScaleGroups::row());
         }
       },
       S::kRow, K::kLinear,
       "linears that are ternary and begin with their trits: 4; linears that are of two planes, int8 or with "
       "other "
       "scales and begin as the floats that they stand for: 2; linears that are in full precision: 1; scales "
       "by row"}};
  for (const Form& form : forms) {
    SCOPED_TRACE(form.name);
    const auto base = q.made(form.name, form.by);
    const TrainConfig c = TrainConfig::from_yaml(q.yaml(base, std::string("out-") + form.name), "t.yaml");
    EXPECT_EQ(c.quantizer.granularity, form.scales);
    EXPECT_EQ(c.quantizer_schedule.kind, form.schedule);
    EXPECT_THAT(said(c), ::testing::HasSubstr(form.words));
    // What was trained is exported, and is what the run was asked for.
    const auto result = quant::ModelReader::open(c.output / "model");
    const quant::LogicalTensor t = result->read({TensorRole::kFfnDown, 0});
    EXPECT_TRUE(t.ternary);
    EXPECT_EQ(t.weights.scales.size(), form.scales == S::kTensor ? 1u : 128u);
  }
}

TEST(Trainer, QuantisationGrowsWhereTheBaseIsNotTernaryAlready) {
  Quantised q;
  const auto row = q.made("row", [](const ExecutionContext& context, quant::LogicalTensor& t) {
    make_ternary(context, t, quant::ScaleGroups::row());
  });
  const auto losses = [&](const std::string& output, const std::string& model, const std::string& training,
                          const char* words) {
    std::vector<double> all;
    EXPECT_THAT(said(TrainConfig::from_yaml(q.yaml(row, output, model, training), "t.yaml"), &all),
                ::testing::HasSubstr(words));
    EXPECT_EQ(all.size(), 6u);
    return all;
  };
  const std::string grows = ", quantizer_schedule: linear, quantizer_steps: 4";
  // Trits are there from the first step on, whatever the schedule says.
  const auto abrupt = losses("a", "", "", "scales by row");
  EXPECT_EQ(losses("b", "", grows, "training.quantizer_schedule changes nothing"), abrupt);
  // The original's latent weights: the first loss is that of the original, and quantisation grows.
  const std::string original = ", original: " + q.original.string();
  const auto grown = losses("c", original, grows, "latent weights of all linears are those of '");
  std::vector<double> whole;
  said(TrainConfig::from_yaml(q.yaml(q.original, "d", ", quantization: none"), "t.yaml"), &whole);
  EXPECT_NEAR(grown[0], whole[0], 1e-4 * whole[0]);
  EXPECT_GT(std::abs(abrupt[0] - whole[0]), 1e-3 * whole[0]);
  const TrainConfig c = TrainConfig::from_yaml(q.yaml(row, "e", original), "t.yaml");
  EXPECT_EQ(c.quantizer_schedule.kind, QuantizerScheduleKind::kLinear);
  EXPECT_EQ(c.quantizer.granularity, ScaleGranularity::kRow);
  // Learned scales begin with the base's.
  const ExecutionContext context;
  const auto base = quant::ModelReader::open(row, quant::FloatLinears::kKeep),
             first = quant::ModelReader::open(q.original, quant::FloatLinears::kKeep);
  QuantizerOptions options;
  options.granularity = ScaleGranularity::kRow;
  options.gradient = StraightThrough::kLearnedScale;
  LanguageModel model(context, with_sub_norms(base->config()), Quantization::kTernary, options);
  load_weights(context, model, *base, first.get());
  const TensorId down{TensorRole::kFfnDown, 0};
  const std::vector<float> scales = base->read(down).weights.scales;
  const std::span<const float> learned = dynamic_cast<BitLinear&>(*model.linear(down)).scale()->value();
  EXPECT_TRUE(std::equal(scales.begin(), scales.end(), learned.begin(), learned.end()));
}

TEST(Trainer, AnOriginalThatCannotBeOneIsRefused) {
  Quantised q;
  const auto row = q.made("row", [](const ExecutionContext& context, quant::LogicalTensor& t) {
    make_ternary(context, t, quant::ScaleGroups::row());
  });
  const auto refuse = [&](const std::string& model, ErrorCode code, const char* text) {
    BITNET_EXPECT_ERROR(run(TrainConfig::from_yaml(q.yaml(row, "x", model), "t.yaml")), code, text);
  };
  const std::string original = ", original: " + q.original.string();
  refuse(original + ", quantization: none", ErrorCode::kInvalidArgument,
         "t.yaml:1: model.original has no effect without model.quantization: ternary");
  refuse(", original: " + row.string(), ErrorCode::kInvalidArgument, "the original is quantised itself");
  refuse(", original: " + (q.f.dir / "none").string(), ErrorCode::kNotFound, "none");
  std::string text = q.yaml(row, "x", original);
  text.replace(
      text.find("base: "), 6 + row.string().size() + 2,
      "vocab_size: 300, hidden_size: 128, intermediate_size: 128, layers: 1, heads: 4, context: 32, ");
  BITNET_EXPECT_ERROR(TrainConfig::from_yaml(text, "t.yaml"), ErrorCode::kInvalidArgument,
                      "t.yaml:1: model.original needs model.base");
  TrainConfig other = q.f.config("wide", "none");
  other.model.intermediate_size = 256;
  run(other);
  refuse(", original: " + (other.output / "model").string(), ErrorCode::kInvalidArgument,
         "the original: weights of another shape: model.intermediate_size is 256");
}

}  // namespace
}  // namespace bitnet::training
