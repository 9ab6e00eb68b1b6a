// What it saves to send gradients while the backward pass goes on: data-parallel gradients of a decoder,
// whose parameters are sent as they become complete, in turns with the same gradients that are all sent at
// the end.
//   mpirun -n 2 --bind-to none bitnet_overlap_bench [gpt_12m|tiny|demo] [rounds]
// Each process takes the workload's batch. Printed are medians over rounds: milliseconds from a common start
// until the last process has its sums, and how long the process that came last waited for messages, which is
// what they add to computing. BITNET_THREADS is the number of threads of each.
#include <algorithm>
#include <array>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "bitnet/core/statistics.hpp"
#include "bitnet/training/data_parallel.hpp"
#include "decoder_training.hpp"

namespace bitnet {
namespace {

using Clock = std::chrono::steady_clock;

double milliseconds_since(Clock::time_point begin) {
  return std::chrono::duration<double, std::milli>(Clock::now() - begin).count();
}

/// Measures how long wait() takes, and begins to send only there if it is `late`.
class MeasuredGroup final : public training::ProcessGroup {
 public:
  explicit MeasuredGroup(training::ProcessGroup& group) : group_(group) {}
  int rank() const noexcept override { return group_.rank(); }
  int size() const noexcept override { return group_.size(); }
  void send(std::span<const std::byte> bytes, int to, int tag) override {
    if (late)
      held_.push_back({bytes, to, tag});
    else
      group_.send(bytes, to, tag);
  }
  void receive(std::span<std::byte> bytes, int from, int tag) override { group_.receive(bytes, from, tag); }
  void progress() override {
    if (!late) group_.progress();
  }
  void wait() override {
    const auto begin = Clock::now();
    for (const Message& m : held_) group_.send(m.bytes, m.to, m.tag);
    held_.clear();
    group_.wait();
    waited += milliseconds_since(begin);
  }
  void withdraw() noexcept override {
    held_.clear();
    group_.withdraw();
  }
  void leave(std::string_view why) noexcept override { group_.leave(why); }

  bool late = false;
  double waited = 0;  ///< milliseconds

 private:
  struct Message {
    std::span<const std::byte> bytes;
    int to, tag;
  };
  training::ProcessGroup& group_;
  std::vector<Message> held_;
};

/// What a round of all processes took, in milliseconds.
struct Round {
  double total, waited;
};

std::vector<double> gathered(training::ProcessGroup& group, double mine) {
  std::vector<double> all(static_cast<std::size_t>(group.size()));
  group.gather(std::as_bytes(std::span(&mine, 1)), std::as_writable_bytes(std::span(all)));
  return all;
}

int run(const benchmarks::TrainingWorkload& workload, int rounds) {
  const auto launched = training::launched_group();
  if (launched->size() == 1)
    throw Error(ErrorCode::kInvalidArgument, "to be started by mpirun, as several processes");
  MeasuredGroup group(*launched);
  const ExecutionContext context;
  benchmarks::DecoderTraining training(context, workload, training::Quantization::kTernary);
  training::DataParallel parallel(context, group, training.model().parameters());
  const std::int64_t sequences = training.sequences();
  const auto round = [&](bool late) {
    group.barrier();
    group.late = late;
    group.waited = 0;
    const auto begin = Clock::now();
    // The same sequences everywhere: what is measured are messages.
    parallel.gradients(training.tape(), sequences * group.size(), sequences,
                       [&](std::int64_t, std::int64_t count) { return training.pass(0, count); });
    Round r{milliseconds_since(begin), group.waited};
    group.late = false;
    const std::vector<double> totals = gathered(group, r.total), waits = gathered(group, r.waited);
    return Round{*std::max_element(totals.begin(), totals.end()),
                 *std::min_element(waits.begin(), waits.end())};
  };
  for (const bool late : {false, true, false})
    round(late);  // takes memory, learns when gradients are complete
  std::array<std::vector<double>, 2> total, waited;
  for (int i = 0; i < 2 * rounds; ++i) {
    const bool late = i % 2 == 1;
    const Round r = round(late);
    total[late].push_back(r.total);
    waited[late].push_back(r.waited);
  }
  if (group.rank() == 0)
    for (const bool late : {false, true})
      std::printf("%-22s %8.2f ms, of which it waited %7.2f ms\n",
                  late ? "sent at the end" : "sent while it computes", median(total[late]),
                  median(waited[late]));
  return 0;
}

}  // namespace
}  // namespace bitnet

int main(int argc, char** argv) {
  try {
    return bitnet::run(bitnet::benchmarks::training_workload(argc > 1 ? argv[1] : "gpt_12m"),
                       argc > 2 ? std::max(1, std::atoi(argv[2])) : 15);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 1;
  }
}
