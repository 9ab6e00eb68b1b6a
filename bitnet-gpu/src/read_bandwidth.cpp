// See read_bandwidth.hpp.
#include "read_bandwidth.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <vector>

#include "bitnet/core/device/bandwidth.hpp"
#include "bitnet/core/statistics.hpp"
#include "kernels.hpp"

namespace bitnet::gpu {
namespace {

constexpr std::size_t kElement = 4 * sizeof(cl_uint);  // bytes of the kernel's uint4
constexpr std::size_t kSteps = 16;                     // BN_READ_STEPS
constexpr std::size_t kPreferredWorkGroup = 64;        // BN_READ_WG where the device takes it
constexpr std::size_t kGroupsPerUnit = 32;             // enough to keep a compute unit's loads in flight
constexpr std::size_t kMaxGroups = 1 << 14;            // bounds the words that they write
constexpr double kSampleSeconds = 0.02;                // so that a launch's own time does not count
constexpr int kMaxLaunches = 256;                      // of a sample
constexpr int kSamples = 5;

std::size_t probe_bytes(const ClDevice& device, const DeviceMemoryPool& memory) {
  const std::size_t bytes =
      bandwidth_probe_bytes(device.device.capabilities.cache_bytes, memory.free_bytes());
  return device.max_allocation > 0 ? std::min(bytes, device.max_allocation) : bytes;
}

}  // namespace

double read_bandwidth(const ClDevice& device, cl_command_queue queue,
                      const std::shared_ptr<DeviceMemoryPool>& memory, ProgramCache& programs) {
  const std::size_t group = std::clamp<std::size_t>(device.max_work_group, 1, kPreferredWorkGroup);
  const ClKernel kernel =
      programs.kernel(kernels::read_bandwidth,
                      fmt::format("-DBN_READ_WG={} -DBN_READ_STEPS={}", group, kSteps), "read_bandwidth");
  const std::size_t chunk_bytes = group * kSteps * kElement;
  const cl_ulong chunks = std::max<std::size_t>(probe_bytes(device, *memory) / chunk_bytes, 1);
  const std::size_t bytes = static_cast<std::size_t>(chunks) * chunk_bytes;
  const auto units =
      static_cast<std::size_t>(std::max<std::int64_t>(device.device.capabilities.compute_units, 1));
  const std::size_t items =
      group * std::min({units * kGroupsPerUnit, kMaxGroups, static_cast<std::size_t>(chunks)});
  const PooledMem data(memory, bytes, "bandwidth probe");
  const PooledMem words(memory, items * sizeof(cl_uint), "bandwidth probe");
  const cl_uint pattern = 0x5A5A5A5Au;  // written, or a driver need not have the pages at all
  check(clEnqueueFillBuffer(queue, data.get(), &pattern, sizeof pattern, 0, bytes, 0, nullptr, nullptr),
        "clEnqueueFillBuffer");
  const cl_mem from = data.get(), to = words.get();
  check(clSetKernelArg(kernel.get(), 0, sizeof from, &from), "clSetKernelArg");
  check(clSetKernelArg(kernel.get(), 1, sizeof chunks, &chunks), "clSetKernelArg");
  check(clSetKernelArg(kernel.get(), 2, sizeof to, &to), "clSetKernelArg");

  const auto seconds_of = [&](int launches) {
    check(clFinish(queue), "clFinish");
    const auto begin = std::chrono::steady_clock::now();
    for (int i = 0; i < launches; ++i)
      check(clEnqueueNDRangeKernel(queue, kernel.get(), 1, nullptr, &items, &group, 0, nullptr, nullptr),
            "launch of read_bandwidth");
    check(clFinish(queue), "clFinish");
    const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - begin;
    return std::max(taken.count(), 1e-9);
  };
  seconds_of(1);  // the driver's first launch of a program may compile it
  const int launches =
      static_cast<int>(std::clamp(std::ceil(kSampleSeconds / seconds_of(1)), 1.0, double{kMaxLaunches}));
  std::vector<double> rates;
  for (int i = 0; i < kSamples; ++i)
    rates.push_back(static_cast<double>(bytes) * launches / seconds_of(launches) / 1e9);
  return median(rates);
}

}  // namespace bitnet::gpu
