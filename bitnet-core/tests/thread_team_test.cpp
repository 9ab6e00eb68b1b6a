// The team of spinning threads: every part once and on its own thread, what it does when it cannot, and that
// sleepers wake. Through parallel_for() it is tested in system_test.cpp.
#include "../src/thread_team.hpp"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

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
  ThreadTeam team;
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
  ThreadTeam team;
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

TEST(ThreadTeam, GrowsWithItsJobs) {
  ThreadTeam team;
  for (const std::size_t parts : {2u, 5u, 3u, 7u}) {
    std::vector<std::thread::id> ran(parts);
    ASSERT_TRUE(run(team, parts, parts,
                    [&](std::size_t begin, std::size_t) { ran[begin] = std::this_thread::get_id(); }));
    std::sort(ran.begin(), ran.end());
    EXPECT_EQ(std::unique(ran.begin(), ran.end()), ran.end()) << "a thread each";
    EXPECT_NE(ran[0], std::thread::id());
  }
}

TEST(ThreadTeam, RefusesASecondCallerAndItsOwnParts) {
  ThreadTeam team;
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
  ThreadTeam team;
  for (const std::size_t first : {1u, 2u, 0u, 1u}) {  // part 0 is the caller's
    std::vector<int> ended(3);
    std::string said;
    try {
      run(team, 3, 3, [&](std::size_t begin, std::size_t) {
        ended[begin] = 1;
        if (begin >= first) throw std::runtime_error("part " + std::to_string(begin));
      });
    } catch (const std::runtime_error& e) {
      said = e.what();
    }
    EXPECT_EQ(said, "part " + std::to_string(first));
    EXPECT_EQ(ended, std::vector<int>(3, 1));
    EXPECT_TRUE(run(team, 3, 3, [](std::size_t, std::size_t) {}));  // and is forgotten
  }
}

/// The cores first … last − 1.
cpu_set_t mask_of(int first, int last) {
  cpu_set_t set;
  CPU_ZERO(&set);
  for (int cpu = first; cpu < last; ++cpu) CPU_SET(cpu, &set);
  return set;
}

TEST(TeamFor, NoMoreThreadsThanCores) {
  const cpu_set_t mask = mask_of(0, 8);
  const auto team = [&](std::size_t size) { return team_for(size, mask, 8); };
  EXPECT_EQ(team(1), nullptr);
  EXPECT_EQ(team_for(2, mask, 1), nullptr);
  EXPECT_EQ(team(9), nullptr);
  {
    const auto four = team(4), three = team(3);
    ASSERT_NE(four, nullptr);
    ASSERT_NE(three, nullptr);
    EXPECT_NE(four, three) << "seven threads have a core each";
    EXPECT_EQ(team(2), three) << "the least that is large enough";
    EXPECT_EQ(team(4), four);
    EXPECT_EQ(team(6), nullptr) << "three and six are nine";
    EXPECT_EQ(team(5), four) << "three and five have a core each";
    EXPECT_EQ(team(4), four) << "which serves five now";
    EXPECT_NE(team_for(4, mask_of(8, 12), 4), nullptr) << "on other cores";
    EXPECT_EQ(team_for(4, mask_of(4, 12), 8), nullptr) << "on some of the same";
  }
  const auto two = team(2);
  ASSERT_NE(two, nullptr) << "those of before are gone";
  EXPECT_EQ(team(8), two);
}

// ThreadSanitizer allows no threads in the child of a process that has some.
#if defined(__SANITIZE_THREAD__)
#define BITNET_TEST_FORK 0
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define BITNET_TEST_FORK 0
#endif
#endif
#if !defined(BITNET_TEST_FORK)
TEST(TeamFor, AChildThatForkMadeHasATeamOfItsOwn) {
  const auto parents = team_for(2, mask_of(0, 2), 2);
  ASSERT_NE(parents, nullptr);
  ASSERT_TRUE(run(*parents, 2, 2, [](std::size_t, std::size_t) {}));
  const pid_t child = fork();
  ASSERT_NE(child, -1);
  if (child == 0) {
    alarm(60);  // its parent's team would wait for ever
    const auto own = team_for(2, mask_of(0, 2), 2);
    std::vector<int> done(2);
    const bool ran = own != nullptr && own != parents &&
                     run(*own, 2, 2, [&](std::size_t begin, std::size_t) { done[begin] = 1; });
    _exit(ran && done == std::vector<int>(2, 1) ? 0 : 1);
  }
  int status = -1;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  EXPECT_TRUE(run(*parents, 2, 2, [](std::size_t, std::size_t) {}));
}
#endif

}  // namespace
}  // namespace bitnet
