// Links BitNet::core: an Error crosses the library's border, and the pool of devices is empty until it is
// filled.
#include <bitnet/core/device/registry.hpp>
#include <bitnet/core/error.hpp>
#include <bitnet/core/execution.hpp>

#include <cstdio>
#include <memory>

int main() {
  const bitnet::BackendRegistry registry;
  try {
    registry.create("opencl:0:0", std::make_shared<const bitnet::ExecutionContext>());
  } catch (const bitnet::Error& error) {
    std::puts(error.what());
    return error.code() == bitnet::ErrorCode::kNotFound ? 0 : 1;
  }
  return 1;
}
