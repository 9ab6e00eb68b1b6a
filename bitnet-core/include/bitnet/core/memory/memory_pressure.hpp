#pragma once
// How close memory is to running out: a level from the limits of pools, the control group's limit and what
// the kernel says of stalls (PSI, Linux's Documentation/accounting/psi.rst), and calls to those who can give
// something up. Limits themselves are in hybrid_memory_pool.hpp and cgroup.hpp.
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "bitnet/core/memory/memory_resource.hpp"

namespace bitnet {

enum class MemoryPressure : std::uint8_t { kNone, kLow, kHigh, kCritical };

/// "none", "low", "high", "critical".
std::string_view to_string(MemoryPressure level) noexcept;

/// Where levels begin. Each set ascends.
struct PressureThresholds {
  double low, high, critical;
};

struct PressureOptions {
  /// Of a limit, the fraction in use: bytes held by a pool; a control group's use without page cache.
  PressureThresholds used{0.70, 0.85, 0.95};
  /// Of the last 10 s, the percentage in which some task waited for memory.
  PressureThresholds stalled{5, 20, 40};
  /// A level ends only this part of its threshold below it …
  double hysteresis = 0.08;
  /// … and when so many readings in a row say so. It begins at the first.
  int calm_readings = 3;
  /// Watched resources are trimmed at each reading from this level on, if blocks were freed since.
  MemoryPressure trim_from = MemoryPressure::kHigh;
  /// Where proc/ and sys/ lie.
  std::filesystem::path root = "/";
};

/// Thread-safe. Callbacks run on the thread that reads; they may subscribe, unsubscribe and allocate.
class PressureMonitor {
 public:
  /// `reason` names the source that decided: "pool 'kv' holds 91 % of its limit".
  using Callback = std::function<void(MemoryPressure before, MemoryPressure now, std::string_view reason)>;

  /// Throws Error(kInvalidArgument) for thresholds that do not ascend or options below 0.
  explicit PressureMonitor(PressureOptions options = {});
  ~PressureMonitor();

  /// Watches the resource's limit until forget(); it must live as long.
  void watch(MemoryResource& resource);
  void forget(MemoryResource& resource);

  /// Calls back at every change of the level. What a callback throws is logged.
  std::uint64_t subscribe(Callback callback);
  /// Once it returns, the callback neither runs nor will, unless it is the caller.
  void unsubscribe(std::uint64_t subscription);

  /// Reads everything and, where the level changes, calls back. Some 80 µs. Within a callback: level().
  MemoryPressure poll();
  /// As of the last reading.
  MemoryPressure level() const noexcept;

  /// Polls on a thread of its own until stop() or the end, which callbacks must not call. Throws
  /// Error(kInvalidArgument) for an interval below 1 ms or above a day, Error(kUnsupported) where the system
  /// gives no thread.
  void start(std::chrono::milliseconds interval);
  void stop();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace bitnet
