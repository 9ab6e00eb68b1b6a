// Links BitNet::training: a schedule warms up to its peak and ends at 0, in each of the processes that mpirun
// started, or in this one.
#include <bitnet/training/process_group.hpp>
#include <bitnet/training/schedule.hpp>

#include <cstdio>
#include <cstdlib>
#include <string>

int main() {
  const auto group = bitnet::training::launched_group();
  const char* const launched = std::getenv("OMPI_COMM_WORLD_SIZE");
  if (std::to_string(group->size()) != (launched ? launched : "1")) return 1;
  const bitnet::training::Schedule schedule{
      .kind = bitnet::training::ScheduleKind::kLinear, .steps = 100, .warmup = 10};
  const double early = schedule.learning_rate(5), of_first = group->of_first(early);
  std::printf("%d of %d: %g %g\n", group->rank(), group->size(), of_first, schedule.learning_rate(100));
  return early > 0 && of_first == early && schedule.learning_rate(100) == 0 ? 0 : 1;
}
