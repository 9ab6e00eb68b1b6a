#pragma once
// What BitLinear and Int8Linear share on the neutral side of the kernels: when work is worth a thread, and
// checks.
#include <fmt/format.h>

#include <cstdint>
#include <string>
#include <string_view>

#include "bitnet/core/error.hpp"

namespace bitnet::quant {

/// Multiply-adds that are worth a second thread: with ternary weights some 1.5 µs of one core, several times
/// a hand-over; with int8 ones, which are four to five times as many bytes, more.
inline constexpr std::int64_t kWorkPerThread = 300'000;

constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

/// Throws Error(kInvalidArgument) "`what`: `message`" unless `ok`; the message is put together only then, so
/// that a check costs and allocates nothing.
template <class... Args>
void check_argument(std::string_view what, bool ok, std::string_view message, const Args&... args) {
  if (!ok)
    throw Error(ErrorCode::kInvalidArgument,
                std::string(what) + ": " + fmt::vformat(message, fmt::make_format_args(args...)));
}

}  // namespace bitnet::quant
