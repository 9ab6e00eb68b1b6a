// Links BitNet::gpu: registering never throws, whatever drivers there are, and names begin with "opencl:".
#include <bitnet/gpu/register.hpp>

#include <cstdio>

int main() {
  bitnet::BackendRegistry registry;
  bitnet::gpu::register_backends(registry);
  for (const bitnet::Device& device : registry.devices()) {
    std::printf("%s: %s\n", device.name.c_str(), device.description.c_str());
    if (device.name.rfind("opencl:", 0) != 0) return 1;
  }
  return 0;
}
