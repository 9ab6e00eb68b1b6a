// What register_backends() puts into the registry, with drivers and without, and what happens to bad build
// options.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <regex>

#include "bitnet/core/execution.hpp"
#include "bitnet/gpu/peaks.hpp"
#include "bitnet/gpu/register.hpp"
#include "bitnet/testing/opencl.hpp"
#include "bitnet/testing/testing.hpp"

namespace bitnet {
namespace {

std::shared_ptr<const ExecutionContext> one_thread() {
  return std::make_shared<const ExecutionContext>(ExecutionContext::Options{.threads = 1, .isa = {}});
}

class Register : public ::testing::Test {
 protected:
  void SetUp() override {
    gpu::register_backends(registry);
    BITNET_REQUIRE_OPENCL_DEVICE(!registry.devices().empty());
  }
  BackendRegistry registry;
};

TEST_F(Register, NamesAndDescribesEveryDevice) {
  const std::regex form("opencl:[0-9]+:[0-9]+");
  for (const Device& d : registry.devices()) {
    EXPECT_TRUE(std::regex_match(d.name, form)) << d.name;
    EXPECT_FALSE(d.description.empty());
    EXPECT_GT(d.memory_bytes, 0u);
    EXPECT_EQ(d.emulated, d.kind == DeviceKind::kCpu) << d.name;
  }
}

TEST_F(Register, TellsWhatTheDriverSays) {
  for (const Device& d : registry.devices()) {
    const DeviceCapabilities& c = d.capabilities;
    EXPECT_TRUE(c.isas.empty()) << d.name;
    EXPECT_GT(c.compute_units, 0) << d.name;
    EXPECT_GT(c.local_bytes, 0u) << d.name;
    EXPECT_GT(c.work_group_items, 0u) << d.name;
    // At least so much, say OpenCL 1.2 (a quarter) and 2.0 (a quarter, or 1 GiB where that is less).
    constexpr std::size_t kGiB = std::size_t{1} << 30;
    EXPECT_GE(c.allocation_bytes, std::min(d.memory_bytes / 4, kGiB)) << d.name;
    EXPECT_LE(c.allocation_bytes, d.memory_bytes) << d.name;
    EXPECT_THAT(d.description, ::testing::HasSubstr(c.vendor));
    EXPECT_THAT(c.driver, ::testing::HasSubstr("OpenCL "));
    EXPECT_FALSE(c.features.empty()) << d.name;
    EXPECT_FALSE(c.gigabytes_per_second.has_value());  // no driver tells
  }
}

TEST_F(Register, MeasuresHowFastEveryDeviceReads) {
  EXPECT_THAT(registry.measure_bandwidth(one_thread()), ::testing::IsEmpty());
  for (const Device& d : registry.devices()) {
    const double figure = d.capabilities.gigabytes_per_second.value_or(0);
    EXPECT_GT(figure, 0) << d.name;
    EXPECT_LT(figure, 1e6) << d.name;  // more than any memory: the reads were left out
  }
}

// A copy reads and writes: reading alone cannot be slower than that, on any kernel that is worth its name.
// Machines change their speed between two measurements, so one of some tries has to show it.
TEST_F(Register, ReadsAtLeastHalfAsFastAsItCopies) {
  for (const Device& d : registry.devices()) {
    double read = 0, copied = 0;
    for (int i = 0; i < 5 && read <= copied / 2; ++i) {
      copied = gpu::measure_peaks(d.name).copy_gbps;
      read = registry.create(d.name, one_thread())->measure_bandwidth().value_or(0);
    }
    EXPECT_GT(read, copied / 2) << d.name;
  }
}

TEST_F(Register, CreatesWhatItListed) {
  for (const Device& d : registry.devices()) {
    const auto backend = registry.create(d.name, one_thread());
    EXPECT_EQ(backend->name(), d.name);
    EXPECT_THAT(backend->description(), ::testing::StartsWith(d.description + "; sizes of work-groups: "));
    EXPECT_LE(backend->available_memory(), d.memory_bytes);
    EXPECT_TRUE(backend->supports(BackendOp::kLinear));
    EXPECT_TRUE(backend->supports(BackendOp::kAttention));
  }
}

TEST_F(Register, UnknownDeviceListsTheKnownOnes) {
  BITNET_EXPECT_ERROR(registry.create("opencl:99:7", one_thread()), ErrorCode::kNotFound,
                      registry.devices()[0].name);
}

TEST_F(Register, AutoNeverTakesAnEmulatedDevice) {
  registry.add(Device{.name = "cpu", .kind = DeviceKind::kCpu, .description = "stand-in", .memory_bytes = 1},
               [](std::shared_ptr<const ExecutionContext>) -> std::unique_ptr<Backend> { return nullptr; });
  EXPECT_FALSE(registry.select("auto").device.emulated);
  EXPECT_FALSE(registry.select("auto").reason.empty());
}

TEST_F(Register, BrokenBuildIsADeviceErrorWithTheLog) {
  BackendRegistry broken;
  gpu::Options options;
  options.build_options = "-DBN_ROWS_WG=not_a_number_at_all";
  gpu::register_backends(broken, options);
  const std::string name = registry.devices()[0].name;
  BITNET_EXPECT_ERROR(broken.create(name, one_thread()), ErrorCode::kDevice, "not_a_number_at_all");
  BITNET_EXPECT_ERROR(broken.create(name, one_thread()), ErrorCode::kDevice, name);
}

TEST_F(Register, AnOpWhoseKernelDoesNotBuildNamesTheDevice) {
  BackendRegistry broken;
  gpu::Options options;
  options.build_options = "-DBN_ATTENTION_WG=no_number";  // of kernels that no construction builds
  options.kernels.wide = false;
  gpu::register_backends(broken, options);
  const std::string name = registry.devices()[0].name;
  const auto backend = broken.create(name, one_thread());
  const BufferPtr memory = backend->allocate(4096);
  const Matrix row{memory.get(), 0, 1, 16};
  const std::vector<std::int32_t> pages{0};
  const std::vector<SequenceSlice> sequence{{0, 1, 0, pages}};
  const AttentionArgs args{row,      row, row, row, {memory.get(), memory.get(), 1, 4, DType::kF32},
                           sequence, 1,   1,   16};
  BITNET_EXPECT_ERROR(backend->attention(args), ErrorCode::kDevice, "no_number");
  BITNET_EXPECT_ERROR(backend->attention(args), ErrorCode::kDevice, name + ": program ");
}

TEST(NoDriver, IsANoteAndNoDevices) {
  if (std::getenv("BITNET_TEST_NO_DRIVER") == nullptr)
    GTEST_SKIP() << "runs where the loader finds no driver";
  BackendRegistry registry;
  gpu::register_backends(registry);
  EXPECT_TRUE(registry.devices().empty());
  ASSERT_EQ(registry.notes().size(), 1u);
  EXPECT_THAT(registry.notes()[0], ::testing::HasSubstr("no OpenCL platform"));
  BITNET_EXPECT_ERROR(registry.create("opencl:0:0", one_thread()), ErrorCode::kNotFound, "opencl:0:0");
}

}  // namespace
}  // namespace bitnet
