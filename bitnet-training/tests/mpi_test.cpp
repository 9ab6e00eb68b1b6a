// What the other tests of data parallelism show in threads, between processes: started by mpirun, whose
// processes all run each of these tests.
#include <gtest/gtest.h>

#include <memory>

#include "bitnet/training/process_group.hpp"
#include "group_checks.hpp"
#include "tiny_training.hpp"

namespace bitnet::training {
namespace {

/// MPI starts and ends once in a process.
class Launched : public ::testing::Environment {
 public:
  void SetUp() override { group = launched_group(); }
  void TearDown() override { group.reset(); }
  static std::unique_ptr<ProcessGroup> group;
};
std::unique_ptr<ProcessGroup> Launched::group;
[[maybe_unused]] const auto* const kLaunched = ::testing::AddGlobalTestEnvironment(new Launched);

TEST(Mpi, SeveralProcessesAreOneGroup) {
  ASSERT_GT(Launched::group->size(), 1) << "to be started by mpirun";
  check_collectives(*Launched::group);
  check_order(*Launched::group);
}

TEST(Mpi, WhatIsWithdrawnIsNotWaitedFor) {
  ProcessGroup& group = *Launched::group;
  {
    std::vector<std::byte> never(100'000);
    group.receive(never, 1 - group.rank(), 7);
    group.withdraw();
  }
  check_collectives(group);
  std::vector<std::byte> out(100'000, std::byte{1}), in(out.size());
  group.receive(in, 1 - group.rank(), 7);
  group.send(out, 1 - group.rank(), 7);
  group.wait();
  EXPECT_EQ(in, out);
  group.withdraw();  // nothing is begun
  group.barrier();
}

/// The test training_mpi_abort runs it alone and expects that it does not end well.
TEST(Mpi, DISABLED_WhatCannotBeTakenBackEndsTheProcesses) {
  ProcessGroup& group = *Launched::group;
  std::vector<std::byte> large(10'000'000);  // more than goes without the receiver
  if (group.rank() == 0) {
    group.send(large, 1, 7);
    group.withdraw();
  }
  group.barrier();
}

TEST(Mpi, TrainingGivesTheBitsOfOneProcess) {
  ProcessGroup& group = *Launched::group;
  for (const char* optimizer : {"adamw", "muon"})
    for (const auto kind : {QuantizerScheduleKind::kAbrupt, QuantizerScheduleKind::kLinear}) {
      TinyOptions o;
      o.optimizer = optimizer;
      o.steps = 5;
      o.schedule = {kind, 4, false};
      const TinyResult got = train_tiny(group, o);
      const auto alone = single_process();
      const TinyResult expected = train_tiny(*alone, o);
      EXPECT_EQ(got.steps, expected.steps);
      if (group.rank() == 0) {
        EXPECT_EQ(got.state, expected.state);
      }
    }
}

}  // namespace
}  // namespace bitnet::training
