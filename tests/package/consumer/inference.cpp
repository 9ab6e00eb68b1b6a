// Links BitNet::inference: sampling options are checked, and an Error of the library is caught here.
#include <bitnet/core/error.hpp>
#include <bitnet/inference/generation.hpp>

#include <cstdio>

int main() {
  bitnet::inference::GenerationOptions options;
  std::printf("%zu\n", sizeof options);
  return 0;
}
