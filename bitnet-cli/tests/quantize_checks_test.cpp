// What quantize, plan and tune-scales say before the work: tensors that cannot be quantised or were not
// trained, memory that it takes, texts that say too little.
#include <cstring>
#include <fstream>
#include <functional>

#include "bitnet/core/io/gguf.hpp"
#include "quantize_process.hpp"
#include "scored_models.hpp"

namespace bitnet::cli {
namespace {

namespace fs = std::filesystem;

class QuantizeChecksTest : public ScoredModels {
 protected:
  void SetUp() override {
    std::string story;
    for (int i = 0; i < 200; ++i)
      story += "the cat sat on mat " + std::to_string(i * i) + ", and then the rat. ";
    text = file("story.txt", story);
  }
  /// A copy of the dense model with the values of one tensor changed.
  std::string edited(const std::string& name, const std::string& tensor,
                     const std::function<float(std::size_t, float)>& value) {
    if (!fs::exists(file(name))) fs::copy_file(dense_model(), file(name));
    const auto from = GgufFile::open(file(name));
    const GgufTensorInfo& info = *from->find(tensor);
    const auto bytes = from->data(info);
    const auto at = bytes.data() - from->file().bytes().data();
    std::string changed(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    if (info.type == GgmlType::kF32) {
      for (std::size_t i = 0; i < changed.size() / 4; ++i) {
        float v = 0;
        std::memcpy(&v, changed.data() + 4 * i, 4);
        v = value(i, v);
        std::memcpy(changed.data() + 4 * i, &v, 4);
      }
    } else {
      for (std::size_t i = 0; i < changed.size() / 2; ++i) {
        std::uint16_t h = 0;
        std::memcpy(&h, changed.data() + 2 * i, 2);
        h = f32_to_f16(value(i, f16_to_f32(h)));
        std::memcpy(changed.data() + 2 * i, &h, 2);
      }
    }
    std::fstream out(file(name), std::ios::in | std::ios::out | std::ios::binary);
    out.seekp(at);
    out.write(changed.data(), static_cast<std::streamsize>(changed.size()));
    return file(name);
  }
  /// The dense model with linears that are trits; `by_row`: with another scale in each row.
  std::string ternary_floats(const std::string& name, bool by_row) {
    const auto model = quant::ModelReader::open(dense_model(), quant::FloatLinears::kKeep);
    for (const TensorId id : model->tensors()) {
      if (!is_linear(id.role)) continue;
      const auto in = static_cast<std::size_t>(tensor_shape(id, model->config())[1]);
      edited(name, gguf_name(id), [&](std::size_t i, float v) {
        const float scale = by_row && i / in % 2 == 1 ? 0.03125f : 0.0625f;
        return v > 0 ? scale : v < 0 ? -scale : 0.0f;
      });
    }
    return file(name);
  }
  std::string text;
};

TEST_F(QuantizeChecksTest, WhatIsNotFiniteIsNamedBeforeAnythingRuns) {
  const std::string bad = edited("nan.gguf", "blk.0.ffn_up.weight",
                                 [](std::size_t i, float v) { return i == 259 ? std::nanf("") : v; });
  const char* const message =
      "tensor 'blk.0.ffn_up.weight': the weight in row 1, column 3 is nan, not finite";
  EXPECT_FAILS(call({"quantize", bad, file("q.gguf"), "--method", "gptq", "--calibrate", text}), kFailure,
               message);
  EXPECT_FAILS(call({"quantize", bad, file("q.gguf"), "--method", "ls", "--calibrate", text,
                     "--save-calibration", file("c.safetensors")}),
               kFailure, message);
  EXPECT_FALSE(fs::exists(file("c.safetensors")) || fs::exists(file("q.gguf")));
  EXPECT_FAILS(call({"plan", bad, file("p.yaml"), "--calibrate", text, "--budget-size", "2MiB"}), kFailure,
               message);
  if (call({"--version"}).out.find(", training") == std::string::npos) return;
  ASSERT_EQ(call({"quantize", dense_model(), file("small.gguf"), "--method", "ls"}).code, kOk);
  EXPECT_FAILS(call({"tune-scales", file("small.gguf"), file("t.gguf"), "--original", bad, "-f", text,
                     "--steps", "1"}),
               kFailure, message);
}

TEST_F(QuantizeChecksTest, TablesThatCannotHaveBeenTrainedAreWarnedOf) {
  const std::string zero =
      edited("zero.gguf", "blk.0.attn_norm.weight", [](std::size_t, float) { return 0.0f; });
  const auto o = call({"quantize", zero, file("q.gguf"), "--method", "gptq", "--calibrate", text});
  ASSERT_EQ(o.code, kOk) << o.err;
  EXPECT_THAT(o.err, HasSubstr("warning: tensor 'blk.0.attn_norm.weight': every value is 0: nothing comes "
                               "through it\n"));
  EXPECT_THAT(o.err,
              HasSubstr("blk.0.attn_q.weight, blk.0.attn_k.weight, blk.0.attn_v.weight: the inputs are 0 "
                        "for each of the "));
  const std::string same = edited("same.gguf", "token_embd.weight", [](std::size_t, float) { return 0.5f; });
  EXPECT_THAT(
      call({"quantize", same, file("q.gguf"), "--method", "ls"}).err,
      HasSubstr("warning: tensor 'token_embd.weight': every value is 0.5: it cannot have been trained\n"));
  EXPECT_THAT(call({"quantize", dense_model(), file("q.gguf"), "--method", "ls"}).err,
              Not(HasSubstr("warning: tensor")));
}

TEST_F(QuantizeChecksTest, FloatsThatAreTernaryAlreadyAreNoFloatModel) {
  const std::string in = ternary_floats("trits.gguf", false);
  const auto o = call({"quantize", in, file("q.gguf"), "--method", "absmean"});
  ASSERT_EQ(o.code, kOk) << o.err;
  EXPECT_THAT(o.err, Not(HasSubstr("destroys it")));
  EXPECT_THAT(o.err, HasSubstr("14 of 14 linears are as they were"));
  const auto p = call({"plan", in, file("p.yaml"), "--calibrate", text, "--budget-size", "2MiB"});
  ASSERT_EQ(p.code, kOk) << p.err;
  EXPECT_THAT(p.err, HasSubstr("14 ternary already: "));
  EXPECT_THAT(p.err, Not(HasSubstr("gptq")));
}

TEST_F(QuantizeChecksTest, FinerScalesThanAskedForAreNamedBeforeAnythingRuns) {
  const std::string in = ternary_floats("rows.gguf", true);
  EXPECT_FAILS(call({"quantize", in, file("q.gguf"), "--method", "absmean"}), kFailure,
               "absmean with scales by tensor would destroy: expected 'method: ls' with 'scales: row'");
  const auto o = call({"quantize", in, file("q.gguf"), "--method", "gptq", "--calibrate", text});
  EXPECT_FAILS(o, kFailure,
               "gptq with scales by tensor would destroy: expected 'method: gptq' with 'scales: row'");
  EXPECT_THAT(o.err, Not(HasSubstr("needs up to")));  // nothing was calibrated
  const auto kept =
      call({"quantize", in, file("q"), "--method", "ls", "--scales", "row", "--type", "extended"});
  ASSERT_EQ(kept.code, kOk) << kept.err;
  EXPECT_THAT(kept.err, HasSubstr("14 of 14 linears are as they were"));
}

TEST_F(QuantizeChecksTest, TextsThatRepeatThemselvesAreWarnedOf) {
  std::string again;
  for (int i = 0; i < 400; ++i) again += "the cat sat on the mat. ";
  for (const char* method : {"ls+refit", "gptq"}) {
    const auto o = call({"quantize", dense_model(), file("q.gguf"), "--method", method, "--calibrate",
                         file("again.txt", again)});
    ASSERT_EQ(o.code, kOk) << o.err;
    EXPECT_THAT(o.err,
                HasSubstr("warning: blk.0.attn_q.weight, blk.0.attn_k.weight, blk.0.attn_v.weight: the "
                          "inputs' second moments have rank "));
    EXPECT_THAT(o.err, HasSubstr(std::string("too much alike for ") + method));
  }
}

TEST_F(QuantizeChecksTest, LittleTextIsSaidBeforeTheWork) {
  const std::string little = file("little.txt", "only a few words, which are not enough of them");
  const auto o = call({"quantize", dense_model(), file("q.gguf"), "--method", "gptq", "--calibrate", little});
  ASSERT_EQ(o.code, kOk) << o.err;
  const std::size_t warned = o.err.find(" tokens: gptq needs at least 256 for this model, better 1,024\n");
  ASSERT_NE(warned, std::string::npos) << o.err;
  EXPECT_LT(warned, o.err.find("needs up to "));
  EXPECT_LT(warned, o.err.find("wrote '"));
  EXPECT_THAT(call({"quantize", dense_model(), file("q.gguf"), "--method", "gptq", "--calibrate", text}).err,
              Not(HasSubstr("needs at least")));
  EXPECT_THAT(call({"quantize", dense_model(), file("q.gguf"), "--method", "ls", "--calibrate", little}).err,
              Not(HasSubstr("needs at least")));
  EXPECT_FAILS(call({"quantize", dense_model(), file("n.gguf"), "--calibrate", file("none.txt", "")}),
               kFailure, "--calibrate, which takes at least 256 tokens for this model: ");
}

/// The bytes of "needs … 3.1 MiB" in what a call said, rounded up by its last digit.
std::uint64_t said_bytes(const std::string& err, const std::string& before) {
  const std::size_t at = err.find(before);
  EXPECT_NE(at, std::string::npos) << err;
  if (at == std::string::npos) return 0;
  double n = 0;
  char unit[4] = {};
  EXPECT_EQ(std::sscanf(err.c_str() + at + before.size(), "%lf %3s", &n, unit), 2) << err;
  const std::string name = unit;
  const double scale = name == "KiB" ? 1024 : name == "MiB" ? 1048576 : name == "GiB" ? 1073741824 : 1;
  return static_cast<std::uint64_t>((n + 0.1) * scale);
}

TEST_F(QuantizeChecksTest, MemoryLimitBindsTheQuantiser) {
  const std::vector<std::string> words{"quantize",    dense_model(), file("q.gguf"), "--method", "gptq",
                                       "--calibrate", text};
  const auto limited = [&](std::uint64_t bytes) {
    auto all = words;
    all.insert(all.end(), {"--memory-limit", std::to_string(bytes)});
    return call(all);
  };
  const auto free = call(words);
  ASSERT_EQ(free.code, kOk) << free.err;
  const std::uint64_t most = said_bytes(free.err, "needs up to ");
  const std::string expected = read_file(file("q.gguf"));
  const auto refused = limited(1 << 20);
  EXPECT_FAILS(refused, kFailure, "more than the limit 1048576 bytes of --memory-limit");
  const std::uint64_t least = said_bytes(refused.err, "needs at least ");
  EXPECT_LT(least, most);
  const auto tight = limited((least + most) / 2);
  ASSERT_EQ(tight.code, kOk) << tight.err;
  EXPECT_LE(said_bytes(tight.err, "needs up to "), (least + most) / 2 + (1 << 20) / 5);
  EXPECT_EQ(read_file(file("q.gguf")), expected);  // less at a time, the same bits
}

TEST_F(QuantizeChecksTest, TakesNoMoreMemoryThanItSays) {
#ifdef BITNET_SANITIZED
  GTEST_SKIP() << "sanitizers keep what is freed";
#endif
  const std::string config =
      file("c.json",
           "{\"architectures\": [\"LlamaForCausalLM\"], \"model_type\": \"llama\", \"vocab_size\": 300, "
           "\"hidden_size\": 768, \"intermediate_size\": 2048, \"num_hidden_layers\": 3, "
           "\"num_attention_heads\": 8, "
           "\"num_key_value_heads\": 4, \"hidden_act\": \"silu\", \"max_position_embeddings\": 128, "
           "\"rms_norm_eps\": "
           "1e-05, \"rope_theta\": 10000.0, \"tie_word_embeddings\": false}");
  ASSERT_EQ(call({"synth", "--config", config, "--type", "f32", "-o", file("m.gguf")}).code, kOk);
  const auto peak = [&](const std::vector<std::string>& words) {
    MeasuredProcess p(words, file("log"));
    EXPECT_EQ(p.wait(), 0) << read_file(file("log"));
    return p.peak();
  };
  // What a process takes that does no more than read the model's head.
  const std::uint64_t program = peak({"inspect", file("m.gguf")});
  for (const char* scales : {"row", "group32"}) {
    const std::uint64_t taken =
        peak({"quantize", file("m.gguf"), file("q"), "--type", "extended", "--method", "ls+refit", "--scales",
              scales, "--calibrate", text, "--calibration-tokens", "256", "--threads", "2"});
    const std::uint64_t said = said_bytes(read_file(file("log")), "needs up to ");
    // Beside it: activations of a window, panels of products, pages of the files.
    EXPECT_LT(taken, said + program + (std::uint64_t{24} << 20)) << scales << ": said " << said;
    EXPECT_GT(taken, said / 2) << scales;
    // The model is a part of it that shows: 3 layers of 6.5 million weights.
    const std::string log = read_file(file("log"));
    EXPECT_GT(said_bytes(log.substr(log.find("needs up to ")), ": "), std::uint64_t{70} << 20);
    fs::remove_all(file("q"));
  }
}

}  // namespace
}  // namespace bitnet::cli
