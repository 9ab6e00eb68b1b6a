// Measures what a device reaches at most: copies, integer arithmetic, launches.
#include "bitnet/gpu/peaks.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <functional>
#include <vector>

#include "bitnet/core/statistics.hpp"
#include "device_list.hpp"
#include "device_memory_pool.hpp"
#include "device_traits.hpp"
#include "kernels.hpp"
#include "program_cache.hpp"
#include "read_bandwidth.hpp"

namespace bitnet::gpu {
namespace {

constexpr int kSamples = 5;
constexpr double kSampleSeconds = 0.02;  // so that what one launch costs does not count
constexpr std::size_t kWorkGroup = 64;   // BN_PEAK_WG, where the device takes it
constexpr std::size_t kGroupsPerUnit = 16;
constexpr int kChains = 8;  // BN_PEAK_CHAINS
constexpr cl_uint kMostRounds = 1u << 22;
constexpr int kLaunches = 500;  // of a sample of launches

double seconds_of(const std::function<void()>& body) {
  const auto begin = std::chrono::steady_clock::now();
  body();
  const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - begin;
  return std::max(taken.count(), 1e-9);
}

class Probe {
 public:
  Probe(const ClDevice& device, const Options& options)
      : device_(device), traits_(traits_of(device, options.kernels)) {
    cl_int status = CL_SUCCESS;
    context_ = ClContext(clCreateContext(nullptr, 1, &device.id, nullptr, nullptr, &status));
    check(status, "clCreateContext");
    queue_ = ClQueue(clCreateCommandQueue(context_.get(), device.id, 0, &status));
    check(status, "clCreateCommandQueue");
    memory_ =
        std::make_shared<DeviceMemoryPool>(device.device.name, context_.get(),
                                           device.memory_within(options.memory_limit), device.max_allocation);
    programs_.emplace(context_.get(), device.id, traits_.build_flags(options.build_options),
                      options.program_folder.value_or(default_program_folder()));
  }

  double copy_gbps() { return copy_bandwidth(device_, queue_.get(), memory_); }

  double int8_gops() {
    const std::size_t group =
        std::clamp<std::size_t>(device_.max_work_group, 1, traits_.wide ? 1 : kWorkGroup);
    const auto units =
        static_cast<std::size_t>(std::max<std::int64_t>(device_.device.capabilities.compute_units, 1));
    const std::size_t items = group * units * kGroupsPerUnit;
    const ClKernel kernel = make("integer_peak", fmt::format("-DBN_PEAK_WG={}", group));
    const PooledMem out(memory_, items * sizeof(cl_uint), "integer probe");
    const auto run = [&](cl_uint rounds) {
      set(kernel, rounds, cl_uint{0x01020103u}, out.get());
      return seconds_of([&] {
        launch(kernel, items, group);
        finish();
      });
    };
    run(1);
    cl_uint rounds = 1;
    while (rounds < kMostRounds && run(rounds) < kSampleSeconds) rounds *= 2;
    // A round multiplies 64 bytes of each chain, or the four of a dot product.
    const double operations = 2.0 * (traits_.wide ? 64 : 4) * kChains * static_cast<double>(items) * rounds;
    return median_of([&] { return operations / run(rounds) / 1e9; });
  }

  void launches(DevicePeaks& peaks) {
    const ClKernel kernel = make("nothing", "-DBN_PEAK_WG=1");
    const PooledMem out(memory_, sizeof(cl_uint), "launch probe");
    std::vector<double> enqueued, done;
    for (int sample = 0; sample <= kSamples; ++sample) {  // the first one warms up
      double enqueue = 0;
      const double all = seconds_of([&] {
        enqueue = seconds_of([&] {
          for (int i = 0; i < kLaunches; ++i) {
            set(kernel, cl_uint{1}, cl_uint{2}, static_cast<cl_uint>(i), out.get());
            launch(kernel, 1, 1);
          }
        });
        finish();
      });
      if (sample == 0) continue;
      enqueued.push_back(enqueue / kLaunches);
      done.push_back(all / kLaunches);
    }
    peaks.enqueue_seconds = median(enqueued);
    peaks.launch_seconds = median(done);
  }

 private:
  ClKernel make(const char* name, const std::string& options) {
    return programs_->kernel(fmt::format("{}{}", kernels::common, kernels::peaks), options, name);
  }
  template <class... Args>
  static void set(const ClKernel& kernel, const Args&... args) {
    cl_uint index = 0;
    (check(clSetKernelArg(kernel.get(), index++, sizeof args, &args), "clSetKernelArg"), ...);
  }
  void launch(const ClKernel& kernel, std::size_t items, std::size_t group) {
    check(clEnqueueNDRangeKernel(queue_.get(), kernel.get(), 1, nullptr, &items, &group, 0, nullptr, nullptr),
          "clEnqueueNDRangeKernel");
  }
  void finish() { check(clFinish(queue_.get()), "clFinish"); }
  static double median_of(const std::function<double()>& sample) {
    std::vector<double> all;
    for (int i = 0; i < kSamples; ++i) all.push_back(sample());
    return median(all);
  }

  const ClDevice& device_;
  const DeviceTraits traits_;
  ClContext context_;
  ClQueue queue_;
  std::shared_ptr<DeviceMemoryPool> memory_;
  std::optional<ProgramCache> programs_;
};

}  // namespace

DevicePeaks measure_peaks(std::string_view device, const Options& options) {
  const ClDevice found = find_device(device, options.sub_devices);
  return with_context(device, [&] {
    Probe probe(found, options);
    DevicePeaks peaks;
    peaks.copy_gbps = probe.copy_gbps();
    peaks.int8_gops = probe.int8_gops();
    probe.launches(peaks);
    return peaks;
  });
}

}  // namespace bitnet::gpu
