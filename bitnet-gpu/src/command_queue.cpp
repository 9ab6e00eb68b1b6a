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
constexpr std::size_t kMostUploads = 64;  // known to be on their way before it is asked which still are
constexpr const char* kUpload = "copy to device";
constexpr const char* kDownload = "copy from device";

ClQueue make_queue(cl_context context, cl_device_id device, bool takes_times) {
  const cl_command_queue_properties properties = takes_times ? CL_QUEUE_PROFILING_ENABLE : 0;
  cl_int status = CL_SUCCESS;
  ClQueue queue(clCreateCommandQueue(context, device, properties, &status));
  check_op(status, "clCreateCommandQueue");
  return queue;
}

bool uses(std::span<const Launch> launches, cl_mem mem) {
  return std::any_of(launches.begin(), launches.end(), [mem](const Launch& l) { return l.uses(mem); });
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

CommandQueue::CommandQueue(cl_context context, cl_device_id device, bool own_transfers)
    : device_(device), own_transfers_(own_transfers) {
  check(clRetainContext(context), "clRetainContext");
  context_ = ClContext(context);
  queue_ = make_queue(context, device, false);
  if (own_transfers) transfers_ = make_queue(context, device, false);
}

CommandQueue::~CommandQueue() {
  for (const Timed& t : timed_) clReleaseEvent(t.event);
}

void CommandQueue::checked(cl_int status, std::string_view call) {
  if (status == CL_SUCCESS) return;
  ++failures_;
  forget_done();
  lost_ = CL_SUCCESS;  // one error tells of both
  check_op(status, call);
}

/// Of a copy to the device, which need not be an op's.
void CommandQueue::checked_upload(cl_int status) {
  constexpr std::string_view kCall = "clEnqueueWriteBuffer";
  const bool no_memory = status == CL_MEM_OBJECT_ALLOCATION_FAILURE || status == CL_OUT_OF_HOST_MEMORY;
  if (!no_memory) return checked(status, kCall);
  ++failures_;
  check(status, kCall);
}

void CommandQueue::choose_queue() {
  if (wants_times_ == takes_times_) return;
  drain();
  if (recorder_ != nullptr) recorder_->forget();  // they are of the old queue
  ClQueue queue = make_queue(context_.get(), device_, !takes_times_);
  if (own_transfers_) transfers_ = make_queue(context_.get(), device_, !takes_times_);
  queue_ = std::move(queue);
  takes_times_ = !takes_times_;
}

cl_event* CommandQueue::event_for(const char* name, std::uint64_t bytes) {
  if (!takes_times_) return nullptr;
  if (timed_.size() == kMostTimed) drain();
  if (timed_.empty()) first_ = std::chrono::steady_clock::now();
  timed_.push_back({name, bytes, nullptr});
  return &timed_.back().event;
}

// Two clocks: the last command is taken to have ended now, and none to have begun before it was enqueued.
void CommandQueue::collect() {
  const auto now = std::chrono::steady_clock::now();
  std::vector<std::pair<const Timed*, DeviceTimes>> done;
  cl_ulong last = 0;
  // An upload may still be on its way.
  const auto running = std::stable_partition(timed_.begin(), timed_.end(), [](const Timed& t) {
    return t.event == nullptr || state_of(t.event) <= CL_COMPLETE;
  });
  for (const Timed& t : std::span(timed_.begin(), running)) {
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
  for (const Timed& t : std::span(timed_.begin(), running))
    if (t.event != nullptr) clReleaseEvent(t.event);
  timed_.erase(timed_.begin(), running);
}

void CommandQueue::forget_done() {
  std::erase_if(uploads_, [this](const Upload& u) {
    const cl_int state = state_of(u.done.get());
    if (state < 0 && lost_ == CL_SUCCESS) lost_ = state;
    return state <= CL_COMPLETE;
  });
}

void CommandQueue::settle() {
  forget_done();
  busy_ = false;
  collect();
  checked(std::exchange(lost_, CL_SUCCESS), "an upload");
}

void CommandQueue::find_needs(std::span<const Launch> launches) {
  waited_.clear();
  for (const Upload& u : uploads_)
    if (!u.waited_for && uses(launches, u.to)) waited_.push_back(u.done.get());
}

void CommandQueue::have_needs(std::span<const Launch> launches) {
  busy_ = true;
  if (waited_.empty()) return;
  for (Upload& u : uploads_) u.waited_for = u.waited_for || uses(launches, u.to);
}

void CommandQueue::issue(const Launch& launch) {
  choose_queue();
  if (recorder_ == nullptr || takes_times_) {
    enqueue(launch);
  } else {
    recorder_->add(launch);
    if (recorder_->waiting().size() == LaunchRecorder::kMostWaiting) issue_waiting();
  }
  ++counts_.launches;
}

void CommandQueue::issue_waiting() {
  if (recorder_ == nullptr || recorder_->waiting().empty()) return;
  const std::span<const Launch> list = recorder_->waiting();
  find_needs(list);
  try {
    if (recorder_->replay(queue_.get(), waited_)) {
      have_needs(list);
      ++counts_.replays;
      counts_.replayed_launches += list.size();
    } else {
      for (const Launch& launch : list) enqueue(launch);
    }
  } catch (...) {
    ++failures_;
    recorder_->clear();
    throw;
  }
  recorder_->clear();
}

void CommandQueue::enqueue(const Launch& launch) {
  const Kernel& kernel = launch.kernel();
  launch.set_arguments(kernel.object.get());
  cl_event* const event = event_for(kernel.name);
  find_needs({&launch, 1});
  const Launch::Groups global = launch.global();
  const cl_int status = clEnqueueNDRangeKernel(queue_.get(), kernel.object.get(), 2, nullptr, global.data(),
                                               kernel.local.data(), static_cast<cl_uint>(waited_.size()),
                                               waited_.empty() ? nullptr : waited_.data(), event);
  if (status != CL_SUCCESS) checked(status, fmt::format("launch of {}", kernel.name));
  have_needs({&launch, 1});
}

bool CommandQueue::record(cl_platform_id platform) {
  const auto api = command_buffers_of(platform, device_);
  if (api) recorder_ = std::make_unique<LaunchRecorder>(*api);
  return recorder_ != nullptr;
}

void CommandQueue::forget(std::span<const cl_mem> buffers) {
  if (recorder_ != nullptr) recorder_->forget(buffers);
}

ClEvent CommandQueue::marker() {
  if (!busy_) return {};
  cl_event event = nullptr;
  checked(clEnqueueMarkerWithWaitList(queue_.get(), 0, nullptr, &event), "clEnqueueMarkerWithWaitList");
  ClEvent marker(event);
  checked(clFlush(queue_.get()), "clFlush");  // or another queue may wait for ever
  return marker;
}

cl_int CommandQueue::write(cl_mem to, std::size_t offset, std::span<const std::byte> from, bool in_use,
                           bool blocking, cl_event* event) {
  const cl_command_queue queue = transfers();
  if (in_use && recorder_ != nullptr && recorder_->waits_for(to)) issue_waiting();
  const ClEvent before = own_transfers_ && in_use ? marker() : ClEvent();
  const cl_event one = before.get();
  return clEnqueueWriteBuffer(queue, to, blocking ? CL_TRUE : CL_FALSE, offset, from.size(), from.data(),
                              before ? 1 : 0, before ? &one : nullptr, event);
}

void CommandQueue::upload(cl_mem to, std::size_t offset, std::span<const std::byte> from, bool in_use) {
  choose_queue();
  cl_event* const event = event_for(kUpload, from.size());
  checked_upload(write(to, offset, from, in_use, true, event));
  ++counts_.uploads;
  ++counts_.waits;
  counts_.upload_bytes += from.size();
}

ClEvent CommandQueue::upload_later(cl_mem to, std::size_t offset, std::span<const std::byte> from,
                                   bool in_use) {
  // First, since these may throw: afterwards the driver reads `from`, and the caller has to have the event.
  choose_queue();
  cl_event* const timed = event_for(kUpload, from.size());
  if (uploads_.size() >= kMostUploads) forget_done();
  uploads_.reserve(uploads_.size() + 1);
  cl_event done = nullptr;
  checked_upload(write(to, offset, from, in_use, false, &done));
  ClEvent event(done);
  if (timed != nullptr && clRetainEvent(done) == CL_SUCCESS) *timed = done;
  if (own_transfers_) {
    cl_int status = clRetainEvent(done);
    if (status == CL_SUCCESS) {
      uploads_.push_back({to, ClEvent(done), false});
      status = clFlush(transfers_.get());
    }
    if (status != CL_SUCCESS) lost_ = status;
  }
  ++counts_.uploads;
  counts_.upload_bytes += from.size();
  return event;
}

cl_int CommandQueue::wait(const ClEvent& uploaded) {
  if (!uploaded) return CL_SUCCESS;
  const cl_event one = uploaded.get();
  const cl_int status = clWaitForEvents(1, &one);
  std::erase_if(uploads_, [one](const Upload& u) { return u.done.get() == one; });
  if (status != CL_SUCCESS) ++failures_;
  return status;
}

void CommandQueue::download(cl_mem from, std::size_t offset, std::span<std::byte> to) {
  choose_queue();
  issue_waiting();
  cl_event* const event = event_for(kDownload, to.size());
  waited_.clear();
  for (const Upload& u : uploads_)
    if (!u.waited_for) waited_.push_back(u.done.get());
  const cl_int status = clEnqueueReadBuffer(queue_.get(), from, CL_TRUE, offset, to.size(), to.data(),
                                            static_cast<cl_uint>(waited_.size()),
                                            waited_.empty() ? nullptr : waited_.data(), event);
  checked(status, "clEnqueueReadBuffer");
  ++counts_.downloads;
  ++counts_.waits;
  counts_.download_bytes += to.size();
  ++settled_;
  settle();
}

void CommandQueue::flush() {
  issue_waiting();
  checked(clFlush(queue_.get()), "clFlush");
}

void CommandQueue::finish() {
  drain();
  ++settled_;
}

void CommandQueue::drain() {
  issue_waiting();
  ++counts_.waits;
  const cl_int status = clFinish(queue_.get());
  const cl_int transfers = own_transfers_ ? clFinish(transfers_.get()) : CL_SUCCESS;
  checked(status, "clFinish");
  checked(transfers, "clFinish");
  settle();
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
