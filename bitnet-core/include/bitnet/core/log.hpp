#pragma once
// Diagnostics of the libraries: warnings, since what fails is an Error. They never print to standard output;
// by default they go to standard error, and an application may take them with set_log_sink().
#include <cstdint>
#include <functional>
#include <string_view>

namespace bitnet {

/// kOff is no level of a message: set_log_level(kOff) drops them all.
enum class LogLevel : std::uint8_t { kWarning, kOff };

using LogSink = std::function<void(LogLevel, std::string_view message)>;

/// Sends `message` to the sink if `level` is at least the current level. Thread-safe.
void log(LogLevel level, std::string_view message);

/// Replaces the sink; an empty one restores the default (standard error). Thread-safe.
void set_log_sink(LogSink sink);

/// Messages below `level` are dropped; the default is what BITNET_LOG says. Thread-safe.
void set_log_level(LogLevel level) noexcept;

/// What BITNET_LOG asks for ("warning", the default, or "off"). Throws Error(kInvalidArgument) on another
/// name; so does making an ExecutionContext.
LogLevel log_level_from_env();

}  // namespace bitnet
