// The shortest useful program: load a model, continue a text. Usage: bitnet_example_generate MODEL TEXT
#include <iostream>

#include "bitnet/inference/engine.hpp"

int main(int argc, char** argv) try {
  if (argc != 3) throw bitnet::Error(bitnet::ErrorCode::kInvalidArgument, "usage: generate MODEL TEXT");
  bitnet::inference::InferenceEngine engine({.model = argv[1]});
  const auto result = engine.generate(argv[2], {.max_tokens = 64},
                                      [](std::string_view text) { std::cout << text << std::flush; });
  std::cout << "\n[" << result.completion_tokens << " tokens]\n";
  if (result.error) throw *result.error;
} catch (const bitnet::Error& e) {
  std::cerr << e.what() << '\n';
  return 1;
}
