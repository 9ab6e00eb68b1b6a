// Choosing devices by policy with a reason, falling back only for `auto`, and what is known of the CPU.
#include "bitnet/core/device/device.hpp"

#include <algorithm>
#include <fstream>
#include <map>
#include <numeric>

#include "bitnet/core/device/bandwidth.hpp"
#include "bitnet/core/device/registry.hpp"
#include "bitnet/core/rng.hpp"
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
  d.capabilities.gigabytes_per_second = bandwidth;
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
  EXPECT_EQ(latency.reason, "fast: the device that reads memory fastest, 1000.0 GB/s (policy latency)");
  EXPECT_THAT(latency.alternatives, ElementsAre("big", "cpu"));
  EXPECT_EQ(select(all, DevicePolicy::kThroughput).reason,
            "fast: the device with the most compute units × clock (policy throughput)");
  const Selection memory = select(all, DevicePolicy::kMemory);
  EXPECT_EQ(memory.reason, "cpu: the device with the most memory (policy memory)");
  EXPECT_THAT(memory.alternatives, ElementsAre("big", "fast"));
}

TEST(SelectDevice, LatencyComparesBandwidthsOfAllKindsAndIsNotThroughput) {
  auto all = machine();
  all[0].capabilities.gigabytes_per_second = 460;  // a server's memory beside two slow cards
  all[1].capabilities.gigabytes_per_second = 90;
  all[2].capabilities.gigabytes_per_second = 120;
  const Selection latency = select(all, DevicePolicy::kLatency);
  EXPECT_EQ(latency.reason, "cpu: the device that reads memory fastest, 460.0 GB/s (policy latency)");
  EXPECT_THAT(latency.alternatives, ElementsAre("fast", "big"));
  EXPECT_EQ(select(all, DevicePolicy::kThroughput).device.name, "fast");
  all[2].capabilities.gigabytes_per_second = 0;  // it could not be measured
  EXPECT_THAT(select(all, DevicePolicy::kLatency).alternatives, ElementsAre("big", "fast"));
  // Of the CPU it is not known: then kinds decide, and the figures of those of one kind.
  all[0].capabilities.gigabytes_per_second.reset();
  all[1].capabilities.gigabytes_per_second = 130;
  EXPECT_EQ(select(all, DevicePolicy::kLatency).reason,
            "big: the device that reads memory fastest, 130.0 GB/s (policy latency)");
  EXPECT_THAT(select(all, DevicePolicy::kLatency).alternatives, ElementsAre("fast", "cpu"));
}

/// Which of a device's properties a reason names, larger is better.
double named_by(const std::string& reason, const Device& d) {
  if (reason.find("reads memory fastest") != std::string::npos)
    return d.capabilities.gigabytes_per_second.value_or(0);
  if (reason.find("compute units") != std::string::npos)
    return static_cast<double>(d.capabilities.compute_units) * d.capabilities.clock_mhz;
  if (reason.find("not the CPU") != std::string::npos) return d.kind == DeviceKind::kCpu ? 0 : 1;
  return static_cast<double>(d.memory_bytes);
}

TEST(SelectDevice, TheOrderOfTheDevicesAndWhatSomeLackDoNotMatter) {
  // Compared pair by pair, first > second by memory, second > third by compute, third > first by memory.
  std::vector<Device> odd{device("first", DeviceKind::kGpu, 20), device("second", DeviceKind::kGpu, 10, 5, 1),
                          device("third", DeviceKind::kGpu, 30, 4, 1)};
  Rng rng(11);
  for (int round = 0; round < 300; ++round) {
    std::vector<Device> devices = odd;
    if (round > 0) {
      devices.clear();
      for (int i = 0; i < 5; ++i) {
        // Distinct memory, so that no two are equal; the rest is often missing or the same.
        Device d = device("d" + std::to_string(i), rng.next() % 3 == 0 ? DeviceKind::kCpu : DeviceKind::kGpu,
                          static_cast<std::size_t>(10 + i), static_cast<std::int64_t>(rng.next() % 3), 1000);
        if (rng.next() % 4 != 0) d.capabilities.gigabytes_per_second = static_cast<double>(rng.next() % 3);
        devices.push_back(std::move(d));
      }
    }
    for (const auto policy : {DevicePolicy::kLatency, DevicePolicy::kThroughput, DevicePolicy::kMemory}) {
      const Selection chosen = select(devices, policy);
      std::vector<std::size_t> order(devices.size());
      std::iota(order.begin(), order.end(), std::size_t{0});
      do {
        std::vector<Device> permuted;
        for (const std::size_t i : order) permuted.push_back(devices[i]);
        const Selection s = select(permuted, policy);
        ASSERT_EQ(s.reason, chosen.reason) << "round " << round;
        ASSERT_EQ(s.alternatives, chosen.alternatives) << "round " << round;
      } while (std::next_permutation(order.begin(), order.end()));
      for (const Device& d : devices)
        if (d.name == chosen.alternatives[0]) {
          EXPECT_GT(named_by(chosen.reason, chosen.device), named_by(chosen.reason, d)) << chosen.reason;
        }
    }
  }
}

TEST(SelectDevice, WhatIsNotKnownOfAllIsNotCompared) {
  auto all = machine();
  all[2].capabilities.gigabytes_per_second.reset();
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

/// Measures what it is told, counts how often.
class MeasuredBackend final : public Backend {
 public:
  MeasuredBackend(std::optional<double> figure, int& times) : figure_(figure), times_(times) {}
  std::string_view name() const noexcept override { return "measured"; }
  std::string description() const override { return "has a figure and no ops"; }
  bool supports(BackendOp) const noexcept override { return false; }
  std::size_t available_memory() const override { return 0; }

 private:
  BufferPtr do_allocate(std::size_t, MemoryTag) override { return nullptr; }
  void do_upload(Buffer&, std::size_t, std::span<const std::byte>) override {}
  void do_download(const Buffer&, std::size_t, std::span<std::byte>) override {}
  PreparedPtr do_prepare(const LinearWeights&) override { return nullptr; }
  PreparedPtr do_prepare_embedding(const LinearWeights&) override { return nullptr; }
  void do_linear(std::span<const PreparedWeights* const>, Matrix, std::span<const Matrix>) override {}
  void do_embed(const PreparedWeights&, std::span<const std::int32_t>, Matrix) override {}
  void do_rms_norm(Matrix, const Buffer&, float, Matrix) override {}
  void do_rope(Matrix, std::span<const std::int32_t>, const Buffer&, std::int64_t) override {}
  void do_attention(const AttentionArgs&) override {}
  void do_gated_activation(Activation, Matrix, Matrix, Matrix) override {}
  void do_add(Matrix, Matrix) override {}
  void do_logits(const PreparedWeights&, Matrix, std::span<const std::int32_t>, Matrix) override {}
  void do_sync() override {}
  std::optional<double> do_measure_bandwidth() override {
    ++times_;
    if (figure_ && *figure_ < 0) throw Error(ErrorCode::kDevice, "no answer");
    return figure_;
  }
  std::optional<double> figure_;
  int& times_;
};

/// A registry whose devices fail to open with the given codes, or open.
struct OpenTest : ::testing::Test {
  BackendRegistry registry;
  std::vector<std::string> tried;
  void add(const Device& d, std::optional<ErrorCode> fails) {
    registry.add(d, [this, d, fails](auto) -> std::unique_ptr<Backend> {
      tried.push_back(d.name);
      if (fails) throw Error(*fails, "driver of " + d.name);
      return std::make_unique<MeasuredBackend>(std::nullopt, measured);
    });
  }
  int measured = 0;
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
  const int first[] = {0};
  const DeviceCapabilities c = cpu_capabilities(dir.path(), first);
  EXPECT_EQ(c.l1_bytes, 48u << 10);
  EXPECT_EQ(c.l2_bytes, 1u << 20);
  EXPECT_EQ(c.l3_bytes, 32u << 20);
  EXPECT_EQ(c.l3_total_bytes, 32u << 20);
  EXPECT_DOUBLE_EQ(c.clock_mhz, 4100);
  EXPECT_EQ(c.compute_units, static_cast<std::int64_t>(usable_cores()));
  EXPECT_EQ(c.isas.back(), to_string(best_isa()));
  const testing::TempDir empty;
  EXPECT_EQ(cpu_capabilities(empty.path()).l3_bytes, 0u);
}

TEST(CpuCapabilities, CountsEachCacheThatItsCoresShareOnce) {
  const testing::TempDir dir;
  const auto file = [&](int core, const std::string& name, const std::string& text) {
    const auto path = dir / ("devices/system/cpu/cpu" + std::to_string(core)) / name;
    std::filesystem::create_directories(path.parent_path());
    std::ofstream(path) << text << '\n';
  };
  // Two dies of two cores with a cache each, and a slow core without one.
  for (int core = 0; core < 5; ++core) {
    file(core, "cache/index0/level", "1");
    file(core, "cache/index0/type", "Data");
    file(core, "cache/index0/size", core == 4 ? "32K" : "48K");
    file(core, "cpufreq/cpuinfo_max_freq", core == 3 ? "5000000" : "3000000");
    if (core == 4) continue;
    file(core, "cache/index1/level", "3");
    file(core, "cache/index1/type", "Unified");
    file(core, "cache/index1/size", "96M");
    file(core, "cache/index1/shared_cpu_list", core < 2 ? "0-1" : "2-3");
  }
  const auto of = [&](std::vector<int> cores) { return cpu_capabilities(dir.path(), cores); };
  EXPECT_EQ(of({0, 1, 2, 3, 4}).l3_total_bytes, 192u << 20);
  EXPECT_EQ(of({0, 1, 2, 3, 4}).l3_bytes, 96u << 20);
  EXPECT_DOUBLE_EQ(of({0, 1, 2, 3, 4}).clock_mhz, 5000);
  EXPECT_EQ(of({1, 0}).l3_total_bytes, 96u << 20);
  EXPECT_DOUBLE_EQ(of({4}).clock_mhz, 3000);
  EXPECT_EQ(of({4}).l1_bytes, 32u << 10);
  EXPECT_EQ(of({4}).l3_total_bytes, 0u);
}

TEST(BandwidthProbe, ReadsMoreThanAllCachesHold) {
  constexpr std::size_t kMiB = std::size_t{1} << 20, kLots = std::size_t{1} << 40;
  EXPECT_EQ(bandwidth_probe_bytes(0, kLots), 128 * kMiB);
  EXPECT_EQ(bandwidth_probe_bytes(32 * kMiB, kLots), 256 * kMiB);
  EXPECT_EQ(bandwidth_probe_bytes(384 * kMiB, kLots), 1024 * kMiB);
  EXPECT_EQ(bandwidth_probe_bytes(1152 * kMiB, kLots), 2304 * kMiB);  // twelve dies of 96 MiB
  EXPECT_EQ(bandwidth_probe_bytes(32 * kMiB, 100 * kMiB), 50 * kMiB);
  EXPECT_EQ(bandwidth_probe_bytes(SIZE_MAX, 0), kMiB);
}

struct MeasureTest : ::testing::Test {
  BackendRegistry registry;
  std::map<std::string, int> times;
  std::shared_ptr<const ExecutionContext> context =
      std::make_shared<const ExecutionContext>(ExecutionContext::Options{.threads = 1, .isa = {}});
  /// `figure` < 0: it fails.
  void add(Device d, std::optional<double> figure) {
    int& count = times[d.name];
    registry.add(std::move(d),
                 [figure, &count](auto) { return std::make_unique<MeasuredBackend>(figure, count); });
  }
};

TEST_F(MeasureTest, AutoAndLatencyTakeTheDeviceThatReadsFastest) {
  add(device("cpu", DeviceKind::kCpu, 8), 100);
  add(device("slow", DeviceKind::kGpu, 8, 100, 1000), 50);
  add(device("dead", DeviceKind::kGpu, 16, 200, 1000), -1);
  Device same_cores = device("pocl", DeviceKind::kCpu, 8);
  same_cores.emulated = true;
  add(std::move(same_cores), 1000);
  const OpenedDevice opened = registry.open({}, context);
  EXPECT_EQ(opened.selection.reason,
            "cpu: the device that reads memory fastest, 100.0 GB/s (policy latency)");
  EXPECT_THAT(opened.selection.alternatives, ElementsAre("slow", "dead"));
  EXPECT_EQ(registry.open({.policy = DevicePolicy::kThroughput}, context).selection.device.name, "dead");
  EXPECT_EQ(registry.select("auto").device.name, "cpu");  // what was measured is known from now on
  const BackendRegistry copy = registry;
  EXPECT_EQ(copy.open({}, context).selection.device.name, "cpu");
  EXPECT_EQ(times, (std::map<std::string, int>{{"cpu", 1}, {"slow", 1}, {"dead", 1}, {"pocl", 0}}));
}

TEST_F(MeasureTest, NothingIsMeasuredThatDecidesNothing) {
  add(device("cpu", DeviceKind::kCpu, 8), 100);
  add(device("mute", DeviceKind::kGpu, 8), {});
  EXPECT_EQ(registry.open({.name = "cpu"}, context).selection.device.name, "cpu");
  EXPECT_EQ(registry.open({.policy = DevicePolicy::kMemory}, context).selection.device.name, "cpu");
  EXPECT_EQ(times, (std::map<std::string, int>{{"cpu", 0}, {"mute", 0}}));
  // The CPU's figure would be compared with none.
  EXPECT_EQ(registry.open({}, context).selection.reason,
            "mute: the device that is not the CPU (policy latency)");
  EXPECT_EQ(times, (std::map<std::string, int>{{"cpu", 0}, {"mute", 1}}));
  EXPECT_THAT(registry.measure_bandwidth(context), IsEmpty());
  EXPECT_EQ(times, (std::map<std::string, int>{{"cpu", 1}, {"mute", 1}}));
}

TEST_F(MeasureTest, ADeviceWithoutRoomIsNotMeasured) {
  add(device("cpu", DeviceKind::kCpu, 80), 100);
  add(device("small", DeviceKind::kGpu, 8), 1000);
  const OpenedDevice opened = registry.open({.needed_bytes = std::size_t{9} << 30}, context);
  EXPECT_EQ(opened.selection.reason,
            "cpu: the only one with enough memory; 9.0 GiB are needed and small has 8.0 GiB");
  EXPECT_EQ(times, (std::map<std::string, int>{{"cpu", 0}, {"small", 0}}));
}

TEST_F(MeasureTest, WhatFailsIsTold) {
  add(device("dead", DeviceKind::kGpu, 16), -1);
  EXPECT_THAT(registry.measure_bandwidth(nullptr),
              ElementsAre("device 'dead': its bandwidth could not be measured: no answer"));
  EXPECT_EQ(registry.devices()[0].capabilities.gigabytes_per_second, 0.0);
  EXPECT_THAT(registry.measure_bandwidth(nullptr), IsEmpty());  // once is enough
}

}  // namespace
}  // namespace bitnet
