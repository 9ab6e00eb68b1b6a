// libFuzzer target: any bytes as a .npy file; what is done with them is readers.hpp.
#include <cstddef>
#include <cstdint>

#include "readers.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  bitnet::fuzzing::read_npy({reinterpret_cast<const std::byte*>(data), size});
  return 0;
}
