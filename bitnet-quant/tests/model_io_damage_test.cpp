// Damaged copies of small whole models: opening them and reading every tensor throws nothing but Error,
// whatever is wrong. The containers alone are bitnet-core's core.io tests.
#include <fstream>

#include "bitnet/core/error.hpp"
#include "bitnet/core/io/atomic_file.hpp"
#include "bitnet/testing/mutate.hpp"
#include "bitnet/testing/testing.hpp"
#include "model_io_support.hpp"

namespace bitnet::quant {
namespace {

using bitnet::testing::mutate;
using bitnet::testing::TempDir;
using testing::Linears;
using testing::MemoryModel;
using testing::small_config;

ModelConfig tiny(ModelFamily family) {
  ModelConfig c = small_config(family);
  c.intermediate_size = 256;
  c.n_layers = 1;
  c.n_heads = 1;
  c.n_kv_heads = 1;
  c.head_dim = 256;
  return c;
}

/// True if all of it could be read.
bool read_all(const std::filesystem::path& path) {
  try {
    const auto reader = ModelReader::open(path);
    for (const TensorId id : reader->tensors()) (void)reader->read(id);
    return true;
  } catch (const Error&) {
    return false;
  }
}

void overwrite(const std::filesystem::path& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
}

class Damage : public ::testing::Test {
 protected:
  /// Writes damaged copies of `file` over itself and reads the model at `model`.
  void damage(const std::filesystem::path& file, const std::filesystem::path& model, int copies) {
    const std::string whole = read_file(file);
    ASSERT_TRUE(read_all(model));
    Rng rng(7);
    int refused = 0;
    for (int i = 0; i < copies; ++i) {
      overwrite(file, mutate(whole, rng));
      refused += !read_all(model);
    }
    EXPECT_GT(refused, 0);
    for (std::size_t n = 0; n + 2 < whole.size(); n += 1 + whole.size() / 97) {
      overwrite(file, whole.substr(0, n));
      EXPECT_FALSE(read_all(model)) << n;
    }
    overwrite(file, whole);
  }
  TempDir dir_;
};

TEST_F(Damage, GgufModels) {
  for (const LinearType type : {LinearType::kI2_S, LinearType::kTQ1_0, LinearType::kTQ2_0}) {
    const ModelConfig config = tiny(type == LinearType::kI2_S ? ModelFamily::kBitNet25 : ModelFamily::kLlama);
    const MemoryModel model(config, Linears::kTernary);
    WriteOptions options;
    options.type = type;
    write_model(dir_ / "x.gguf", config, nullptr, model.source(), options);
    damage(dir_ / "x.gguf", dir_ / "x.gguf", 150);
  }
}

TEST_F(Damage, HuggingFaceModels) {
  for (const ModelFamily family : {ModelFamily::kBitNet25, ModelFamily::kLlama}) {
    const ModelConfig config = tiny(family);
    const MemoryModel model(config, Linears::kTernary);
    WriteOptions options;
    options.type = LinearType::kHf;
    const auto dir = dir_ / ("hf" + std::to_string(static_cast<int>(family)));
    write_model(dir, config, nullptr, model.source(), options);
    damage(dir / "model.safetensors", dir, 150);
    damage(dir / "config.json", dir, 150);
  }
}

}  // namespace
}  // namespace bitnet::quant
