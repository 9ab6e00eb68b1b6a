// The program cache on its own: one build a (source, options), and every way a build can fail.
#include "program_cache.hpp"

#include <gtest/gtest.h>

#include "bitnet/testing/opencl.hpp"
#include "bitnet/testing/testing.hpp"
#include "device_list.hpp"

namespace bitnet::gpu {
namespace {

constexpr std::string_view kSource =
    "__kernel void twice(__global int* x) { x[get_global_id(0)] *= FACTOR; }";

class ProgramCacheTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const DeviceList list = list_devices();
    BITNET_REQUIRE_OPENCL_DEVICE(!list.devices.empty());
    device_ = list.devices[0].id;
    cl_int status = CL_SUCCESS;
    context_ = ClContext(clCreateContext(nullptr, 1, &device_, nullptr, nullptr, &status));
    check(status, "clCreateContext");
  }
  cl_device_id device_ = nullptr;
  ClContext context_;
};

cl_program program_of(const ClKernel& kernel) {
  cl_program program = nullptr;
  check(clGetKernelInfo(kernel.get(), CL_KERNEL_PROGRAM, sizeof program, &program, nullptr),
        "clGetKernelInfo");
  return program;
}

TEST_F(ProgramCacheTest, BuildsOncePerSourceAndOptions) {
  ProgramCache cache(context_.get(), device_, "");
  const ClKernel a = cache.kernel(kSource, "-DFACTOR=2", "twice");
  const ClKernel b = cache.kernel(kSource, "-DFACTOR=2", "twice");
  const ClKernel c = cache.kernel(kSource, "-DFACTOR=3", "twice");
  EXPECT_EQ(program_of(a), program_of(b));
  EXPECT_NE(program_of(a), program_of(c));
  EXPECT_NE(a.get(), b.get());
  EXPECT_EQ(cache.programs(), 2u);
}

TEST_F(ProgramCacheTest, BrokenSourceGivesTheLogAndIsNotKept) {
  ProgramCache cache(context_.get(), device_, "");
  BITNET_EXPECT_ERROR(cache.kernel("__kernel void bad() { no_such_thing; }", "", "bad"), ErrorCode::kDevice,
                      "no_such_thing");
  EXPECT_EQ(cache.programs(), 0u);
}

TEST_F(ProgramCacheTest, MissingKernelNamesIt) {
  ProgramCache cache(context_.get(), device_, "-DFACTOR=2");
  BITNET_EXPECT_ERROR(cache.kernel(kSource, "", "thrice"), ErrorCode::kDevice, "thrice");
}

TEST(ClError, NamesCodes) {
  EXPECT_EQ(error_name(CL_OUT_OF_RESOURCES), "CL_OUT_OF_RESOURCES");
  EXPECT_EQ(error_name(-1001), "CL_PLATFORM_NOT_FOUND_KHR");
  EXPECT_EQ(error_name(-31337), "OpenCL error -31337");
  BITNET_EXPECT_ERROR(check(CL_MEM_OBJECT_ALLOCATION_FAILURE, "clCreateBuffer"), ErrorCode::kOutOfMemory,
                      "clCreateBuffer failed with CL_MEM_OBJECT_ALLOCATION_FAILURE");
  BITNET_EXPECT_ERROR(check_op(CL_OUT_OF_RESOURCES, "clFinish"), ErrorCode::kDevice, "CL_OUT_OF_RESOURCES");
  EXPECT_NO_THROW(check(CL_SUCCESS, "clFinish"));
}

}  // namespace
}  // namespace bitnet::gpu
