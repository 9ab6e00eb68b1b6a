#pragma once
// Asking long work of this library to stop. Nothing but a flag that the caller sets.
#include <atomic>

#include "bitnet/core/error.hpp"

namespace bitnet::quant {

/// Set by somebody else, from another thread or a signal handler, and looked at between steps of long work,
/// which then ends with Error(kCancelled); null: never. Must outlive the work.
using CancelFlag = const std::atomic<bool>*;

/// Throws Error(kCancelled) once the flag is set. Thread-safe.
inline void throw_if_cancelled(CancelFlag flag) {
  if (flag != nullptr && flag->load(std::memory_order_relaxed))
    throw Error(ErrorCode::kCancelled, "quantising was cancelled");
}

}  // namespace bitnet::quant
