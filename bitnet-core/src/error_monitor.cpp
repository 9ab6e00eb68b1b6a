// Counting of Errors by code and place, in windows of time; see error_monitor.hpp.
#include "bitnet/core/error_monitor.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <mutex>
#include <utility>

#include "bitnet/core/log.hpp"

namespace bitnet {
namespace {

constexpr std::size_t kCodes = static_cast<std::size_t>(ErrorCode::kInternal) + 1;

double steady_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

/// A pattern with its open window.
struct Place {
  ErrorPattern pattern;
  double window_begin = 0, last_seen = 0;
  std::uint64_t reported = 0;  // of this window, at the time of its report; 0: none yet
};

std::string line_of(const ErrorPattern& p, double seconds) {
  return fmt::format("{} times within {:.3g} s, at {}: {}: {}", p.in_window, seconds, p.place,
                     to_string(p.code), p.last);
}

}  // namespace

std::string place_of(const Error& error) {
  const std::string_view file = error.where().file;
  const std::size_t slash = file.rfind('/');
  return fmt::format("{}:{}", slash == std::string_view::npos ? file : file.substr(slash + 1),
                     error.where().line);
}

struct ErrorMonitor::Impl {
  explicit Impl(Options o) : options(std::move(o)) {
    if (options.threshold < 1 || !(options.window_seconds > 0) || options.max_places < 1) {
      throw Error(ErrorCode::kInvalidArgument,
                  fmt::format("an error monitor of {} in {} s at {} places: expected positive numbers",
                              options.threshold, options.window_seconds, options.max_places));
    }
    if (!options.clock) options.clock = steady_seconds;
    if (!options.report) options.report = [](const std::string& line) { log(LogLevel::kWarning, line); };
  }

  /// The place of this error; forgets another one if there are too many, and tells its final number.
  Place& place_for(const Error& error, double now, std::vector<std::string>& lines) {
    std::string name = place_of(error);
    for (Place& p : places)
      if (p.pattern.code == error.code() && p.pattern.place == name) return p;
    if (places.size() == options.max_places) {
      const auto quietest =
          std::min_element(places.begin(), places.end(),
                           [](const Place& a, const Place& b) { return a.last_seen < b.last_seen; });
      close(*quietest, now, lines);
      places.erase(quietest);
    }
    places.push_back({});
    Place& p = places.back();
    p.pattern.code = error.code();
    p.pattern.place = std::move(name);
    p.window_begin = now;
    return p;
  }

  /// Ends the window of `p`: a line if more came than were reported.
  void close(Place& p, double now, std::vector<std::string>& lines) const {
    if (p.reported != 0 && p.pattern.in_window > p.reported)
      lines.push_back(line_of(p.pattern, std::min(now - p.window_begin, options.window_seconds)));
    p.pattern.in_window = p.reported = 0;
  }

  Options options;
  mutable std::mutex mutex;
  std::array<std::uint64_t, kCodes> counts{};
  std::vector<Place> places;  // in the order in which they were first seen
};

ErrorMonitor::ErrorMonitor() : ErrorMonitor(Options{}) {}
ErrorMonitor::ErrorMonitor(Options options) : impl_(std::make_unique<Impl>(std::move(options))) {}
ErrorMonitor::~ErrorMonitor() = default;

bool ErrorMonitor::record(const Error& error) {
  Impl& m = *impl_;
  std::vector<std::string> lines;
  bool alone = false;
  {
    const std::scoped_lock lock(m.mutex);
    const double now = m.options.clock();
    ++m.counts[static_cast<std::size_t>(error.code())];
    Place& p = m.place_for(error, now, lines);
    if (now - p.window_begin > m.options.window_seconds) {
      m.close(p, now, lines);
      p.window_begin = now;
    }
    if (p.pattern.in_window == 0) p.window_begin = now;
    ++p.pattern.count;
    ++p.pattern.in_window;
    p.last_seen = now;
    p.pattern.last = error.what();
    alone = p.pattern.in_window < m.options.threshold;
    if (!alone && p.reported == 0) {
      p.reported = p.pattern.in_window;
      lines.push_back(line_of(p.pattern, now - p.window_begin));
    }
  }
  for (const std::string& line : lines) m.options.report(line);
  return alone;
}

void ErrorMonitor::flush() {
  Impl& m = *impl_;
  std::vector<std::string> lines;
  {
    const std::scoped_lock lock(m.mutex);
    const double now = m.options.clock();
    for (Place& p : m.places) m.close(p, now, lines);
  }
  for (const std::string& line : lines) m.options.report(line);
}

std::uint64_t ErrorMonitor::count(ErrorCode code) const {
  const std::scoped_lock lock(impl_->mutex);
  return impl_->counts[static_cast<std::size_t>(code)];
}

std::uint64_t ErrorMonitor::total() const {
  const std::scoped_lock lock(impl_->mutex);
  std::uint64_t sum = 0;
  for (const std::uint64_t n : impl_->counts) sum += n;
  return sum;
}

std::vector<ErrorPattern> ErrorMonitor::patterns() const {
  const std::scoped_lock lock(impl_->mutex);
  std::vector<ErrorPattern> all;
  for (const Place& p : impl_->places) all.push_back(p.pattern);
  std::stable_sort(all.begin(), all.end(),
                   [](const ErrorPattern& a, const ErrorPattern& b) { return a.count > b.count; });
  return all;
}

}  // namespace bitnet
