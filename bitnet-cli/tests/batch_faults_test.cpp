// `bitnet batch` on an OpenCL device whose queue fails: a passing fault costs time and nothing else, a
// lasting one is the error of each item, and no item is ever lost.
#include <algorithm>
#include <nlohmann/json.hpp>

#include "bitnet/testing/failing_queue.hpp"
#include "bitnet/testing/opencl.hpp"
#include "cli_fixture.hpp"

namespace bitnet::cli {
namespace {

using nlohmann::json;
using testing::ClCall;
using testing::failing_queue;

constexpr ClCall kOfAPass[] = {ClCall::kLaunch, ClCall::kAsync, ClCall::kRead, ClCall::kWrite};

class BatchFaults : public CliTest {
 protected:
  void SetUp() override {
    failing_queue.heal();
    BITNET_REQUIRE_OPENCL_DEVICE(call({"devices"}).out.find("\nopencl:0:0\t") != std::string::npos);
  }
  Outcome batch(const std::string& out, const std::string& device) {
    const std::string in = file("in.txt", "one\ntwo two\nthree three three\nfour\nfive\n");
    return call({"batch", "-m", model(), "-i", in, "-o", file(out), "-n", "12", "--seed", "3", "--batch-size",
                 "2", "--device", device});
  }
  /// The number of such a call in a pass of a batch on the device, the calls of loading the model left out.
  int first_of_a_pass(ClCall call) {
    const int before = failing_queue.of(call).calls;
    EXPECT_EQ(batch("cl.jsonl", "opencl:0:0").code, kOk);
    const int all = failing_queue.of(call).calls - before;
    EXPECT_GT(all, 20);
    return all - all / 4;  // the last quarter is certainly passes
  }
  void expect_same(const std::string& a, const std::string& b) {
    const auto expected = records(a), all = records(b);
    ASSERT_EQ(expected.size(), 5u);
    ASSERT_EQ(all.size(), 5u);
    for (std::size_t i = 0; i < 5; ++i) EXPECT_EQ(all[i]["text"], expected[i]["text"]) << i;
  }
  std::vector<json> records(const std::string& name) {
    std::vector<json> all;
    std::istringstream lines(read_file(file(name)));
    for (std::string line; std::getline(lines, line);) all.push_back(json::parse(line));
    return all;
  }
};

TEST_F(BatchFaults, APassingFaultLosesNothing) {
  ASSERT_EQ(batch("cpu.jsonl", "cpu").code, kOk);
  for (const ClCall call : kOfAPass) {
    SCOPED_TRACE(static_cast<int>(call));
    failing_queue.heal();
    const int nth = first_of_a_pass(call);
    failing_queue.heal();
    failing_queue.fail_from(call, nth, 1);
    const auto o = batch("cl.jsonl", "opencl:0:0");
    ASSERT_EQ(o.code, kOk) << o.err;
    EXPECT_EQ(failing_queue.failures, call == ClCall::kAsync ? 2 : 1);
    EXPECT_THAT(o.err, HasSubstr("note: a batch: retry (1): "));
    EXPECT_THAT(o.err, HasSubstr("CL_OUT_OF_RESOURCES"));
    expect_same("cpu.jsonl", "cl.jsonl");
  }
}

TEST_F(BatchFaults, AQueueThatIsDeadUntilItIsMadeAnewLosesNothing) {
  ASSERT_EQ(batch("cpu.jsonl", "cpu").code, kOk);
  for (const ClCall call : kOfAPass) {
    SCOPED_TRACE(static_cast<int>(call));
    failing_queue.heal();
    const int nth = first_of_a_pass(call);
    failing_queue.heal();
    failing_queue.die_at(call, nth);
    const auto o = batch("cl.jsonl", "opencl:0:0");
    ASSERT_EQ(o.code, kOk) << o.err;
    EXPECT_GE(failing_queue.failures, 2);
    EXPECT_EQ(failing_queue.queues, 4);  // two of each backend: one of its pool
    EXPECT_THAT(o.err, HasSubstr("reopen (1)"));
    expect_same("cpu.jsonl", "cl.jsonl");
  }
}

TEST_F(BatchFaults, BuffersThatAreRefusedLoseNothing) {
  ASSERT_EQ(batch("cpu.jsonl", "cpu").code, kOk);
  failing_queue.heal();
  failing_queue.of(ClCall::kBuffer).calls = 0;
  ASSERT_EQ(batch("cl.jsonl", "opencl:0:0").code, kOk);
  const int all = failing_queue.of(ClCall::kBuffer).calls;
  ASSERT_GT(all, 4);
  int helped = 0;
  for (int nth = 1; nth <= all; nth += std::max(1, all / 12)) {
    failing_queue.heal();
    failing_queue.of(ClCall::kBuffer).calls = 0;
    failing_queue.fail_from(ClCall::kBuffer, nth, 2);
    const std::string out = "cl" + std::to_string(nth) + ".jsonl";
    const auto o = batch(out, "opencl:0:0");
    EXPECT_GT(failing_queue.failures, 0) << nth << " of " << all;
    if (o.code == kOk) {
      ++helped;
      expect_same("cpu.jsonl", out);
    } else {  // the model did not fit in the first place
      EXPECT_THAT(o.err, HasSubstr("memory pool 'opencl:0:0'"));
      EXPECT_FALSE(std::filesystem::exists(file(out)));
    }
  }
  EXPECT_GT(helped, 0);
}

TEST_F(BatchFaults, ALastingOneIsEachItemsErrorAndResumeDoesThem) {
  ASSERT_EQ(batch("cpu.jsonl", "cpu").code, kOk);
  failing_queue.heal();
  failing_queue.fail_from(ClCall::kLaunch, 60);
  const auto o = batch("cl.jsonl", "opencl:0:0");
  EXPECT_EQ(o.code, kFailure) << o.err;
  std::size_t failed = 0;
  const auto expected = records("cpu.jsonl");
  const auto all = records("cl.jsonl");
  ASSERT_EQ(all.size(), 5u);
  for (std::size_t i = 0; i < 5; ++i) {
    if (all[i]["finish_reason"] != "error") {
      EXPECT_EQ(all[i]["text"], expected[i]["text"]);
      continue;
    }
    ++failed;
    EXPECT_THAT(all[i]["error"].get<std::string>(), HasSubstr("(after retry × 1, reopen × 1): "));
  }
  EXPECT_GT(failed, 0u);
  failing_queue.heal();
  const auto again = call({"batch", "-m", model(), "-i", file("in.txt"), "-o", file("cl.jsonl"), "-n", "12",
                           "--seed", "3", "--resume"});
  ASSERT_EQ(again.code, kOk) << again.err;
  expect_same("cpu.jsonl", "cl.jsonl");
}

}  // namespace
}  // namespace bitnet::cli
