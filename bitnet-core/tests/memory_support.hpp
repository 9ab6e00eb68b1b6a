#pragma once
// What the tests of the memory pool share: options, and an expectation of an Error's code and words.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "bitnet/core/error.hpp"
#include "bitnet/core/memory/hybrid_memory_pool.hpp"

namespace bitnet {

inline constexpr std::size_t kKiB = 1024, kMiB = 1024 * kKiB;

/// Runs `body`, which must throw an Error of this code that says all of this.
template <class Body>
void expect_error(ErrorCode code, const std::vector<std::string>& says, Body&& body) {
  try {
    body();
    ADD_FAILURE() << "no error";
  } catch (const Error& e) {
    EXPECT_EQ(to_string(e.code()), to_string(code));
    for (const std::string& part : says) EXPECT_THAT(e.what(), testing::HasSubstr(part));
  }
}

inline MemoryPoolOptions unchecked() {
  MemoryPoolOptions options;
  options.name = "test";
  options.check_blocks = false;
  return options;
}

inline MemoryPoolOptions with_limit(std::size_t limit) {
  MemoryPoolOptions options = unchecked();
  options.limit = limit;
  return options;
}

inline MemoryPoolOptions checked_blocks() {
  MemoryPoolOptions options = unchecked();
  options.check_blocks = true;
  return options;
}

}  // namespace bitnet
