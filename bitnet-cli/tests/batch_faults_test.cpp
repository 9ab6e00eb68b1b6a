// `bitnet batch` on an OpenCL device whose queue fails: a passing fault costs time and nothing else, a
// lasting one is the error of each item, and no item is ever lost.
#include <nlohmann/json.hpp>

#include "bitnet/testing/failing_queue.hpp"
#include "bitnet/testing/opencl.hpp"
#include "cli_fixture.hpp"

namespace bitnet::cli {
namespace {

using nlohmann::json;

class BatchFaults : public CliTest {
 protected:
  void SetUp() override {
    testing::failing_queue.heal();
    BITNET_REQUIRE_OPENCL_DEVICE(call({"devices"}).out.find("\nopencl:0:0\t") != std::string::npos);
  }
  Outcome batch(const std::string& out, const std::string& device) {
    const std::string in = file("in.txt", "one\ntwo two\nthree three three\nfour\nfive\n");
    return call({"batch", "-m", model(), "-i", in, "-o", file(out), "-n", "6", "--seed", "3", "--batch-size",
                 "2", "--device", device});
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
  testing::failing_queue.fail_from(60, 1);
  const auto o = batch("cl.jsonl", "opencl:0:0");
  ASSERT_EQ(o.code, kOk) << o.err;
  EXPECT_THAT(o.err, HasSubstr("note: a batch: retry (1): "));
  EXPECT_THAT(o.err, HasSubstr("CL_OUT_OF_RESOURCES"));
  const auto expected = records("cpu.jsonl"), all = records("cl.jsonl");
  ASSERT_EQ(all.size(), 5u);
  for (std::size_t i = 0; i < 5; ++i) EXPECT_EQ(all[i]["text"], expected[i]["text"]) << i;
}

TEST_F(BatchFaults, ALastingOneIsEachItemsErrorAndResumeDoesThem) {
  ASSERT_EQ(batch("cpu.jsonl", "cpu").code, kOk);
  testing::failing_queue.fail_from(60);
  const auto o = batch("cl.jsonl", "opencl:0:0");
  EXPECT_EQ(o.code, kFailure) << o.err;
  std::size_t failed = 0;
  const auto expected = records("cpu.jsonl");
  auto all = records("cl.jsonl");
  ASSERT_EQ(all.size(), 5u);
  for (std::size_t i = 0; i < 5; ++i) {
    if (all[i]["finish_reason"] != "error") {
      EXPECT_EQ(all[i]["text"], expected[i]["text"]);
      continue;
    }
    ++failed;
    EXPECT_THAT(all[i]["error"].get<std::string>(), HasSubstr("(after retry × 2): "));
  }
  EXPECT_GT(failed, 0u);
  testing::failing_queue.heal();
  const auto again = call({"batch", "-m", model(), "-i", file("in.txt"), "-o", file("cl.jsonl"), "-n", "6",
                           "--seed", "3", "--resume"});
  ASSERT_EQ(again.code, kOk) << again.err;
  all = records("cl.jsonl");
  for (std::size_t i = 0; i < 5; ++i) EXPECT_EQ(all[i]["text"], expected[i]["text"]) << i;
}

}  // namespace
}  // namespace bitnet::cli
