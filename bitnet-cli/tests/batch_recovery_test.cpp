// `bitnet batch` on devices that die, stay dead, or come back when they are opened anew: OUT is written with
// a record for each item whatever happens, and --resume does what is missing. A real OpenCL queue that fails
// is batch_faults_test.cpp, memory that is refused batch_memory_test.cpp.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <nlohmann/json.hpp>

#include "bitnet/core/device/registry.hpp"
#include "bitnet/core/memory/hybrid_memory_pool.hpp"
#include "bitnet/inference/register.hpp"
#include "bitnet/testing/forwarding_backend.hpp"
#include "cli_fixture.hpp"

namespace bitnet::cli {
namespace {

using nlohmann::json;

constexpr int kItems = 150;  // more than wait at a time
constexpr int kNever = 1 << 30;

/// A device on the host, of which a test says when it dies and which openings of it fail.
struct Mortal {
  int openings = 0, linears = 0;
  int dies_at = kNever;     // linear, counted over all openings; the backend is dead from there on
  int dies_again = kNever;  // the same, of the next
  ErrorCode opening_says = ErrorCode::kDevice;  // of an opening that fails
  int from = kNever, n = 0;                     // openings that fail: `n` of them from `from` on

  BackendRegistry::Factory factory() {
    return [this](std::shared_ptr<const ExecutionContext> context) -> std::unique_ptr<Backend> {
      ++openings;
      if (openings >= from && openings - from < n) throw Error(opening_says, "nobody answers");
      const auto fault = [this, dead = false](std::string_view what, std::size_t) mutable {
        if (what != "linear") return;
        if (++linears == dies_at) {
          dead = true;
          dies_at = std::exchange(dies_again, kNever);
        }
        if (dead) throw Error(ErrorCode::kDevice, "the queue is lost");
      };
      return std::make_unique<testing::FaultyBackend>(inference::make_cpu_backend(std::move(context)), fault);
    };
  }
};

class BatchRecovery : public CliTest {
 protected:
  void SetUp() override {
    devices.add(
        {.name = "first", .kind = DeviceKind::kGpu, .description = "a test device", .memory_bytes = 3 << 20},
        first.factory());
    devices.add(
        {.name = "second", .kind = DeviceKind::kGpu, .description = "a test device", .memory_bytes = 2 << 20},
        second.factory());
    inference::register_cpu_backend(devices);
    std::string lines;
    for (int i = 0; i < kItems; ++i) lines += "item " + std::to_string(i) + "\n";
    in = file("in.txt", lines);
  }
  Outcome batch(const std::string& out, const std::string& device,
                const std::vector<std::string>& more = {}) {
    std::vector<std::string> arguments{"batch", "-m",       model(), "-i",     in,  "-o",
                                       out,     "-n",       "3",     "--seed", "3", "--batch-size",
                                       "4",     "--device", device};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return call(arguments, {.devices = &devices});
  }
  static std::vector<json> parse(const std::string& text) {
    std::vector<json> all;
    std::istringstream lines(text);
    for (std::string line; std::getline(lines, line);) all.push_back(json::parse(line));
    return all;
  }
  std::vector<json> records(const std::string& name) { return parse(read_file(file(name))); }
  /// Every item has a record: its text, or an error that says `why`. Returns how many errors there are.
  int expect_texts_or(const std::vector<json>& all, const std::string& why) {
    const auto expected = sound();
    EXPECT_EQ(all.size(), static_cast<std::size_t>(kItems));
    int failed = 0;
    for (std::size_t i = 0; i < all.size(); ++i) {
      if (all[i]["finish_reason"] == "error") {
        ++failed;
        EXPECT_THAT(all[i]["error"].get<std::string>(), HasSubstr(why));
      } else {
        EXPECT_EQ(all[i]["text"], expected[i]["text"]) << i;
      }
    }
    return failed;
  }
  std::vector<json> sound() {
    const auto o = batch(file("sound.jsonl"), "cpu");
    EXPECT_EQ(o.code, kOk) << o.err;
    return records("sound.jsonl");
  }
  void expect_resume_completes(const std::string& name) {
    const auto o = batch(file(name), "cpu", {"--resume"});
    EXPECT_EQ(o.code, kOk) << o.err;
    EXPECT_EQ(expect_texts_or(records(name), ""), 0);
  }

  Mortal first, second;
  BackendRegistry devices;
  std::string in;
};

TEST_F(BatchRecovery, ADeviceThatIsGoneForGoodCostsItsItemsAndNothingElse) {
  first.dies_at = 300;
  first.from = 2;
  first.n = kNever;
  const auto o = batch(file("out.jsonl"), "first");
  EXPECT_EQ(o.code, kFailure);
  EXPECT_THAT(o.err, HasSubstr("150 items: "));
  const int failed = expect_texts_or(records("out.jsonl"), "nobody answers");
  EXPECT_GT(failed, 64);
  EXPECT_LT(failed, kItems);
  EXPECT_FALSE(std::filesystem::exists(file("out.jsonl.partial")));
  expect_resume_completes("out.jsonl");
}

TEST_F(BatchRecovery, AReplicaThatIsGoneForGoodLeavesItsItemsToTheOthers) {
  first.dies_at = 10;
  first.from = 2;
  first.n = kNever;
  const auto o = batch(file("out.jsonl"), "first,second", {"--replicas", "-v"});
  EXPECT_EQ(o.code, kOk) << o.err;
  EXPECT_EQ(expect_texts_or(records("out.jsonl"), ""), 0);
  EXPECT_THAT(o.err, HasSubstr("note: device 'first' is left to the others: "));
  EXPECT_THAT(o.err, HasSubstr("nobody answers"));
  EXPECT_THAT(o.err, HasSubstr(" items on second\n"));
}

// A dead device often says something else of its opening, memory above all; a replica that stayed would fail
// items faster than the others do theirs, and so get more of them than they.
TEST_F(BatchRecovery, AReplicaThatIsGoneForGoodIsLeftWhateverItsErrorIsCalled) {
  for (const ErrorCode says : {ErrorCode::kOutOfMemory, ErrorCode::kNotFound, ErrorCode::kInternal}) {
    SCOPED_TRACE(to_string(says));
    first = {};
    first.dies_at = 10;
    first.from = 2;
    first.n = kNever;
    first.opening_says = says;
    const auto o = batch(file("out.jsonl"), "first,second", {"--replicas", "-v"});
    EXPECT_EQ(o.code, kOk) << o.err;
    EXPECT_EQ(expect_texts_or(records("out.jsonl"), ""), 0);
    EXPECT_THAT(o.err, HasSubstr("note: device 'first' is left to the others: "));
    EXPECT_THAT(o.err, HasSubstr("nobody answers"));
  }
}

// One item that a replica cannot take is the item's matter.
TEST_F(BatchRecovery, AReplicaStaysWhereAnItemFailsAlone) {
  std::string longer;
  for (int i = 0; i < 400; ++i) longer += "many words ";
  in = file("in.txt", read_file(in) + longer + "\n");
  const auto o = batch(file("out.jsonl"), "first,second", {"--replicas", "--ctx-size", "64"});
  EXPECT_EQ(o.code, kFailure) << o.err;
  const auto all = records("out.jsonl");
  ASSERT_EQ(all.size(), static_cast<std::size_t>(kItems + 1));
  EXPECT_EQ(all.back()["finish_reason"], "error");
  EXPECT_EQ(
      std::count_if(all.begin(), all.end(), [](const json& r) { return r["finish_reason"] == "error"; }), 1);
  EXPECT_THAT(o.err, Not(HasSubstr("left to the others")));
}

TEST_F(BatchRecovery, AReplicaThatComesBackGoesOn) {
  first.dies_at = 10;
  const auto o = batch(file("out.jsonl"), "first,second", {"--replicas"});
  EXPECT_EQ(o.code, kOk) << o.err;
  EXPECT_EQ(expect_texts_or(records("out.jsonl"), ""), 0);
  EXPECT_EQ(first.openings, 2);
  EXPECT_EQ(second.openings, 1);
  EXPECT_THAT(o.err, Not(HasSubstr("left to the others")));
}

TEST_F(BatchRecovery, TheLastReplicasErrorsAreTheItems) {
  first.dies_at = 10;
  second.dies_at = 300;
  first.from = second.from = 2;
  first.n = second.n = kNever;
  const auto o = batch(file("out.jsonl"), "first,second", {"--replicas"});
  EXPECT_EQ(o.code, kFailure);
  const int failed = expect_texts_or(records("out.jsonl"), "nobody answers");
  EXPECT_GT(failed, 0);
  EXPECT_LT(failed, kItems);
  expect_resume_completes("out.jsonl");
}

TEST_F(BatchRecovery, AReplicaThatCannotBeLoadedIsAnErrorBeforeAnythingRuns) {
  second.from = 1;
  second.n = kNever;
  EXPECT_FAILS(batch(file("out.jsonl"), "first,second", {"--replicas"}), kFailure, "nobody answers");
  EXPECT_FALSE(std::filesystem::exists(file("out.jsonl")));
}

TEST_F(BatchRecovery, ReplicasThatAreNotThereOrThereTwiceAreErrorsBeforeAModelIsLoaded) {
  EXPECT_FAILS(batch(file("out.jsonl"), "first,nosuch", {"--replicas"}), kFailure,
               "there is no device 'nosuch'");
  EXPECT_FAILS(batch(file("out.jsonl"), "first,second,first", {"--replicas"}), kUsage,
               "'first' is named twice in 'first,second,first'");
  EXPECT_FAILS(batch(file("out.jsonl"), "first,second", {"--replicas", "--sub-devices", "2"}), kUsage,
               "--sub-devices divides the device whose part --device names");
  EXPECT_EQ(first.openings, 0);
  EXPECT_FALSE(std::filesystem::exists(file("out.jsonl")));
}

TEST_F(BatchRecovery, OnStandardOutputEveryRecordComes) {
  first.dies_at = 300;
  first.from = 2;
  first.n = kNever;
  const auto o = batch("-", "first");
  EXPECT_EQ(o.code, kFailure);
  EXPECT_GT(expect_texts_or(parse(o.out), "nobody answers"), 64);
}

TEST_F(BatchRecovery, ADeviceThatComesBackLateIsUsedAgain) {
  first.dies_at = 300;
  first.from = 2;
  first.n = 2;
  const auto o = batch(file("out.jsonl"), "first");
  EXPECT_EQ(o.code, kFailure);
  const int failed = expect_texts_or(records("out.jsonl"), "nobody answers");
  EXPECT_GT(failed, 0);
  EXPECT_LT(failed, 80);  // those that ran or waited; what came later was done
  expect_resume_completes("out.jsonl");
}

TEST_F(BatchRecovery, AQueueThatIsDeadUntilItIsMadeAnewLosesNothing) {
  first.dies_at = 300;
  first.dies_again = 900;
  const auto o = batch(file("out.jsonl"), "first");
  EXPECT_EQ(o.code, kOk) << o.err;
  EXPECT_EQ(expect_texts_or(records("out.jsonl"), ""), 0);
  EXPECT_THAT(o.err, HasSubstr("note: a batch: retry (1): faulty: the queue is lost"));
  EXPECT_THAT(o.err, HasSubstr("note: a batch: reopen (1): faulty: the queue is lost"));
  EXPECT_EQ(first.openings, 3);
}

TEST_F(BatchRecovery, AutoGoesFromTheDeadToTheNextThatAnswers) {
  first.dies_at = 300;
  first.from = 2;
  first.n = kNever;
  second.from = 1;
  second.n = kNever;
  // The policy that opens no device to measure it: openings are counted here.
  const auto o = batch(file("out.jsonl"), "auto", {"--verbose", "--device-policy", "throughput"});
  EXPECT_EQ(o.code, kOk) << o.err;
  EXPECT_EQ(expect_texts_or(records("out.jsonl"), ""), 0);
  EXPECT_THAT(o.err, HasSubstr("note: device 'first' is left for 'second'"));
  EXPECT_THAT(o.err, HasSubstr("note: device 'second' is left for 'cpu'"));
  EXPECT_THAT(o.err, Not(HasSubstr("asked for by name")));
  EXPECT_EQ(second.openings, 1);
}

// Of the CPU, where the device was left for it, there is nothing to divide.
TEST_F(BatchRecovery, AutoWithSomeOfTheLayersGoesToAllOfThemOnTheCpu) {
  for (const std::string layers : {"1", "auto"}) {
    SCOPED_TRACE(layers);
    first = second = {};
    first.dies_at = 300;
    first.from = 2;
    second.from = 1;
    first.n = second.n = kNever;
    const auto o =
        batch(file("out.jsonl"), "auto", {"--device-policy", "throughput", "--gpu-layers", layers});
    EXPECT_EQ(o.code, kOk) << o.err;
    EXPECT_EQ(expect_texts_or(records("out.jsonl"), ""), 0);
    EXPECT_THAT(o.err, HasSubstr("note: device 'second' is left for 'cpu'"));
    EXPECT_GT(first.linears, 0);
  }
}

TEST_F(BatchRecovery, WithNoOtherDeviceLeftTheLastErrorIsTheItems) {
  first.dies_at = second.dies_at = 300;
  first.from = second.from = 2;
  first.n = second.n = kNever;
  const auto o = batch(file("out.jsonl"), "second");  // asked for by name: no other is taken
  EXPECT_EQ(o.code, kFailure);
  EXPECT_EQ(first.openings, 0);
  expect_texts_or(records("out.jsonl"), "nobody answers");
  expect_resume_completes("out.jsonl");
}

/// A device without attention, with a pool of its own, that shares the host's memory: from some linear on it
/// has none left as long as the two pools hold more free blocks than kMostFree.
class SharingDevice : public testing::ForwardingBackend {
 public:
  static constexpr std::size_t kBlock = std::size_t{6} << 20, kMostFree = std::size_t{16} << 20;
  static constexpr int kTouched = 3;  // of four blocks a pool; the fourth is never in memory
  struct State {
    std::shared_ptr<HybridMemoryPool> own = std::make_shared<HybridMemoryPool>(), host = nullptr;
    int from = kNever, linears = 0, refusals = 0, openings = 0;
  };
  SharingDevice(std::unique_ptr<Backend> inner, State& state)
      : ForwardingBackend(std::move(inner)), state_(state) {}
  std::string_view name() const noexcept override { return "sharing"; }
  bool supports(BackendOp op) const noexcept override { return op != BackendOp::kAttention; }

 private:
  static void leave_free_blocks(HybridMemoryPool& pool) {
    void* blocks[4];
    for (void*& block : blocks) block = pool.allocate(kBlock);
    for (int i = 0; i < kTouched; ++i) std::memset(blocks[i], 1, kBlock);
    for (void* block : blocks) pool.deallocate(block);
  }
  void do_linear(std::span<const PreparedWeights* const> weights, Matrix x,
                 std::span<const Matrix> outs) override {
    if (++state_.linears == state_.from) {
      leave_free_blocks(*state_.own);
      leave_free_blocks(*state_.host);
    }
    if (state_.linears >= state_.from &&
        state_.own->stats().free_bytes + state_.host->stats().free_bytes > kMostFree) {
      ++state_.refusals;
      throw Error(ErrorCode::kOutOfMemory, "the host's memory is full");
    }
    ForwardingBackend::do_linear(weights, x, outs);
  }
  State& state_;
};

TEST_F(BatchRecovery, FreeBlocksOfBothSidesAreWhatADeviceLacks) {
  SharingDevice::State state;
  state.from = 300;
  BackendRegistry sharing;
  sharing.add(
      {.name = "sharing", .kind = DeviceKind::kGpu, .description = "a test device", .memory_bytes = 3 << 20},
      [&](std::shared_ptr<const ExecutionContext> context) -> std::unique_ptr<Backend> {
        ++state.openings;
        state.host = context->memory();
        auto own = std::make_shared<const ExecutionContext>(
            ExecutionContext::Options{.threads = 1, .isa = {}, .memory = state.own});
        return std::make_unique<SharingDevice>(inference::make_cpu_backend(std::move(own)), state);
      });
  const auto o = call({"batch", "-m", model(), "-i", in, "-o", file("out.jsonl"), "-n", "3", "--seed", "3",
                       "--batch-size", "4", "--device", "sharing"},
                      {.devices = &sharing});
  EXPECT_EQ(o.code, kOk) << o.err;
  EXPECT_EQ(expect_texts_or(records("out.jsonl"), ""), 0);
  // What the system got, beside what it was offered.
  const std::size_t note = o.err.find("note: memory: ");
  ASSERT_NE(note, std::string::npos) << o.err;
  double returned = 0, offered = 0;
  ASSERT_EQ(
      std::sscanf(o.err.c_str() + note, "note: memory: %lf MiB were given back, of %lf MiB of free blocks",
                  &returned, &offered),
      2)
      << o.err;
  constexpr double kMiB = 1 << 20;
  EXPECT_GE(returned, 2 * SharingDevice::kTouched * SharingDevice::kBlock / kMiB - 4);
  EXPECT_LE(returned, offered - SharingDevice::kBlock / kMiB);
  EXPECT_THAT(o.err, HasSubstr("note: a batch: drop caches (1): the host's memory is full"));
  EXPECT_THAT(o.err, Not(HasSubstr("shrink")));
  EXPECT_EQ(state.refusals, 1);
  EXPECT_EQ(state.openings, 1);
}

TEST_F(BatchRecovery, ModelsThatCannotBeLoadedAtFirstLeaveNoOutput) {
  first.from = 1;
  first.n = kNever;
  EXPECT_FAILS(batch(file("out.jsonl"), "first"), kFailure, "nobody answers");
  EXPECT_FALSE(std::filesystem::exists(file("out.jsonl")));
  EXPECT_FALSE(std::filesystem::exists(file("out.jsonl.partial")));
}

TEST_F(BatchRecovery, CtrlCWhileADeviceIsOpenedAnewCancelsWhatIsLeft) {
  std::atomic<bool> cancelled{false};
  BackendRegistry stopping;
  int openings = 0;
  stopping.add(
      {.name = "first", .kind = DeviceKind::kGpu, .description = "a test device", .memory_bytes = 3 << 20},
      [&](std::shared_ptr<const ExecutionContext> context) {
        if (++openings == 2) cancelled = true;
        return first.factory()(std::move(context));
      });
  first.dies_at = 300;
  const auto o = call({"batch", "-m", model(), "-i", in, "-o", file("out.jsonl"), "-n", "3", "--seed", "3",
                       "--batch-size", "4", "--device", "first"},
                      {.cancelled = &cancelled, .devices = &stopping});
  EXPECT_EQ(o.code, kInterrupted) << o.err;
  int not_done = 0;
  const auto all = records("out.jsonl");
  ASSERT_EQ(all.size(), static_cast<std::size_t>(kItems));
  for (const json& r : all) {
    EXPECT_NE(r["finish_reason"], "error");
    not_done += r["finish_reason"] == "cancelled" ? 1 : 0;
  }
  EXPECT_GT(not_done, 0);
  expect_resume_completes("out.jsonl");
}

}  // namespace
}  // namespace bitnet::cli
