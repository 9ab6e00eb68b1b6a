// libFuzzer target: any bytes as a GGUF file; what is done with them is readers.hpp.
#include <cstddef>
#include <cstdint>

#include "memory_file.hpp"
#include "readers.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  bitnet::fuzzing::read_gguf(bitnet::fuzzing::MemoryFile(data, size).path());
  return 0;
}
