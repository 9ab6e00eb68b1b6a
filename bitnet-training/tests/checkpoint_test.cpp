// Checkpoints of another model, of another run, or damaged. That resuming changes no bit is trainer_test.cpp,
// what happens when one cannot be written faults_test.cpp.
#include <gtest/gtest.h>

#include "bitnet/testing/testing.hpp"
#include "bitnet/training/checkpoint.hpp"
#include "tiny_run.hpp"

namespace bitnet::training {
namespace {

TEST(Checkpoint, AnotherModelOrADamagedFileIsRefused) {
  const Fixture f;
  const TrainConfig c = f.config("out");
  run(c);
  const auto path = c.output / "checkpoint.safetensors";
  const auto load_as = [&](auto change, Quantization quantization = Quantization::kTernary) {
    ModelConfig m = c.model;
    const auto file = SafeTensors::open(path);
    m.vocab_size = std::stoll(file->metadata().at("model.vocab_size"));
    change(m);
    const ExecutionContext context;
    LanguageModel model(context, m, quantization);
    AdamW optimizer(context, model.parameters(), {});
    return load_checkpoint(path, model, optimizer);
  };
  EXPECT_EQ(load_as([](ModelConfig&) {}).step, 14);
  BITNET_EXPECT_ERROR(load_as([](ModelConfig& m) { m.n_layers = 2; }), ErrorCode::kInvalidArgument,
                      "model.layers is 1 there and 2");
  BITNET_EXPECT_ERROR(load_as([](ModelConfig&) {}, Quantization::kNone), ErrorCode::kInvalidArgument,
                      "model.quantization");
  TrainConfig other = c;
  other.train = f.dir / "heldout.txt";
  BITNET_EXPECT_ERROR(run(other, true), ErrorCode::kInvalidArgument, "data.train is ");
  const std::string whole = read_file(path);
  for (const std::size_t keep :
       {std::size_t{0}, std::size_t{7}, std::size_t{300}, whole.size() / 2, whole.size() - 1}) {
    write_file(path, whole.substr(0, keep));
    BITNET_EXPECT_ERROR(run(c, true), ErrorCode::kCorruptFile, "checkpoint.safetensors");
  }
}

}  // namespace
}  // namespace bitnet::training
