// The bandwidth probe, the machine's name, and the statistics that probes and benchmarks share. No test looks
// at how fast anything is.
#include <cmath>

#include "bitnet/core/device/bandwidth.hpp"
#include "bitnet/core/io/atomic_file.hpp"
#include "bitnet/core/machine.hpp"
#include "bitnet/core/statistics.hpp"
#include "bitnet/testing/testing.hpp"

namespace bitnet {
namespace {

std::shared_ptr<const ExecutionContext> make_context(std::size_t threads) {
  ExecutionContext::Options options;
  options.threads = threads;
  return std::make_shared<const ExecutionContext>(options);
}

TEST(BandwidthProbe, GivesARateAndTheLoopThatReachedIt) {
  for (const std::size_t threads : {1, 2, 3}) {
    BandwidthProbe probe(make_context(threads), 100'001);
    EXPECT_GE(probe.bytes(), 100'001u);
    EXPECT_EQ(probe.gigabytes_per_second(), 0);
    EXPECT_EQ(probe.best_loop(), "");
    probe.sample();
    EXPECT_GT(probe.gigabytes_per_second(), 0);
    EXPECT_TRUE(std::isfinite(probe.gigabytes_per_second()));
    EXPECT_NE(probe.best_loop(), "");
  }
}

TEST(BandwidthProbe, RefusesNothingAndMoreThanThereIs) {
  BITNET_EXPECT_ERROR(BandwidthProbe(make_context(1), 0), ErrorCode::kInvalidArgument, "0 bytes");
  BITNET_EXPECT_ERROR(BandwidthProbe(make_context(1), SIZE_MAX), ErrorCode::kOutOfMemory, "out of memory");
  BITNET_EXPECT_ERROR(BandwidthProbe(make_context(1), std::size_t{1} << 60), ErrorCode::kOutOfMemory,
                      "memory pool 'host': asked for 1152921504606846976 bytes (bandwidth probe)");
}

TEST(CpuName, ReadsWhatKernelsWrite) {
  const testing::TempDir dir;
  write_file(dir / "x86",
             "processor\t: 0\nmodel name\t: One CPU @ 2: GHz\nflags\t\t: fpu\n\nprocessor\t: 1\n"
             "model name\t: Another\n");
  EXPECT_EQ(cpu_name(dir / "x86"), "One CPU @ 2: GHz");
  write_file(dir / "arm", "processor\t: 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd49\n");
  EXPECT_EQ(cpu_name(dir / "arm"), "CPU implementer 0x41, part 0xd49");
  write_file(dir / "odd", ":\n: x\nno colon\nmodel name\t:\n");
  EXPECT_EQ(cpu_name(dir / "odd"), "unknown");
  EXPECT_EQ(cpu_name(dir / "none"), "unknown");
  EXPECT_FALSE(cpu_name().empty());
}

TEST(Statistics, AreWhatTheySay) {
  const double even[] = {4, 1, 3, 2}, odd[] = {9, 1, 2};
  EXPECT_EQ(mean(even), 2.5);
  EXPECT_DOUBLE_EQ(standard_deviation(even), std::sqrt(5.0 / 3));
  EXPECT_EQ(median(even), 2.5);
  EXPECT_EQ(median(odd), 2);
  EXPECT_EQ(mean({}), 0);
  EXPECT_EQ(median({}), 0);
  EXPECT_EQ(standard_deviation({}), 0);
  EXPECT_EQ(standard_deviation({odd, 1}), 0);
}

TEST(Statistics, RefuseWhatIsNoNumber) {
  const double values[] = {1, std::nan(""), 3};
  BITNET_EXPECT_ERROR((void)median(values), ErrorCode::kInvalidArgument,
                      "median of 3 values: value 1 is NaN, numbers wanted");
  BITNET_EXPECT_ERROR((void)mean(values), ErrorCode::kInvalidArgument, "mean of 3 values: value 1");
  BITNET_EXPECT_ERROR((void)standard_deviation(values), ErrorCode::kInvalidArgument, "value 1 is NaN");
}

}  // namespace
}  // namespace bitnet
