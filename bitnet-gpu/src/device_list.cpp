// Enumerates platforms and devices; every failure of a driver becomes a note.
#include "device_list.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <iterator>
#include <sstream>

namespace bitnet::gpu {
namespace {

template <class T>
T device_info(cl_device_id id, cl_device_info what) {
  T value{};
  check(clGetDeviceInfo(id, what, sizeof value, &value, nullptr), "clGetDeviceInfo");
  return value;
}

// A string property without the terminating zero and outer blanks.
template <class Id, class Get>
std::string text_info(Get get, Id id, cl_uint what, std::string_view call) {
  std::size_t bytes = 0;
  check(get(id, what, 0, nullptr, &bytes), call);
  std::string text(bytes, '\0');
  check(get(id, what, bytes, text.data(), nullptr), call);
  text.resize(std::min(text.find('\0'), text.size()));
  const auto first = text.find_first_not_of(' ');
  if (first == std::string::npos) return {};
  return text.substr(first, text.find_last_not_of(' ') - first + 1);
}

std::string device_text(cl_device_id id, cl_device_info what) {
  return text_info(&clGetDeviceInfo, id, what, "clGetDeviceInfo");
}

std::vector<std::string> words_of(const std::string& text) {
  std::istringstream words(text);
  return {std::istream_iterator<std::string>(words), {}};
}

DeviceKind kind_of(cl_device_type type) {
  if ((type & CL_DEVICE_TYPE_CPU) != 0) return DeviceKind::kCpu;
  return (type & CL_DEVICE_TYPE_GPU) != 0 ? DeviceKind::kGpu : DeviceKind::kAccelerator;
}

ClDevice describe(cl_platform_id platform, cl_device_id id, const std::string& name) {
  if (!device_info<cl_bool>(id, CL_DEVICE_AVAILABLE))
    throw Error(ErrorCode::kDevice, "the driver reports it as unavailable");
  if (!device_info<cl_bool>(id, CL_DEVICE_COMPILER_AVAILABLE))
    throw Error(ErrorCode::kUnsupported, "it has no compiler");
  if (!device_info<cl_bool>(id, CL_DEVICE_ENDIAN_LITTLE))
    throw Error(ErrorCode::kUnsupported, "it is big-endian");
  ClDevice d;
  d.platform = platform;
  d.id = id;
  d.device.name = name;
  d.device.kind = kind_of(device_info<cl_device_type>(id, CL_DEVICE_TYPE));
  d.device.emulated = d.device.kind == DeviceKind::kCpu;
  d.device.memory_bytes = static_cast<std::size_t>(device_info<cl_ulong>(id, CL_DEVICE_GLOBAL_MEM_SIZE));
  d.own_name = device_text(id, CL_DEVICE_NAME);
  d.driver = device_text(id, CL_DRIVER_VERSION);
  d.device.description = fmt::format("{}, {} ({}, driver {})", d.own_name, device_text(id, CL_DEVICE_VENDOR),
                                     device_text(id, CL_DEVICE_VERSION), d.driver);
  DeviceCapabilities& c = d.device.capabilities;
  c.compute_units = device_info<cl_uint>(id, CL_DEVICE_MAX_COMPUTE_UNITS);
  c.clock_mhz = device_info<cl_uint>(id, CL_DEVICE_MAX_CLOCK_FREQUENCY);
  c.cache_bytes = static_cast<std::size_t>(device_info<cl_ulong>(id, CL_DEVICE_GLOBAL_MEM_CACHE_SIZE));
  c.local_bytes = static_cast<std::size_t>(device_info<cl_ulong>(id, CL_DEVICE_LOCAL_MEM_SIZE));
  c.shares_host_memory = device_info<cl_bool>(id, CL_DEVICE_HOST_UNIFIED_MEMORY) != CL_FALSE;
  c.vendor = device_text(id, CL_DEVICE_VENDOR);
  c.driver = fmt::format("{} ({})", d.driver, device_text(id, CL_DEVICE_VERSION));
  c.features = words_of(device_text(id, CL_DEVICE_EXTENSIONS));
  d.max_work_group = device_info<std::size_t>(id, CL_DEVICE_MAX_WORK_GROUP_SIZE);
  d.max_allocation = static_cast<std::size_t>(device_info<cl_ulong>(id, CL_DEVICE_MAX_MEM_ALLOC_SIZE));
  c.work_group_items = d.max_work_group;
  c.allocation_bytes = d.max_allocation;
  return d;
}

using ClDeviceRef = ClHandle<cl_device_id, &clReleaseDevice>;

/// The parts of `whole`, which has been listed.
void list_parts(const ClDevice& whole, std::int64_t n, DeviceList& list) {
  const auto units = whole.device.capabilities.compute_units;
  if (units < n)
    throw Error(ErrorCode::kUnsupported,
                fmt::format("it has {} compute units, too few for {} sub-devices", units, n));
  const cl_device_partition_property how[] = {CL_DEVICE_PARTITION_EQUALLY,
                                              static_cast<cl_device_partition_property>(units / n), 0};
  cl_uint count = 0;
  check(clCreateSubDevices(whole.id, how, 0, nullptr, &count), "clCreateSubDevices");
  std::vector<cl_device_id> ids(count);
  check(clCreateSubDevices(whole.id, how, count, ids.data(), nullptr), "clCreateSubDevices");
  std::vector<std::shared_ptr<const void>> owners;
  for (const cl_device_id id : ids) owners.push_back(std::make_shared<const ClDeviceRef>(id));
  for (std::size_t i = 0; i < ids.size() && i < static_cast<std::size_t>(n); ++i) {
    ClDevice part = describe(whole.platform, ids[i], fmt::format("{}/{}", whole.device.name, i));
    part.owner = owners[i];
    part.device.memory_bytes /= static_cast<std::size_t>(n);  // all of them have the whole device's
    list.devices.push_back(std::move(part));
  }
  // For who asks for a part that is not there.
  list.notes.push_back(fmt::format("{0} has {1} parts, {0}/0 to {0}/{2}", whole.device.name, n, n - 1));
}

std::string platform_label(cl_platform_id platform, cl_uint index) {
  try {
    return fmt::format("OpenCL platform {} ({})", index,
                       text_info(&clGetPlatformInfo, platform, CL_PLATFORM_NAME, "clGetPlatformInfo"));
  } catch (const Error&) {
    return fmt::format("OpenCL platform {}", index);
  }
}

void list_platform(cl_platform_id platform, cl_uint index, std::int64_t sub_devices, DeviceList& list) {
  const std::string label = platform_label(platform, index);
  cl_uint count = 0;
  const cl_int status = clGetDeviceIDs(platform, CL_DEVICE_TYPE_ALL, 0, nullptr, &count);
  if (status == CL_DEVICE_NOT_FOUND || (status == CL_SUCCESS && count == 0)) {
    list.notes.push_back(label + " has no devices");
    return;
  }
  check(status, "clGetDeviceIDs");
  std::vector<cl_device_id> ids(count);
  check(clGetDeviceIDs(platform, CL_DEVICE_TYPE_ALL, count, ids.data(), nullptr), "clGetDeviceIDs");
  for (cl_uint d = 0; d < count; ++d) {
    const std::string name = fmt::format("opencl:{}:{}", index, d);
    try {
      list.devices.push_back(describe(platform, ids[d], name));
    } catch (const Error& e) {
      list.notes.push_back(fmt::format("{} is left out: {}", name, e.what()));
      continue;
    }
    if (sub_devices < 2) continue;
    try {
      list_parts(ClDevice(list.devices.back()), sub_devices, list);
    } catch (const Error& e) {
      list.notes.push_back(fmt::format("{} is not divided: {}", name, e.what()));
    }
  }
}

}  // namespace

DeviceList list_devices(std::int64_t sub_devices) {
  DeviceList list;
  cl_uint count = 0;
  const cl_int status = clGetPlatformIDs(0, nullptr, &count);
  if (status != CL_SUCCESS || count == 0) {
    list.notes.push_back(
        fmt::format("no OpenCL platform ({}): install the vendor's driver, or pocl-opencl-icd to try the "
                    "OpenCL path on the CPU",
                    status == CL_SUCCESS ? "the loader found none" : error_name(status)));
    return list;
  }
  std::vector<cl_platform_id> platforms(count);
  const cl_int filled = clGetPlatformIDs(count, platforms.data(), nullptr);
  if (filled != CL_SUCCESS) {
    list.notes.push_back(fmt::format("the OpenCL platforms cannot be listed: {}", error_name(filled)));
    return list;
  }
  for (cl_uint p = 0; p < count; ++p) {
    try {
      list_platform(platforms[p], p, sub_devices, list);
    } catch (const Error& e) {
      list.notes.push_back(fmt::format("{} failed: {}", platform_label(platforms[p], p), e.what()));
    }
  }
  return list;
}

ClDevice find_device(std::string_view name, std::int64_t sub_devices) {
  DeviceList list = list_devices(sub_devices);
  for (ClDevice& d : list.devices)
    if (d.device.name == name) return std::move(d);
  std::vector<std::string> there;
  for (const ClDevice& d : list.devices) there.push_back(d.device.name);
  for (std::string& note : list.notes) there.push_back(std::move(note));
  throw Error(ErrorCode::kNotFound,
              fmt::format("there is no OpenCL device '{}' (there are: {})", name, fmt::join(there, "; ")));
}

}  // namespace bitnet::gpu
