// The rules of recovery and the order in which they are asked; see recovery.hpp.
#include "bitnet/core/recovery.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <thread>

#include "bitnet/core/log.hpp"
#include "bitnet/core/rng.hpp"

namespace bitnet {
namespace {

bool is_out_of_memory(const Error& e) { return e.code() == ErrorCode::kOutOfMemory; }

bool is_of_the_device(const Error& e) {
  return e.code() == ErrorCode::kDevice || e.code() == ErrorCode::kUnsupported || is_out_of_memory(e);
}

void sleep_for(double seconds) { std::this_thread::sleep_for(std::chrono::duration<double>(seconds)); }

constexpr double kDay = 24 * 60 * 60;

std::uint64_t seed_of(const RetryOptions& o) {
  if (o.seed != 0) return o.seed;
  static std::atomic<std::uint64_t> serial{0};
  const auto now = static_cast<std::uint64_t>(std::chrono::system_clock::now().time_since_epoch().count());
  return now ^ static_cast<std::uint64_t>(getpid()) << 40 ^ serial.fetch_add(1) << 56;
}

void check(const RetryOptions& o) {
  const bool sane = o.limit >= 0 && o.first_delay >= 0 && o.factor >= 1 && o.longest_delay >= 0 &&
                    o.jitter >= 0 && o.jitter <= 1 && std::isfinite(o.first_delay) && o.longest_delay <= kDay;
  if (!sane) {
    throw Error(
        ErrorCode::kInvalidArgument,
        fmt::format("retry {} times from {} s by {} to {} s with jitter {}: expected a limit and delays "
                    "≥ 0, none longer than a day, a factor ≥ 1 and a jitter of 0 … 1",
                    o.limit, o.first_delay, o.factor, o.longest_delay, o.jitter));
  }
}

/// For what is said about a failure: where there is no memory for it, the rules are asked all the same.
template <class Body>
bool succeeds_with_memory(Body&& body) {
  try {
    body();
    return true;
  } catch (const std::bad_alloc&) {
    return false;
  }
}

}  // namespace

RecoveryRule retry(RetryOptions options) {
  check(options);
  RecoveryRule rule;
  rule.name = "retry";
  rule.routine = true;
  rule.per_run = options.limit;
  rule.applies = options.applies ? options.applies : [](const Error& e) { return e.is_transient(); };
  if (!options.sleep) options.sleep = sleep_for;
  rule.act = [rng = Rng(seed_of(options)), o = std::move(options)](const Error&, std::int64_t nth) mutable {
    const double whole =
        std::min(o.longest_delay, o.first_delay * std::pow(o.factor, static_cast<double>(nth - 1)));
    o.sleep(whole * (1 - o.jitter * rng.uniform()));
    return RecoveryStep::kAgain;
  };
  return rule;
}

RecoveryRule fall_back(std::function<bool(const Error&)> next) {
  RecoveryRule rule;
  rule.name = "fall back";
  rule.applies = is_of_the_device;
  rule.act = [next = std::move(next)](const Error& e, std::int64_t) {
    return next(e) ? RecoveryStep::kAgain : RecoveryStep::kPass;
  };
  return rule;
}

RecoveryRule shrink(std::int64_t& size, std::int64_t least) {
  if (least < 1)
    throw Error(ErrorCode::kInvalidArgument, fmt::format("shrinking down to {}: expected 1 or more", least));
  RecoveryRule rule;
  rule.name = "shrink";
  rule.applies = is_out_of_memory;
  rule.act = [&size, least](const Error&, std::int64_t) {
    if (size <= least) return RecoveryStep::kPass;
    size = std::max(least, size / 2 + size % 2);
    return RecoveryStep::kAgain;
  };
  return rule;
}

RecoveryRule drop_caches(std::function<std::size_t()> drop, std::int64_t limit) {
  RecoveryRule rule;
  rule.name = "drop caches";
  rule.per_run = limit;
  rule.applies = is_out_of_memory;
  rule.act = [drop = std::move(drop)](const Error&, std::int64_t) {
    return drop() > 0 ? RecoveryStep::kAgain : RecoveryStep::kPass;
  };
  return rule;
}

RecoveryRule skip_item(std::function<void(const Error&)> on_skip, std::int64_t limit) {
  RecoveryRule rule;
  rule.name = "skip";
  rule.routine = true;
  rule.in_total = limit;
  rule.act = [on_skip = std::move(on_skip)](const Error& e, std::int64_t) {
    if (on_skip) on_skip(e);
    return RecoveryStep::kSkip;
  };
  return rule;
}

Recovery::Recovery(std::vector<RecoveryRule> rules, ErrorMonitor* monitor,
                   std::function<void(const std::string&)> note)
    : rules_(std::move(rules)),
      totals_(rules_.size(), 0),
      spare_(rules_.size(), 0),
      monitor_(monitor),
      note_(std::move(note)) {
  for (const RecoveryRule& r : rules_)
    if (!r.act) throw Error(ErrorCode::kInvalidArgument, fmt::format("rule '{}' does nothing", r.name));
}

/// A place for each rule; where memory for them is refused, those kept for that.
void Recovery::begin(std::vector<std::int64_t>& tried) {
  if (tried.size() == rules_.size()) return;
  const auto fill = [this](std::vector<std::int64_t>& times) {
    return succeeds_with_memory([&] { times.assign(rules_.size(), 0); });
  };
  if (fill(tried)) {
    fill(spare_);  // again, if it was taken
    return;
  }
  if (spare_.size() != rules_.size()) throw std::bad_alloc();
  tried = std::exchange(spare_, {});
}

RecoveryStep Recovery::decide(std::string_view doing, const Error& error,
                              std::vector<std::int64_t>& tried) try {
  begin(tried);
  bool alone = true;
  if (monitor_ != nullptr) succeeds_with_memory([&] { alone = monitor_->record(error); });
  const Severity severity = error.severity();
  const bool hopeless = severity == Severity::kNotice || severity == Severity::kFatal;
  for (std::size_t i = 0; i < rules_.size() && !hopeless; ++i) {
    const RecoveryRule& r = rules_[i];
    if (tried[i] >= r.per_run || totals_[i] >= r.in_total || (r.applies && !r.applies(error))) continue;
    const RecoveryStep step = r.act(error, tried[i] + 1);
    if (step == RecoveryStep::kPass) continue;
    ++tried[i];
    ++totals_[i];
    if (note_ && (alone || !r.routine)) {
      succeeds_with_memory([&] {
        const std::string step_text = fmt::format("{}: {} ({})", doing, r.name, tried[i]);
        note_(alone ? fmt::format("{}: {}", step_text, error.what())
                    : step_text);  // the monitor tells the rest
      });
    }
    return step;
  }
  std::string context(doing);
  std::string separator = " (after ";
  for (std::size_t i = 0; i < rules_.size(); ++i) {
    if (tried[i] == 0) continue;
    context += fmt::format("{}{} × {}", std::exchange(separator, ", "), rules_[i].name, tried[i]);
  }
  if (separator == ", ") context += ')';
  Error last = error;
  last.add_context(context);
  throw last;
} catch (const std::bad_alloc&) {
  throw_out_of_memory(doing);
} catch (const std::length_error&) {
  throw_out_of_memory(doing);
}

std::int64_t Recovery::times(std::string_view rule) const noexcept {
  std::int64_t sum = 0;
  for (std::size_t i = 0; i < rules_.size(); ++i)
    if (rules_[i].name == rule) sum += totals_[i];
  return sum;
}

void retry_io(std::string_view doing, const std::function<void()>& body) {
  RetryOptions options;
  options.factor = 4;
  const auto warn = [](const std::string& line) { log(LogLevel::kWarning, line); };
  Recovery recovery({retry(options)}, nullptr, warn);
  std::vector<std::int64_t> tried;
  while (true) {
    std::optional<Error> error;
    try {
      return body();
    } catch (const Error& e) {
      if (e.code() != ErrorCode::kIo) throw;
      error = e;
    }
    recovery.decide(doing, *error, tried);
  }
}

}  // namespace bitnet
