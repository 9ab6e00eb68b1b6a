// Whole runs on a tiny model and text: what is written, that stopping, killing and resuming change no bit,
// that threads change no bit, and that every mistake is found before the work starts. Configurations are
// config_test.cpp, texts as tokens data_test.cpp.
#include <gtest/gtest.h>

#include <chrono>
#include <cmath>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <thread>

#include "bitnet/core/io/atomic_file.hpp"
#include "bitnet/core/io/safetensors.hpp"
#include "bitnet/core/text/bpe_trainer.hpp"
#include "bitnet/quant/model_io.hpp"
#include "bitnet/testing/testing.hpp"
#include "bitnet/training/checkpoint.hpp"
#include "bitnet/training/export.hpp"
#include "bitnet/training/fake_quant.hpp"
#include "bitnet/training/trainer.hpp"
#include "sample_text.hpp"
#include "tiny_run.hpp"

namespace bitnet::training {
namespace {

TEST(Trainer, LearnsAndWritesEverything) {
  const Fixture f;
  int progress = 0, evaluations = 0;
  double first = 0, last = 0;
  TrainCallbacks callbacks;
  callbacks.progress = [&](const Progress& p) {
    if (progress++ == 0) first = p.loss;
    last = p.loss;
    EXPECT_GT(p.zero_fraction, 0.1);
    EXPECT_LT(p.zero_fraction, 0.6);
    EXPECT_EQ(p.tokens, p.step * 64);
    EXPECT_THAT(format_progress(p), ::testing::HasSubstr("/14 | loss "));
  };
  callbacks.evaluation = [&](std::int64_t, const Evaluation& e) {
    ++evaluations;
    EXPECT_NEAR(e.perplexity, std::exp(e.nll), 1e-9 * e.perplexity);
    EXPECT_GT(e.bits_per_byte, 0);
  };
  const TrainResult r = run(f.config("out"), false, callbacks);
  EXPECT_EQ(r.steps, 14);
  EXPECT_EQ(progress, 7);
  EXPECT_EQ(evaluations, 3);
  EXPECT_LT(last, first - 0.3);
  for (const char* name :
       {"tokenizer.json", "log.jsonl", "checkpoint.safetensors", "model.gguf", "model/config.json"})
    EXPECT_TRUE(std::filesystem::exists(f.dir / "out" / name)) << name;
  BITNET_EXPECT_ERROR(run(f.config("out")), ErrorCode::kInvalidArgument, "resume");
}

TEST(Trainer, ExportsWhatWasTrained) {
  const Fixture f;
  const TrainConfig c = f.config("out");
  run(c);
  const auto gguf = quant::ModelReader::open(c.output / "model.gguf"),
             hf = quant::ModelReader::open(c.output / "model");
  const auto checkpoint = SafeTensors::open(c.output / "checkpoint.safetensors");
  for (const TensorId id : gguf->tensors()) {
    const auto a = gguf->read(id), b = hf->read(id);
    const auto bytes = checkpoint->data(*checkpoint->find("weights/" + hf_name(id, ModelFamily::kBitNet25)));
    std::vector<float> latent(bytes.size() / 4);
    std::memcpy(latent.data(), bytes.data(), bytes.size());
    if (is_linear(id.role)) {
      ASSERT_TRUE(a.ternary && b.ternary);
      const auto expected = quant::absmean(latent, a.weights.out, a.weights.in);
      EXPECT_EQ(a.weights.trits, expected.trits);
      ASSERT_EQ(expected.scales.size(), 1u);
      EXPECT_THAT(a.weights.scales, ::testing::ElementsAre(invertible_scale(expected.scales[0])));
      EXPECT_EQ(b.weights.trits, expected.trits);
      EXPECT_EQ(b.weights.scales, a.weights.scales);
    } else {
      const auto values = a.to_f32();
      ASSERT_EQ(values.size(), latent.size());
      for (std::size_t i = 0; i < values.size(); ++i)
        ASSERT_EQ(values[i], is_norm(id.role) ? latent[i] : f16_to_f32(f32_to_f16(latent[i])));
    }
  }
  EXPECT_EQ(gguf->tokenizer()->vocab_size(), gguf->config().vocab_size);
}

TEST(Trainer, FullPrecisionIsExportedDenseAndSaysSo) {
  const Fixture f;
  const TrainConfig c = f.config("out", "none");
  run(c);
  const auto checkpoint = SafeTensors::open(c.output / "checkpoint.safetensors");
  ModelConfig shape = c.model;
  shape.vocab_size = std::stoll(checkpoint->metadata().at("model.vocab_size"));
  shape.weights = WeightKind::kTernary;  // what the model computes counts, not what is said
  const ExecutionContext context;
  LanguageModel model(context, shape, Quantization::kNone);
  AdamW optimizer(context, model.parameters(), {});
  load_checkpoint(c.output / "checkpoint.safetensors", model, optimizer);
  BITNET_EXPECT_ERROR(export_model(f.dir / "x.gguf", model, nullptr, {}), ErrorCode::kUnsupported,
                      "full precision");
  quant::WriteOptions dense;
  dense.type = quant::LinearType::kDense;
  dense.dense_type = DType::kF32;
  export_model(f.dir / "x.gguf", model, nullptr, dense);
  for (const auto& path : {f.dir / "x.gguf", c.output / "model.gguf", c.output / "model"}) {
    SCOPED_TRACE(path);
    const auto reader = quant::ModelReader::open(path);
    EXPECT_EQ(reader->config().weights, WeightKind::kDense);
    for (std::size_t i = 0; i < model.tensor_ids().size(); ++i) {
      const auto tensor = reader->read(model.tensor_ids()[i]);
      EXPECT_FALSE(tensor.ternary);
      const auto values = tensor.to_f32();
      const auto weights = model.parameters()[i]->value();
      EXPECT_TRUE(std::equal(values.begin(), values.end(), weights.begin(), weights.end()));
    }
    // A run that begins with it quantises step by step.
    const auto next = TrainConfig::from_yaml(
        "model: {base: " + path.string() +
            "}\ndata: {train: a, validation: b}\ntraining: {steps: 8, learning_rate: 1.0e-3, length: 16}\n"
            "output: {directory: next}\n",
        "t.yaml");
    EXPECT_EQ(next.quantizer_schedule.kind, QuantizerScheduleKind::kLinear);
  }
}

TEST(Export, LatentWeightsReadBackAsTheSameTernaryModel) {
  const Fixture f;
  ModelConfig shape = f.config("unused").model;
  const ExecutionContext context;
  LanguageModel model(context, shape, Quantization::kTernary);
  Rng rng(3);
  model.initialize(rng, 0.05f);
  quant::WriteOptions dense;
  dense.type = quant::LinearType::kDense;
  dense.dense_type = DType::kF32;
  dense.gguf = false;
  export_model(f.dir / "latent", model, nullptr, dense);
  export_model(f.dir / "packed.gguf", model, nullptr, {});
  const auto a = quant::ModelReader::open(f.dir / "latent"),
             b = quant::ModelReader::open(f.dir / "packed.gguf");
  for (const TensorId id : model.tensor_ids())
    if (is_linear(id.role)) {
      const auto x = a->read(id), y = b->read(id);
      ASSERT_TRUE(x.ternary && y.ternary);
      EXPECT_EQ(x.weights.trits, y.weights.trits);
      ASSERT_EQ(x.weights.scales.size(), 1u);
      EXPECT_THAT(y.weights.scales, ::testing::ElementsAre(invertible_scale(x.weights.scales[0])));
    }
}

TEST(Export, WhatReadersWouldMisreadIsRefused) {
  const Fixture f;
  const ExecutionContext context;
  const ModelConfig shape = f.config("unused").model;
  const auto refuse = [&](const QuantizerOptions& quantizer, const quant::WriteOptions& options,
                          const char* text) {
    LanguageModel model(context, shape, Quantization::kTernary, quantizer);
    Rng rng(3);
    model.initialize(rng, 0.05f);
    model.refresh(context);
    BITNET_EXPECT_ERROR(export_model(f.dir / "x", model, nullptr, options), ErrorCode::kUnsupported, text);
    EXPECT_FALSE(std::filesystem::exists(f.dir / "x"));
  };
  quant::WriteOptions dense;
  dense.type = quant::LinearType::kDense;
  refuse({.granularity = ScaleGranularity::kRow}, dense, "readers ternarise float weights by one mean");
  refuse({.gradient = StraightThrough::kLearnedScale}, dense, "readers ternarise float weights by one mean");
  refuse({.granularity = ScaleGranularity::kRow}, {}, "i2_s holds one scale a matrix");
  refuse({.activation_bits = 4}, {}, "activations of 4 bits are held by the type extended alone");
  refuse({.activation_bits = 4}, dense, "readers ternarise float weights by one mean");
}

TEST(Export, EveryFormOfTheScaleIsTheSameModel) {
  const Fixture f;
  ModelConfig shape = f.config("unused").model;
  shape.n_layers = 2;
  const ExecutionContext context;
  LanguageModel model(context, shape, Quantization::kTernary);
  Rng rng(4);
  model.initialize(rng, 0.07f);  // mean|W| near 1.8 / 32: of small mantissas none is moved
  export_model(f.dir / "i2_s.gguf", model, nullptr, {});
  const auto i2_s = quant::ModelReader::open(f.dir / "i2_s.gguf");
  int moved = 0;
  for (const auto form : {WeightScaleForm::kMultiply, WeightScaleForm::kDivide}) {
    quant::WriteOptions options;
    options.gguf = false;
    options.type = quant::LinearType::kHf;
    options.scale_form = form;
    const auto path = f.dir / (form == WeightScaleForm::kDivide ? "divide" : "multiply");
    export_model(path, model, nullptr, options);
    const auto hf = quant::ModelReader::open(path);
    for (std::size_t i = 0; i < model.tensor_ids().size(); ++i) {
      const TensorId id = model.tensor_ids()[i];
      if (!is_linear(id.role)) continue;
      const auto a = i2_s->read(id), b = hf->read(id);
      EXPECT_EQ(a.weights.trits, b.weights.trits);
      EXPECT_EQ(a.weights.scales, b.weights.scales);
      const Parameter& p = *model.parameters()[i];
      moved += a.weights.scales != quant::absmean(p.value(), p.rows(), p.cols()).scales;
    }
  }
  EXPECT_GT(moved, 0);
}

TEST(Trainer, HeldOutTextIsScoredOnceAfterTheLastStep) {
  const Fixture f;
  TrainConfig c = f.config("out");
  EXPECT_FALSE(run(c).held_out);
  EXPECT_THAT(read_file(c.output / "log.jsonl"), ::testing::Not(::testing::HasSubstr("held_out")));
  c = f.config("scored");
  write_file(f.dir / "novel.txt", sample_text(9, 300));
  c.held_out = f.dir / "novel.txt";
  const TrainResult r = run(c);
  ASSERT_TRUE(r.held_out);
  const auto tokens = static_cast<std::int64_t>(
      Tokenizer::load(c.output)->encode(sample_text(9, 300), {.add_bos = false}).size());
  EXPECT_EQ(r.held_out->tokens, (tokens - 1) / c.length * c.length);
  EXPECT_GT(r.held_out->tokens, c.validation_tokens);
  EXPECT_NE(r.held_out->nll, r.final_evaluation.nll);
  const std::string log = read_file(c.output / "log.jsonl");
  const std::size_t record = log.find(R"({"type":"held_out","step":14,)");
  ASSERT_NE(record, std::string::npos);
  EXPECT_EQ(log.find("held_out", record + 20), std::string::npos);
  EXPECT_EQ(log.find('\n', record), log.size() - 1);  // the last line
  // The same text as validation gives the same figures.
  c = f.config("as_validation");
  c.validation = f.dir / "novel.txt";
  EXPECT_EQ(run(c).final_evaluation.nll, r.held_out->nll);
}

TEST(Trainer, Bf16ProductsTrainAnotherModelAsWell) {
  const Fixture f;
  const TrainResult full = run(f.config("f32"));
  TrainConfig c = f.config("bf16");
  c.compute = DType::kBF16;
  const TrainResult rounded = run(c);
  EXPECT_NE(rounded.final_evaluation.nll, full.final_evaluation.nll);
  // 2^-9 a factor in the head: far less than what a step changes.
  EXPECT_NEAR(rounded.final_evaluation.nll / full.final_evaluation.nll, 1.0, 0.02);
}

TEST(Trainer, ActivationCheckpointingChangesNoBit) {
  const Fixture f;
  for (const char* const quantization : {"ternary", "none"}) {
    const std::string name(quantization);
    TrainConfig kept = f.config(name + "-kept", name), again = f.config(name + "-again", name);
    for (TrainConfig* c : {&kept, &again}) c->model.n_layers = 3;
    run(kept);
    again.activation_checkpointing = true;
    stop_after(again, 4);
    again.activation_checkpointing = false;  // a run may go on with another setting of it
    stop_after(again, 4, true);
    again.activation_checkpointing = true;
    run(again, true);
    expect_same_tensors(kept.output / "checkpoint.safetensors", again.output / "checkpoint.safetensors");
  }
}

TEST(Trainer, ThreadsChangeNoBit) {
  const Fixture f;
  run(f.config("one"), false, {}, 1);
  run(f.config("three"), false, {}, 3);
  expect_same_tensors(f.dir / "one/checkpoint.safetensors", f.dir / "three/checkpoint.safetensors");
}

TEST(Trainer, PackedDocumentsTrainAndResumeToTheSameBits) {
  const Fixture f;
  std::string text = sample_text(1, 2000);
  for (std::size_t at = text.find('\n'), n = 0; at != std::string::npos; at = text.find('\n', at + 2), ++n)
    if (n % 3 == 0) text.insert(at, "\n");
  write_file(f.dir / "documents.txt", text);
  const auto config = [&](const std::string& output) {
    TrainConfig c = f.config(output);
    c.train = c.validation = c.held_out = f.dir / "documents.txt";
    c.document_separator = "\n\n";
    return c;
  };
  double first = 0, last = 0;
  TrainCallbacks callbacks;
  callbacks.progress = [&](const Progress& p) {
    last = p.loss;
    if (first == 0) first = p.loss;
    EXPECT_LT(p.tokens, p.step * 64);  // padding is no token
  };
  const TrainResult r = run(config("whole"), false, callbacks);
  EXPECT_LT(last, first - 0.3);
  EXPECT_EQ(r.held_out->nll, r.final_evaluation.nll);
  stop_after(config("stopped"), 6);
  run(config("stopped"), true, {}, 1);
  expect_same_tensors(f.dir / "whole/checkpoint.safetensors", f.dir / "stopped/checkpoint.safetensors");
  // The same text as one stream is another run.
  TrainConfig stream = config("stopped");
  stream.document_separator.clear();
  BITNET_EXPECT_ERROR(run(stream, true), ErrorCode::kInvalidArgument, "data.");
}

TEST(Trainer, AccumulationGivesTheGradientOfTheWholeBatch) {
  const Fixture f;
  std::vector<Progress> first;
  for (const std::int64_t micro_batch : {1, 2, 4}) {
    TrainConfig c =
        f.config("micro" + std::to_string(micro_batch), "none");  // no rounding steps to jump over
    c.micro_batch = micro_batch;
    c.log_every = 1;
    TrainCallbacks callbacks;
    callbacks.progress = [&](const Progress& p) {
      if (p.step == 1) first.push_back(p);
    };
    run(c, false, callbacks);
  }
  for (std::size_t i = 1; i < 3; ++i) {
    EXPECT_NEAR(first[i].loss, first[0].loss, 1e-5);
    EXPECT_NEAR(first[i].gradient_norm, first[0].gradient_norm, 1e-4 * first[0].gradient_norm);
  }
}

TEST(Trainer, StoppingAndResumingChangesNoBit) {
  const Fixture f;
  run(f.config("whole"));
  for (int stop : {1, 6, 13}) {
    const std::string name = "stopped" + std::to_string(stop);
    stop_after(f.config(name), stop);
    EXPECT_FALSE(run(f.config(name), true).cancelled);
    expect_same_tensors(f.dir / "whole/checkpoint.safetensors", f.dir / (name + "/checkpoint.safetensors"));
    EXPECT_EQ(read_file(f.dir / "whole/model.gguf"), read_file(f.dir / (name + "/model.gguf")));
  }
}

/// Runs `c` and is killed after `milliseconds`, wherever it then is.
[[noreturn]] void run_and_die(const TrainConfig& c, int milliseconds) {
  std::thread([milliseconds] {
    std::this_thread::sleep_for(std::chrono::milliseconds(milliseconds));
    std::raise(SIGKILL);
  }).detach();
  for (bool resume = std::filesystem::exists(c.output / "checkpoint.safetensors");; resume = true) {
    run(c, resume);
    std::this_thread::sleep_for(std::chrono::seconds(1));
  }
}

/// The body of the next test, with Fixture's texts in `base`.
void kill_and_resume(const std::filesystem::path& base) {
  TrainConfig c = config_in(base, "killed");
  for (const int milliseconds : {40, 90, 150}) {
    EXPECT_EXIT(run_and_die(c, milliseconds), ::testing::KilledBySignal(SIGKILL), "");
  }
  run(c, true);
  run(config_in(base, "whole"));
  expect_same_tensors(base / "whole/checkpoint.safetensors", base / "killed/checkpoint.safetensors");
}

TEST(TrainerDeathTest, BeingKilledChangesNoBit) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  // The killed process re-runs this test up to its death: it is told this one's folder.
  constexpr const char* kFolder = "BITNET_KILL_TEST_FOLDER";
  if (std::getenv(kFolder) == nullptr) {
    const Fixture f;
    setenv(kFolder, f.dir.path().c_str(), 1);
    kill_and_resume(f.dir.path());
    unsetenv(kFolder);
  } else {
    kill_and_resume(std::getenv(kFolder));
  }
}

TEST(Trainer, DivergenceStopsWithTheLastCheckpointKept) {
  const Fixture f;
  TrainConfig c = f.config("out");
  c.schedule.peak = 1e37;
  c.schedule.weight_decay = 0;
  c.checkpoint_minutes = 60;
  BITNET_EXPECT_ERROR(run(c), ErrorCode::kInvalidArgument, "diverged");
  EXPECT_FALSE(std::filesystem::exists(c.output / "checkpoint.safetensors"));

  // Diverges after a good checkpoint: the file stays as it was, and is enough to get to the same end.
  run(f.config("whole"));
  c = f.config("resumed");
  stop_after(c, 5);
  const std::string kept = read_file(c.output / "checkpoint.safetensors");
  TrainConfig wild = c;
  wild.schedule.peak = 1e37;
  wild.schedule.weight_decay = 0;
  wild.checkpoint_minutes = 60;
  BITNET_EXPECT_ERROR(run(wild, true), ErrorCode::kInvalidArgument, "diverged");
  EXPECT_EQ(read_file(c.output / "checkpoint.safetensors"), kept);
  // With a checkpoint after each step: the one of the update that was too large has weights that no lower
  // rate mends, and does not stay.
  wild.checkpoint_minutes = 0;
  BITNET_EXPECT_ERROR(run(wild, true), ErrorCode::kInvalidArgument,
                      "resume from the last checkpoint, of step 5, with a lower learning rate");
  EXPECT_EQ(read_file(c.output / "checkpoint.safetensors"), kept);
  EXPECT_FALSE(std::filesystem::exists(c.output / "checkpoint-5.safetensors"));
  run(c, true);
  expect_same_tensors(f.dir / "whole/checkpoint.safetensors", c.output / "checkpoint.safetensors");
}

TEST(Trainer, AnOutputThatIsAFileIsRefused) {
  const Fixture f;
  BITNET_EXPECT_ERROR(run(f.config("train.txt")), ErrorCode::kIo,
                      "train.txt' is there, but is not a directory");
}

TEST(Trainer, ATokenizerLeftBehindWithoutACheckpointIsNotUsed) {
  const Fixture f;
  const TrainConfig c = f.config("out");
  std::filesystem::create_directories(c.output);
  BpeTrainerOptions options;
  options.vocab_size = 270;
  BpeTrainer other(options);
  other.feed("zzz qqq zzz qqq xyxy");
  for (const bool resume : {false, true}) {
    write_file(c.output / "tokenizer.json", other.train());
    stop_after(c, 1, resume);
    EXPECT_TRUE(Tokenizer::load(c.output)->find("\xC4\xA0the")) << "learnt from train.txt";
    std::filesystem::remove(c.output / "checkpoint.safetensors");
  }
  stop_after(c, 1);
  // Beside a checkpoint it is the run's own: used, and a change of it noticed.
  write_file(c.output / "tokenizer.json", other.train());
  BITNET_EXPECT_ERROR(run(c, true), ErrorCode::kInvalidArgument, "checkpoint.safetensors");
}

TEST(Trainer, ResumeRefusesAnotherRunAndNotesNewSettings) {
  const Fixture f;
  const TrainConfig c = f.config("out");
  stop_after(c, 3);
  const auto refused = [&](const char* message, const auto& change) {
    TrainConfig other = c;
    change(other);
    BITNET_EXPECT_ERROR(run(other, true), ErrorCode::kInvalidArgument, message);
  };
  refused("training.seed is 7 there and 8 now", [](TrainConfig& o) { o.seed = 8; });
  refused("training.length is 16 there and 8 now", [](TrainConfig& o) { o.length = 8; });
  refused("training.batch is 4 there and 2 now", [](TrainConfig& o) { o.batch = 2; });
  refused("training.micro_batch is 2 there and 4 now", [](TrainConfig& o) { o.micro_batch = 4; });
  refused("training.compute is f32 there and bf16 now", [](TrainConfig& o) { o.compute = DType::kBF16; });
  refused("data.train is ", [&](TrainConfig& o) {
    // As many tokens in another order.
    const std::string text = read_file(o.train);
    const std::size_t cut = text.find('\n', text.size() / 2) + 1;
    write_file(f.dir / "turned.txt", text.substr(cut) + text.substr(0, cut));
    o.train = f.dir / "turned.txt";
  });
  TrainConfig other = c;
  other.schedule.steps = 16;
  other.schedule.peak = 1e-3;
  std::string messages;
  TrainCallbacks callbacks;
  callbacks.message = [&](const std::string& text) { messages += text + "\n"; };
  EXPECT_EQ(run(other, true, callbacks).steps, 16);
  EXPECT_THAT(messages, ::testing::HasSubstr("training.steps was 14, and is 16 from here on"));
  EXPECT_THAT(messages, ::testing::HasSubstr("training.learning_rate was 0.002, and is 0.001 from here on"));
  EXPECT_THAT(messages, ::testing::Not(::testing::HasSubstr("warmup")));
  messages.clear();
  run(other, true, callbacks);  // the new settings are now the run's own
  EXPECT_THAT(messages, ::testing::Not(::testing::HasSubstr("from here on")));
}

TEST(Trainer, ScoresOfAnotherValidationTextAreNotCompared) {
  const Fixture f;
  TrainConfig c = f.config("out");
  c.evaluate_every = 1;
  c.keep_best = true;
  stop_after(c, 3);
  write_file(f.dir / "other.txt", sample_text(9, 900));
  c.validation = f.dir / "other.txt";
  std::string messages;
  TrainCallbacks callbacks;
  callbacks.message = [&](const std::string& text) { messages += text + "\n"; };
  run(c, true, callbacks);
  EXPECT_THAT(messages,
              ::testing::ContainsRegex("data.validation was [0-9]+ tokens with hash [0-9a-f]+, and is"));
  EXPECT_THAT(messages, ::testing::HasSubstr(", was of another text and does not count"));
}

TEST(Trainer, ARefusedResumeChangesNoFile) {
  const Fixture f;
  const TrainConfig c = f.config("out");
  stop_after(c, 3);
  write_file(f.dir / "other.txt", sample_text(3, 2000));
  TrainConfig other = f.config("other");
  other.train = f.dir / "other.txt";
  stop_after(other, 1);
  const auto files = [&] {
    std::map<std::filesystem::path, std::string> all;
    for (const auto& entry : std::filesystem::directory_iterator(c.output))
      all[entry.path()] = read_file(entry.path());
    return all;
  };
  const auto before = files();
  TrainConfig wrong = c;
  wrong.tokenizer = other.output;
  BITNET_EXPECT_ERROR(run(wrong, true), ErrorCode::kInvalidArgument, "is of another run: ");
  EXPECT_EQ(files(), before);
  run(c, true);
  run(f.config("whole"));
  expect_same_tensors(f.dir / "whole/checkpoint.safetensors", c.output / "checkpoint.safetensors");
}

TEST(Trainer, ResumeWithoutACheckpointSaysSoAndKeepsTheLog) {
  const Fixture f;
  const TrainConfig c = f.config("out");
  std::filesystem::create_directories(c.output);
  std::string messages;
  TrainCallbacks callbacks;
  callbacks.message = [&](const std::string& text) { messages += text + "\n"; };
  for (const char* name : {"log.1.jsonl", "log.2.jsonl"}) {
    write_file(c.output / "log.jsonl", name);
    messages.clear();
    stop_after(c, 1, true, callbacks);
    EXPECT_THAT(messages, ::testing::HasSubstr("no checkpoint to resume in '" + c.output.string()));
    EXPECT_THAT(messages, ::testing::HasSubstr(name));
    EXPECT_EQ(read_file(c.output / name), name);
    EXPECT_THAT(read_file(c.output / "log.jsonl"), ::testing::StartsWith(R"({"type":"start","step":0,)"));
    std::filesystem::remove(c.output / "checkpoint.safetensors");
  }
  stop_after(c, 1);
  const std::string before = read_file(c.output / "log.jsonl");
  run(c, true);
  EXPECT_THAT(read_file(c.output / "log.jsonl"), ::testing::StartsWith(before)) << "a resumed run appends";
}

TEST(Trainer, TextThatCannotBeUsedIsFoundBeforeTheWork) {
  const Fixture f;
  TrainConfig c = f.config("out");
  c.validation = f.dir / "absent.txt";
  BITNET_EXPECT_ERROR(run(c), ErrorCode::kNotFound, "absent.txt");
  write_file(f.dir / "short.txt", "Too short.\n");
  c = f.config("out2");
  c.validation = f.dir / "short.txt";
  BITNET_EXPECT_ERROR(run(c), ErrorCode::kInvalidArgument, "short.txt' has");
  c.validation = f.dir / "heldout.txt";
  c.held_out = f.dir / "short.txt";
  BITNET_EXPECT_ERROR(run(c), ErrorCode::kInvalidArgument, "short.txt' has");
  write_file(f.dir / "binary.txt", std::string("\xFF\xFE\x00", 3));
  c = f.config("out3");
  c.train = f.dir / "binary.txt";
  BITNET_EXPECT_ERROR(run(c), ErrorCode::kInvalidArgument, "binary.txt");
}

}  // namespace
}  // namespace bitnet::training
