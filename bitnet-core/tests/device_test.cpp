// Choosing devices by policy with a reason, falling back only for `auto`, and what is known of the CPU.
#include "bitnet/core/device/device.hpp"

#include <fstream>

#include "bitnet/core/device/registry.hpp"
#include "bitnet/testing/testing.hpp"

namespace bitnet {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

Device device(std::string name, DeviceKind kind, std::size_t gib, std::int64_t units = 0, double clock = 0,
              std::optional<double> bandwidth = {}) {
  Device d;
  d.name = std::move(name);
  d.kind = kind;
  d.memory_bytes = gib << 30;
  d.capabilities.compute_units = units;
  d.capabilities.clock_mhz = clock;
  d.capabilities.bandwidth = bandwidth;
  return d;
}

std::vector<Device> machine() {
  return {device("cpu", DeviceKind::kCpu, 128, 16, 3000, 80.0),
          device("big", DeviceKind::kGpu, 80, 50, 1000, 900.0),
          device("fast", DeviceKind::kGpu, 24, 100, 2000, 1000.0)};
}

Selection select(const std::vector<Device>& devices, DevicePolicy policy, std::size_t needed_gib = 0) {
  return select_device(devices, {.policy = policy, .needed_bytes = needed_gib << 30});
}

TEST(SelectDevice, ThePolicyDecidesAndSaysWhy) {
  const auto all = machine();
  const Selection latency = select(all, DevicePolicy::kLatency);
  EXPECT_EQ(latency.reason, "fast: the device that reads memory fastest (policy latency)");
  EXPECT_THAT(latency.alternatives, ElementsAre("big", "cpu"));
  EXPECT_EQ(select(all, DevicePolicy::kThroughput).reason,
            "fast: the device with the most compute units × clock (policy throughput)");
  const Selection memory = select(all, DevicePolicy::kMemory);
  EXPECT_EQ(memory.reason, "cpu: the device with the most memory (policy memory)");
  EXPECT_THAT(memory.alternatives, ElementsAre("big", "fast"));
}

TEST(SelectDevice, WhatIsNotKnownOfBothIsNotCompared) {
  auto all = machine();
  all[2].capabilities.bandwidth.reset();
  all[2].capabilities.compute_units = 10;
  EXPECT_EQ(select(all, DevicePolicy::kLatency).device.name, "big");  // 50 × 1000 before 10 × 2000
  all[2].capabilities.compute_units = 0;
  EXPECT_EQ(select(all, DevicePolicy::kThroughput).reason,
            "big: the device with the most memory (policy throughput)");
  all[2].memory_bytes = all[1].memory_bytes;
  EXPECT_EQ(select(all, DevicePolicy::kLatency).reason, "big: the first of its kind (policy latency)");
}

TEST(SelectDevice, PassesOverWhatIsTooSmallOrEmulated) {
  auto all = machine();
  const Selection large = select(all, DevicePolicy::kLatency, 40);
  EXPECT_EQ(large.device.name, "big");
  EXPECT_THAT(large.reason, HasSubstr("; 40.0 GiB are needed and fast has 24.0 GiB"));
  EXPECT_THAT(select(all, DevicePolicy::kLatency, 100).reason,
              HasSubstr("cpu: the only one with enough memory"));
  BITNET_EXPECT_ERROR(select(all, DevicePolicy::kMemory, 200), ErrorCode::kNotFound,
                      "200.0 GiB are needed and cpu has 128.0 GiB, big has 80.0 GiB, fast has 24.0 GiB");
  all[1].emulated = all[2].emulated = true;
  EXPECT_EQ(select(all, DevicePolicy::kThroughput).reason, "cpu: the other devices run on this CPU too");
  EXPECT_THAT(select(all, DevicePolicy::kThroughput).alternatives, IsEmpty());
  BITNET_EXPECT_ERROR(select_device({}), ErrorCode::kNotFound, "no device for 'auto'");
}

TEST(SelectDevice, FreeMemoryCountsWhereItIsKnown) {
  auto all = machine();
  all[0].capabilities.available_bytes = std::size_t{70} << 30;
  EXPECT_EQ(select(all, DevicePolicy::kMemory).device.name, "big");
  EXPECT_THAT(select(all, DevicePolicy::kMemory, 75).reason, HasSubstr("cpu has 70.0 GiB"));
}

TEST(SelectDevice, ANameIsThatDeviceOrAnError) {
  auto all = machine();
  all[1].emulated = true;
  const Selection s = select_device(all, {.name = "big", .needed_bytes = std::size_t{1} << 50});
  EXPECT_EQ(s.reason, "big: asked for by name");
  EXPECT_THAT(s.alternatives, IsEmpty());
  BITNET_EXPECT_ERROR(select_device(all, {.name = "tpu"}), ErrorCode::kNotFound,
                      "no device 'tpu' (there are: cpu, big, fast, auto)");
}

TEST(SelectDevice, PoliciesHaveNames) {
  for (const auto p : {DevicePolicy::kLatency, DevicePolicy::kThroughput, DevicePolicy::kMemory})
    EXPECT_EQ(device_policy_from_name(to_string(p)), p);
  BITNET_EXPECT_ERROR(device_policy_from_name("speed"), ErrorCode::kInvalidArgument,
                      "'speed': expected one of latency, throughput, memory");
}

/// A registry whose devices fail to open with the given codes; "none" opens (as a null backend).
struct OpenTest : ::testing::Test {
  BackendRegistry registry;
  std::vector<std::string> tried;
  void add(const Device& d, std::optional<ErrorCode> fails) {
    registry.add(d, [this, d, fails](auto) -> std::unique_ptr<Backend> {
      tried.push_back(d.name);
      if (fails) throw Error(*fails, "driver of " + d.name);
      return nullptr;
    });
  }
};

TEST_F(OpenTest, AutoGoesOnAndTellsWhatFailed) {
  const auto all = machine();
  add(all[0], {});
  add(all[1], ErrorCode::kOutOfMemory);
  add(all[2], ErrorCode::kDevice);
  const auto context =
      std::make_shared<const ExecutionContext>(ExecutionContext::Options{.threads = 1, .isa = {}});
  const OpenedDevice opened = registry.open({}, context);
  EXPECT_THAT(tried, ElementsAre("fast", "big", "cpu"));
  EXPECT_EQ(opened.selection.device.name, "cpu");
  EXPECT_EQ(opened.context, context);
  EXPECT_EQ(opened.selection.reason,
            "cpu: what comes before it failed; device 'fast': driver of fast; device 'big': driver of big");
  EXPECT_THAT(opened.selection.alternatives, IsEmpty());
}

TEST_F(OpenTest, WhatTheDeviceIsForIsAPartOfTheTry) {
  const auto all = machine();
  add(all[0], {});
  add(all[2], {});
  std::vector<std::string> used;
  const auto load = [&](OpenedDevice& d) {
    used.push_back(d.selection.device.name);
    EXPECT_NE(d.context, nullptr);  // one of its own
    if (d.selection.device.name == "fast") throw Error(ErrorCode::kOutOfMemory, "blk.0: no room");
  };
  const OpenedDevice opened = registry.open({}, nullptr, load);
  EXPECT_THAT(used, ElementsAre("fast", "cpu"));
  EXPECT_EQ(opened.selection.reason, "cpu: what comes before it failed; device 'fast': blk.0: no room");
  // A bad model is no fault of the device.
  used.clear();
  const auto bad = [&](OpenedDevice& d) {
    used.push_back(d.selection.device.name);
    throw Error(ErrorCode::kCorruptFile, "torn");
  };
  BITNET_EXPECT_ERROR((void)registry.open({}, nullptr, bad), ErrorCode::kCorruptFile, "torn");
  BITNET_EXPECT_ERROR((void)registry.open({.fall_back = false}, nullptr, load), ErrorCode::kOutOfMemory,
                      "blk.0: no room");
  EXPECT_THAT(used, ElementsAre("fast", "fast"));
}

TEST_F(OpenTest, ANameNeverFallsBack) {
  const auto all = machine();
  add(all[0], {});
  add(all[2], ErrorCode::kDevice);
  BITNET_EXPECT_ERROR((void)registry.open({.name = "fast"}, nullptr), ErrorCode::kDevice, "driver of fast");
  EXPECT_THAT(tried, ElementsAre("fast"));
}

TEST_F(OpenTest, ABugOrTheLastDeviceEndsIt) {
  const auto all = machine();
  add(all[0], ErrorCode::kDevice);
  add(all[1], ErrorCode::kInternal);
  BITNET_EXPECT_ERROR((void)registry.open({}, nullptr), ErrorCode::kInternal, "driver of big");
  tried.clear();
  BackendRegistry other;
  registry = other;
  add(all[0], ErrorCode::kDevice);
  add(all[1], ErrorCode::kDevice);
  BITNET_EXPECT_ERROR((void)registry.open({}, nullptr), ErrorCode::kDevice, "fall back × 1): device 'cpu'");
}

TEST(CpuCapabilities, ReadsCachesAndCores) {
  const testing::TempDir dir;
  const auto folder = dir / "devices/system/cpu/cpu0";
  const auto file = [&](const std::string& name, const std::string& text) {
    std::filesystem::create_directories((folder / name).parent_path());
    std::ofstream(folder / name) << text << '\n';
  };
  const char* const caches[][3] = {
      {"1", "Data", "48K"}, {"1", "Instruction", "32K"}, {"2", "Unified", "1024K"}, {"3", "Unified", "32M"}};
  for (int i = 0; i < 4; ++i) {
    const std::string index = "cache/index" + std::to_string(i) + "/";
    file(index + "level", caches[i][0]);
    file(index + "type", caches[i][1]);
    file(index + "size", caches[i][2]);
  }
  file("cpufreq/cpuinfo_max_freq", "4100000");
  const DeviceCapabilities c = cpu_capabilities(dir.path());
  EXPECT_EQ(c.l1_bytes, 48u << 10);
  EXPECT_EQ(c.l2_bytes, 1u << 20);
  EXPECT_EQ(c.l3_bytes, 32u << 20);
  EXPECT_DOUBLE_EQ(c.clock_mhz, 4100);
  EXPECT_EQ(c.compute_units, static_cast<std::int64_t>(usable_cores()));
  EXPECT_EQ(c.isas.back(), to_string(best_isa()));
  const testing::TempDir empty;
  EXPECT_EQ(cpu_capabilities(empty.path()).l3_bytes, 0u);
}

TEST(Registry, MeasuresTheCpu) {
  BackendRegistry registry;
  const auto context =
      std::make_shared<const ExecutionContext>(ExecutionContext::Options{.threads = 1, .isa = {}});
  BITNET_EXPECT_ERROR(registry.measure_bandwidth(context), ErrorCode::kNotFound, "no device 'cpu'");
  registry.add(device("cpu", DeviceKind::kCpu, 1), [](auto) { return nullptr; });
  registry.measure_bandwidth(context);
  EXPECT_GT(registry.devices()[0].capabilities.bandwidth.value_or(0), 0.0);
}

}  // namespace
}  // namespace bitnet
