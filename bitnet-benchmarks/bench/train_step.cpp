// Training steps of a decoder, timed one by one: our side of bitnet-benchmarks/compare_pytorch.py, which
// builds the same model in PyTorch from the weights that this tool writes.
//   bitnet_train_bench <dense|qat> [gpt_12m|tiny] [FILE]
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
#include "bitnet/core/rng.hpp"
#include "bitnet/training/language_model.hpp"
#include "bitnet/training/losses.hpp"
#include "bitnet/training/optimizer.hpp"

namespace bitnet {
namespace {

struct Workload {
  ModelConfig model;
  std::int64_t sequences;
};

/// compare_pytorch.py has the same shapes.
Workload workload(const std::string& name) {
  ModelConfig c;
  c.architecture = "bitnet-b1.58";
  if (name == "gpt_12m") {
    c.vocab_size = 4096;
    c.hidden_size = 384;
    c.intermediate_size = 1024;
    c.n_layers = 6;
    c.n_heads = c.n_kv_heads = 6;
    c.head_dim = 64;
    c.max_position = 256;
    return {c, 8};
  }
  if (name == "tiny") {
    c.vocab_size = 256;
    c.hidden_size = c.intermediate_size = 128;
    c.n_layers = 2;
    c.n_heads = 4;
    c.n_kv_heads = 2;
    c.head_dim = 32;
    c.max_position = 32;
    return {c, 2};
  }
  throw Error(ErrorCode::kInvalidArgument, "unknown shape '" + name + "' (there are: gpt_12m, tiny)");
}

training::Quantization quantization(const std::string& name) {
  if (name == "dense") return training::Quantization::kNone;
  if (name == "qat") return training::Quantization::kTernary;
  throw Error(ErrorCode::kInvalidArgument, "unknown kind of training '" + name + "' (there are: dense, qat)");
}

class Training {
 public:
  Training(const Workload& w, training::Quantization q)
      : length_(w.model.max_position), model_(context_, w.model, q) {
    Rng rng(1);
    model_.initialize(rng, 0.02f);
    model_.refresh(context_);
    const auto vocab = static_cast<std::uint64_t>(w.model.vocab_size);
    for (std::int64_t i = 0; i < w.sequences * length_; ++i) {
      inputs_.push_back(static_cast<std::int32_t>(rng.below(vocab)));
      targets_.push_back(static_cast<std::int32_t>(rng.below(vocab)));
    }
  }

  /// The loss before the step.
  float step() {
    const auto logits = model_.forward(tape_, inputs_, {length_});
    const auto loss =
        training::cross_entropy(tape_, logits, targets_, 1.0f / static_cast<float>(targets_.size()));
    const float value = loss.value()[0];
    tape_.backward(loss);
    tape_.reset();
    optimizer_.step(context_, 1e-3f, 0.1f, 1.0f);
    model_.refresh(context_);
    return value;
  }

  void write(const std::string& path) const {
    std::ofstream file(path, std::ios::binary);
    const auto put = [&](const auto& values) {
      file.write(reinterpret_cast<const char*>(values.data()),
                 static_cast<std::streamsize>(values.size() * sizeof(values[0])));
    };
    for (const training::Parameter* p : model_.parameters()) put(p->value());
    put(inputs_);
    put(targets_);
    file.close();
    if (!file) throw Error(ErrorCode::kIo, "cannot write '" + path + "'");
  }

 private:
  ExecutionContext context_;
  std::int64_t length_;
  training::LanguageModel model_;
  training::AdamW optimizer_{context_, model_.parameters(), {}};
  training::Tape tape_{context_};
  std::vector<std::int32_t> inputs_, targets_;
};

int run(const std::vector<std::string>& words) {
  if (words.empty() || words.size() > 3) {
    std::fprintf(stderr, "usage: bitnet_train_bench <dense|qat> [gpt_12m|tiny] [FILE]\n");
    return 2;
  }
  Training training(workload(words.size() > 1 ? words[1] : "gpt_12m"), quantization(words[0]));
  if (words.size() > 2) training.write(words[2]);
  for (int steps = 0; std::cin >> steps;) {
    for (; steps > 0; --steps) {
      const auto begin = std::chrono::steady_clock::now();
      const auto loss = static_cast<double>(training.step());
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
