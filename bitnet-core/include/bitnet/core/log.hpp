#pragma once
// Diagnostics of the libraries. They never print to standard output; by default messages of level kWarning
// and above go to standard error, and an application may take them all with set_log_sink().
#include <cstdint>
#include <functional>
#include <string_view>

namespace bitnet {

enum class LogLevel : std::uint8_t { kDebug, kInfo, kWarning, kError };

using LogSink = std::function<void(LogLevel, std::string_view message)>;

/// Sends `message` to the sink if `level` is at least the current level. Thread-safe.
void log(LogLevel level, std::string_view message);

/// Replaces the sink; an empty one restores the default (standard error). Thread-safe.
void set_log_sink(LogSink sink);

/// Messages below `level` are dropped; the default is kWarning. Thread-safe.
void set_log_level(LogLevel level) noexcept;

}  // namespace bitnet
