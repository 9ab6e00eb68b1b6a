#pragma once
// Calling the program in-process, and tiny random models to call it with. The model formats and the inference
// are tested in their own libraries; here it is what a user sees: text, exit codes, files.
#include <atomic>
#include <filesystem>
#include <functional>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "bitnet/cli/app.hpp"
#include "bitnet/core/io/atomic_file.hpp"
#include "bitnet/testing/testing.hpp"

namespace bitnet::cli {

using ::testing::HasSubstr;
using ::testing::Not;

/// What a call left behind.
struct Outcome {
  int code = -1;
  std::string out, err;
};

struct CallOptions {
  std::string input = {};  ///< standard input
  bool out_is_terminal = false;
  bool err_is_terminal = false;
  std::atomic<bool>* cancelled = nullptr;
  std::ostream* out = nullptr;  ///< instead of a string
  std::ostream* err = nullptr;  ///< instead of a string
  const BackendRegistry* devices = nullptr;
};

inline Outcome call(const std::vector<std::string>& arguments, const CallOptions& options = {}) {
  std::vector<const char*> argv{"bitnet"};
  for (const std::string& a : arguments) argv.push_back(a.c_str());
  std::istringstream in(options.input);
  std::ostringstream out, err;
  Io io{.in = in,
        .out = options.out != nullptr ? *options.out : out,
        .err = options.err != nullptr ? *options.err : err};
  io.out_is_terminal = options.out_is_terminal;
  io.err_is_terminal = options.err_is_terminal;
  io.cancelled = options.cancelled;
  io.devices = options.devices;
  Outcome outcome;
  outcome.code = run(static_cast<int>(argv.size()), argv.data(), io);
  outcome.out = out.str();
  outcome.err = err.str();
  return outcome;
}

/// The config.json of a tiny model; `more` is put in front of its last key.
inline std::string tiny_config(const std::string& more = {}, int hidden = 256) {
  return "{\"architectures\": [\"BitNetForCausalLM\"], \"model_type\": \"bitnet\", \"vocab_size\": 300, "
         "\"hidden_size\": " +
         std::to_string(hidden) + ", \"intermediate_size\": " + std::to_string(hidden) +
         ", \"num_hidden_layers\": 2, \"num_attention_heads\": 4, \"num_key_value_heads\": 2, "
         "\"hidden_act\": \"relu2\", \"max_position_embeddings\": 128, \"rms_norm_eps\": 1e-05, "
         "\"rope_theta\": 10000.0, " +
         more +
         "\"quantization_config\": {\"quant_method\": \"bitnet\", \"linear_class\": \"autobitlinear\", "
         "\"quantization_mode\": \"offline\"}, \"tie_word_embeddings\": true}";
}

/// Plain Llama without any word of BitNet: a dense model.
inline std::string tiny_llama_config() {
  return "{\"architectures\": [\"LlamaForCausalLM\"], \"model_type\": \"llama\", \"vocab_size\": 300, "
         "\"hidden_size\": 256, \"intermediate_size\": 256, \"num_hidden_layers\": 2, "
         "\"num_attention_heads\": 4, "
         "\"num_key_value_heads\": 2, \"hidden_act\": \"silu\", \"max_position_embeddings\": 128, "
         "\"rms_norm_eps\": 1e-05, \"rope_theta\": 10000.0, \"tie_word_embeddings\": false}";
}

/// Tests that need a model: one ternary GGUF and one dense GGUF for the whole suite.
class CliTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    shared_ = std::make_unique<testing::TempDir>();
    write_file(*shared_ / "tiny.json", tiny_config());
    write_file(*shared_ / "llama.json", tiny_llama_config());
    const auto made = call({"synth", "--config", at("tiny.json"), "--type", "i2_s", "-o", at("tiny.gguf")});
    ASSERT_EQ(made.code, kOk) << made.err;
    const auto dense = call({"synth", "--config", at("llama.json"), "--type", "f16", "-o", at("dense.gguf")});
    ASSERT_EQ(dense.code, kOk) << dense.err;
  }
  static void TearDownTestSuite() { shared_.reset(); }

  /// A file of the suite.
  static std::string at(const std::string& name) { return (*shared_ / name).string(); }
  static std::string model() { return at("tiny.gguf"); }
  static std::string dense_model() { return at("dense.gguf"); }
  /// A file of this test.
  std::string file(const std::string& name) { return (dir_ / name).string(); }
  std::string file(const std::string& name, const std::string& text) {
    write_file(dir_ / name, text);
    return file(name);
  }

  static std::unique_ptr<testing::TempDir> shared_;
  testing::TempDir dir_;
};

inline std::unique_ptr<testing::TempDir> CliTest::shared_;

#define EXPECT_FAILS(outcome, exit_code, text)         \
  do {                                                 \
    const Outcome o_ = (outcome);                      \
    EXPECT_EQ(o_.code, exit_code) << o_.out << o_.err; \
    EXPECT_THAT(o_.err, ::testing::HasSubstr(text));   \
  } while (false)

}  // namespace bitnet::cli
