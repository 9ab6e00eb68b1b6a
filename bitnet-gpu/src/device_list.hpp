#pragma once
// Which OpenCL devices this machine has. Opening one is opencl_backend's business.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "bitnet/core/device/registry.hpp"
#include "cl_objects.hpp"

namespace bitnet::gpu {

/// A device with what the backend needs to know of it. The ids live as long as the process, those of
/// sub-devices as long as `owner`.
struct ClDevice {
  cl_platform_id platform = nullptr;
  cl_device_id id = nullptr;
  Device device;                   ///< as the registry shows it
  std::string own_name, driver;    ///< CL_DEVICE_NAME, CL_DRIVER_VERSION
  std::size_t max_work_group = 0;  ///< work-items
  std::size_t max_allocation = 0;  ///< bytes of one buffer
  std::shared_ptr<const void> owner = {};

  /// Bytes that its buffers may take: all of its memory, or `limit` where that is less and not 0.
  std::size_t memory_within(std::size_t limit) const noexcept {
    return limit != 0 ? std::min(limit, device.memory_bytes) : device.memory_bytes;
  }
};

struct DeviceList {
  std::vector<ClDevice> devices;
  std::vector<std::string> notes;  ///< why something is not among them
};

/// Asks every platform. Of each device that can be divided into `sub_devices` equal parts (2 or more), those
/// follow it as "opencl:0:0/0", "opencl:0:0/1", … Never throws for a driver's failure: that is a note.
DeviceList list_devices(std::int64_t sub_devices = 0);

/// The one of that list with this name. Throws Error(kNotFound).
ClDevice find_device(std::string_view name, std::int64_t sub_devices = 0);

}  // namespace bitnet::gpu
