// What a device reaches at most (gpu::measure_peaks()) and how fast it reads: figures that can be, from
// kernels of both forms, within the memory that they are allowed. The simulator runs them, too
// (tests/oclgrind).
#include <gtest/gtest.h>

#include "bitnet/core/execution.hpp"
#include "bitnet/gpu/peaks.hpp"
#include "bitnet/gpu/register.hpp"
#include "bitnet/testing/opencl.hpp"
#include "bitnet/testing/testing.hpp"

namespace bitnet {
namespace {

class Probes : public ::testing::TestWithParam<bool> {
 protected:
  void SetUp() override {
    options_.kernels.wide = GetParam();
    gpu::register_backends(registry_, options_);
    BITNET_REQUIRE_OPENCL_DEVICE(!registry_.devices().empty());
    name_ = registry_.devices()[0].name;
  }
  gpu::Options options_;
  BackendRegistry registry_;
  std::string name_;
};

void expect_figures(const gpu::DevicePeaks& peaks) {
  for (const double figure : {peaks.copy_gbps, peaks.int8_gops, peaks.enqueue_seconds, peaks.launch_seconds})
    EXPECT_GT(figure, 0);
  EXPECT_LT(peaks.copy_gbps, 1e6);  // more than any memory: nothing was copied
  EXPECT_LT(peaks.int8_gops, 1e8);  // the compiler has left the work out
  EXPECT_LE(peaks.enqueue_seconds, peaks.launch_seconds);
}

TEST_P(Probes, MeasurePeaks) {
  expect_figures(gpu::measure_peaks(name_, options_));
  BITNET_EXPECT_ERROR(gpu::measure_peaks("opencl:99:0"), ErrorCode::kNotFound, "'opencl:99:0'");
}

TEST_P(Probes, KeepWithinALimitOfMemory) {
  constexpr std::size_t kLimit = std::size_t{3} << 20;
  options_.memory_limit = kLimit;
  expect_figures(gpu::measure_peaks(name_, options_));
  BackendRegistry limited;
  gpu::register_backends(limited, options_);
  const auto backend = limited.create(name_, std::make_shared<const ExecutionContext>());
  EXPECT_GT(backend->measure_bandwidth().value_or(0), 0);
  const MemoryStats stats = backend->memory()->stats();
  EXPECT_GE(stats.peak_used, std::size_t{1} << 20);  // or it is no memory's rate
  EXPECT_LE(stats.peak_held, kLimit);
  EXPECT_EQ(stats.used, 0u);
  options_.memory_limit = std::size_t{1} << 19;
  BITNET_EXPECT_ERROR(gpu::measure_peaks(name_, options_), ErrorCode::kOutOfMemory, name_);
}

INSTANTIATE_TEST_SUITE_P(Kernels, Probes, ::testing::Bool(),
                         [](const auto& each) { return std::string(each.param ? "wide" : "in_groups"); });

}  // namespace
}  // namespace bitnet
