// See command_queue.hpp.
#include "command_queue.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <exception>
#include <limits>
#include <mutex>
#include <string>
#include <utility>

namespace bitnet::gpu {
namespace {

constexpr std::size_t kMostTimed = 4096;  // commands whose events wait for collect()
constexpr const char* kUpload = "copy to device";
constexpr const char* kDownload = "copy from device";

ClQueue make_queue(cl_context context, cl_device_id device, bool takes_times) {
  const cl_command_queue_properties properties = takes_times ? CL_QUEUE_PROFILING_ENABLE : 0;
  cl_int status = CL_SUCCESS;
  ClQueue queue(clCreateCommandQueue(context, device, properties, &status));
  check_op(status, "clCreateCommandQueue");
  return queue;
}

struct DeviceTimes {
  cl_ulong begin = 0, end = 0;  // nanoseconds of the device's clock
};

/// "kernel attention", apart from the op of that name. Kept for good: a profiler has the address, and may
/// outlive the queue.
const char* zone_of(std::string_view kernel) {
  static std::mutex mutex;
  static std::map<std::string, std::string, std::less<>> names;
  const std::lock_guard lock(mutex);
  auto found = names.find(kernel);
  if (found == names.end()) found = names.emplace(kernel, fmt::format("kernel {}", kernel)).first;
  return found->second.c_str();
}

/// Of a command that is done; nothing where the driver does not know.
bool times_of(cl_event event, DeviceTimes& times) {
  return clGetEventProfilingInfo(event, CL_PROFILING_COMMAND_START, sizeof times.begin, &times.begin,
                                 nullptr) == CL_SUCCESS &&
         clGetEventProfilingInfo(event, CL_PROFILING_COMMAND_END, sizeof times.end, &times.end, nullptr) ==
             CL_SUCCESS &&
         times.end >= times.begin;
}

}  // namespace

CommandQueue::CommandQueue(cl_context context, cl_device_id device) : device_(device) {
  check(clRetainContext(context), "clRetainContext");
  context_ = ClContext(context);
  queue_ = make_queue(context, device, false);
}

CommandQueue::~CommandQueue() {
  for (const Timed& t : timed_) clReleaseEvent(t.event);
}

void CommandQueue::checked(cl_int status, std::string_view call) {
  if (status != CL_SUCCESS) ++failures_;
  check_op(status, call);
}

void CommandQueue::choose_queue() {
  if (wants_times_ == takes_times_) return;
  finish();
  queue_ = make_queue(context_.get(), device_, !takes_times_);
  takes_times_ = !takes_times_;
}

cl_event* CommandQueue::event_for(const char* name, std::uint64_t bytes) {
  choose_queue();
  if (!takes_times_) return nullptr;
  if (timed_.size() == kMostTimed) finish();
  if (timed_.empty()) first_ = std::chrono::steady_clock::now();
  timed_.push_back({name, bytes, nullptr});
  return &timed_.back().event;
}

// Two clocks: the last command is taken to have ended now, and none to have begun before it was enqueued.
void CommandQueue::collect() {
  const auto now = std::chrono::steady_clock::now();
  std::vector<std::pair<const Timed*, DeviceTimes>> done;
  cl_ulong last = 0;
  for (const Timed& t : timed_) {
    DeviceTimes times;
    if (t.event == nullptr || !times_of(t.event, times)) continue;
    last = std::max(last, times.end);
    done.emplace_back(&t, times);
  }
  for (const auto& [timed, times] : done) {
    const double seconds = static_cast<double>(times.end - times.begin) * 1e-9;
    if (timed->name == kUpload) {
      counts_.upload_seconds += seconds;
      counts_.timed_upload_bytes += timed->bytes;
    } else if (timed->name == kDownload) {
      counts_.download_seconds += seconds;
      counts_.timed_download_bytes += timed->bytes;
    } else {
      DeviceStatistics::KernelTime& k = times_[timed->name];
      ++k.launches;
      k.seconds += seconds;
    }
    if (profiler_ == nullptr) continue;
    const auto end = std::max(first_, now - std::chrono::nanoseconds(last - times.end));
    const auto begin = std::clamp(now - std::chrono::nanoseconds(last - times.begin), first_, end);
    const bool is_copy = timed->name == kUpload || timed->name == kDownload;
    profiler_->record(is_copy ? timed->name : zone_of(timed->name), begin, end, timed->bytes, 0);
  }
  for (const Timed& t : timed_)
    if (t.event != nullptr) clReleaseEvent(t.event);
  timed_.clear();
}

void CommandQueue::set(const Kernel& kernel, cl_uint index, std::size_t bytes, const void* value) {
  const cl_int status = clSetKernelArg(kernel.object.get(), index, bytes, value);
  if (status != CL_SUCCESS) check_op(status, fmt::format("clSetKernelArg {} of {}", index, kernel.name));
}

void CommandQueue::enqueue(const Kernel& kernel, std::array<std::size_t, 2> groups) {
  cl_event* const event = event_for(kernel.name);
  const std::size_t global[2] = {groups[0] * kernel.local[0], groups[1] * kernel.local[1]};
  const cl_int status = clEnqueueNDRangeKernel(queue_.get(), kernel.object.get(), 2, nullptr, global,
                                               kernel.local.data(), 0, nullptr, event);
  if (status != CL_SUCCESS) checked(status, fmt::format("launch of {}", kernel.name));
  ++counts_.launches;
}

void CommandQueue::upload(cl_mem to, std::size_t offset, std::span<const std::byte> from) {
  cl_event* const event = event_for(kUpload, from.size());
  checked(
      clEnqueueWriteBuffer(queue_.get(), to, CL_TRUE, offset, from.size(), from.data(), 0, nullptr, event),
      "clEnqueueWriteBuffer");
  ++counts_.uploads;
  ++counts_.waits;
  counts_.upload_bytes += from.size();
}

ClEvent CommandQueue::upload_later(cl_mem to, std::size_t offset, std::span<const std::byte> from) {
  // First, since it may throw: afterwards the driver reads `from`, and the caller has to have the event.
  cl_event* const timed = event_for(kUpload, from.size());
  cl_event done = nullptr;
  checked(
      clEnqueueWriteBuffer(queue_.get(), to, CL_FALSE, offset, from.size(), from.data(), 0, nullptr, &done),
      "clEnqueueWriteBuffer");
  ClEvent event(done);
  if (timed != nullptr && clRetainEvent(done) == CL_SUCCESS) *timed = done;
  ++counts_.uploads;
  counts_.upload_bytes += from.size();
  return event;
}

void CommandQueue::download(cl_mem from, std::size_t offset, std::span<std::byte> to) {
  cl_event* const event = event_for(kDownload, to.size());
  checked(clEnqueueReadBuffer(queue_.get(), from, CL_TRUE, offset, to.size(), to.data(), 0, nullptr, event),
          "clEnqueueReadBuffer");
  ++counts_.downloads;
  ++counts_.waits;
  counts_.download_bytes += to.size();
  collect();
}

void CommandQueue::flush() { checked(clFlush(queue_.get()), "clFlush"); }

void CommandQueue::finish() {
  ++counts_.waits;
  checked(clFinish(queue_.get()), "clFinish");
  collect();
}

DeviceStatistics CommandQueue::statistics() const {
  DeviceStatistics s = counts_;
  for (const auto& [name, time] : times_) {
    s.kernels.push_back(time);
    s.kernels.back().name = name;
  }
  std::sort(s.kernels.begin(), s.kernels.end(),
            [](const auto& a, const auto& b) { return a.seconds > b.seconds; });
  return s;
}

}  // namespace bitnet::gpu
