#pragma once
// Command buffers of the driver (cl_khr_command_buffer): lists of launches that are recorded once and
// enqueued whole. Which lists are worth it is launch_recorder.hpp's business.
#include <CL/cl.h>
#include <CL/cl_ext.h>

#include <optional>
#include <span>
#include <vector>

#include "cl_objects.hpp"
#include "launch.hpp"

namespace bitnet::gpu {

/// The extension's functions, which the loader does not export.
struct CommandBufferApi {
  clCreateCommandBufferKHR_fn create = nullptr;
  clCommandNDRangeKernelKHR_fn record = nullptr;
  clFinalizeCommandBufferKHR_fn finalize = nullptr;
  clEnqueueCommandBufferKHR_fn enqueue = nullptr;
  clReleaseCommandBufferKHR_fn release = nullptr;
};

/// None where the device does not report the extension, wants queues with properties for it, or the driver
/// lacks a function.
std::optional<CommandBufferApi> command_buffers_of(cl_platform_id platform, cl_device_id device);

/// A recorded list, released with it when it has run. Buffers that its launches name stay with the driver
/// until then. Move-only; not thread-safe.
class CommandBuffer {
 public:
  /// Records `launches` in their order, for an in-order queue. Throws Error(kDevice).
  CommandBuffer(const CommandBufferApi& api, cl_command_queue queue, std::span<const Launch> launches);
  ~CommandBuffer();
  CommandBuffer(CommandBuffer&& other) noexcept;
  CommandBuffer& operator=(CommandBuffer&& other) noexcept;

  /// Whether it has been enqueued and is not done: then it cannot be enqueued.
  bool runs() const;
  /// Enqueues it behind `needs`. False: the driver says that it still runs, and nothing was done. Throws
  /// Error(kDevice).
  bool enqueue(cl_command_queue queue, std::span<const cl_event> needs);

 private:
  explicit CommandBuffer(const CommandBufferApi& api) : api_(&api) {}

  const CommandBufferApi* api_;
  std::vector<ClKernel> kernels_;  // one of its own for each launch (quirks.hpp)
  cl_command_buffer_khr buffer_ = nullptr;
  ClEvent last_;  // of its last run
};

}  // namespace bitnet::gpu
