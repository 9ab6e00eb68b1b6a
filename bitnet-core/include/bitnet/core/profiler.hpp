#pragma once
// Where time goes: scoped zones and the ops of a Backend (Backend::set_profiler), as a trace for
// chrome://tracing and Perfetto and as a table. A profiler is passed, never global; without one a zone is a
// comparison with null.
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace bitnet {

/// One finished zone. Times are nanoseconds since the profiler was made.
struct ProfileEvent {
  const char* name;  ///< of static storage
  std::int64_t begin_ns, duration_ns;
  std::uint64_t bytes;  ///< that it had to move at least, 0: not stated
  std::int64_t rows;    ///< that it worked on, 0: not stated
  /// 1, 2, … in the order in which threads had their first zone in this process, whichever profiler it was
  /// of.
  std::uint32_t thread;
};

/// A line of the summary: all zones of one name.
struct ProfileRow {
  std::string name;
  std::uint64_t calls = 0, bytes = 0;
  double total_seconds = 0;
  double self_seconds = 0;  ///< without the zones inside it, on the same thread
};

/// Collects zones in a buffer of fixed size; what comes after it is full is counted and dropped. record() is
/// thread-safe and allocates nothing; the other members want that no zone ends meanwhile.
class Profiler {
 public:
  /// Memory for `capacity` zones (48 bytes each) is taken from the system as they come. Throws
  /// Error(kOutOfMemory), Error(kInvalidArgument) for 0.
  explicit Profiler(std::size_t capacity = std::size_t{1} << 20);

  /// `name` of static storage (its address is kept); end ≥ begin ≥ the profiler's making.
  void record(const char* name, std::chrono::steady_clock::time_point begin,
              std::chrono::steady_clock::time_point end, std::uint64_t bytes, std::int64_t rows) noexcept;

  std::span<const ProfileEvent> events() const noexcept;  ///< in the order in which they ended; until clear()
  std::uint64_t dropped() const noexcept;
  void clear() noexcept;

  /// By self_seconds, the largest first (of equal ones by name).
  std::vector<ProfileRow> summary() const;
  /// The summary as a table for people: calls, total and own time, share of the own times, mean, GB/s.
  std::string table() const;
  /// Trace Event Format (JSON): "X" events in microseconds, bytes, rows and GB/s as arguments.
  std::string chrome_trace(std::string_view process) const;
  /// The same in pieces, for traces that need not be in memory whole. `other`: members of its "otherData"
  /// beside the number of dropped zones, as JSON with commas between them ("\"device\":{}"); may be empty.
  void chrome_trace(std::string_view process, const std::function<void(std::string_view)>& write,
                    std::string_view other = {}) const;

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  std::size_t capacity_;
  std::unique_ptr<ProfileEvent[]> events_;
  std::atomic<std::size_t> next_{0};
};

/// Measures its own scope. `profiler` may be null: then nothing happens, the clock is not read either.
class ProfileZone {
 public:
  ProfileZone(Profiler* profiler, const char* name, std::uint64_t bytes = 0, std::int64_t rows = 0) noexcept
      : profiler_(profiler), name_(name), bytes_(bytes), rows_(rows) {
    if (profiler_ != nullptr) begin_ = std::chrono::steady_clock::now();
  }
  ~ProfileZone() {
    if (profiler_ != nullptr)
      profiler_->record(name_, begin_, std::chrono::steady_clock::now(), bytes_, rows_);
  }
  ProfileZone(const ProfileZone&) = delete;
  ProfileZone& operator=(const ProfileZone&) = delete;

 private:
  Profiler* profiler_;
  const char* name_;
  std::uint64_t bytes_;
  std::int64_t rows_;
  std::chrono::steady_clock::time_point begin_;
};

}  // namespace bitnet
