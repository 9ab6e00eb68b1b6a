// Diagnostics: one sink for the process, spdlog on standard error unless the application sets its own.
#include "bitnet/core/log.hpp"

#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <atomic>
#include <memory>
#include <mutex>
#include <utility>

#include "bitnet/core/env.hpp"
#include "bitnet/core/error.hpp"

namespace bitnet {
namespace {

/// A context has refused a wrong name; who logs without one gets the default.
LogLevel initial_level() noexcept {
  try {
    return log_level_from_env();
  } catch (...) {
    return LogLevel::kWarning;
  }
}

/// Level, sink and the default logger; made at first use, so there is no static initialiser.
struct State {
  std::atomic<LogLevel> level = initial_level();
  std::mutex mutex;
  std::shared_ptr<const LogSink> sink;
  spdlog::logger fallback{"bitnet", std::make_shared<spdlog::sinks::stderr_sink_mt>()};
  State() { fallback.set_pattern("%l: %v"); }
};

State& state() {
  static State s;
  return s;
}

}  // namespace

LogLevel log_level_from_env() {
  const auto name = env("BITNET_LOG");
  if (!name || *name == "warning") return LogLevel::kWarning;
  if (*name == "off") return LogLevel::kOff;
  throw Error(ErrorCode::kInvalidArgument, "BITNET_LOG='" + *name + "': expected warning or off");
}

void log(LogLevel level, std::string_view message) {
  State& s = state();
  if (level < s.level.load(std::memory_order_relaxed)) return;
  std::shared_ptr<const LogSink> sink;
  {
    const std::scoped_lock lock(s.mutex);
    sink = s.sink;
  }
  if (sink) {
    (*sink)(level, message);
  } else {
    s.fallback.warn(spdlog::string_view_t(message.data(), message.size()));
  }
}

void set_log_sink(LogSink sink) {
  State& s = state();
  const std::scoped_lock lock(s.mutex);
  s.sink = sink ? std::make_shared<const LogSink>(std::move(sink)) : nullptr;
}

void set_log_level(LogLevel level) noexcept { state().level.store(level, std::memory_order_relaxed); }

}  // namespace bitnet
