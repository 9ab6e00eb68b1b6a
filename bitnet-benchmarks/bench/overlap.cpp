// What it saves to send gradients while the backward pass goes on: data-parallel gradients of a decoder,
// whose parameters are sent as they become complete, in turns with the same gradients that are all sent at
// the end.
//   mpirun -n 2 --bind-to none bitnet_overlap_bench [gpt_12m|tiny|demo] [rounds] [Gbit/s]
// Each process takes the workload's batch. Printed are medians over rounds: milliseconds from a common start
// until the last process has its sums; how long the process that came last waited for messages, and what it
// spent on them while it computed; and by how much sending at the end took longer than sending early in the
// same round. With a third argument each process has a simulated link of that speed, which carries one
// message after the other from when it is sent on: nobody has all of its messages before the links could have
// carried them. BITNET_THREADS is the number of threads of each.
#include <algorithm>
#include <array>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <thread>
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

/// Measures how long wait() takes and what else messages take; begins to send only in wait() if it is `late`.
class MeasuredGroup final : public training::ProcessGroup {
 public:
  /// `gbits`: of the simulated link, per second; 0: none.
  MeasuredGroup(training::ProcessGroup& group, double gbits)
      : group_(group), seconds_a_byte_(gbits > 0 ? 8e-9 / gbits : 0) {}
  int rank() const noexcept override { return group_.rank(); }
  int size() const noexcept override { return group_.size(); }
  void send(std::span<const std::byte> bytes, int to, int tag) override {
    if (late) {
      held_.push_back({bytes, to, tag});
      return;
    }
    const auto begin = Clock::now();
    transmit(bytes, to, tag);
    called += milliseconds_since(begin);
  }
  void receive(std::span<std::byte> bytes, int from, int tag) override { group_.receive(bytes, from, tag); }
  void progress() override {
    if (late) return;
    const auto begin = Clock::now();
    group_.progress();
    called += milliseconds_since(begin);
  }
  void wait() override {
    const auto begin = Clock::now();
    for (const Message& m : held_) transmit(m.bytes, m.to, m.tag);
    held_.clear();
    group_.wait();
    if (seconds_a_byte_ > 0) {
      std::this_thread::sleep_until(link_free_);
      group_.barrier();
    }
    waited += milliseconds_since(begin);
  }
  void withdraw() noexcept override {
    held_.clear();
    group_.withdraw();
  }
  void leave(std::string_view why) noexcept override { group_.leave(why); }

  bool late = false;
  double waited = 0, called = 0;  ///< milliseconds

 private:
  struct Message {
    std::span<const std::byte> bytes;
    int to, tag;
  };
  void transmit(std::span<const std::byte> bytes, int to, int tag) {
    group_.send(bytes, to, tag);
    const std::chrono::duration<double> takes(seconds_a_byte_ * static_cast<double>(bytes.size()));
    link_free_ = std::max(link_free_, Clock::now()) + std::chrono::duration_cast<Clock::duration>(takes);
  }

  training::ProcessGroup& group_;
  double seconds_a_byte_;
  Clock::time_point link_free_ = Clock::now();
  std::vector<Message> held_;
};

/// What a round of all processes took, in milliseconds.
struct Round {
  double total, waited, called;
};

std::vector<double> gathered(training::ProcessGroup& group, double mine) {
  std::vector<double> all(static_cast<std::size_t>(group.size()));
  group.gather(std::as_bytes(std::span(&mine, 1)), std::as_writable_bytes(std::span(all)));
  return all;
}

int run(const benchmarks::TrainingWorkload& workload, int rounds, double gbits) {
  const auto launched = training::launched_group();
  if (launched->size() == 1)
    throw Error(ErrorCode::kInvalidArgument, "to be started by mpirun, as several processes");
  MeasuredGroup group(*launched, gbits);
  const ExecutionContext context;
  benchmarks::DecoderTraining training(context, workload, training::Quantization::kTernary);
  training::DataParallel parallel(context, group, training.model().parameters());
  const std::int64_t sequences = training.sequences();
  const auto round = [&](bool late) {
    group.barrier();
    group.late = late;
    group.waited = group.called = 0;
    const auto begin = Clock::now();
    // The same sequences everywhere: what is measured are messages.
    parallel.gradients(training.tape(), sequences * group.size(), sequences,
                       [&](std::int64_t, std::int64_t count) { return training.pass(0, count); });
    const Round mine{milliseconds_since(begin), group.waited, group.called};
    group.late = false;
    const std::vector<double> totals = gathered(group, mine.total), waits = gathered(group, mine.waited),
                              calls = gathered(group, mine.called);
    const auto last = std::min_element(waits.begin(), waits.end());
    return Round{*std::max_element(totals.begin(), totals.end()), *last,
                 calls[static_cast<std::size_t>(last - waits.begin())]};
  };
  for (const bool late : {false, true, false})
    round(late);  // takes memory, learns when gradients are complete
  std::array<std::vector<double>, 2> total, waited, called;
  std::vector<double> saved;
  for (int i = 0; i < rounds; ++i) {
    for (int k = 0; k < 2; ++k) {
      const bool late = (i + k) % 2 == 1;
      const Round r = round(late);
      total[late].push_back(r.total);
      waited[late].push_back(r.waited);
      called[late].push_back(r.called);
    }
    saved.push_back(total[1].back() - total[0].back());
  }
  if (group.rank() != 0) return 0;
  for (const bool late : {false, true})
    std::printf("%-22s %8.2f ms: waited %6.2f ms, on messages before %6.2f ms\n",
                late ? "sent at the end" : "sent while it computes", median(total[late]),
                median(waited[late]), median(called[late]));
  std::sort(saved.begin(), saved.end());
  std::printf("sending at the end took %+.2f ms (quartiles %+.2f and %+.2f)\n", median(saved),
              saved[saved.size() / 4], saved[saved.size() * 3 / 4]);
  return 0;
}

}  // namespace
}  // namespace bitnet

int main(int argc, char** argv) {
  try {
    return bitnet::run(bitnet::benchmarks::training_workload(argc > 1 ? argv[1] : "gpt_12m"),
                       argc > 2 ? std::max(1, std::atoi(argv[2])) : 15, argc > 3 ? std::atof(argv[3]) : 0);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 1;
  }
}
