// Links BitNet::training: a schedule warms up to its peak and ends at 0.
#include <bitnet/training/schedule.hpp>

#include <cstdio>

int main() {
  const bitnet::training::Schedule schedule{
      .kind = bitnet::training::ScheduleKind::kLinear, .steps = 100, .warmup = 10};
  std::printf("%g %g\n", schedule.learning_rate(5), schedule.learning_rate(100));
  return schedule.learning_rate(5) > 0 && schedule.learning_rate(100) == 0 ? 0 : 1;
}
