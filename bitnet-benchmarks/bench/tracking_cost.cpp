// What the tracking levels of the memory pool cost a training step of the shipped model
// (configs/train/demo.yaml): one model a level, each on a context with a pool of that level, whose steps
// alternate. Printed are the median step and, as the median over rounds with its 95 % confidence interval,
// how much longer it took than the step without tracking of the same round.
//   bitnet_tracking_cost [rounds]
#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "bitnet/core/memory/hybrid_memory_pool.hpp"
#include "bitnet/core/statistics.hpp"
#include "decoder_training.hpp"

namespace bitnet {
namespace {

constexpr std::array kLevels{TrackingLevel::kNone, TrackingLevel::kBasic, TrackingLevel::kStandard,
                             TrackingLevel::kDetailed};

std::shared_ptr<HybridMemoryPool> make_pool(TrackingLevel level) {
  MemoryPoolOptions options = host_pool_options();
  options.tracking = level;
  return std::make_shared<HybridMemoryPool>(options);
}

class Training {
 public:
  explicit Training(TrackingLevel level) : pool_(make_pool(level)), context_(machine(pool_)) {}

  /// Seconds of one step.
  double step() {
    const auto begin = std::chrono::steady_clock::now();
    training_.step(optimizer_);
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  }
  std::uint64_t allocations() const { return pool_->stats().allocations; }

 private:
  static ExecutionContext::Options machine(std::shared_ptr<HybridMemoryPool> pool) {
    ExecutionContext::Options options;
    options.memory = std::move(pool);
    return options;
  }
  std::shared_ptr<HybridMemoryPool> pool_;
  ExecutionContext context_;
  benchmarks::DecoderTraining training_{context_, benchmarks::training_workload("demo"),
                                        training::Quantization::kTernary};
  training::AdamW optimizer_{context_, training_.model().parameters(), {}};
};

/// Places of the median's 95 % confidence interval among n sorted values (normal approximation of the
/// binomial distribution).
std::pair<std::size_t, std::size_t> interval_of_median(std::size_t n) {
  const double half = static_cast<double>(n) / 2, reach = 0.98 * std::sqrt(static_cast<double>(n));
  const auto last = static_cast<double>(n - 1);
  return {static_cast<std::size_t>(std::clamp(std::floor(half - reach), 0.0, last)),
          static_cast<std::size_t>(std::clamp(std::ceil(half + reach), 0.0, last))};
}

int run(int rounds) {
  std::array<std::unique_ptr<Training>, kLevels.size()> runs;
  for (std::size_t i = 0; i < kLevels.size(); ++i) {
    runs[i] = std::make_unique<Training>(kLevels[i]);
    for (int warm = 0; warm < 2; ++warm) runs[i]->step();
  }
  const std::uint64_t before = runs[0]->allocations();
  std::array<std::vector<double>, kLevels.size()> seconds, more;
  for (int round = 0; round < rounds; ++round) {
    std::array<double, kLevels.size()> took{};
    for (std::size_t k = 0; k < kLevels.size(); ++k) {
      const std::size_t i = (k + static_cast<std::size_t>(round)) % kLevels.size();
      took[i] = runs[i]->step();
    }
    for (std::size_t i = 0; i < kLevels.size(); ++i) {
      seconds[i].push_back(took[i]);
      more[i].push_back(100 * (took[i] / took[0] - 1));
    }
  }
  std::printf("%.0f allocations a step\n",
              static_cast<double>(runs[0]->allocations() - before) / static_cast<double>(rounds));
  for (std::size_t i = 0; i < kLevels.size(); ++i) {
    std::sort(more[i].begin(), more[i].end());
    const auto [low, high] = interval_of_median(more[i].size());
    std::printf("%-8s %7.1f ms %+5.2f %% (%+5.2f to %+5.2f)\n", std::string(to_string(kLevels[i])).c_str(),
                1000 * median(seconds[i]), median(more[i]), more[i][low], more[i][high]);
  }
  return 0;
}

}  // namespace
}  // namespace bitnet

int main(int argc, char** argv) {
  try {
    return bitnet::run(argc > 1 ? std::max(1, std::atoi(argv[1])) : 40);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 1;
  }
}
