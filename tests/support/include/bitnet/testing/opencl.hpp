#pragma once
// What a test does on a machine without an OpenCL device.
#include <cstdlib>

#include "gtest/gtest.h"

/// Skips the test where `has_device` is false; fails it there when BITNET_REQUIRE_OPENCL is set, as
/// scripts/test.sh sets it, which installs a device: a broken driver must not pass as a skip.
#define BITNET_REQUIRE_OPENCL_DEVICE(has_device)                                       \
  if (!(has_device)) {                                                                 \
    if (std::getenv("BITNET_REQUIRE_OPENCL") != nullptr) FAIL() << "no OpenCL device"; \
    GTEST_SKIP() << "no OpenCL device";                                                \
  }                                                                                    \
  static_assert(true)
