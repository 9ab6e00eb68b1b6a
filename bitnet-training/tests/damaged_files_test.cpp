// Damaged copies of every kind of file that training reads: errors, and nothing else.
#include <fstream>
#include <functional>
#include <string>

#include "bitnet/core/io/atomic_file.hpp"
#include "bitnet/core/rng.hpp"
#include "bitnet/quant/model_io.hpp"
#include "bitnet/testing/mutate.hpp"
#include "bitnet/testing/testing.hpp"
#include "bitnet/training/token_shard.hpp"
#include "tiny_run.hpp"
#include "training_reader.hpp"

namespace bitnet::training {
namespace {

namespace fs = std::filesystem;

/// Reads `whole`, which is accepted, and `count` damaged copies; returns how many of these were accepted.
int damaged(const std::string& whole, int count, const std::function<bool(const std::string&)>& read) {
  EXPECT_TRUE(read(whole));
  Rng rng(3);
  int accepted = 0;
  for (int i = 0; i < count; ++i) accepted += read(testing::mutate(whole, rng));
  return accepted;
}

void write(const fs::path& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;  // not fsynced, thousands of them
}

TEST(DamagedFiles, Configurations) {
  const auto read = [](const std::string& yaml) { return fuzzing::read_train_config(yaml); };
  for (const char* name : {"demo.yaml", "demo-float.yaml"})
    EXPECT_GT(damaged(read_file(testing::source_path("configs/train") / name), 2000, read), 0);
}

TEST(DamagedFiles, RecordsAndShards) {
  const Fixture f;
  TrainConfig c = f.config("out");
  c.chat_template = "bitnet";
  stop_after(c, 1);
  const auto tokenizer = Tokenizer::load(c.output);
  const std::string records =
      "{\"text\": \"It was \\u00e9\"}\n{\"prompt\": \"a\", \"response\": \"b\"}\n"
      "{\"messages\": [{\"role\": \"user\", \"content\": \"Hello\"}, {\"role\": \"assistant\", \"content\": "
      "\"Yes.\"}]}\n";
  EXPECT_GT(damaged(records, 3000, [&](const auto& text) { return fuzzing::read_records(text, *tokenizer); }),
            0);
  const std::vector<TokenId> tokens(40, 5);
  const std::vector<std::int64_t> ends = {10, 40};
  const fs::path path = f.dir / "a.tokens";
  write_token_shard(path, {tokens, ends, {}}, true, *tokenizer);
  damaged(read_file(path), 2000, [&](const std::string& bytes) {
    write(path, bytes);
    return fuzzing::read_token_shard(path, *tokenizer);
  });
}

TEST(DamagedFiles, CheckpointsAndAdapters) {
  const Fixture f;
  const TrainConfig c = f.config("out");
  run(c);
  const auto file = SafeTensors::open(c.output / "checkpoint.safetensors");
  ModelConfig shape = c.model;
  shape.vocab_size = std::stoll(file->metadata().at("model.vocab_size"));
  const ExecutionContext context;
  LanguageModel model(context, shape, Quantization::kTernary);
  AdamW optimizer(context, model.parameters(), {});
  const fs::path path = f.dir / "x.safetensors";
  damaged(read_file(c.output / "checkpoint.safetensors"), 200, [&](const std::string& bytes) {
    write(path, bytes);
    return fuzzing::read_checkpoint(path, model, optimizer);
  });

  TrainConfig lora = f.config("lora");
  lora.lora = LoraRun{c.output / "model.gguf", {}};
  lora.model = quant::ModelReader::open(c.output / "model.gguf")->config();
  run(lora);
  const fs::path adapter = lora.output / "adapter";
  for (const char* name : {"adapter_config.json", "adapter_model.safetensors"}) {
    const std::string whole = read_file(adapter / name);
    EXPECT_GT(damaged(whole, 300,
                      [&](const std::string& bytes) {
                        write(adapter / name, bytes);
                        return fuzzing::read_adapter(adapter, lora.model);
                      }),
              0)
        << name;
    write(adapter / name, whole);
  }
}

}  // namespace
}  // namespace bitnet::training
