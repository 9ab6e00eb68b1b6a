// Runs that begin with a model: adapters, students of a teacher, weights with sub-norms inserted. From a
// configuration to files, stopped and resumed. What is computed is lora_test.cpp and distillation_test.cpp.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "bitnet/core/text/bpe_trainer.hpp"
#include "bitnet/quant/adapter.hpp"
#include "bitnet/testing/reference_forward.hpp"
#include "bitnet/testing/testing.hpp"
#include "bitnet/training/sub_norms.hpp"
#include "tiny_run.hpp"

namespace bitnet::training {
namespace {

namespace fs = std::filesystem;

struct WithBase : ::testing::Test {
  Fixture f;
  fs::path base = f.dir / "base" / "model.gguf";
  WithBase() { run(f.config("base")); }
  /// The folder of a tokenizer.json of `vocab` tokens, learnt from numbers.
  fs::path write_digits_tokenizer(std::int64_t vocab) const {
    BpeTrainer trainer(BpeTrainerOptions{vocab, {"<s>", "</s>"}, 2});
    std::string text;
    for (int i = 0; i < 4000; ++i) text += " " + std::to_string(i * 7919);
    trainer.feed(text);
    fs::create_directory(f.dir / "digits");
    write_file(f.dir / "digits" / "tokenizer.json", trainer.train());
    return f.dir / "digits";
  }
  /// A run with these sections on top; its tokenizer is the base's or the teacher's.
  TrainConfig config(const std::string& output, const std::string& sections) const {
    return TrainConfig::from_yaml(
        sections + "data: {train: " + (f.dir / "train.txt").string() +
            ", validation: " + (f.dir / "heldout.txt").string() +
            ", validation_tokens: 128}\n"
            "training: {steps: 14, warmup: 2, learning_rate: 5.0e-3, length: 16, batch: 4, micro_batch: 2}\n"
            "output: {directory: " +
            (f.dir / output).string() + ", log_every: 2, evaluate_every: 5, checkpoint_minutes: 1.0e-9}\n",
        "test.yaml");
  }
  std::string lora(const std::string& more = "") const {
    return "lora: {base: " + base.string() + ", rank: 3, alpha: 6, dropout: 0.1" + more + "}\n";
  }
};

TEST_F(WithBase, AnAdapterIsTrainedAndWrittenApart) {
  const std::string before = read_file(base);
  const TrainConfig c = config("lora", lora(", targets: [q_proj, down_proj]"));
  const TrainResult result = run(c);
  EXPECT_EQ(result.steps, 14);
  EXPECT_EQ(read_file(base), before);
  EXPECT_FALSE(fs::exists(c.output / "model.gguf"));
  const auto reader = quant::ModelReader::open(base);
  const quant::LoraAdapter adapter = quant::read_adapter(c.output / "adapter", reader->config());
  ASSERT_EQ(adapter.linears.size(), 2u);
  for (const quant::LoraLinear& l : adapter.linears) {
    EXPECT_EQ(l.rank, 3);
    EXPECT_FLOAT_EQ(l.scaling, 2);
    EXPECT_TRUE(std::any_of(l.b.begin(), l.b.end(), [](float v) { return v != 0; }));
  }
  // The checkpoint holds factors and moments and nothing of the base.
  const auto checkpoint = SafeTensors::open(c.output / "checkpoint.safetensors");
  for (const SafeTensorInfo& t : checkpoint->tensors())
    EXPECT_NE(t.name.find("lora_"), std::string::npos) << t.name;
  // Its validation perplexity is below that of the base, as a run of a tiny rate leaves it.
  TrainConfig still = config("still", lora());
  still.schedule.peak = 1e-12;
  EXPECT_LT(result.final_evaluation.nll, run(still).final_evaluation.nll);
}

TEST_F(WithBase, AResumedAdapterHasTheBitsOfOneThatWasNeverStopped) {
  const TrainConfig whole = config("whole", lora()), parts = config("parts", lora());
  run(whole);
  stop_after(parts, 3);
  stop_after(parts, 4, true);
  run(parts, true, {}, 1);
  expect_same_tensors(whole.output / "checkpoint.safetensors", parts.output / "checkpoint.safetensors");
  EXPECT_EQ(read_file(whole.output / "adapter" / "adapter_model.safetensors"),
            read_file(parts.output / "adapter" / "adapter_model.safetensors"));
}

TEST_F(WithBase, AnAdapterOfAnotherKindOrBaseIsNotResumed) {
  const TrainConfig c = config("lora", lora());
  stop_after(c, 2);
  const auto refuse = [&](const std::string& sections, const char* text) {
    BITNET_EXPECT_ERROR(run(config("lora", sections), true), ErrorCode::kInvalidArgument, text);
  };
  refuse("lora: {base: " + base.string() + ", rank: 4, alpha: 6, dropout: 0.1}\n",
         "lora.rank is 3 there and 4");
  refuse("lora: {base: " + base.string() + ", rank: 3, alpha: 7, dropout: 0.1}\n",
         "lora.alpha is 6 there and 7");
  refuse("model: {base: " + base.string() + "}\n", "model.quantization is nothing there");
  TrainConfig other = f.config("other");
  other.seed = 8;
  run(other);
  refuse("lora: {base: " + (other.output / "model.gguf").string() + ", rank: 3, alpha: 6, dropout: 0.1}\n",
         "base weights is of hash");
}

TEST_F(WithBase, AStudentLearnsFromATeacher) {
  // Its vocabulary must be the teacher's, which a run may have made smaller than asked for.
  const auto vocab = std::to_string(quant::ModelReader::open(base)->config().vocab_size);
  const std::string sections =
      "model: {vocab_size: " + vocab +
      ", hidden_size: 128, intermediate_size: 128, layers: 1, heads: 4, kv_heads: 2, context: 32}\n"
      "distillation: {teacher: " +
      base.string() + ", temperature: 2, logits: 1, attention: 0.5}\n";
  const TrainConfig whole = config("whole", sections), parts = config("parts", sections);
  run(whole);
  EXPECT_TRUE(fs::exists(whole.output / "model.gguf"));
  stop_after(parts, 5);
  run(parts, true, {}, 1);
  expect_same_tensors(whole.output / "checkpoint.safetensors", parts.output / "checkpoint.safetensors");
}

TEST_F(WithBase, ActivationCheckpointingChangesNoBit) {
  TrainConfig deep = f.config("deep");
  deep.model.n_layers = 3;
  run(deep);
  const std::string model = (deep.output / "model.gguf").string();
  const auto vocab = std::to_string(quant::ModelReader::open(model)->config().vocab_size);
  const std::string from_teacher = "distillation: {teacher: " + model + ", temperature: 2, attention: 0.5}\n";
  const std::pair<const char*, std::string> kinds[] = {
      {"adapter", "lora: {base: " + model + ", rank: 3, dropout: 0.1}\n"},
      {"student", "model: {vocab_size: " + vocab +
                      ", hidden_size: 128, intermediate_size: 128, layers: 3, heads: 4, kv_heads: 2, "
                      "context: 32}\n" +
                      from_teacher},
      {"adapter of a student", "lora: {base: " + model + ", rank: 3, dropout: 0.1}\n" + from_teacher},
      {"going on", "model: {base: " + model + "}\n"}};
  for (const auto& [name, sections] : kinds) {
    SCOPED_TRACE(name);
    const TrainConfig kept = config(std::string(name) + "-kept", sections);
    TrainConfig again = config(std::string(name) + "-again", sections);
    again.activation_checkpointing = true;
    run(kept);
    run(again);
    expect_same_tensors(kept.output / "checkpoint.safetensors", again.output / "checkpoint.safetensors");
    const auto memory = [](TrainConfig c) {
      c.output += "-wide";
      c.batch = c.micro_batch = 32;
      const auto pool = std::make_shared<HybridMemoryPool>(MemoryPoolOptions{});
      return dry_run(c, {}, false, ExecutionContext(ExecutionContext::Options{1, {}, pool})).memory_bytes;
    };
    EXPECT_LT(memory(again), memory(kept));
  }
}

TEST_F(WithBase, ATeacherOfAnotherVocabularyIsRefused) {
  const auto student = [&](std::int64_t vocab) {
    return "model: {vocab_size: " + std::to_string(vocab) +
           ", hidden_size: 128, intermediate_size: 128, layers: 1, heads: 4, kv_heads: 2, context: 32}\n"
           "distillation: {teacher: " +
           base.string() + "}\n";
  };
  const std::int64_t vocab = quant::ModelReader::open(base)->config().vocab_size;
  BITNET_EXPECT_ERROR(run(config("small", student(vocab - 1))), ErrorCode::kInvalidArgument,
                      "the teacher's tokenizer has " + std::to_string(vocab) + " tokens");
  BITNET_EXPECT_ERROR(run(config("large", student(vocab + 1))), ErrorCode::kInvalidArgument,
                      "the teacher's vocabulary has " + std::to_string(vocab) + " tokens");
  // One of the same size, of another text.
  TrainConfig c = config("other", student(vocab));
  c.tokenizer = write_digits_tokenizer(vocab);
  ASSERT_EQ(Tokenizer::load(c.tokenizer)->vocab_size(), vocab);
  BITNET_EXPECT_ERROR(run(c), ErrorCode::kInvalidArgument, "has another vocabulary: token ");
  c.tokenizer = f.dir / "base";  // the same, named
  EXPECT_EQ(run(c).steps, 14);
}

/// As many tokens as the base has, of another text.
TEST_F(WithBase, ATokenizerThatIsNotTheBasesIsRefused) {
  const std::int64_t vocab = quant::ModelReader::open(base)->config().vocab_size;
  const fs::path digits = write_digits_tokenizer(vocab);
  for (const std::string& sections : {"model: {base: " + base.string() + "}\n", lora()}) {
    TrainConfig c = config("other", sections);
    c.tokenizer = digits;
    BITNET_EXPECT_ERROR(run(c), ErrorCode::kInvalidArgument,
                        "the base '" + base.string() + "' has another vocabulary: token ");
    EXPECT_FALSE(fs::exists(c.output / "tokenizer.json"));
  }
}

TEST_F(WithBase, AVocabularyThatDoesNotFitTheBaseIsRefused) {
  for (const std::string& sections : {"model: {base: " + base.string() + "}\n", lora()}) {
    TrainConfig c = config("small", sections);
    c.model.vocab_size = 100;
    BITNET_EXPECT_ERROR(run(c), ErrorCode::kInvalidArgument, "tokens, the base allows 100");
    EXPECT_FALSE(fs::exists(c.output / "checkpoint.safetensors"));
  }
}

TEST_F(WithBase, TrainingGoesOnFromAModelsWeights) {
  const TrainConfig c = config("more", "model: {base: " + base.string() + "}\n");
  const TrainResult more = run(c);
  EXPECT_TRUE(fs::exists(c.output / "model.gguf"));
  TrainConfig still = config("still", "model: {base: " + base.string() + "}\n");
  still.schedule.peak = 1e-12;
  // Latent weights are other ones than those that the base was trained with, its trits are the same.
  run(still);
  const auto a = quant::ModelReader::open(base), b = quant::ModelReader::open(still.output / "model.gguf");
  for (const TensorId id : a->tensors())
    if (is_linear(id.role)) {
      EXPECT_EQ(a->read(id).weights.trits, b->read(id).weights.trits);
    }
  EXPECT_EQ(more.steps, 14);
}

TEST_F(WithBase, QuantisationGrowsWhereTheBaseIsOfFullPrecision) {
  ModelConfig llama = testing::tiny_config();
  llama.family = ModelFamily::kLlama;
  llama.architecture = "llama";
  llama.weights = WeightKind::kDense;
  llama.sub_norms = false;
  llama.vocab_size = 300;
  llama.hidden_size = llama.intermediate_size = 128;
  llama.n_heads = llama.n_kv_heads = 4;
  llama.head_dim = 32;
  quant::WriteOptions dense;
  dense.type = quant::LinearType::kDense;
  dense.dense_type = DType::kF32;
  dense.gguf = false;
  quant::write_model(f.dir / "llama", llama, nullptr, testing::random_model(llama, 3), dense);
  const auto of = [&](const std::string& model, const std::string& training = "") {
    std::string text = "model: {base: " + model + "}\ndata: {train: " + (f.dir / "train.txt").string() +
                       ", validation: " + (f.dir / "heldout.txt").string() +
                       ", validation_tokens: 128, tokenizer: " + (f.dir / "base").string() +
                       "}\ntraining: {steps: 14, learning_rate: 1.0e-9, length: 16, batch: 4" + training +
                       "}\noutput: {directory: " + (f.dir / "grown").string() + ", log_every: 1}\n";
    return TrainConfig::from_yaml(text, "test.yaml");
  };
  const auto expect = [](const TrainConfig& c, QuantizerScheduleKind kind, std::int64_t steps) {
    EXPECT_EQ(c.quantizer_schedule.kind, kind);
    EXPECT_EQ(c.quantizer_schedule.steps, steps);
  };
  const std::string from = (f.dir / "llama").string();
  TrainConfig grows = of(from);
  expect(grows, QuantizerScheduleKind::kLinear, 3);  // a quarter of 14
  expect(of(from, ", quantizer_steps: 5"), QuantizerScheduleKind::kLinear, 5);
  expect(of(from, ", quantizer_schedule: sigmoid, quantizer_steps: 9"), QuantizerScheduleKind::kSigmoid, 9);
  const TrainConfig abrupt = of(from, ", quantizer_schedule: abrupt");
  expect(abrupt, QuantizerScheduleKind::kAbrupt, 1000);
  expect(of(base.string()), QuantizerScheduleKind::kAbrupt, 1000);
  expect(of(from + ", quantization: none"), QuantizerScheduleKind::kAbrupt, 1000);
  TrainConfig longer = of(from);
  longer.length = 2 * longer.model.max_position;
  BITNET_EXPECT_ERROR(longer.validate(), ErrorCode::kInvalidArgument,
                      "training.length must not be above model.context");

  // The first loss is that of full precision; the weights stay, so that from the fourth on it is the abrupt
  // one's.
  const auto losses = [&](const TrainConfig& c, bool says) {
    std::vector<double> all;
    std::string messages;
    TrainCallbacks callbacks;
    callbacks.message = [&](const std::string& text) { messages += text + "\n"; };
    callbacks.progress = [&](const Progress& p) { all.push_back(p.loss); };
    fs::remove_all(c.output);
    run(c, false, callbacks);
    EXPECT_EQ(messages.find("quantisation grows from none to whole within 3 steps") != std::string::npos,
              says);
    return all;
  };
  const auto grown = losses(grows, true), at_once = losses(abrupt, false),
             whole = losses(of(from + ", quantization: none"), false);
  EXPECT_NEAR(grown[0], whole[0], 1e-5);
  for (const std::size_t step : {0, 1, 2}) EXPECT_NE(grown[step], at_once[step]) << step;
  for (std::size_t step = 3; step < 14; ++step) EXPECT_NEAR(grown[step], at_once[step], 1e-4) << step;
}

TEST(SubNorms, AreInsertedIntoAPlainLlama) {
  const testing::TempDir dir;
  ModelConfig llama = testing::tiny_config();
  llama.family = ModelFamily::kLlama;
  llama.architecture = "llama";
  llama.weights = WeightKind::kDense;
  llama.sub_norms = false;
  llama.activation = Activation::kSilu;
  llama.tied_embeddings = false;
  const testing::TensorModel tensors = testing::random_model(llama, 3);
  quant::WriteOptions dense;
  dense.type = quant::LinearType::kDense;
  dense.dense_type = DType::kF32;
  dense.gguf = false;
  quant::write_model(dir / "llama", llama, nullptr, tensors, dense);
  const auto reader = quant::ModelReader::open(dir / "llama", quant::FloatLinears::kKeep);
  const ExecutionContext context;
  const ModelConfig config = with_sub_norms(reader->config());
  EXPECT_TRUE(config.sub_norms);
  EXPECT_EQ(config.activation, Activation::kSilu);
  LanguageModel model(context, config, Quantization::kNone);
  load_weights(context, model, *reader);
  // What the model computes is the Llama with two norms of ones more.
  testing::TensorModel with = tensors;
  with.config = config;
  with.config.weights = WeightKind::kDense;
  for (const TensorId id : model_tensors(config)) {
    if (with.tensors.contains(gguf_name(id))) continue;
    ASSERT_TRUE(id.role == TensorRole::kAttnSubNorm || id.role == TensorRole::kFfnSubNorm);
    quant::LogicalTensor t;
    t.id = id;
    t.shape = tensor_shape(id, config);
    const std::vector<float> ones(static_cast<std::size_t>(t.shape.numel()), 1.0f);
    const auto bytes = std::as_bytes(std::span(ones));
    t.dense.assign(bytes.begin(), bytes.end());
    with.tensors[gguf_name(id)] = t;
  }
  const std::vector<std::int32_t> ids{5, 17, 3, 60, 22, 9};
  const auto expected = testing::ReferenceForward(with)(ids);
  Tape tape(context, false);
  const Variable logits = model.forward(tape, ids, {6, {}});
  double largest = 0;
  for (const auto& row : expected)
    for (const double v : row) largest = std::max(largest, std::abs(v));
  for (std::size_t p = 0; p < expected.size(); ++p)
    for (std::size_t i = 0; i < expected[p].size(); ++i)
      ASSERT_NEAR(logits.value()[p * expected[p].size() + i], expected[p][i],
                  4 * testing::logit_bound(config, largest));  // sums over one lane, not 16
  ModelConfig other = config;
  other.hidden_size = 96;
  LanguageModel wide(context, other, Quantization::kNone);
  BITNET_EXPECT_ERROR(load_weights(context, wide, *reader), ErrorCode::kInvalidArgument,
                      "model.hidden_size is 48, the model's 96");
}

TEST_F(WithBase, KeysThatCannotBeAreRefused) {
  const auto refuse = [&](const std::string& sections, const char* text) {
    BITNET_EXPECT_ERROR(config("x", sections), ErrorCode::kInvalidArgument, text);
  };
  refuse(lora(", targets: [q_proj, lm_head]"),
         "test.yaml:1: lora.targets cannot be used: unknown target 'lm_head'");
  refuse(lora(", targets: q_proj"), "lora.targets must be a list");
  refuse(lora(", ranks: 3"), "unknown key 'ranks' in 'lora'");
  refuse("lora: {base: " + base.string() + ", rank: 0}\n", "lora.rank cannot be used");
  refuse("lora: {rank: 2}\n", "section 'lora' needs the key 'base'");
  refuse(lora() + "model: {base: " + base.string() + "}\n", "exclude each other");
  refuse(lora() + "distillation: {teacher: " + base.string() + ", logits: 0}\n", "would teach nothing");
  for (const char* t : {"0", "1.0e-60", "1.0e+60"})
    refuse(lora() + "distillation: {teacher: x, temperature: " + t + "}\n",
           "distillation.temperature must be from 1e-3 to 1e6");
  refuse(lora() + "distillation: {teacher: x, logits: 1.0e+60}\n", "must not be negative, and at most 1e6");
  refuse("lora: {base: " + base.string() + ", alpha: 1.0e+300}\n", "lora.alpha must be at most 1e6");
  refuse("model: {base: " + base.string() + ", heads: 4}\n", "unknown key 'heads' in 'model'");
  BITNET_EXPECT_ERROR(config("x", "lora: {base: " + (f.dir / "nothing").string() + "}\n"),
                      ErrorCode::kNotFound, "test.yaml:1: lora.base: ");
  BITNET_EXPECT_ERROR(config("x", "model: {base: " + (f.dir / "nothing").string() + "}\n"),
                      ErrorCode::kNotFound, "test.yaml:1: model.base: ");
}

}  // namespace
}  // namespace bitnet::training
