// Whole runs by several processes, here threads: the same files as by one, going on with other numbers of
// them, and what ends a run. What a step does is data_parallel_test.cpp; processes are mpi_test.cpp and
// tests/integration/train_processes.sh.
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "bitnet/quant/model_io.hpp"
#include "bitnet/testing/testing.hpp"
#include "group_of_threads.hpp"
#include "tiny_run.hpp"

namespace bitnet::training {
namespace {

/// What the members of a run said, and their Errors.
struct Together {
  std::vector<TrainResult> results;
  std::vector<std::string> errors;
  std::string messages;
};

/// A run by `processes` threads; member r asks `cancelled`, where given, with its rank, and all have
/// `sample`.
Together run_by(int processes, const TrainConfig& c, bool resume = false,
                const std::function<bool(int rank)>& cancelled = {},
                const decltype(TrainCallbacks::sample)& sample = {}) {
  Together all;
  all.results.resize(static_cast<std::size_t>(processes));
  std::mutex mutex;
  all.errors = on_members(processes, [&](ProcessGroup& group) {
    TrainCallbacks callbacks;
    callbacks.message = [&](const std::string& text) {
      const std::lock_guard lock(mutex);
      all.messages += text + "\n";
    };
    if (cancelled) callbacks.cancelled = [&] { return cancelled(group.rank()); };
    callbacks.sample = sample;
    const ExecutionContext context(ExecutionContext::Options{1, {}});
    all.results[static_cast<std::size_t>(group.rank())] = train(c, callbacks, resume, context, &group);
  });
  return all;
}

void expect_no_errors(const Together& all) {
  for (const std::string& e : all.errors) EXPECT_EQ(e, "");
}

/// The log without what depends on the clock.
std::string timeless(const std::filesystem::path& log) {
  std::string text = read_file(log);
  for (const char* const key : {"\"tokens_per_second\":", "\"seconds\":"})
    for (std::size_t at = text.find(key); at != std::string::npos; at = text.find(key, at + 1))
      text.erase(text.find(':', at) + 1, text.find_first_of(",}", at) - text.find(':', at) - 1);
  return text;
}

void expect_same_run(const TrainConfig& a, const TrainConfig& b) {
  expect_same_tensors(a.output / "checkpoint.safetensors", b.output / "checkpoint.safetensors");
  EXPECT_EQ(timeless(a.output / "log.jsonl"), timeless(b.output / "log.jsonl"));
  const auto gguf = [](const TrainConfig& c) { return c.output / "model.gguf"; };
  EXPECT_EQ(std::filesystem::exists(gguf(a)), std::filesystem::exists(gguf(b)));
  if (std::filesystem::exists(gguf(a))) {
    EXPECT_EQ(read_file(gguf(a)), read_file(gguf(b)));
  }
  EXPECT_EQ(std::filesystem::exists(a.output / "model"), a.exports());
  if (!a.exports()) return;
  for (const auto& entry : std::filesystem::directory_iterator(a.output / "model"))
    EXPECT_TRUE(read_file(entry.path()) == read_file(b.output / "model" / entry.path().filename()))
        << entry.path();
}

struct ParallelRuns : ::testing::Test {
  Fixture f;
  TrainConfig config(const std::string& output, const std::string& quantization = "ternary") const {
    TrainConfig c = f.config(output, quantization);
    c.gradient_parts = 4;
    c.log_every = 1;
    return c;
  }
};

TEST_F(ParallelRuns, AnyNumberOfProcessesWritesTheSameFiles) {
  const TrainConfig whole = config("one");
  const TrainResult expected = run(whole, false, {}, 1);
  for (const int n : {2, 4}) {
    const TrainConfig c = config("by" + std::to_string(n));
    const Together all = run_by(n, c);
    expect_no_errors(all);
    expect_same_run(whole, c);
    for (const TrainResult& r : all.results) {
      EXPECT_EQ(r.steps, 14);
      EXPECT_EQ(r.final_evaluation.nll, expected.final_evaluation.nll);
    }
  }
  EXPECT_TRUE(std::filesystem::exists(whole.output / "model.gguf"));
}

TEST_F(ParallelRuns, OfOtherKinds) {
  const auto same = [&](const std::string& name, const auto& change) {
    SCOPED_TRACE(name);
    TrainConfig one = config(name + "1"), two = config(name + "2");
    change(one);
    change(two);
    run(one, false, {}, 1);
    expect_no_errors(run_by(2, two));
    expect_same_run(one, two);
  };
  same("full", [](TrainConfig& c) { c.quantization = Quantization::kNone; });
  same("warmed", [](TrainConfig& c) { c.quantizer_schedule = {QuantizerScheduleKind::kLinear, 8, true}; });
  same("rows", [](TrainConfig& c) {
    c.quantizer.granularity = ScaleGranularity::kRow;
    c.quantizer.gradient = StraightThrough::kLearnedScale;
  });
  same("muon", [](TrainConfig& c) { c.optimizer = OptimizerKind::kMuon; });
  same("small", [](TrainConfig& c) { c.micro_batch = 1; });
  TrainConfig kept = config("kept"), again = config("again");
  for (TrainConfig* c : {&kept, &again}) c->model.n_layers = 3;
  again.activation_checkpointing = true;
  run(kept, false, {}, 1);
  expect_no_errors(run_by(2, again));
  expect_same_run(kept, again);
  std::string text = sample_text(3, 1500);
  for (std::size_t at = text.find('\n'); at != std::string::npos; at = text.find('\n', at + 200))
    text.insert(at, "\n");
  write_file(f.dir / "documents.txt", text);
  same("packed", [&](TrainConfig& c) {
    c.train = f.dir / "documents.txt";
    c.document_separator = "\n\n";
    c.shards = f.dir / "shards";
  });
  same("best", [](TrainConfig& c) {
    c.keep_best = true;
    c.evaluate_every = 2;
    c.patience = 2;
    c.schedule.peak = 3e-2;  // it soon gets worse
    c.spike_deviations = 3;
    c.schedule.steps = 60;
  });
}

TEST_F(ParallelRuns, AdaptersAndStudents) {
  const TrainConfig base = f.config("base");
  run(base);
  const auto vocab = std::to_string(Tokenizer::load(base.output)->vocab_size());
  for (const std::string& section :
       {"lora: {base: " + (base.output / "model.gguf").string() + ", rank: 2, alpha: 4, dropout: 0.2}\n",
        "model: {vocab_size: " + vocab +
            ", hidden_size: 128, intermediate_size: 128, layers: 1, heads: 4, context: "
            "16}\n"
            "distillation: {teacher: " +
            (base.output / "model.gguf").string() + ", attention: 1, temperature: 2}\n"}) {
    SCOPED_TRACE(section);
    const auto of = [&](const std::string& output) {
      std::filesystem::remove_all(f.dir / output);
      return TrainConfig::from_yaml(
          section + "data: {train: " + (f.dir / "train.txt").string() +
              ", validation: " + (f.dir / "heldout.txt").string() +
              ", validation_tokens: 64}\n"
              "training: {steps: 6, learning_rate: 2.0e-3, length: 16, batch: 4, micro_batch: 2,\n"
              "  gradient_parts: 2}\n"
              "output: {directory: " +
              (f.dir / output).string() + ", log_every: 1, evaluate_every: 3}\n",
          "test.yaml");
    };
    const TrainConfig one = of("taught1"), two = of("taught2");
    run(one, false, {}, 1);
    expect_no_errors(run_by(2, two));
    expect_same_tensors(one.output / "checkpoint.safetensors", two.output / "checkpoint.safetensors");
    EXPECT_EQ(timeless(one.output / "log.jsonl"), timeless(two.output / "log.jsonl"));
  }
}

TEST_F(ParallelRuns, BeginWithTheWeightsOfProcess0) {
  const TrainConfig one = f.config("base0");
  TrainConfig other = f.config("base1");
  other.tokenizer = one.output;
  other.seed = 9;
  run(one);
  run(other);
  const auto of = [&](const std::string& output, const TrainConfig& base) {
    TrainConfig c = config(output);
    c.tokenizer = one.output;
    c.base = base.output / "model.gguf";
    c.model = quant::ModelReader::open(c.base)->config();
    return c;
  };
  const TrainConfig whole = of("whole", one), first = of("both", one);
  run(whole, false, {}, 1);
  // As on machines one of which has another file at that path.
  const auto errors = on_members(2, [&](ProcessGroup& group) {
    const ExecutionContext context(ExecutionContext::Options{1, {}});
    train(group.rank() == 0 ? first : of("both", other), {}, false, context, &group);
  });
  for (const std::string& e : errors) EXPECT_EQ(e, "");
  expect_same_run(whole, first);
}

TEST_F(ParallelRuns, GoOnWithAnotherNumberOfProcesses) {
  const TrainConfig whole = config("whole"), c = config("pieces");
  run(whole, false, {}, 1);
  const int numbers[] = {4, 1, 2};
  bool resume = false;
  for (const int n : numbers) {
    int asked = 0;
    const Together all = run_by(n, c, resume, [&](int rank) { return rank == 0 && ++asked == 4; });
    expect_no_errors(all);
    for (const TrainResult& r : all.results) EXPECT_TRUE(r.cancelled);
    resume = true;
  }
  expect_no_errors(run_by(2, c, true));
  expect_same_tensors(whole.output / "checkpoint.safetensors", c.output / "checkpoint.safetensors");
  EXPECT_EQ(read_file(whole.output / "model.gguf"), read_file(c.output / "model.gguf"));
}

TEST_F(ParallelRuns, TheFirstProcessAloneKeepsRemovesChoosesAndSamples) {
  const auto of = [&](const std::string& output) {
    TrainConfig c = config(output);  // a checkpoint a step
    c.keep_checkpoints = 3;
    c.sample_every = 4;
    c.sample_prompt = "It";
    c.sample_tokens = 4;
    return c;
  };
  // Snapshots in the order in which they were asked for: of the first process only.
  std::mutex mutex;
  std::vector<std::pair<std::int64_t, std::string>> taken;
  const auto sample = [&](std::int64_t step, const WriteSnapshot& write) {
    const std::lock_guard lock(mutex);
    write(f.dir / "snapshot");
    taken.emplace_back(step, read_file(f.dir / "snapshot/model.safetensors"));
    return " sample";
  };
  const TrainConfig whole = of("whole"), c = of("pieces");
  TrainCallbacks callbacks;
  callbacks.sample = sample;
  run(whole, false, callbacks, 1);
  const auto expected = std::exchange(taken, {});
  ASSERT_EQ(expected.size(), 4u);  // of steps 4, 8, 12 and the last

  int asked = 0;
  expect_no_errors(run_by(
      2, c, false, [&](int rank) { return rank == 0 && ++asked == 6; }, sample));
  for (const char* name : {"checkpoint-4", "checkpoint-5", "checkpoint"})
    EXPECT_TRUE(std::filesystem::exists(c.output / (std::string(name) + ".safetensors"))) << name;
  EXPECT_FALSE(std::filesystem::exists(c.output / "checkpoint-3.safetensors"));
  // The newest is damaged and another one was begun: all go on from that of step 5.
  std::string bytes = read_file(c.output / "checkpoint.safetensors");
  bytes.back() = static_cast<char>(bytes.back() ^ 1);
  write_file(c.output / "checkpoint.safetensors", bytes);
  write_file(c.output / "checkpoint.safetensors.123.4.partial", "half");
  const Together all = run_by(4, c, true, {}, sample);
  expect_no_errors(all);
  EXPECT_THAT(all.messages,
              ::testing::HasSubstr("skipped '" + (c.output / "checkpoint.safetensors").string()));
  EXPECT_THAT(all.messages, ::testing::HasSubstr("resumed at step 5\n"));
  EXPECT_FALSE(std::filesystem::exists(c.output / "checkpoint.safetensors.123.4.partial"));
  EXPECT_TRUE(taken == expected) << taken.size() << " snapshots";
  for (const char* name :
       {"checkpoint-12.safetensors", "checkpoint-13.safetensors", "checkpoint.safetensors"})
    expect_same_tensors(whole.output / name, c.output / name);
  EXPECT_FALSE(std::filesystem::exists(c.output / "checkpoint-11.safetensors"));
  EXPECT_EQ(read_file(whole.output / "model.gguf"), read_file(c.output / "model.gguf"));
  // Where none is whole, all end with what is wrong with the newest.
  for (const char* name : {"checkpoint-12", "checkpoint-13", "checkpoint"})
    write_file(c.output / (std::string(name) + ".safetensors"), "no checkpoint");
  const Together refused = run_by(2, c, true);
  EXPECT_THAT(refused.errors[0], ::testing::HasSubstr("checkpoint.safetensors'"));
  EXPECT_THAT(refused.errors[1], ::testing::HasSubstr("process 0 has left: "));
}

TEST_F(ParallelRuns, WithoutTheKeyTheNumberOfPartsIsThatOfTheProcesses) {
  TrainConfig c = config("out");
  c.gradient_parts = 0;
  const auto pieces = [&](int n, bool resume) {
    int asked = 0;
    const Together all = run_by(n, c, resume, [&](int rank) { return rank == 0 && ++asked == 3; });
    expect_no_errors(all);
    return all.messages;
  };
  const std::string key = "training.gradient_parts";
  pieces(2, false);
  EXPECT_THAT(pieces(1, true), ::testing::Not(::testing::HasSubstr(key)));  // goes on with two parts
  EXPECT_THAT(pieces(4, true), ::testing::HasSubstr(key + " was 2, and is 4 from here on"));
  EXPECT_THAT(pieces(2, true), ::testing::Not(::testing::HasSubstr(key)));
  c.gradient_parts = 1;
  EXPECT_THAT(run_by(2, c, true).errors[0], ::testing::HasSubstr(key + " is 1, which 2 processes"));
  c.gradient_parts = 3;
  BITNET_EXPECT_ERROR(run(c, true), ErrorCode::kInvalidArgument, key + " must divide training.batch");
  c.gradient_parts = 0;
  EXPECT_THAT(run_by(3, c, true).errors[0],
              ::testing::HasSubstr("training.batch is 4, which cannot be cut into the 3 parts"));
}

TEST_F(ParallelRuns, TheSameCurveWithinRoundingWhateverTheParts) {
  // In full precision: where a weight is rounded to another trit, curves part by more than rounding.
  std::map<int, std::vector<double>> losses;
  for (const int n : {1, 2, 4}) {
    TrainConfig c = config("curve" + std::to_string(n), "none");
    c.gradient_parts = 0;
    std::vector<double>& of = losses[n];
    on_members(n, [&](ProcessGroup& group) {
      TrainCallbacks callbacks;
      callbacks.progress = [&](const Progress& p) { of.push_back(p.loss); };
      const ExecutionContext context(ExecutionContext::Options{1, {}});
      train(c, callbacks, false, context, &group);
    });
    ASSERT_EQ(of.size(), 14u);
  }
  for (const int n : {2, 4})
    for (std::size_t i = 0; i < 14; ++i) EXPECT_NEAR(losses[n][i], losses[1][i], 1e-4 * losses[1][i]) << i;
}

TEST_F(ParallelRuns, AProcessThatFailsEndsTheRunAndItGoesOnLater) {
  const TrainConfig whole = config("whole");
  run(whole, false, {}, 1);
  for (const int failing : {0, 1}) {
    const TrainConfig c = config("failed" + std::to_string(failing));
    std::vector<int> asked(2, 0);
    const Together all = run_by(2, c, false, [&](int rank) {
      if (++asked[static_cast<std::size_t>(rank)] == 6 && rank == failing)
        throw Error(ErrorCode::kDevice, "the machine is on fire");
      return false;
    });
    EXPECT_EQ(all.errors[static_cast<std::size_t>(failing)], "the machine is on fire");
    EXPECT_EQ(all.errors[static_cast<std::size_t>(1 - failing)],
              "process " + std::to_string(failing) + " has left: the machine is on fire");
    EXPECT_THAT(all.messages, ::testing::HasSubstr("process " + std::to_string(failing) +
                                                   " of 2 ends the run: the machine is on fire"));
    expect_no_errors(run_by(4, c, true));
    expect_same_tensors(whole.output / "checkpoint.safetensors", c.output / "checkpoint.safetensors");
  }
}

TEST_F(ParallelRuns, ADivergedRunSaysWhere) {
  TrainConfig c = config("out");
  c.schedule.peak = 1e37;
  c.schedule.weight_decay = 0;
  const Together all = run_by(2, c);
  EXPECT_THAT(all.errors[0] + all.errors[1], ::testing::HasSubstr("diverged"));
}

TEST_F(ParallelRuns, AnotherTextOrSettingOnOneMachineIsRefused) {
  const auto refused = [&](const char* message, const auto& change) {
    TrainConfig other = config("out");
    change(other);
    const auto errors = on_members(2, [&](ProcessGroup& group) {
      const ExecutionContext context(ExecutionContext::Options{1, {}});
      train(group.rank() == 0 ? config("out") : other, {}, false, context, &group);
    });
    EXPECT_THAT(errors[1],
                ::testing::HasSubstr("process 1 has another run than process 0: " + std::string(message)));
    EXPECT_THAT(errors[0], ::testing::HasSubstr("process 1 has left: "));
    EXPECT_FALSE(std::filesystem::exists(f.dir / "out" / "checkpoint.safetensors"));
  };
  refused("training.seed is 7 there and 8 here", [](TrainConfig& c) { c.seed = 8; });
  refused("training.learning_rate is 0.002 there", [](TrainConfig& c) { c.schedule.peak = 1e-3; });
  refused("output.evaluate_every is 5 there and 6 here", [](TrainConfig& c) { c.evaluate_every = 6; });
  refused("output.sample_every is 0 there and 7 here", [](TrainConfig& c) {
    c.sample_every = 7;
    c.sample_prompt = "It";
    c.sample_tokens = 4;
  });
  refused("training.gradient_parts is 4 there and 2 here", [](TrainConfig& c) { c.gradient_parts = 2; });
  refused("data.train is ", [&](TrainConfig& c) { c.train = f.dir / "heldout.txt"; });
}

TEST_F(ParallelRuns, ADryRunOfAllWritesNothing) {
  const TrainConfig c = config("dry");
  const ExecutionContext alone(ExecutionContext::Options{1, {}});
  const DryRun expected = dry_run(c, {}, false, alone);
  const auto errors = on_members(2, [&](ProcessGroup& group) {
    const ExecutionContext context(ExecutionContext::Options{1, {}});
    const DryRun d = dry_run(c, {}, false, context, &group);
    if (d.parameters != expected.parameters || d.checkpoint_bytes != expected.checkpoint_bytes)
      throw Error(ErrorCode::kInternal, "other figures");
  });
  for (const std::string& e : errors) EXPECT_EQ(e, "");
  EXPECT_FALSE(std::filesystem::exists(c.output));
}

}  // namespace
}  // namespace bitnet::training
