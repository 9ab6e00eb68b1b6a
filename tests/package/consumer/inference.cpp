// Links BitNet::inference: loads the model that the command line names, if any, and generates from it; the
// CPU backend registers, and an Error of the library is caught here.
#include <bitnet/core/error.hpp>
#include <bitnet/inference/engine.hpp>
#include <bitnet/inference/register.hpp>

#include <cstdio>
#include <vector>

int main(int argc, char** argv) {
  bitnet::BackendRegistry registry;
  bitnet::inference::register_cpu_backend(registry);
  if (registry.devices().size() != 1) return 1;
  try {
    const bitnet::inference::InferenceEngine engine({.model = "no such file.gguf"});
    return 1;
  } catch (const bitnet::Error& error) {
    std::puts(error.what());
  }
  if (argc < 2) return 0;
  bitnet::inference::InferenceEngine engine({.model = argv[1]});
  const std::vector<bitnet::TokenId> prompt{1, 2, 3};
  const auto result = engine.generate(prompt, {.max_tokens = 4, .ignore_eos = true});
  std::printf("%lld tokens\n", static_cast<long long>(result.completion_tokens));
  return result.completion_tokens == 4 ? 0 : 1;
}
