#pragma once
// Which OpenCL devices this machine has. Opening one is opencl_backend's business.
#include <string>
#include <vector>

#include "bitnet/core/device/registry.hpp"
#include "cl_objects.hpp"

namespace bitnet::gpu {

/// A device with what the backend needs to know of it. The ids live as long as the process.
struct ClDevice {
  cl_platform_id platform = nullptr;
  cl_device_id id = nullptr;
  Device device;                   ///< as the registry shows it
  std::size_t max_work_group = 0;  ///< work-items
  std::size_t max_allocation = 0;  ///< bytes of one buffer
};

struct DeviceList {
  std::vector<ClDevice> devices;
  std::vector<std::string> notes;  ///< why something is not among them
};

/// Asks every platform. Never throws for a driver's failure: that is a note.
DeviceList list_devices();

}  // namespace bitnet::gpu
