#pragma once
// What may be done about an Error, as rules with limits that a caller puts together: retry, fall back,
// shrink, drop caches, skip. Counting and reporting Errors is error_monitor.hpp. A policy belongs to the
// outermost caller that can repeat the work; libraries throw.
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "bitnet/core/error.hpp"
#include "bitnet/core/error_monitor.hpp"

namespace bitnet {

/// What a rule decided: nothing (the next rule is asked), do the work again, or leave it out.
enum class RecoveryStep : std::uint8_t { kPass, kAgain, kSkip };

/// One way to recover. Rules are asked in order.
struct RecoveryRule {
  static constexpr std::int64_t kNoLimit = std::numeric_limits<std::int64_t>::max();

  std::string name;  ///< for reports: "retry"
  /// Which Errors it is for; empty: all that are no kNotice and no kFatal, which no rule ever sees.
  std::function<bool(const Error&)> applies = {};
  /// `nth`: 1 for the first time within one run(). May throw: that Error then leaves run().
  std::function<RecoveryStep(const Error&, std::int64_t nth)> act = {};
  std::int64_t per_run = kNoLimit;   ///< times within one run()
  std::int64_t in_total = kNoLimit;  ///< times altogether
  /// Its steps change nothing for what comes after (a retry does not, a smaller batch does): they are not
  /// noted while the monitor reports many equal Errors as one.
  bool routine = false;
};

struct RetryOptions {
  std::int64_t limit = 3;     ///< times within one run()
  double first_delay = 0.05;  ///< seconds
  double factor = 2;          ///< from one delay to the next
  double longest_delay = 5;   ///< seconds; at most a day
  double jitter = 0.5;        ///< 0 … 1: a delay is shortened by up to this share of it, at random
  std::uint64_t seed = 0;     ///< of that; 0: another one for every rule, so that processes do not wait alike
  std::function<bool(const Error&)> applies = {};  ///< empty: Error::is_transient()
  std::function<void(double seconds)> sleep = {};  ///< empty: this thread sleeps
};
/// Waits, then lets the work be done again; routine. Copies of the rule are independent of each other. Throws
/// Error(kInvalidArgument) on options out of range.
RecoveryRule retry(RetryOptions options = {});

/// Asks `next` to go over to another device (it returns false when there is none left) after kDevice,
/// kUnsupported and kOutOfMemory.
RecoveryRule fall_back(std::function<bool(const Error&)> next);

/// Halves `size` (rounded up) down to `least` after kOutOfMemory. `size` must live as long as the rule.
/// Throws Error(kInvalidArgument) if least < 1.
RecoveryRule shrink(std::int64_t& size, std::int64_t least = 1);

/// After kOutOfMemory calls `drop`, which returns the bytes that it gave back; again only if there were any.
RecoveryRule drop_caches(std::function<std::size_t()> drop, std::int64_t limit = 2);

/// Leaves the work out, at most `limit` times altogether; routine. `on_skip` (may be empty) is told why.
RecoveryRule skip_item(std::function<void(const Error&)> on_skip = {},
                       std::int64_t limit = RecoveryRule::kNoLimit);

/// A list of rules and what they have done so far. Not thread-safe.
class Recovery {
 public:
  /// `monitor` (may be null, not owned) records every Error that run() sees; `note` (may be empty) gets a
  /// line for each step: "reading 'x': retry (1): input/output error …". Of routine steps after many equal
  /// Errors the monitor's report takes the place of these lines.
  explicit Recovery(std::vector<RecoveryRule> rules, ErrorMonitor* monitor = nullptr,
                    std::function<void(const std::string&)> note = {});

  /// Calls `body()` until it returns without an Error (true), a rule skips it (false), or no rule helps: the
  /// Error is rethrown, with `doing` and what was tried as context. std::bad_alloc and std::length_error
  /// count as Error(kOutOfMemory), and leave as that where a rule throws them or the last Error cannot be
  /// told; what there is no memory to record or to note is left unsaid, the rules are asked. `body` must be
  /// able to begin anew: what a failed call did must not count twice.
  template <class Body>
  [[nodiscard]] bool run(std::string_view doing, Body&& body) {
    std::vector<std::int64_t> tried;
    while (true) {
      std::optional<Error> error;
      try {
        body();
        return true;
      } catch (Error& e) {
        error = std::move(e);
      } catch (const std::bad_alloc&) {
        error.emplace(ErrorCode::kOutOfMemory, "out of memory");
      } catch (const std::length_error&) {
        error.emplace(ErrorCode::kOutOfMemory, "out of memory");
      }
      if (decide(doing, *error, tried) == RecoveryStep::kSkip) return false;
    }
  }

  /// For work that is no single call: asks the rules about `error` as run() would, `tried` being the times
  /// of this piece of work (empty at its beginning). Returns kAgain or kSkip, or throws.
  RecoveryStep decide(std::string_view doing, const Error& error, std::vector<std::int64_t>& tried);

  /// How often the rule with this name acted altogether; 0 for an unknown one.
  std::int64_t times(std::string_view rule) const noexcept;

 private:
  void begin(std::vector<std::int64_t>& tried);

  std::vector<RecoveryRule> rules_;
  std::vector<std::int64_t> totals_;
  std::vector<std::int64_t> spare_;  // becomes a run's `tried` where memory for one is refused
  ErrorMonitor* monitor_;
  std::function<void(const std::string&)> note_;
};

/// Calls `body()`, and again up to three times, after growing delays (a second in all), while it throws
/// Error(kIo): for reading or writing a file that one hiccup of its storage should not cost the run. Each
/// retry is a warning of the log; the last Error leaves with `doing` and the number of retries as context,
/// any other exception as it is. `body` must be able to begin anew, as a file that is written aside and
/// renamed does.
void retry_io(std::string_view doing, const std::function<void()>& body);

}  // namespace bitnet
