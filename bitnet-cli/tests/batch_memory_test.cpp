// `bitnet batch` where operator new refuses: whichever allocation of the run it is, the program ends with an
// exit code, OUT has a record for every item as soon as the batch has begun, and --resume completes it.
#include <nlohmann/json.hpp>

#include "bitnet/testing/refusing_new.hpp"
#include "cli_fixture.hpp"

namespace bitnet::cli {
namespace {

using nlohmann::json;
namespace fs = std::filesystem;

class BatchMemory : public CliTest {
 protected:
  static constexpr std::size_t kItems = 7;

  void SetUp() override {
    std::string lines;
    for (std::size_t i = 0; i < kItems; ++i) lines += "item " + std::to_string(i) + "\n";
    in = file("in.txt", lines);
  }
  /// From the `nth` allocation of the program on, `n` fail (none: 0).
  Outcome batch(const std::string& out, bool resume = false, long nth = 0, long n = 0) {
    std::vector<std::string> arguments{"bitnet", "batch",   "-m",           model(), "-i",         in,
                                       "-o",     file(out), "-n",           "3",     "--ctx-size", "32",
                                       "--seed", "3",       "--batch-size", "2",     "--threads",  "1"};
    if (resume) arguments.emplace_back("--resume");
    std::vector<const char*> argv;
    for (const std::string& a : arguments) argv.push_back(a.c_str());
    std::istringstream no_input;
    std::ostringstream text, notes;
    Io io{.in = no_input, .out = text, .err = notes};
    Outcome o;
    {
      const testing::RefuseNth refuse(n == 0 ? 0 : nth, n);  // nth 0: never
      o.code = run(static_cast<int>(argv.size()), argv.data(), io);
    }
    o.err = notes.str();
    return o;
  }
  std::vector<json> records(const std::string& name) {
    std::vector<json> all;
    std::istringstream lines(read_file(file(name)));
    for (std::string line; std::getline(lines, line);) all.push_back(json::parse(line));
    return all;
  }
  std::string in;
};

TEST_F(BatchMemory, ARefusalAnywhereIsNoLostItem) {
  ASSERT_EQ(batch("first.jsonl").code, kOk);  // what is made once a process is made
  const long before = testing::allocations;
  ASSERT_EQ(batch("sound.jsonl").code, kOk);
  const long all = testing::allocations - before;
  const auto expected = records("sound.jsonl");
  ASSERT_EQ(expected.size(), kItems);
  int begun = 0, whole = 0;
  constexpr long kRuns = 120;
  for (long i = 0; i < kRuns; ++i) {
    const long nth = 1 + all * i / kRuns, in_a_row = i % 2 == 0 ? 1 : 50;
    SCOPED_TRACE(std::to_string(nth) + " of " + std::to_string(all) + ", " + std::to_string(in_a_row));
    fs::remove(file("out.jsonl"));
    const Outcome o = batch("out.jsonl", false, nth, in_a_row);
    EXPECT_TRUE(o.code == kOk || o.code == kFailure || o.code == kUsage || o.code == kInterrupted) << o.code;
    if (o.code == kOk) ++whole;
    if (fs::exists(file("out.jsonl"))) {
      ++begun;
      const auto got = records("out.jsonl");
      ASSERT_EQ(got.size(), kItems);
      for (std::size_t k = 0; k < kItems; ++k) {
        const bool done = got[k]["finish_reason"] == "length" || got[k]["finish_reason"] == "stop";
        EXPECT_TRUE(!done || got[k]["text"] == expected[k]["text"]) << k;
      }
    } else {
      EXPECT_NE(o.code, kOk);
    }
    if (o.code == kOk) continue;
    const auto again = batch("out.jsonl", true);
    ASSERT_EQ(again.code, kOk) << o.err << again.err;
    const auto got = records("out.jsonl");
    ASSERT_EQ(got.size(), kItems);
    for (std::size_t k = 0; k < kItems; ++k) EXPECT_EQ(got[k]["text"], expected[k]["text"]) << k;
  }
  EXPECT_GT(begun, 0);
  EXPECT_GT(whole, 0);
  EXPECT_LT(whole, kRuns);
}

}  // namespace
}  // namespace bitnet::cli
