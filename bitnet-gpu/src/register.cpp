// register_backends(): the device list as registry entries.
#include "bitnet/gpu/register.hpp"

#include <memory>
#include <utility>

#include "bitnet/core/execution.hpp"
#include "device_list.hpp"
#include "opencl_backend.hpp"

namespace bitnet::gpu {

void register_backends(BackendRegistry& registry, const Options& options) {
  DeviceList list = list_devices(options.sub_devices);
  for (std::string& note : list.notes) registry.add_note(std::move(note));
  for (const ClDevice& device : list.devices)
    registry.add(device.device, [device, options](std::shared_ptr<const ExecutionContext> context) {
      return make_opencl_backend(device, options, std::move(context));
    });
}

}  // namespace bitnet::gpu
