// Messages between members of a group of threads; the same calls between processes are mpi_test.cpp.
#include "bitnet/training/process_group.hpp"

#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <numeric>
#include <vector>

#include "bitnet/testing/testing.hpp"
#include "group_checks.hpp"
#include "group_of_threads.hpp"

namespace bitnet::training {
namespace {

TEST(ProcessGroup, OneProcessIsAGroup) {
  const auto group = single_process();
  EXPECT_EQ(group->size(), 1);
  check_collectives(*group);
  std::byte byte{};
  BITNET_EXPECT_ERROR(group->send(std::span(&byte, 1), 0, 1), ErrorCode::kInvalidArgument, "nobody");
}

TEST(ProcessGroup, CollectiveCallsOfThreads) {
  for (const int size : {1, 2, 3, 4}) {
    const auto errors = on_members(size, [](ProcessGroup& group) { check_collectives(group); });
    for (const std::string& e : errors) EXPECT_EQ(e, "");
  }
}

TEST(ProcessGroup, MessagesKeepTheirOrderWithinATag) {
  const auto errors = on_members(2, [](ProcessGroup& group) { check_order(group); });
  for (const std::string& e : errors) EXPECT_EQ(e, "");
}

TEST(ProcessGroup, AMessageOfAnotherSizeIsAnError) {
  const auto errors = on_members(2, [](ProcessGroup& group) {
    std::vector<std::byte> bytes(group.rank() == 0 ? 8 : 12);
    if (group.rank() == 0)
      group.send(bytes, 1, 3);
    else
      group.receive(bytes, 0, 3);
    group.wait();
  });
  EXPECT_THAT(errors[0] + errors[1], ::testing::HasSubstr("bytes where"));
}

TEST(ProcessGroup, AMemberThatLeavesEndsTheOthers) {
  const auto errors = on_members(3, [](ProcessGroup& group) {
    if (group.rank() == 1) throw Error(ErrorCode::kIo, "the disk is full");
    std::byte byte{};
    group.receive(std::span(&byte, 1), 1, 5);
    group.wait();
  });
  EXPECT_EQ(errors[0], "process 1 has left: the disk is full");
  EXPECT_EQ(errors[2], errors[0]);
}

// One thread may be several members where no call waits.
TEST(ProcessGroup, WhatIsWithdrawnIsNotTouched) {
  const auto group = thread_group(2);
  std::vector<std::byte> out(4, std::byte{1}), in(4), later(4);
  group[0]->receive(in, 1, 1);
  group[0]->withdraw();
  group[1]->send(out, 0, 1);  // would be copied here and now
  EXPECT_EQ(in, std::vector<std::byte>(4));
  group[1]->withdraw();
  std::fill(out.begin(), out.end(), std::byte{2});
  group[0]->receive(later, 1, 1);
  EXPECT_EQ(later, std::vector<std::byte>(4)) << "of a message that was withdrawn";
  group[1]->send(out, 0, 1);
  group[0]->wait();
  group[1]->wait();
  EXPECT_EQ(later, out);
}

TEST(ProcessGroup, WhatOneWithdrawsIsOfNoOther) {
  const auto group = thread_group(3);
  std::vector<std::byte> out(2, std::byte{1}), in(2);
  group[0]->receive(in, 1, 1);
  group[2]->receive(out, 1, 1);
  group[2]->withdraw();
  group[1]->send(out, 0, 1);
  group[0]->wait();
  EXPECT_EQ(in, out);
}

TEST(ProcessGroup, AnErrorWithdrawsWhatItsCallHadBegun) {
  const auto group = thread_group(3);
  std::vector<std::byte> mine(2), all(6), wrong(3), right(2, std::byte{1});
  group[2]->send(wrong, 0, 0);
  BITNET_EXPECT_ERROR(group[0]->gather(mine, all), ErrorCode::kInternal, "bytes where");
  group[1]->send(right, 0, 0);
  EXPECT_EQ(all, std::vector<std::byte>(6));
}

TEST(ProcessGroup, WrongMembersAndSizesAreRefused) {
  BITNET_EXPECT_ERROR(thread_group(0), ErrorCode::kInvalidArgument, "a group of 0");
  const auto group = thread_group(2);
  std::byte byte{};
  for (const int to : {-1, 0, 2})
    BITNET_EXPECT_ERROR(group[0]->send(std::span(&byte, 1), to, 1), ErrorCode::kInvalidArgument,
                        "cannot exchange messages with");
  std::vector<std::byte> all(3);
  BITNET_EXPECT_ERROR(group[0]->gather(std::span(&byte, 1), all), ErrorCode::kInvalidArgument, "gathering");
}

TEST(LaunchedGroup, ProcessesOfOtherLaunchersDoNotTrainApart) {
  for (const char* const name : {"PMI_SIZE", "SLURM_STEP_NUM_TASKS"}) {
    ASSERT_EQ(setenv(name, "1", 1), 0);
    EXPECT_EQ(launched_group()->size(), 1);
    ASSERT_EQ(setenv(name, "4", 1), 0);
    BITNET_EXPECT_ERROR(launched_group(), ErrorCode::kUnsupported,
                        std::string(name) + " says that 4 processes were started");
    unsetenv(name);
  }
}

}  // namespace
}  // namespace bitnet::training
