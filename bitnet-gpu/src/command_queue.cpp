// See command_queue.hpp.
#include "command_queue.hpp"

#include <fmt/format.h>

namespace bitnet::gpu {

CommandQueue::CommandQueue(cl_context context, cl_device_id device) {
  cl_int status = CL_SUCCESS;
  queue_ = ClQueue(clCreateCommandQueue(context, device, 0, &status));
  check(status, "clCreateCommandQueue");
}

void CommandQueue::checked(cl_int status, std::string_view call) {
  if (status != CL_SUCCESS) ++failures_;
  check_op(status, call);
}

void CommandQueue::set(const Kernel& kernel, cl_uint index, std::size_t bytes, const void* value) {
  const cl_int status = clSetKernelArg(kernel.object.get(), index, bytes, value);
  if (status != CL_SUCCESS) check_op(status, fmt::format("clSetKernelArg {} of {}", index, kernel.name));
}

void CommandQueue::enqueue(const Kernel& kernel, std::array<std::size_t, 2> groups) {
  const std::size_t global[2] = {groups[0] * kernel.local[0], groups[1] * kernel.local[1]};
  const cl_int status = clEnqueueNDRangeKernel(queue_.get(), kernel.object.get(), 2, nullptr, global,
                                               kernel.local.data(), 0, nullptr, nullptr);
  if (status != CL_SUCCESS) checked(status, fmt::format("launch of {}", kernel.name));
  ++counts_.launches;
}

void CommandQueue::upload(cl_mem to, std::size_t offset, std::span<const std::byte> from) {
  checked(
      clEnqueueWriteBuffer(queue_.get(), to, CL_TRUE, offset, from.size(), from.data(), 0, nullptr, nullptr),
      "clEnqueueWriteBuffer");
  ++counts_.uploads;
  ++counts_.waits;
  counts_.upload_bytes += from.size();
}

ClEvent CommandQueue::upload_later(cl_mem to, std::size_t offset, std::span<const std::byte> from) {
  cl_event done = nullptr;
  checked(
      clEnqueueWriteBuffer(queue_.get(), to, CL_FALSE, offset, from.size(), from.data(), 0, nullptr, &done),
      "clEnqueueWriteBuffer");
  ++counts_.uploads;
  counts_.upload_bytes += from.size();
  return ClEvent(done);
}

void CommandQueue::download(cl_mem from, std::size_t offset, std::span<std::byte> to) {
  checked(clEnqueueReadBuffer(queue_.get(), from, CL_TRUE, offset, to.size(), to.data(), 0, nullptr, nullptr),
          "clEnqueueReadBuffer");
  ++counts_.downloads;
  ++counts_.waits;
  counts_.download_bytes += to.size();
}

void CommandQueue::flush() { checked(clFlush(queue_.get()), "clFlush"); }

void CommandQueue::finish() {
  ++counts_.waits;
  checked(clFinish(queue_.get()), "clFinish");
}

}  // namespace bitnet::gpu
