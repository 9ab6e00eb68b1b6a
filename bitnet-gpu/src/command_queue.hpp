#pragma once
// The in-order queue of a backend: launches, transfers, and what they moved. Which kernels there are is
// kernel_set.hpp's business. One thread at a time issues to it.
#include <array>
#include <cstdint>
#include <span>
#include <string>

#include "cl_objects.hpp"

namespace bitnet::gpu {

/// A kernel with its own work-group size (reqd_work_group_size).
struct Kernel {
  ClKernel object;
  std::string name;
  std::array<std::size_t, 2> local{};
};

struct QueueCounts {
  std::uint64_t launches = 0, uploads = 0, downloads = 0, upload_bytes = 0, download_bytes = 0;
  std::uint64_t waits = 0;  ///< times that the host waited for the device
};

class CommandQueue {
 public:
  /// Throws Error(kDevice | kOutOfMemory).
  CommandQueue(cl_context context, cl_device_id device);

  cl_command_queue get() const noexcept { return queue_.get(); }

  /// Enqueues `groups` work-groups. Throws Error(kDevice).
  template <class... Args>
  void launch(const Kernel& kernel, std::array<std::size_t, 2> groups, const Args&... args) {
    cl_uint index = 0;
    (set(kernel, index++, sizeof args, &args), ...);
    enqueue(kernel, groups);
  }
  /// Copies to the device. Without `wait`, `from` has to stay as it is until the event has come. Throws
  /// Error(kDevice).
  void upload(cl_mem to, std::size_t offset, std::span<const std::byte> from);
  ClEvent upload_later(cl_mem to, std::size_t offset, std::span<const std::byte> from);
  /// Waits for everything issued before, and copies. Throws Error(kDevice).
  void download(cl_mem from, std::size_t offset, std::span<std::byte> to);
  void flush();
  void finish();

  const QueueCounts& counts() const noexcept { return counts_; }
  /// Grows with every call that failed: what was enqueued before need not have been done.
  std::uint64_t failures() const noexcept { return failures_; }

 private:
  static void set(const Kernel& kernel, cl_uint index, std::size_t bytes, const void* value);
  void enqueue(const Kernel& kernel, std::array<std::size_t, 2> groups);
  void checked(cl_int status, std::string_view call);

  ClQueue queue_;
  QueueCounts counts_;
  std::uint64_t failures_ = 0;
};

}  // namespace bitnet::gpu
