// Messages between members of a group of threads; the same calls between processes are mpi_test.cpp.
#include "bitnet/training/process_group.hpp"

#include <gtest/gtest.h>

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

}  // namespace
}  // namespace bitnet::training
