// Reads limits and stalls, and turns them into levels that do not flicker.
#include "bitnet/core/memory/memory_pressure.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <charconv>
#include <condition_variable>
#include <fstream>
#include <map>
#include <mutex>
#include <optional>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "bitnet/core/cgroup.hpp"
#include "bitnet/core/error.hpp"
#include "bitnet/core/log.hpp"

namespace bitnet {
namespace {

constexpr std::string_view kNames[] = {"none", "low", "high", "critical"};

PressureOptions checked(PressureOptions options) {
  for (const PressureThresholds& t : {options.used, options.stalled}) {
    if (!(t.low > 0 && t.low < t.high && t.high < t.critical))
      throw Error(ErrorCode::kInvalidArgument,
                  fmt::format("memory pressure begins at {}, {}, {}: expected ascending numbers above 0",
                              t.low, t.high, t.critical));
  }
  if (!(options.hysteresis >= 0 && options.hysteresis < 1) || options.calm_readings < 0)
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("hysteresis {} and {} calm readings: expected 0 up to below 1, and no number "
                            "below 0",
                            options.hysteresis, options.calm_readings));
  return options;
}

/// The percentage of the last 10 s: "some avg10=1.53 avg60=…" is the first line. Empty without PSI.
std::optional<double> stalled(const std::filesystem::path& root) {
  std::ifstream file(root / "proc/pressure/memory");
  std::string some, average;
  if (!(file >> some >> average) || some != "some" || !average.starts_with("avg10=")) return std::nullopt;
  double percent = 0;  // from_chars: a point is a point in every locale
  const char* const begin = average.data() + 6;
  const char* const end = average.data() + average.size();
  if (std::from_chars(begin, end, percent).ec != std::errc()) return std::nullopt;
  return percent;
}

/// Levels up to `current` end later than they begin.
MemoryPressure level_of(double value, const PressureThresholds& t, MemoryPressure current,
                        double hysteresis) {
  const double begins[] = {0, t.low, t.high, t.critical};
  for (auto level : {MemoryPressure::kCritical, MemoryPressure::kHigh, MemoryPressure::kLow}) {
    const double keep = level <= current ? 1 - hysteresis : 1;
    if (value >= begins[static_cast<std::size_t>(level)] * keep) return level;
  }
  return MemoryPressure::kNone;
}

}  // namespace

std::string_view to_string(MemoryPressure level) noexcept { return kNames[static_cast<std::size_t>(level)]; }

struct PressureMonitor::Impl {
  explicit Impl(PressureOptions o) : options(checked(std::move(o))) {}

  struct Reading {
    MemoryPressure level = MemoryPressure::kNone;
    std::string reason = "nothing is near its limit";
  };
  Reading read() const;
  void call_back(MemoryPressure before, MemoryPressure now, const std::string& reason);
  void end_thread();

  const PressureOptions options;
  // Recursive: callbacks run under it, so that unsubscribe() waits for those of other threads.
  mutable std::recursive_mutex mutex;
  /// `trimmed_at`: its frees when it was last trimmed; without more of them there is nothing new to give
  /// back.
  struct Watched {
    MemoryResource* resource;
    std::optional<std::uint64_t> trimmed_at;
  };
  std::vector<Watched> resources;
  std::map<std::uint64_t, Callback> callbacks;
  std::uint64_t last_subscription = 0;
  bool polling = false;
  int calm = 0;
  std::atomic<MemoryPressure> level{MemoryPressure::kNone};

  std::mutex start_mutex;  // of start() and stop(), before thread_mutex
  std::mutex thread_mutex;
  std::condition_variable wake;
  bool stopping = false;
  std::thread thread;
};

PressureMonitor::Impl::Reading PressureMonitor::Impl::read() const {
  Reading highest;
  const MemoryPressure now = level.load();
  const auto consider = [&](double value, const PressureThresholds& thresholds, auto&& reason) {
    const MemoryPressure found = level_of(value, thresholds, now, options.hysteresis);
    if (found > highest.level) highest = {found, reason()};
  };
  for (const Watched& watched : resources) {
    const MemoryStats stats = watched.resource->stats();
    if (stats.limit == kNoMemoryLimit || stats.limit == 0) continue;
    const double part = static_cast<double>(stats.held) / static_cast<double>(stats.limit);
    consider(part, options.used,
             [&] { return fmt::format("pool '{}' holds {:.0f} % of its limit", stats.name, 100 * part); });
  }
  if (const auto part = cgroup_limits(options.root).memory_used) {
    consider(*part, options.used,
             [&] { return fmt::format("the control group uses {:.0f} % of its memory", 100 * *part); });
  }
  if (const auto percent = stalled(options.root)) {
    consider(*percent, options.stalled,
             [&] { return fmt::format("tasks wait for memory {:.1f} % of the time", *percent); });
  }
  return highest;
}

void PressureMonitor::Impl::call_back(MemoryPressure before, MemoryPressure now, const std::string& reason) {
  std::vector<std::uint64_t> ids;
  for (const auto& [id, callback] : callbacks) ids.push_back(id);
  for (const std::uint64_t id : ids) {
    const auto found = callbacks.find(id);  // one before it may have removed it
    if (found == callbacks.end()) continue;
    const Callback callback = found->second;
    try {
      callback(before, now, reason);
    } catch (const std::exception& e) {
      log(LogLevel::kWarning, fmt::format("a callback for memory pressure failed: {}", e.what()));
    }
  }
}

PressureMonitor::PressureMonitor(PressureOptions options)
    : impl_(std::make_unique<Impl>(std::move(options))) {}
PressureMonitor::~PressureMonitor() { stop(); }

void PressureMonitor::watch(MemoryResource& resource) {
  const std::lock_guard guard(impl_->mutex);
  impl_->resources.push_back({&resource, std::nullopt});
}

void PressureMonitor::forget(MemoryResource& resource) {
  const std::lock_guard guard(impl_->mutex);
  std::erase_if(impl_->resources, [&](const Impl::Watched& w) { return w.resource == &resource; });
}

std::uint64_t PressureMonitor::subscribe(Callback callback) {
  const std::lock_guard guard(impl_->mutex);
  impl_->callbacks.emplace(++impl_->last_subscription, std::move(callback));
  return impl_->last_subscription;
}

void PressureMonitor::unsubscribe(std::uint64_t subscription) {
  const std::lock_guard guard(impl_->mutex);
  impl_->callbacks.erase(subscription);
}

MemoryPressure PressureMonitor::level() const noexcept { return impl_->level.load(); }

MemoryPressure PressureMonitor::poll() {
  const std::lock_guard guard(impl_->mutex);
  if (impl_->polling) return level();
  impl_->polling = true;
  struct End {
    bool& polling;
    ~End() { polling = false; }
  } const end{impl_->polling};
  const Impl::Reading reading = impl_->read();
  const MemoryPressure before = level();
  impl_->calm = reading.level < before ? impl_->calm + 1 : 0;
  const bool changes =
      reading.level > before || (reading.level < before && impl_->calm >= impl_->options.calm_readings);
  if (changes) {
    impl_->calm = 0;
    impl_->level.store(reading.level);
    impl_->call_back(before, reading.level, reading.reason);  // first: what they give up can be trimmed
  }
  if (level() >= impl_->options.trim_from && level() != MemoryPressure::kNone) {
    for (Impl::Watched& watched : impl_->resources) {
      const std::uint64_t frees = watched.resource->stats().frees;
      if (std::exchange(watched.trimmed_at, frees) != frees) watched.resource->trim();
    }
  }
  return level();
}

void PressureMonitor::start(std::chrono::milliseconds interval) {
  constexpr std::chrono::milliseconds kMost = std::chrono::hours(24);  // wait_for() overflows on the longest
  if (interval.count() <= 0 || interval > kMost)
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("an interval of {} ms: expected 1 … {}, a day", interval.count(), kMost.count()));
  const std::lock_guard one_at_a_time(impl_->start_mutex);
  impl_->end_thread();
  impl_->stopping = false;
  const auto poll_again = [this, interval] {
    std::unique_lock lock(impl_->thread_mutex);
    while (!impl_->wake.wait_for(lock, interval, [this] { return impl_->stopping; })) {
      lock.unlock();
      try {
        poll();
      } catch (const std::exception& e) {
        log(LogLevel::kWarning, fmt::format("reading memory pressure failed: {}", e.what()));
      }
      lock.lock();
    }
  };
  try {
    impl_->thread = std::thread(poll_again);
  } catch (const std::system_error& e) {
    throw Error(ErrorCode::kUnsupported, fmt::format("no thread for watching memory: {}", e.what()));
  }
}

/// Under start_mutex.
void PressureMonitor::Impl::end_thread() {
  {
    const std::lock_guard guard(thread_mutex);
    stopping = true;
  }
  wake.notify_all();
  if (thread.joinable()) thread.join();
}

void PressureMonitor::stop() {
  const std::lock_guard one_at_a_time(impl_->start_mutex);
  impl_->end_thread();
}

}  // namespace bitnet
