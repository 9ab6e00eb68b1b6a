// The team of spinning threads: every part once and on its own thread, what it does when it cannot, and that
// sleepers wake. Through parallel_for() it is tested in system_test.cpp.
#include "../src/thread_team.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace bitnet {
namespace {

template <class Body>
bool run(ThreadTeam& team, std::size_t n, std::size_t parts, Body body) {
  return team.try_run(
      n, parts, [](void* b, std::size_t begin, std::size_t end) { (*static_cast<Body*>(b))(begin, end); },
      &body);
}

TEST(ThreadTeam, EachPartOnceAndOnTheSameThreadInEveryJob) {
  constexpr std::size_t kSize = 4;
  ThreadTeam team(kSize);
  std::vector<std::thread::id> owner(kSize);
  for (int job = 0; job < 500; ++job) {
    const std::size_t parts = 2 + static_cast<std::size_t>(job) % (kSize - 1);
    std::vector<int> hits(17);  // no atomics: parts are disjoint, and ThreadSanitizer looks at the rest
    std::vector<std::thread::id> ran(kSize);
    ASSERT_TRUE(run(team, hits.size(), parts, [&](std::size_t begin, std::size_t end) {
      for (std::size_t i = begin; i < end; ++i) ++hits[i];
      const std::size_t part = (begin * parts + hits.size() - 1) / hits.size();
      ran[part] = std::this_thread::get_id();
    }));
    ASSERT_EQ(std::count(hits.begin(), hits.end(), 1), 17);
    for (std::size_t p = 0; p < parts; ++p) {
      if (owner[p] == std::thread::id()) owner[p] = ran[p];
      ASSERT_EQ(ran[p], owner[p]) << "part " << p;
    }
  }
  EXPECT_EQ(owner[0], std::this_thread::get_id());
  std::sort(owner.begin(), owner.end());
  EXPECT_EQ(std::unique(owner.begin(), owner.end()), owner.end());
}

TEST(ThreadTeam, SleepersWakeAndLongPartsAreWaitedFor) {
  ThreadTeam team(3);
  for (int job = 0; job < 4; ++job) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));  // longer than threads spin
    std::vector<int> done(3);
    ASSERT_TRUE(run(team, 3, 3, [&](std::size_t begin, std::size_t) {
      if (begin == 2) std::this_thread::sleep_for(std::chrono::milliseconds(5));  // the caller falls asleep
      done[begin] = 1;
    }));
    EXPECT_EQ(std::count(done.begin(), done.end(), 1), 3);
  }
}

TEST(ThreadTeam, RefusesASecondCallerAndItsOwnParts) {
  ThreadTeam team(2);
  std::vector<int> nested(2, -1);
  int other = -1;
  ASSERT_TRUE(run(team, 2, 2, [&](std::size_t begin, std::size_t) {
    nested[begin] = run(team, 2, 2, [](std::size_t, std::size_t) {});
    if (begin == 0) {
      std::thread second([&] { other = run(team, 2, 2, [](std::size_t, std::size_t) {}); });
      second.join();
    }
  }));
  EXPECT_EQ(nested, std::vector<int>(2, 0));
  EXPECT_EQ(other, 0);
  EXPECT_TRUE(run(team, 2, 2, [](std::size_t, std::size_t) {}));
}

TEST(ThreadTeam, RethrowsTheFirstExceptionAfterAllPartsHaveEnded) {
  ThreadTeam team(3);
  for (int job = 0; job < 3; ++job) {
    std::vector<int> ended(3);
    std::string said;
    try {
      run(team, 3, 3, [&](std::size_t begin, std::size_t) {
        ended[begin] = 1;
        if (begin > 0) throw std::runtime_error("part " + std::to_string(begin));
      });
    } catch (const std::runtime_error& e) {
      said = e.what();
    }
    EXPECT_EQ(said, "part 1");
    EXPECT_EQ(ended, std::vector<int>(3, 1));
    EXPECT_TRUE(run(team, 3, 3, [](std::size_t, std::size_t) {}));  // and is forgotten
  }
}

}  // namespace
}  // namespace bitnet
