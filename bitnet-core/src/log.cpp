// Diagnostics: one sink for the process, spdlog on standard error unless the application sets its own.
#include "bitnet/core/log.hpp"

#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <atomic>
#include <memory>
#include <mutex>
#include <utility>

#include "bitnet/core/env.hpp"

namespace bitnet {
namespace {

spdlog::level::level_enum to_spdlog(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return spdlog::level::debug;
    case LogLevel::kInfo:
      return spdlog::level::info;
    case LogLevel::kWarning:
      return spdlog::level::warn;
    case LogLevel::kError:
      return spdlog::level::err;
  }
  return spdlog::level::err;
}

LogLevel initial_level() {
  const auto name = env("BITNET_LOG");
  if (name == "debug") return LogLevel::kDebug;
  if (name == "info") return LogLevel::kInfo;
  if (name == "error") return LogLevel::kError;
  return LogLevel::kWarning;
}

/// Level, sink and the default logger; made at first use, so there is no static initialiser.
struct State {
  std::atomic<LogLevel> level = initial_level();
  std::mutex mutex;
  std::shared_ptr<const LogSink> sink;
  spdlog::logger fallback{"bitnet", std::make_shared<spdlog::sinks::stderr_sink_mt>()};
  State() {
    fallback.set_pattern("%l: %v");
    fallback.set_level(spdlog::level::debug);
  }
};

State& state() {
  static State s;
  return s;
}

}  // namespace

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
    s.fallback.log(to_spdlog(level), spdlog::string_view_t(message.data(), message.size()));
  }
}

void set_log_sink(LogSink sink) {
  State& s = state();
  const std::scoped_lock lock(s.mutex);
  s.sink = sink ? std::make_shared<const LogSink>(std::move(sink)) : nullptr;
}

void set_log_level(LogLevel level) noexcept { state().level.store(level, std::memory_order_relaxed); }

}  // namespace bitnet
