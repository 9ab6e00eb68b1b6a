// See command_buffer.hpp.
#include "command_buffer.hpp"

#include <fmt/format.h>

#include <string>
#include <utility>

#include "quirks.hpp"

namespace bitnet::gpu {
namespace {

bool reports(cl_device_id device, std::string_view extension) {
  std::size_t bytes = 0;
  if (clGetDeviceInfo(device, CL_DEVICE_EXTENSIONS, 0, nullptr, &bytes) != CL_SUCCESS) return false;
  std::string all(bytes, '\0');
  if (clGetDeviceInfo(device, CL_DEVICE_EXTENSIONS, bytes, all.data(), nullptr) != CL_SUCCESS) return false;
  const std::string words = " " + std::string(all.c_str()) + " ";
  return words.find(" " + std::string(extension) + " ") != std::string::npos;
}

template <class Function>
bool find(cl_platform_id platform, const char* name, Function& function) {
  function = reinterpret_cast<Function>(clGetExtensionFunctionAddressForPlatform(platform, name));
  return function != nullptr;
}

}  // namespace

std::optional<CommandBufferApi> command_buffers_of(cl_platform_id platform, cl_device_id device) {
  if (!reports(device, "cl_khr_command_buffer")) return std::nullopt;
  cl_command_queue_properties wanted = 0;
  if (clGetDeviceInfo(device, CL_DEVICE_COMMAND_BUFFER_REQUIRED_QUEUE_PROPERTIES_KHR, sizeof wanted, &wanted,
                      nullptr) != CL_SUCCESS ||
      wanted != 0)
    return std::nullopt;
  CommandBufferApi api;
  const bool all = find(platform, "clCreateCommandBufferKHR", api.create) &&
                   find(platform, "clCommandNDRangeKernelKHR", api.record) &&
                   find(platform, "clFinalizeCommandBufferKHR", api.finalize) &&
                   find(platform, "clEnqueueCommandBufferKHR", api.enqueue) &&
                   find(platform, "clReleaseCommandBufferKHR", api.release);
  return all ? std::optional(api) : std::nullopt;
}

CommandBuffer::CommandBuffer(const CommandBufferApi& api, cl_command_queue queue,
                             std::span<const Launch> launches)
    : CommandBuffer(api) {  // which is released where something below throws
  cl_int status = CL_SUCCESS;
  buffer_ = api.create(1, &queue, nullptr, &status);
  check_op(status, "clCreateCommandBufferKHR");
  cl_sync_point_khr before = 0;
  for (const Launch& launch : launches) {
    kernels_.push_back(kernel_to_record(launch.kernel().object.get(), launch.kernel().name));
    launch.set_arguments(kernels_.back().get());
    const Launch::Groups global = launch.global();
    cl_sync_point_khr point = 0;
    const bool first = &launch == launches.data();
    status =
        api.record(buffer_, nullptr, nullptr, kernels_.back().get(), 2, nullptr, global.data(),
                   launch.kernel().local.data(), first ? 0 : 1, first ? nullptr : &before, &point, nullptr);
    if (status != CL_SUCCESS)
      check_op(status, fmt::format("clCommandNDRangeKernelKHR of {}", launch.kernel().name));
    before = point;
  }
  check_op(api.finalize(buffer_), "clFinalizeCommandBufferKHR");
}

CommandBuffer::~CommandBuffer() {
  if (buffer_ == nullptr) return;
  if (last_) {  // the driver keeps its buffers until it is done
    const cl_event one = last_.get();
    clWaitForEvents(1, &one);
  }
  api_->release(buffer_);
}

CommandBuffer::CommandBuffer(CommandBuffer&& other) noexcept
    : api_(other.api_),
      kernels_(std::move(other.kernels_)),
      buffer_(std::exchange(other.buffer_, nullptr)),
      last_(std::move(other.last_)) {}

CommandBuffer& CommandBuffer::operator=(CommandBuffer&& other) noexcept {
  std::swap(api_, other.api_);
  kernels_.swap(other.kernels_);
  std::swap(buffer_, other.buffer_);
  last_ = std::move(other.last_);  // exchanges them
  return *this;
}

bool CommandBuffer::runs() const { return last_ && state_of(last_.get()) > CL_COMPLETE; }

bool CommandBuffer::enqueue(cl_command_queue queue, std::span<const cl_event> needs) {
  cl_event event = nullptr;
  const cl_int status = api_->enqueue(0, nullptr, buffer_, static_cast<cl_uint>(needs.size()),
                                      needs.empty() ? nullptr : needs.data(), &event);
  if (status == CL_INVALID_OPERATION) return false;
  check_op(status, "clEnqueueCommandBufferKHR");
  last_ = ClEvent(event);
  check_op(clFlush(queue), "clFlush");  // whoever forgets it waits for it
  return true;
}

}  // namespace bitnet::gpu
