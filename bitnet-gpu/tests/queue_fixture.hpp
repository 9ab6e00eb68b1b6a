#pragma once
// A CommandQueue on the first OpenCL device, a kernel that adds one to 64 integers, and buffers for it.
#include <gtest/gtest.h>

#include <memory>
#include <numeric>
#include <vector>

#include "bitnet/testing/opencl.hpp"
#include "command_queue.hpp"
#include "device_list.hpp"
#include "device_memory_pool.hpp"

namespace bitnet::gpu {

constexpr std::size_t kValues = 64;

inline std::vector<cl_int> numbers(cl_int first) {
  std::vector<cl_int> all(kValues);
  std::iota(all.begin(), all.end(), first);
  return all;
}

class QueueFixture : public ::testing::Test {
 protected:
  void open(bool own_transfers) {
    const DeviceList list = list_devices();
    BITNET_REQUIRE_OPENCL_DEVICE(!list.devices.empty());
    device_ = list.devices[0];
    cl_int status = CL_SUCCESS;
    context_ = ClContext(clCreateContext(nullptr, 1, &device_.id, nullptr, nullptr, &status));
    check(status, "clCreateContext");
    const char* source =
        "__kernel __attribute__((reqd_work_group_size(64, 1, 1)))\n"
        "void add_one(__global const int* from, __global int* to) {\n"
        "  const size_t i = get_global_id(0);\n"
        "  to[i] = from[i] + 1;\n"
        "}\n";
    program_ = ClProgram(clCreateProgramWithSource(context_.get(), 1, &source, nullptr, &status));
    check(status, "clCreateProgramWithSource");
    check(clBuildProgram(program_.get(), 1, &device_.id, "", nullptr, nullptr), "clBuildProgram");
    kernel_ = {ClKernel(clCreateKernel(program_.get(), "add_one", &status)), "add_one", {kValues, 1}};
    check(status, "clCreateKernel");
    pool_ =
        std::make_shared<DeviceMemoryPool>("dev", context_.get(), std::size_t{1} << 26, std::size_t{1} << 25);
    queue_ = std::make_unique<CommandQueue>(context_.get(), device_.id, own_transfers);
  }

  PooledMem buffer() { return {pool_, kValues * sizeof(cl_int), "test"}; }
  PooledMem buffer(cl_int first) {
    PooledMem mem = buffer();
    upload(mem, first);
    return mem;
  }
  void upload(const PooledMem& mem, cl_int first) {
    const std::vector<cl_int> values = numbers(first);
    queue_->upload(mem.get(), 0, std::as_bytes(std::span(values)));
  }
  void add_one(const PooledMem& from, const PooledMem& to) {
    queue_->launch(kernel_, {1, 1}, from.get(), to.get());
  }
  std::vector<cl_int> content(const PooledMem& mem) {
    std::vector<cl_int> values(kValues);
    queue_->download(mem.get(), 0, std::as_writable_bytes(std::span(values)));
    return values;
  }

  ClDevice device_;
  ClContext context_;
  ClProgram program_;
  Kernel kernel_;
  std::shared_ptr<DeviceMemoryPool> pool_;
  std::unique_ptr<CommandQueue> queue_;
};

}  // namespace bitnet::gpu
