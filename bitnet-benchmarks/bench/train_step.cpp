// Training steps of a decoder, timed one by one: our side of bitnet-benchmarks/compare_pytorch.py, which
// builds the same model in PyTorch from the weights that this tool writes.
//   bitnet_train_bench <dense|qat> [gpt_12m|tiny|demo] [FILE]
// FILE gets the initial weights, in the order of the parameters, then inputs and targets (f32 and int32, as
// they are in memory). Each line of standard input is a number of steps to do; for each step a line
// "<seconds> <loss>" comes out, the loss being that before the step. Threads and instruction set are those of
// BITNET_THREADS and BITNET_ISA.
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <string>
#include <vector>

#include "bitnet/core/error.hpp"
#include "decoder_training.hpp"

namespace bitnet {
namespace {

training::Quantization quantization(const std::string& name) {
  if (name == "dense") return training::Quantization::kNone;
  if (name == "qat") return training::Quantization::kTernary;
  throw Error(ErrorCode::kInvalidArgument, "unknown kind of training '" + name + "' (there are: dense, qat)");
}

void write(const std::string& path, benchmarks::DecoderTraining& training) {
  std::ofstream file(path, std::ios::binary);
  const auto put = [&](const auto& values) {
    file.write(reinterpret_cast<const char*>(values.data()),
               static_cast<std::streamsize>(values.size() * sizeof(values[0])));
  };
  for (const training::Parameter* p : training.model().parameters()) put(p->value());
  put(training.inputs());
  put(training.targets());
  file.close();
  if (!file) throw Error(ErrorCode::kIo, "cannot write '" + path + "'");
}

int run(const std::vector<std::string>& words) {
  if (words.empty() || words.size() > 3) {
    std::fprintf(stderr, "usage: bitnet_train_bench <dense|qat> [gpt_12m|tiny|demo] [FILE]\n");
    return 2;
  }
  const ExecutionContext context;
  benchmarks::DecoderTraining training(context,
                                       benchmarks::training_workload(words.size() > 1 ? words[1] : "gpt_12m"),
                                       quantization(words[0]));
  training::AdamW optimizer(context, training.model().parameters(), {});
  if (words.size() > 2) write(words[2], training);
  for (int steps = 0; std::cin >> steps;) {
    for (; steps > 0; --steps) {
      const auto begin = std::chrono::steady_clock::now();
      const auto loss = static_cast<double>(training.step(optimizer));
      const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
      std::printf("%.6f %.7g\n", seconds.count(), loss);
    }
    std::fflush(stdout);
  }
  return 0;
}

}  // namespace
}  // namespace bitnet

int main(int argc, char** argv) {
  try {
    return bitnet::run({argv + 1, argv + argc});
  } catch (const std::exception& e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 1;
  }
}
