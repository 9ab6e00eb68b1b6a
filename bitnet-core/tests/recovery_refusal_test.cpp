// Recovery where operator new refuses: whichever allocation it is, of the work or of what is said about its
// failures, the rules are asked, and only Error leaves.
#include <optional>
#include <string>
#include <vector>

#include "bitnet/core/recovery.hpp"
#include "bitnet/testing/refusing_new.hpp"
#include "bitnet/testing/testing.hpp"

namespace bitnet {
namespace {

/// Work that needs less than it asks for at first, with a monitor and notes.
struct ScarceWork {
  std::int64_t size = 64;
  std::int64_t failures = 0;
  bool done = false, skipped = false;
  std::optional<Error> left;  // what left run()
  std::int64_t answered = 0;  // steps of rules
  std::size_t notes = 0;
  std::uint64_t recorded = 0;
  bool happened = false;

  void body() {
    ++failures;
    if (size > 4) {
      throw Error(ErrorCode::kOutOfMemory,
                  "a batch of " + std::to_string(size) + " sequences: more than there is");
    }
    const std::vector<std::string> work(static_cast<std::size_t>(size), std::string(100, 'x'));
    --failures;
    done = true;
  }
  /// From the `nth` allocation within run() on, `n` are refused. `equal`: Errors like this one before.
  void run(long nth, long n, int equal) {
    std::vector<std::string> lines;
    ErrorMonitor monitor({.report = [&](const std::string& line) { lines.push_back(line); }});
    Recovery recovery({drop_caches([] { return std::size_t{1}; }, 10), shrink(size)}, &monitor,
                      [&](const std::string& line) {
                        lines.push_back(line);
                        ++notes;
                      });
    for (int i = 0; i < equal; ++i) monitor.record(Error(ErrorCode::kOutOfMemory, "before"));
    {
      const testing::RefuseNth refuse(nth, n);
      try {
        skipped = !recovery.run("a batch of the test with a name that fits into no string itself",
                                [this] { body(); });
      } catch (const Error& e) {
        left = e;
      }
      happened = refuse.happened();
    }
    answered = recovery.times("drop caches") + recovery.times("shrink");
    recorded = monitor.total();
  }
};

TEST(RecoveryRefusal, ARefusalAnywhereStillLetsTheRulesHelp) {
  for (const long in_a_row : {1, 2, 3, 5}) {
    long nth = 1;
    std::size_t unsaid = 0;
    for (bool happened = true; happened; ++nth) {
      ScarceWork work;
      work.run(nth, in_a_row, static_cast<int>(nth % 3));
      happened = work.happened;
      EXPECT_FALSE(work.left.has_value()) << nth << ", " << in_a_row << ": " << work.left->what();
      EXPECT_TRUE(work.done) << nth << ", " << in_a_row;
      EXPECT_FALSE(work.skipped);
      EXPECT_EQ(work.answered, work.failures) << nth << ", " << in_a_row;
      const auto failures = static_cast<std::size_t>(work.failures);
      unsaid += failures - work.notes;
      if (!happened) {
        EXPECT_EQ(work.failures, 14);  // 10 × drop caches, 4 × shrink
        EXPECT_EQ(work.notes, failures);
        EXPECT_EQ(work.recorded, failures + static_cast<std::size_t>(nth % 3));
      }
      ASSERT_LT(nth, 10000);
    }
    EXPECT_GT(nth, 50) << "allocations of such a run";
    EXPECT_GT(unsaid, 0u);
  }
}

// Where all that comes is refused no rule helps in the end: that, too, is an Error.
TEST(RecoveryRefusal, WithNoMemoryAtAllAnErrorLeaves) {
  ScarceWork work;
  work.run(1, 1 << 30, 0);
  EXPECT_FALSE(work.done);
  ASSERT_TRUE(work.left.has_value());
  EXPECT_EQ(work.left->code(), ErrorCode::kOutOfMemory);
  EXPECT_EQ(work.size, 1);
  EXPECT_EQ(work.answered, 16);  // 10 × drop caches, 6 × shrink
  EXPECT_EQ(work.notes, 0u);
}

TEST(RecoveryRefusal, MemoryThatARuleLacksIsAnError) {
  RecoveryRule hungry;
  hungry.name = "hungry";
  hungry.act = [](const Error&, std::int64_t) -> RecoveryStep { throw std::bad_alloc(); };
  Recovery recovery({hungry});
  BITNET_EXPECT_ERROR(static_cast<void>(recovery.run("work", [] { throw Error(ErrorCode::kIo, "torn"); })),
                      ErrorCode::kOutOfMemory, "work: out of memory");
}

}  // namespace
}  // namespace bitnet
