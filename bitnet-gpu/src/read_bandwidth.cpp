// See read_bandwidth.hpp.
#include "read_bandwidth.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <functional>
#include <vector>

#include "bitnet/core/device/bandwidth.hpp"
#include "bitnet/core/statistics.hpp"
#include "kernels.hpp"

namespace bitnet::gpu {
namespace {

constexpr std::size_t kPreferredWorkGroup = 64;  // BN_READ_WG where the device takes it
constexpr std::size_t kGroupsPerUnit = 32;       // enough to keep a compute unit's loads in flight
constexpr std::size_t kMaxGroups = 1 << 14;      // bounds the words that they write
constexpr double kSampleSeconds = 0.02;          // so that a launch's own time does not count
constexpr int kMaxCommands = 256;                // of a sample
constexpr int kSamples = 5;

/// How the program reads: elements, work-items of a group, steps of a chunk.
struct ReadForm {
  std::size_t element, group, steps;
  std::size_t chunk_bytes() const noexcept { return element * group * steps; }
};

ReadForm form_of(const ClDevice& device, const DeviceTraits& traits) {
  if (traits.wide) return {16 * sizeof(cl_uint), 1, 1024};  // a chunk of 64 KiB: many pages one after another
  return {4 * sizeof(cl_uint), std::clamp<std::size_t>(device.max_work_group, 1, kPreferredWorkGroup), 16};
}

/// Written, or a driver need not have the pages at all.
PooledMem probe_memory(const ClDevice& device, cl_command_queue queue,
                       const std::shared_ptr<DeviceMemoryPool>& memory, std::size_t least) {
  std::size_t bytes = bandwidth_probe_bytes(device.device.capabilities.cache_bytes, memory->free_bytes());
  if (device.max_allocation > 0) bytes = std::min(bytes, device.max_allocation);
  PooledMem data(memory, std::max(bytes, least), "bandwidth probe");
  const cl_uint pattern = 0x5A5A5A5Au;
  check(clEnqueueFillBuffer(queue, data.get(), &pattern, sizeof pattern, 0,
                            data.bytes() / sizeof pattern * sizeof pattern, 0, nullptr, nullptr),
        "clEnqueueFillBuffer");
  return data;
}

/// GB/s of a command that moves `bytes`: the median over samples of as many as fill kSampleSeconds.
double rate_of(cl_command_queue queue, double bytes, const std::function<void()>& enqueue) {
  const auto seconds_of = [&](int commands) {
    check(clFinish(queue), "clFinish");
    const auto begin = std::chrono::steady_clock::now();
    for (int i = 0; i < commands; ++i) enqueue();
    check(clFinish(queue), "clFinish");
    const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - begin;
    return std::max(taken.count(), 1e-9);
  };
  seconds_of(1);  // the driver's first launch of a program may compile it
  const int commands =
      static_cast<int>(std::clamp(std::ceil(kSampleSeconds / seconds_of(1)), 1.0, double{kMaxCommands}));
  std::vector<double> rates;
  for (int i = 0; i < kSamples; ++i) rates.push_back(bytes * commands / seconds_of(commands) / 1e9);
  return median(rates);
}

double copy_rate(cl_command_queue queue, const PooledMem& data) {
  const std::size_t half = data.bytes() / 2;
  return rate_of(queue, 2.0 * static_cast<double>(half), [&] {
    check(clEnqueueCopyBuffer(queue, data.get(), data.get(), 0, half, half, 0, nullptr, nullptr),
          "clEnqueueCopyBuffer");
  });
}

}  // namespace

double copy_bandwidth(const ClDevice& device, cl_command_queue queue,
                      const std::shared_ptr<DeviceMemoryPool>& memory) {
  return copy_rate(queue, probe_memory(device, queue, memory, 2 * sizeof(cl_uint)));
}

double read_bandwidth(const ClDevice& device, const DeviceTraits& traits, cl_command_queue queue,
                      const std::shared_ptr<DeviceMemoryPool>& memory, ProgramCache& programs) {
  const ReadForm form = form_of(device, traits);
  const ClKernel kernel = programs.kernel(
      kernels::read_bandwidth, fmt::format("-DBN_READ_WG={} -DBN_READ_STEPS={}", form.group, form.steps),
      "read_bandwidth");
  const PooledMem data = probe_memory(device, queue, memory, form.chunk_bytes());
  const cl_ulong chunks = data.bytes() / form.chunk_bytes();
  const auto units =
      static_cast<std::size_t>(std::max<std::int64_t>(device.device.capabilities.compute_units, 1));
  const std::size_t items =
      form.group * std::min({units * kGroupsPerUnit, kMaxGroups, static_cast<std::size_t>(chunks)});
  const PooledMem words(memory, items * sizeof(cl_uint), "bandwidth probe");
  const cl_mem from = data.get(), to = words.get();
  check(clSetKernelArg(kernel.get(), 0, sizeof from, &from), "clSetKernelArg");
  check(clSetKernelArg(kernel.get(), 1, sizeof chunks, &chunks), "clSetKernelArg");
  check(clSetKernelArg(kernel.get(), 2, sizeof to, &to), "clSetKernelArg");
  const double bytes = static_cast<double>(chunks) * static_cast<double>(form.chunk_bytes());
  const double read = rate_of(queue, bytes, [&] {
    check(clEnqueueNDRangeKernel(queue, kernel.get(), 1, nullptr, &items, &form.group, 0, nullptr, nullptr),
          "launch of read_bandwidth");
  });
  return std::max(read, copy_rate(queue, data));
}

}  // namespace bitnet::gpu
