// A float model of 16 GB, made here, quantised within 2 GB. Takes disk (48 GB at once) and time: built and
// run by the preset `large` alone (CONTRIBUTING.md). BITNET_LARGE_DIRECTORY says where (default: the
// temporary directory), BITNET_LARGE_LAYERS makes it smaller (32 is the shape of Llama 3 8B).
#include <cstdlib>
#include <iostream>

#include "cli_fixture.hpp"
#include "quantize_process.hpp"

namespace bitnet::cli {
namespace {

namespace fs = std::filesystem;

constexpr std::uint64_t kMost = std::uint64_t{2} << 30;

std::string variable(const char* name, const std::string& fallback) {
  const char* const value = std::getenv(name);
  return value != nullptr && *value != '\0' ? value : fallback;
}

class QuantizeLargeTest : public ::testing::Test {
 protected:
  void SetUp() override {
    fs::create_directories(directory_);
    const std::uint64_t layers = std::stoull(layers_), needed = 3 * (layers * 437'000'000 + 2'110'000'000);
    ASSERT_GT(fs::space(directory_).available, needed) << "too little room in " << directory_;
  }
  void TearDown() override {
    std::error_code ignored;
    fs::remove_all(directory_, ignored);
  }
  std::string file(const std::string& name) const { return (directory_ / name).string(); }
  /// Runs it, says time and memory, and returns the largest memory.
  std::uint64_t run(const std::vector<std::string>& words) {
    const auto began = std::chrono::steady_clock::now();
    MeasuredProcess p(words, file("log"));
    EXPECT_EQ(p.wait(), 0) << read_file(file("log"));
    const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - began;
    std::string line;
    for (const std::string& w : words) line += w + " ";
    std::cout << line << "\n  " << taken.count() << " s, peak " << static_cast<double>(p.peak()) / (1 << 30)
              << " GiB\n"
              << read_file(file("log")) << std::flush;
    return p.peak();
  }

  fs::path directory_ = fs::path(variable("BITNET_LARGE_DIRECTORY", fs::temp_directory_path().string())) /
                        ("bitnet-large-" + std::to_string(getpid()));
  std::string layers_ = variable("BITNET_LARGE_LAYERS", "32");
};

TEST_F(QuantizeLargeTest, KeepsWithinTwoGibibytesAndGoesOnAfterAKill) {
  const std::string config = testing::source_path("configs/synth/llama3-8b-1.58.json").string();
  run({"synth", "--config", config, "--layers", layers_, "--type", "f16", "-o", file("float.gguf")});
  std::cout << "the model has " << static_cast<double>(fs::file_size(file("float.gguf"))) / 1e9 << " GB\n";
  EXPECT_LT(run({"quantize", file("float.gguf"), file("absmean.gguf"), "--method", "absmean"}), kMost);
  fs::remove(file("absmean.gguf"));

  // Shards in and out, killed when the first layer is done.
  write_shards(file("float.gguf"), file("shards"));
  fs::remove(file("float.gguf"));
  const std::vector<std::string> words{"quantize", file("shards"), file("ls"), "--method",  "ls",
                                       "--type",   "extended",     "--work",   file("work")};
  {
    MeasuredProcess p(words, file("log"));
    while (!p.has_ended() && !fs::exists(fs::path(file("work")) / "layer-00000.safetensors"))
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    p.kill_now();
    ASSERT_EQ(p.wait(), -SIGKILL);
    EXPECT_LT(p.peak(), kMost);
  }
  EXPECT_LT(run(words), kMost);
  EXPECT_THAT(read_file(file("log")), HasSubstr("layers were done before"));
  const auto model = quant::ModelReader::open(file("ls"));
  EXPECT_EQ(model->config().n_layers, std::stoll(layers_));
  EXPECT_TRUE(model->read({TensorRole::kFfnDown, 0}).ternary);
}

}  // namespace
}  // namespace bitnet::cli
