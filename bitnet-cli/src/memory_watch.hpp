#pragma once
// What commands that run a model do about memory pressure, and what they say of it. The levels are those of
// bitnet/core/memory/memory_pressure.hpp.
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "bitnet/core/memory/hybrid_memory_pool.hpp"
#include "bitnet/core/memory/memory_pressure.hpp"
#include "bitnet/inference/model.hpp"

namespace bitnet::cli {

/// Reads memory pressure twice a second while it lives: the limits of the model's pools, the control group's
/// and the system's stalls. Under pressure free memory goes back to the system; schedulers that are given the
/// monitor do what they can. Not thread-safe.
class MemoryWatch {
 public:
  MemoryWatch();
  /// Watches all pools of the model, and keeps it alive.
  explicit MemoryWatch(const std::shared_ptr<const inference::Model>& model);
  ~MemoryWatch();
  MemoryWatch(const MemoryWatch&) = delete;
  MemoryWatch& operator=(const MemoryWatch&) = delete;
  /// Watches this pool and no other, and keeps it alive.
  void follow(const std::shared_ptr<HybridMemoryPool>& pool);
  const std::shared_ptr<PressureMonitor>& monitor() const noexcept { return monitor_; }
  /// For --verbose, after one more reading: a line for each pool that has a limit ("memory: pool 'host' holds
  /// 13.1 MiB of at most 64.0 MiB"), and the highest pressure with its reason, if there was any.
  std::string report();

 private:
  void follow(std::shared_ptr<const void> owner, std::vector<MemoryResource*> pools);

  std::shared_ptr<PressureMonitor> monitor_ = std::make_shared<PressureMonitor>();
  std::shared_ptr<const void> owner_;  // of pools_
  std::vector<MemoryResource*> pools_;
  std::mutex mutex_;
  MemoryPressure highest_ = MemoryPressure::kNone;  // under mutex_, as is reason_
  std::string reason_;
};

}  // namespace bitnet::cli
