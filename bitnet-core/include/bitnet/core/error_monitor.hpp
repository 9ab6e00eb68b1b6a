#pragma once
// Counts Errors, and makes one report of many that are the same. What to do about an Error is recovery.hpp.
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "bitnet/core/error.hpp"

namespace bitnet {

/// Errors of one code that were made at one place of the source.
struct ErrorPattern {
  ErrorCode code{};
  std::string place;            ///< "generator.cpp:31"
  std::uint64_t count = 0;      ///< since the monitor was made
  std::uint64_t in_window = 0;  ///< in the window that is open now
  std::string last;             ///< what() of the latest
};

/// Counts by code and place, in windows of time: a window begins with the first Error of a place and ends
/// `window_seconds` later, and the next Error begins another one (so a burst across the end of a window
/// counts in two). An Error that comes `threshold` times within a window is reported once, and once more with
/// the final number if there were more: when the next Error of that place comes after the window, when the
/// place is forgotten, or at flush(). Thread-safe.
class ErrorMonitor {
 public:
  struct Options {
    std::uint64_t threshold = 3;   ///< ≥ 1
    double window_seconds = 60;    ///< > 0, from the first of them
    std::size_t max_places = 256;  ///< the one that was quiet for longest is forgotten; ≥ 1
    /// Called with one line, not under the monitor's lock; empty: log(LogLevel::kWarning, line).
    std::function<void(const std::string& line)> report = {};
    /// Seconds that never go back; empty: the steady clock.
    std::function<double()> clock = {};
  };

  ErrorMonitor();
  /// Throws Error(kInvalidArgument) on options out of range.
  explicit ErrorMonitor(Options options);
  ~ErrorMonitor();
  ErrorMonitor(const ErrorMonitor&) = delete;
  ErrorMonitor& operator=(const ErrorMonitor&) = delete;

  /// True when the caller should say it itself: fewer than `threshold` are in the window. Otherwise a report
  /// of this place was or will be made. Throws std::bad_alloc and what the report throws.
  bool record(const Error& error);
  /// Reports the final numbers of windows that are open: at the end of a run.
  void flush();

  std::uint64_t count(ErrorCode code) const;  ///< since the monitor was made
  std::uint64_t total() const;
  /// Every place that is known, the most frequent first (of equal ones the one seen first).
  std::vector<ErrorPattern> patterns() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// File name without its folders, and line: "generator.cpp:31".
std::string place_of(const Error& error);

}  // namespace bitnet
