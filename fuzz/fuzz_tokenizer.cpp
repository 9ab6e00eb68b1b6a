// libFuzzer target: any bytes as a tokenizer.json or a tokenizer.model; what is done with them is
// tokenizer_reader.hpp.
#include <cstddef>
#include <cstdint>

#include "tokenizer_reader.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  bitnet::fuzzing::read_tokenizer({reinterpret_cast<const char*>(data), size});
  return 0;
}
