#pragma once
// The in-order queue of a backend: launches, transfers, and what they moved. Which kernels there are is
// kernel_set.hpp's business. One thread at a time issues to it.
#include <array>
#include <chrono>
#include <cstdint>
#include <map>
#include <span>
#include <string_view>
#include <vector>

#include "bitnet/core/device/backend_types.hpp"
#include "bitnet/core/profiler.hpp"
#include "cl_objects.hpp"

namespace bitnet::gpu {

/// A kernel with its own work-group size (reqd_work_group_size).
struct Kernel {
  ClKernel object;
  const char* name = "";  ///< of static storage
  std::array<std::size_t, 2> local{};
};

class CommandQueue {
 public:
  /// Throws Error(kDevice | kOutOfMemory).
  CommandQueue(cl_context context, cl_device_id device);
  ~CommandQueue();
  CommandQueue(const CommandQueue&) = delete;
  CommandQueue& operator=(const CommandQueue&) = delete;

  /// From the next call on, times on the device are taken, or no more: each launch and copy is added up in
  /// statistics() and, where `profiler` is not null (then times are taken anyway), a zone of it. Beginning or
  /// ending that needs another queue of the driver; the old one's work is waited for.
  void set_profiler(Profiler* profiler, bool times) noexcept {
    profiler_ = profiler;
    wants_times_ = times || profiler != nullptr;
  }

  /// The queue for what comes now, valid until set_profiler(). Throws Error(kDevice).
  cl_command_queue get() {
    choose_queue();
    return queue_.get();
  }

  /// Enqueues `groups` work-groups. Throws Error(kDevice).
  template <class... Args>
  void launch(const Kernel& kernel, std::array<std::size_t, 2> groups, const Args&... args) {
    set_arguments(kernel, args...);
    enqueue(kernel, groups);
  }
  /// The two halves of a launch. Throw Error(kDevice).
  template <class... Args>
  static void set_arguments(const Kernel& kernel, const Args&... args) {
    cl_uint index = 0;
    (set(kernel, index++, sizeof args, &args), ...);
  }
  template <class T>
  static void set_argument(const Kernel& kernel, cl_uint index, const T& value) {
    set(kernel, index, sizeof value, &value);
  }
  void enqueue(const Kernel& kernel, std::array<std::size_t, 2> groups);
  /// Copies to the device. Without `wait`, `from` has to stay as it is until the event has come. Throws
  /// Error(kDevice).
  void upload(cl_mem to, std::size_t offset, std::span<const std::byte> from);
  ClEvent upload_later(cl_mem to, std::size_t offset, std::span<const std::byte> from);
  /// Waits for everything issued before, and copies. Throws Error(kDevice).
  void download(cl_mem from, std::size_t offset, std::span<std::byte> to);
  void flush();
  void finish();

  /// What it knows of DeviceStatistics.
  DeviceStatistics statistics() const;
  /// Grows with every call that failed: what was enqueued before need not have been done.
  std::uint64_t failures() const noexcept { return failures_; }

 private:
  static void set(const Kernel& kernel, cl_uint index, std::size_t bytes, const void* value);
  void checked(cl_int status, std::string_view call);
  /// The queue for what comes now: one that takes times where they are wanted.
  void choose_queue();
  /// Where the driver is to put the event of a command, or null where no times are taken.
  cl_event* event_for(const char* name, std::uint64_t bytes = 0);
  /// Takes the times of all that is done by now.
  void collect();

  struct Timed {
    const char* name;
    std::uint64_t bytes;
    cl_event event;
  };
  ClContext context_;
  cl_device_id device_;
  ClQueue queue_;
  bool takes_times_ = false, wants_times_ = false;
  Profiler* profiler_ = nullptr;
  DeviceStatistics counts_;
  std::map<std::string_view, DeviceStatistics::KernelTime> times_;
  std::vector<Timed> timed_;
  std::chrono::steady_clock::time_point first_;  // enqueued of timed_
  std::uint64_t failures_ = 0;
};

}  // namespace bitnet::gpu
