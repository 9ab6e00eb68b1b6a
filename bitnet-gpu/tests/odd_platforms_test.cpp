// What becomes of platforms and devices that cannot be used: notes of the registry, typed errors for who asks
// for them. This executable has OpenCL's listing functions itself, in front of the loader's.
#include <CL/cl.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <string>

#include "bitnet/core/execution.hpp"
#include "bitnet/gpu/register.hpp"
#include "bitnet/testing/testing.hpp"

namespace {

/// What the fake driver says.
struct Driver {
  cl_int platforms_status = CL_SUCCESS;
  cl_uint n_platforms = 1;
  cl_int devices_status = CL_SUCCESS;
  cl_uint n_devices = 1;
  cl_int info_status = CL_SUCCESS;
  cl_bool available = CL_TRUE, compiler = CL_TRUE, little_endian = CL_TRUE;
  cl_uint compute_units = 4;
  cl_int partition_status = CL_SUCCESS;
};
Driver driver;

template <class T>
cl_int give(const T& value, std::size_t room, void* to, std::size_t* bytes) {
  if (bytes != nullptr) *bytes = sizeof value;
  if (to != nullptr) {
    if (room < sizeof value) return CL_INVALID_VALUE;
    std::memcpy(to, &value, sizeof value);
  }
  return CL_SUCCESS;
}

cl_int give_text(const char* text, std::size_t room, void* to, std::size_t* bytes) {
  const std::size_t n = std::strlen(text) + 1;
  if (bytes != nullptr) *bytes = n;
  if (to != nullptr) {
    if (room < n) return CL_INVALID_VALUE;
    std::memcpy(to, text, n);
  }
  return CL_SUCCESS;
}

}  // namespace

extern "C" {

cl_int clGetPlatformIDs(cl_uint room, cl_platform_id* to, cl_uint* count) {
  if (driver.platforms_status != CL_SUCCESS) return driver.platforms_status;
  if (count != nullptr) *count = driver.n_platforms;
  for (cl_uint i = 0; to != nullptr && i < room; ++i) to[i] = reinterpret_cast<cl_platform_id>(&driver);
  return CL_SUCCESS;
}

cl_int clGetPlatformInfo(cl_platform_id, cl_platform_info, std::size_t room, void* to, std::size_t* bytes) {
  return give_text("Fake", room, to, bytes);
}

cl_int clGetDeviceIDs(cl_platform_id, cl_device_type, cl_uint room, cl_device_id* to, cl_uint* count) {
  if (driver.devices_status != CL_SUCCESS) return driver.devices_status;
  if (count != nullptr) *count = driver.n_devices;
  for (cl_uint i = 0; to != nullptr && i < room; ++i) to[i] = reinterpret_cast<cl_device_id>(&driver);
  return CL_SUCCESS;
}

cl_int clGetDeviceInfo(cl_device_id, cl_device_info what, std::size_t room, void* to, std::size_t* bytes) {
  if (driver.info_status != CL_SUCCESS) return driver.info_status;
  switch (what) {
    case CL_DEVICE_AVAILABLE:
      return give(driver.available, room, to, bytes);
    case CL_DEVICE_COMPILER_AVAILABLE:
      return give(driver.compiler, room, to, bytes);
    case CL_DEVICE_ENDIAN_LITTLE:
      return give(driver.little_endian, room, to, bytes);
    case CL_DEVICE_TYPE:
      return give(cl_device_type{CL_DEVICE_TYPE_GPU}, room, to, bytes);
    case CL_DEVICE_MAX_COMPUTE_UNITS:
      return give(driver.compute_units, room, to, bytes);
    case CL_DEVICE_MAX_CLOCK_FREQUENCY:
      return give(cl_uint{1000}, room, to, bytes);
    case CL_DEVICE_HOST_UNIFIED_MEMORY:
      return give(cl_bool{CL_FALSE}, room, to, bytes);
    case CL_DEVICE_MAX_WORK_GROUP_SIZE:
      return give(std::size_t{256}, room, to, bytes);
    case CL_DEVICE_GLOBAL_MEM_SIZE:
    case CL_DEVICE_MAX_MEM_ALLOC_SIZE:
    case CL_DEVICE_GLOBAL_MEM_CACHE_SIZE:
    case CL_DEVICE_LOCAL_MEM_SIZE:
      return give(cl_ulong{1} << 30, room, to, bytes);
    default:
      return give_text("something", room, to, bytes);
  }
}

cl_int clCreateSubDevices(cl_device_id, const cl_device_partition_property* how, cl_uint room,
                          cl_device_id* to, cl_uint* count) {
  if (driver.partition_status != CL_SUCCESS) return driver.partition_status;
  const auto n = driver.compute_units / static_cast<cl_uint>(how[1]);
  if (count != nullptr) *count = n;
  for (cl_uint i = 0; to != nullptr && i < std::min(room, n); ++i)
    to[i] = reinterpret_cast<cl_device_id>(&driver);
  return CL_SUCCESS;
}

cl_int clReleaseDevice(cl_device_id) { return CL_SUCCESS; }

// Nothing can be opened on the fake driver.
cl_context clCreateContext(const cl_context_properties*, cl_uint, const cl_device_id*,
                           void(CL_CALLBACK*)(const char*, const void*, std::size_t, void*), void*,
                           cl_int* status) {
  *status = CL_DEVICE_NOT_AVAILABLE;
  return nullptr;
}

}  // extern "C"

namespace bitnet {
namespace {

std::vector<std::string> names(const BackendRegistry& registry) {
  std::vector<std::string> all;
  for (const Device& d : registry.devices()) all.push_back(d.name);
  return all;
}

struct OddPlatforms : ::testing::Test {
  void SetUp() override { driver = Driver(); }
  void expect_note(const std::string& text, std::int64_t sub_devices = 0) {
    BackendRegistry registry;
    gpu::Options options;
    options.sub_devices = sub_devices;
    gpu::register_backends(registry, options);
    ASSERT_EQ(registry.notes().size(), 1u);
    EXPECT_THAT(registry.notes()[0], ::testing::HasSubstr(text));
    if (sub_devices > 0) return;
    EXPECT_TRUE(registry.devices().empty());
    // Who asks for the device is told why it is not there.
    BITNET_EXPECT_ERROR(registry.create("opencl:0:0", nullptr), ErrorCode::kNotFound, text);
  }
};

TEST_F(OddPlatforms, WithoutDevices) {
  driver.devices_status = CL_DEVICE_NOT_FOUND;
  expect_note("OpenCL platform 0 (Fake) has no devices");
  driver = Driver();
  driver.n_devices = 0;
  expect_note("OpenCL platform 0 (Fake) has no devices");
}

TEST_F(OddPlatforms, ThatFail) {
  driver.devices_status = CL_OUT_OF_HOST_MEMORY;
  expect_note("OpenCL platform 0 (Fake) failed: clGetDeviceIDs failed with CL_OUT_OF_HOST_MEMORY");
}

TEST_F(OddPlatforms, None) {
  driver.n_platforms = 0;
  expect_note("no OpenCL platform (the loader found none): install");
  driver.platforms_status = -1001;
  expect_note("no OpenCL platform (CL_PLATFORM_NOT_FOUND_KHR): install");
}

TEST_F(OddPlatforms, DevicesThatCannotBeUsed) {
  driver.available = CL_FALSE;
  expect_note("opencl:0:0 is left out: the driver reports it as unavailable");
  driver = Driver();
  driver.compiler = CL_FALSE;
  expect_note("opencl:0:0 is left out: it has no compiler");
  driver = Driver();
  driver.little_endian = CL_FALSE;
  expect_note("opencl:0:0 is left out: it is big-endian");
  driver = Driver();
  driver.info_status = CL_INVALID_DEVICE;
  expect_note("opencl:0:0 is left out: clGetDeviceInfo failed with CL_INVALID_DEVICE");
}

TEST_F(OddPlatforms, DevicesThatCannotBeDivided) {
  driver.partition_status = CL_DEVICE_PARTITION_FAILED;
  expect_note("opencl:0:0 is not divided: clCreateSubDevices failed with CL_DEVICE_PARTITION_FAILED", 2);
  driver = Driver();
  driver.compute_units = 1;
  expect_note("opencl:0:0 is not divided: it has 1 compute units, too few for 2 sub-devices", 2);
}

TEST_F(OddPlatforms, PartsFollowTheirDevice) {
  driver.compute_units = 7;  // parts of two, of which the fourth would be one too many
  BackendRegistry registry;
  gpu::Options options;
  options.sub_devices = 3;
  gpu::register_backends(registry, options);
  EXPECT_EQ(names(registry),
            (std::vector<std::string>{"opencl:0:0", "opencl:0:0/0", "opencl:0:0/1", "opencl:0:0/2"}));
  EXPECT_EQ(registry.devices()[0].memory_bytes, std::size_t{1} << 30);
  EXPECT_EQ(registry.devices()[1].memory_bytes, (std::size_t{1} << 30) / 3);
  EXPECT_EQ(registry.notes(),
            std::vector<std::string>{"opencl:0:0 has 3 parts, opencl:0:0/0 to opencl:0:0/2"});
  BITNET_EXPECT_ERROR(registry.create("opencl:0:0/3", nullptr), ErrorCode::kNotFound,
                      "there is no device 'opencl:0:0/3' (there are: opencl:0:0, opencl:0:0/0, opencl:0:0/1, "
                      "opencl:0:0/2, auto); opencl:0:0 has 3 parts, opencl:0:0/0 to opencl:0:0/2");
}

TEST_F(OddPlatforms, ADeviceThatCannotBeOpened) {
  BackendRegistry registry;
  gpu::register_backends(registry);
  ASSERT_EQ(names(registry), std::vector<std::string>{"opencl:0:0"});
  BITNET_EXPECT_ERROR(registry.create("opencl:0:0", nullptr), ErrorCode::kDevice,
                      "clCreateContext failed with CL_DEVICE_NOT_AVAILABLE");
}

}  // namespace
}  // namespace bitnet
