#pragma once
// Errors for where there may be no memory left to say what is wrong: none of these functions throws. Text
// that cannot be had is replaced by a short one, which lies in the string itself.
#include <new>
#include <stdexcept>

#include "bitnet/core/error.hpp"

namespace bitnet::inference {

/// Takes no memory.
inline Error out_of_memory() noexcept { return {ErrorCode::kOutOfMemory, "out of memory"}; }

/// What `make` returns, an Error, or out_of_memory() where there is none for its text.
template <class Make>
Error error_or_short(Make&& make) noexcept {
  try {
    return make();
  } catch (const std::exception&) {
    return out_of_memory();
  }
}

inline Error copy_of(const Error& error) noexcept {
  return error_or_short([&] { return error; });
}

/// Of the exception that is being handled; one that is neither an Error nor about memory is kInternal.
inline Error current_error() noexcept {
  return error_or_short([]() -> Error {
    try {
      throw;
    } catch (const Error& e) {
      return e;
    } catch (const std::bad_alloc&) {
      return out_of_memory();
    } catch (const std::length_error&) {
      return out_of_memory();
    } catch (const std::exception& e) {
      return {ErrorCode::kInternal, e.what()};
    }
  });
}

}  // namespace bitnet::inference
