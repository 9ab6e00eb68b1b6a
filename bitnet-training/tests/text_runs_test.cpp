// Runs on JSONL and token shards, and dry runs. Runs on plain text are trainer_test.cpp.
#include <algorithm>
#include <fstream>

#include "bitnet/core/error.hpp"
#include "tiny_run.hpp"

namespace bitnet::training {
namespace {

/// Prompts and responses cut from text that is easy to learn.
std::string responses(std::uint64_t seed, int count) {
  std::string jsonl;
  for (int i = 0; i < count; ++i) {
    std::string text = sample_text(seed * 1000 + static_cast<std::uint64_t>(i), 1);
    text.erase(text.find_last_not_of(" \n") + 1);
    const std::size_t cut = text.find(' ', 4);
    jsonl += R"({"prompt": ")" + text.substr(0, cut) + R"(", "response": ")" + text.substr(cut) + "\"}\n";
  }
  return jsonl;
}

std::string chats(std::uint64_t seed, int count) {
  std::string jsonl;
  for (int i = 0; i < count; ++i) {
    std::string text = sample_text(seed * 1000 + static_cast<std::uint64_t>(i), 1);
    text.erase(text.find_last_not_of(" \n") + 1);
    jsonl += R"({"messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": ")" +
             text + "\"}]}\n";
  }
  return jsonl;
}

struct JsonlFixture : Fixture {
  explicit JsonlFixture(std::string (*records)(std::uint64_t, int) = responses) {
    write_file(dir / "train.jsonl", records(1, 300));
    write_file(dir / "heldout.jsonl", records(2, 40));
  }
  TrainConfig jsonl_config(const std::string& output) const {
    TrainConfig c = config(output);
    c.train = dir / "train.jsonl";
    c.validation = dir / "heldout.jsonl";
    c.length = 32;
    c.long_records = LongRecords::kCut;
    return c;
  }
};

TEST(TextRuns, ResponsesTrainAndResumeToTheSameBitsFromMemoryAndFromShards) {
  const JsonlFixture f;
  double first = 0, last = 0;
  TrainCallbacks callbacks;
  callbacks.progress = [&](const Progress& p) {
    last = p.loss;
    if (first == 0) first = p.loss;
    EXPECT_LT(p.tokens, p.step * 128);  // neither prompts nor padding count
  };
  const TrainConfig whole = f.jsonl_config("whole");
  const TrainResult result = run(whole, false, callbacks);
  EXPECT_LT(last, first);
  // Each learned token of the held-out records is scored, though rows end in padding.
  const ExecutionContext context;
  const TrainingText scored =
      load_training_text(context, *Tokenizer::load(whole.output), whole.validation, whole.text_options());
  EXPECT_THAT(read_file(whole.output / "log.jsonl"), ::testing::HasSubstr(R"("documents":300,)"));
  EXPECT_EQ(result.final_evaluation.tokens,
            std::count(scored.documents.learned.begin(), scored.documents.learned.end(), 1));
  TrainConfig kept = f.jsonl_config("kept");
  kept.shards = f.dir / "shards";
  stop_after(kept, 6);
  run(kept, true, {}, 1);
  expect_same_tensors(f.dir / "whole/checkpoint.safetensors", f.dir / "kept/checkpoint.safetensors");
}

TEST(TextRuns, AnotherLossMaskIsAnotherRun) {
  const JsonlFixture f;
  const TrainConfig c = f.jsonl_config("out");
  stop_after(c, 3);
  // The first record's border between prompt and response moves by a character; its bytes stay.
  std::string text = read_file(c.train);
  const std::string border = R"(", "response": ")";
  const std::size_t at = text.find(border);
  ASSERT_NE(at, std::string::npos);
  text.erase(at, border.size()).insert(at - 1, border);
  write_file(c.train, text);
  BITNET_EXPECT_ERROR(run(c, true), ErrorCode::kInvalidArgument, "data.train is ");
}

TEST(TextRuns, ChatsTrainWithAVocabularyThatHasTheirTokens) {
  const JsonlFixture f(chats);
  TrainConfig c = f.jsonl_config("out");
  c.chat_template = "llama3";
  const TrainResult r = run(c);
  EXPECT_GT(r.final_evaluation.tokens, 0);
  const auto tokenizer = Tokenizer::load(c.output);
  for (const char* token : {"<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"}) {
    const auto id = tokenizer->find(token);
    ASSERT_TRUE(id) << token;
    EXPECT_EQ(tokenizer->type(*id), TokenType::kControl) << token;
  }
  for (const char* file : {"model.gguf", "model"})
    EXPECT_EQ(ChatTemplate::for_model(*Tokenizer::load(c.output / file), "bitnet-b1.58")->name(), "llama3");

  // A run on text alone prepares for chats: it has the tokens, and no template that `bitnet chat` would take.
  TrainConfig text = f.config("text");
  text.chat_template = "llama3";
  run(text);
  const auto base = Tokenizer::load(text.output / "model.gguf");
  EXPECT_TRUE(base->find("<|eot_id|>"));
  EXPECT_EQ(base->chat_template(), "");
}

TEST(TextRuns, AVocabularyThatDoesNotFitTheModelIsAnErrorBeforeTheFirstStep) {
  const Fixture f;
  run(f.config("first"));
  TrainConfig c = f.config("second");
  c.tokenizer = f.dir / "first";
  c.model.vocab_size = 280;
  BITNET_EXPECT_ERROR(run(c), ErrorCode::kInvalidArgument, "model.vocab_size allows 280");
}

TEST(DryRun, SaysWhatARunTakesAndWritesNothing) {
  const JsonlFixture f;
  TrainConfig c = f.jsonl_config("out");
  c.shards = f.dir / "shards";
  const ExecutionContext context(ExecutionContext::Options{2, {}, {}});
  const DryRun d = dry_run(c, {}, false, context);
  EXPECT_FALSE(std::filesystem::exists(c.output));
  EXPECT_FALSE(std::filesystem::exists(c.shards));
  EXPECT_EQ(d.vocab_size, 300);
  // Embedding, the linears and norms of one block, the last norm.
  const std::int64_t linears = 128 * 128 * 2 + 128 * 64 * 2 + 3 * 128 * 128;
  EXPECT_EQ(d.parameters, 300 * 128 + linears + 4 * 128 + 128);
  EXPECT_EQ(d.steps, 14);
  EXPECT_EQ(d.micro_batch, 2);
  EXPECT_EQ(d.held_out_tokens, 0);
  EXPECT_GT(d.train_tokens, d.validation_tokens);
  EXPECT_EQ(d.corpus.lengths.count, 300);
  EXPECT_EQ(d.corpus.lengths.total, d.train_tokens);
  EXPECT_GT(d.corpus.entropy_bits, 1);
  EXPECT_LT(d.learned_tokens, d.train_tokens);  // prompts are read only
  EXPECT_GE(d.learned_tokens, 2 * 300);         // an answer and its end
  EXPECT_GT(d.sequences_per_epoch, 0);
  EXPECT_LE(d.sequences_per_epoch, d.train_tokens);
  EXPECT_GT(d.seconds_per_step, 0);
  EXPECT_DOUBLE_EQ(d.seconds, d.seconds_per_step * 14);
  EXPECT_DOUBLE_EQ(d.seconds_per_epoch, d.seconds_per_step * static_cast<double>(d.sequences_per_epoch) / 4);
  // Weights, gradients and two moments of four bytes.
  EXPECT_GE(d.memory_bytes, 16u * static_cast<std::uint64_t>(d.parameters));
  EXPECT_EQ(d.checkpoint_bytes, 12u * static_cast<std::uint64_t>(d.parameters));
  const std::string text = format_dry_run(d);
  for (const std::string& line :
       {"parameters\t" + std::to_string(d.parameters) + "\n", std::string("\ndocuments\t300 of training, "),
        "\nlearned\t" + std::to_string(d.learned_tokens) + " tokens of training\n"})
    EXPECT_THAT(text, ::testing::HasSubstr(line));
}

TEST(DryRun, MeasuresWhatActivationCheckpointingSaves) {
  const Fixture f;
  TrainConfig c = f.config("out");
  c.model.n_layers = 6;
  c.batch = c.micro_batch = 16;
  struct Taken {
    std::uint64_t all, tape;
  };
  const auto taken = [&](bool recomputes) {
    c.activation_checkpointing = recomputes;
    MemoryPoolOptions options;
    options.tracking = TrackingLevel::kStandard;
    const auto pool = std::make_shared<HybridMemoryPool>(options);
    const ExecutionContext context(ExecutionContext::Options{1, {}, pool});  // threads decide who has scratch
    const DryRun d = dry_run(c, {}, false, context);
    EXPECT_EQ(format_dry_run(d).find("with the activations of one layer at a time") != std::string::npos,
              recomputes);
    const auto tags = pool->tags();
    const auto tape = std::find_if(tags.begin(), tags.end(),
                                   [](const TagStats& tag) { return tag.tag == "training tape"; });
    return Taken{d.memory_bytes, tape == tags.end() ? 0 : tape->peak};
  };
  const Taken kept = taken(false), again = taken(true);
  EXPECT_GT(again.tape, 0u);
  EXPECT_LT(2 * again.tape, kept.tape);
  EXPECT_LT(again.all + (kept.tape - again.tape) / 2, kept.all);
}

TEST(DryRun, ChangesNothingOfARunThatIsResumed) {
  const Fixture f;
  run(f.config("whole"));
  stop_after(f.config("stopped"), 6);
  const std::string before = read_file(f.dir / "stopped/checkpoint.safetensors");
  const ExecutionContext context;
  BITNET_EXPECT_ERROR(dry_run(f.config("stopped"), {}, false, context), ErrorCode::kInvalidArgument,
                      "resume it");
  dry_run(f.config("stopped"), {}, true, context);
  EXPECT_TRUE(read_file(f.dir / "stopped/checkpoint.safetensors") == before);
  run(f.config("stopped"), true);
  expect_same_tensors(f.dir / "whole/checkpoint.safetensors", f.dir / "stopped/checkpoint.safetensors");
  TrainConfig other = f.config("stopped");
  other.seed = 8;
  BITNET_EXPECT_ERROR(dry_run(other, {}, true, context), ErrorCode::kInvalidArgument, "training.seed");
}

TEST(DryRun, FindsWhatWouldEndARun) {
  const Fixture f;
  const ExecutionContext context;
  const auto refuse = [&](const TrainConfig& c, ErrorCode code, const char* message) {
    BITNET_EXPECT_ERROR(dry_run(c, {}, false, context), code, message);
  };
  TrainConfig c = f.config("train.txt");
  refuse(c, ErrorCode::kIo, "is not a directory");
  c = f.config("train.txt/deeper");
  refuse(c, ErrorCode::kIo, "cannot be written to");
  c = f.config("out");
  c.validation = f.dir / "absent";
  refuse(c, ErrorCode::kNotFound, "absent");
  write_file(f.dir / "short.txt", "The cat");
  c.validation = f.dir / "short.txt";
  refuse(c, ErrorCode::kInvalidArgument, "one window needs 17");
  write_file(f.dir / "binary.txt", std::string("The\0cat", 7));
  c.validation = f.dir / "binary.txt";
  refuse(c, ErrorCode::kInvalidArgument, "is no text");
  c = f.config("out");
  c.schedule.peak = 1e30;
  refuse(c, ErrorCode::kInvalidArgument, "");
  c = f.config("out");
  c.keep_checkpoints = 1'000'000;
  refuse(c, ErrorCode::kIo, "bytes; 1000001 checkpoints take");
  EXPECT_FALSE(std::filesystem::exists(f.dir / "out"));
}

}  // namespace
}  // namespace bitnet::training
