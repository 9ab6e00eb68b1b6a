// `bitnet batch` on storage that hiccups or fails for good: input that tears while it is read, a model that
// cannot be opened at once, a journal and an output that cannot be written. One hiccup costs a moment; after
// a lasting failure what is done is in OUT or beside it, and --resume does the rest.
#include <algorithm>
#include <nlohmann/json.hpp>

#include "bitnet/testing/failing_files.hpp"
#include "cli_fixture.hpp"

namespace bitnet::cli {
namespace {

using nlohmann::json;
using testing::failing_files;
using testing::FailingFiles;
namespace fs = std::filesystem;

class BatchFiles : public CliTest {
 protected:
  static constexpr std::size_t kItems = 9;

  void SetUp() override {
    failing_files.heal();
    std::string lines;
    for (std::size_t i = 0; i < kItems; ++i) lines += "{\"prompt\": \"item " + std::to_string(i) + "\"}\n";
    in = file("in.jsonl", lines);
    const auto o = batch("sound.jsonl");
    ASSERT_EQ(o.code, kOk) << o.err;
    expected = records("sound.jsonl");
  }
  void TearDown() override { failing_files.heal(); }

  Outcome batch(const std::string& out, const std::vector<std::string>& more = {}) {
    std::vector<std::string> arguments{"batch", "-m",     model(), "-i",           in, "-o", file(out), "-n",
                                       "3",     "--seed", "3",     "--batch-size", "2"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return call(arguments);
  }
  std::vector<json> records(const std::string& name) {
    std::vector<json> all;
    std::istringstream lines(read_file(file(name)));
    for (std::string line; std::getline(lines, line);) all.push_back(json::parse(line));
    return all;
  }
  /// Every item has a record; those that are not "cancelled" are as expected. Returns how many are not done.
  std::size_t expect_records(const std::string& name) {
    const auto all = records(name);
    EXPECT_EQ(all.size(), kItems);
    std::size_t cancelled = 0;
    for (const json& r : all) {
      if (r["finish_reason"] == "cancelled") {
        ++cancelled;
        continue;
      }
      const auto same =
          std::find_if(expected.begin(), expected.end(), [&](const json& e) { return e["id"] == r["id"]; });
      EXPECT_TRUE(same != expected.end() && (*same)["text"] == r["text"]) << r;
    }
    return cancelled;
  }
  void expect_resume_completes(const std::string& name) {
    failing_files.heal();
    const auto o = batch(name, {"--resume"});
    EXPECT_EQ(o.code, kOk) << o.err;
    EXPECT_EQ(expect_records(name), 0u);
    EXPECT_FALSE(fs::exists(file(name + ".partial")));
  }

  std::string in;
  std::vector<json> expected;
};

TEST_F(BatchFiles, OneHiccupAnywhereLosesNothing) {
  const struct {
    const char *call, *path, *note;
    int nth;
  } hiccups[] = {
      {"read", "in.jsonl", "reading the items: retry (1): ", 1},
      {"open", "in.jsonl", "reading the items: retry (1): ", 1},
      {"open", "tiny.gguf", "loading the model: retry (1): ", 1},
      {"pwrite", "out.jsonl.partial", "keeping a record: retry (1): ", 1},
      {"pwrite", "out.jsonl.partial", "keeping a record: retry (1): ", 5},
      {"fsync", ".partial", "beginning the journal: retry (1): ", 1},
      {"fsync", ".partial", "writing the records: retry (1): ", 2},
      {"write", ".partial", "writing the records: retry (1): ", 1},
      {"rename", "/out.jsonl", "writing the records: retry (1): ", 1},
  };
  for (const auto& h : hiccups) {
    SCOPED_TRACE(std::string(h.call) + " " + h.path + " " + std::to_string(h.nth));
    fs::remove(file("out.jsonl"));
    failing_files.fail(h.call, h.path, h.nth);
    const auto o = batch("out.jsonl");
    EXPECT_EQ(o.code, kOk) << o.err;
    EXPECT_EQ(failing_files.failures, 1);
    EXPECT_THAT(o.err, HasSubstr(h.note));
    EXPECT_EQ(expect_records("out.jsonl"), 0u);
  }
}

TEST_F(BatchFiles, WhatWasDoneTakesPartInResumingAlsoThroughAHiccup) {
  ASSERT_EQ(batch("out.jsonl").code, kOk);
  failing_files.fail("read", "/out.jsonl");
  const auto o = batch("out.jsonl", {"--resume"});
  EXPECT_EQ(o.code, kOk) << o.err;
  EXPECT_EQ(failing_files.failures, 1);
  EXPECT_THAT(o.err, HasSubstr("9 of them before"));
  EXPECT_EQ(expect_records("out.jsonl"), 0u);
}

TEST_F(BatchFiles, AJournalThatFailsForGoodEndsTheRunWithWhatIsDoneInTheOutput) {
  failing_files.fail("pwrite", "out.jsonl.partial", 3, FailingFiles::kForGood, ENOSPC);
  const auto o = batch("out.jsonl");
  EXPECT_EQ(o.code, kFailure);
  EXPECT_THAT(o.err, HasSubstr("keeping a record (after retry × 3): "));
  EXPECT_THAT(o.err, HasSubstr("No space left on device"));
  EXPECT_THAT(o.err, HasSubstr("9 items: "));
  const std::size_t cancelled = expect_records("out.jsonl");
  EXPECT_GT(cancelled, 0u);
  EXPECT_LT(cancelled, kItems);
  expect_resume_completes("out.jsonl");
}

TEST_F(BatchFiles, AnOutputThatFailsForGoodLeavesTheJournal) {
  failing_files.fail("rename", "/out.jsonl", 1, FailingFiles::kForGood, EROFS);
  const auto o = batch("out.jsonl");
  EXPECT_EQ(o.code, kFailure);
  EXPECT_THAT(o.err, HasSubstr("writing the records (after retry × 3): "));
  EXPECT_THAT(o.err, HasSubstr("9 items: 9 done"));
  EXPECT_THAT(o.err, HasSubstr("out.jsonl.partial' holds what is done: --resume"));
  EXPECT_FALSE(fs::exists(file("out.jsonl")));
  EXPECT_EQ(expect_records("out.jsonl.partial"), 0u);
  expect_resume_completes("out.jsonl");
}

TEST_F(BatchFiles, AnInputThatStaysTornIsAnErrorBeforeAnythingRuns) {
  failing_files.fail("read", "in.jsonl", 1, FailingFiles::kForGood);
  EXPECT_FAILS(batch("out.jsonl"), kFailure, "reading the items (after retry × 3): reading ");
  EXPECT_FALSE(fs::exists(file("out.jsonl")));
}

}  // namespace
}  // namespace bitnet::cli
