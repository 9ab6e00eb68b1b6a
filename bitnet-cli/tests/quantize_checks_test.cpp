// What quantize, plan and tune-scales say before the work: tensors that cannot be quantised or were not
// trained, memory that it takes, texts that say too little, places, and files of other models.
#include <cmath>
#include <cstring>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <utility>

#include "bitnet/core/dtype.hpp"
#include "bitnet/core/io/gguf.hpp"
#include "quantize_process.hpp"
#include "scored_models.hpp"

namespace bitnet::cli {
namespace {

using nlohmann::json;
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

TEST_F(QuantizeChecksTest, RefusesBeforeItWorks) {
  const std::string out = file("q.gguf"), story = read_file(text);
  const auto expect = [&](std::vector<std::string> more, int code, const char* message) {
    std::vector<std::string> all{"quantize", dense_model(), out};
    all.insert(all.end(), more.begin(), more.end());
    EXPECT_FAILS(call(all), code, message);
    EXPECT_FALSE(fs::exists(out));
  };
  expect({"--method", "gptq"}, kFailure, "the method gptq needs calibration data");
  expect({"--method", "ls", "--scales", "row"}, kFailure,
         "i2_s cannot hold the plan of blk.0.attn_q: scales by row");
  expect({"--plan", file("p.yaml", "weigths: {}\n")}, kFailure,
         "p.yaml:1: unknown key 'weigths', did you mean");
  expect({"--plan", file("p.yaml", "layers: [{match: blk.0.attn_w, method: ls}]\n")}, kFailure,
         "p.yaml:1: the pattern 'blk.0.attn_w' names no linear");
  expect({"--plan", file("p.yaml", ""), "--method", "ls"}, kUsage, "--method and --plan exclude each other");
  expect({"--through-quantised"}, kUsage, "need the text of --calibrate");
  expect({"--calibrate", text, "--calibration", text}, kUsage, "exclude each other");
  expect({"--calibrate", file("none.txt", "")}, kFailure, "1 tokens: expected two and more");
  expect({"--calibration", text}, kFailure, "story.txt");
  expect({"--report", dense_model()}, kUsage, "is a file of the input");
  expect({"--report", out}, kUsage, "is the output");
  expect({"--evaluate", file("missing.txt")}, kFailure, "missing.txt");
  expect({"--calibrate", "-", "--evaluate", "-"}, kUsage, "one can be standard input");
  expect({"--calibrate", "-", "--work", file("wk")}, kUsage, "--work: --calibrate needs a file");
  expect({"--report", file("none/r.html")}, kUsage, "there is no directory");
  expect({"--calibrate", text, "--save-calibration", file("none/c")}, kUsage, "there is no directory");
  EXPECT_FALSE(fs::exists(file("wk")));
  // Places that are found wrong only when something is to be written there.
  const fs::path here = fs::path(out).parent_path();
  expect({"--report", here.string()}, kUsage, "is a directory: expected the name of a file");
  expect({"--calibrate", text, "--save-calibration", here.string()}, kUsage, "is a directory");
  expect({"--calibrate", text, "--save-calibration", file("c.json")}, kUsage, "read as an index");
  expect({"--calibrate", text, "--save-calibration", out}, kUsage, "is the output, or a file of it");
  for (const char* report : {"r.html", "r.JSON"})
    expect({"--calibrate", text, "--save-calibration", file(report), "--report", file(report)}, kUsage,
           "is a file of --report");
  for (const char* type : {"i2_s", "hf", "extended"})
    for (const char* work : {"q", "q/layers"}) {
      EXPECT_FAILS(call({"quantize", dense_model(), file("q"), "--type", type, "--work", file(work)}), kUsage,
                   "is the output, or in it");
      EXPECT_FALSE(fs::exists(file("q")));
    }
  // Nothing is written over what is read.
  for (const char* option : {"--calibrate", "--evaluate"}) {
    expect({option, text, "--report", text}, kFailure, "would replace the file of --");
    EXPECT_FAILS(call({"quantize", dense_model(), text, option, text}), kFailure,
                 "would replace the file of");
  }
  expect({"--calibrate", text, "--save-calibration", text}, kFailure,
         "would replace the file of --calibrate");
  EXPECT_EQ(read_file(text), story);
  fs::create_directory(file("used"));
  file("used/a.txt", "something");
  EXPECT_FAILS(call({"quantize", dense_model(), file("used"), "--type", "extended"}), kFailure,
               "is not empty");
  fs::create_directory(file("other"));
  file("other/model-00001-of-00002.safetensors", "");
  EXPECT_FAILS(
      call({"quantize", dense_model(), file("other"), "--type", "hf", "--calibrate", file("missing.txt")}),
      kFailure, "the directory holds another model's 'model-00001-of-00002.safetensors'");
}

TEST_F(QuantizeChecksTest, NothingIsWrittenOverAPlanOrACalibration) {
  const std::string calibration = file("c.safetensors"), plan = file("p.yaml", "weights: {method: ls}\n");
  ASSERT_EQ(call({"quantize", dense_model(), file("q.gguf"), "--method", "ls", "--calibrate", text,
                  "--save-calibration", calibration})
                .code,
            kOk);
  const std::string saved = read_file(calibration);
  for (const auto& [option, path] : {std::pair{"--plan", plan}, {"--calibration", calibration}}) {
    const std::string message = std::string("would replace the file of ") + option;
    EXPECT_FAILS(call({"quantize", dense_model(), path, option, path}), kFailure, message);
    EXPECT_FAILS(call({"quantize", dense_model(), file("r.gguf"), option, path, "--report", path}), kFailure,
                 message);
    EXPECT_FALSE(fs::exists(file("r.gguf")));
  }
  EXPECT_FAILS(call({"quantize", dense_model(), file("r.gguf"), "--plan", plan, "--calibrate", text,
                     "--save-calibration", plan}),
               kFailure, "would replace the file of --plan");
  EXPECT_FAILS(call({"plan", dense_model(), calibration, "--calibration", calibration, "--evaluate", text,
                     "--budget-size", "1MiB"}),
               kFailure, "would replace the file of --calibration");
  EXPECT_FAILS(
      call({"plan", dense_model(), plan, "--plan", plan, "--calibrate", text, "--budget-size", "1MiB"}),
      kUsage, "is a file of the input");
  EXPECT_TRUE(read_file(calibration) == saved);
  EXPECT_EQ(read_file(plan), "weights: {method: ls}\n");
}

TEST_F(QuantizeChecksTest, ACalibrationOfAnotherModelIsRefused) {
  const std::string kept = file("c.safetensors"), other = file("other.gguf");
  ASSERT_EQ(call({"synth", "--config", at("llama.json"), "--type", "f16", "--seed", "77", "-o", other}).code,
            kOk);
  const auto quantize = [&](const std::string& in, std::vector<std::string> more) {
    std::vector<std::string> words{"quantize", in, file("q.gguf"), "--method", "ls+refit"};
    words.insert(words.end(), more.begin(), more.end());
    return call(words);
  };
  ASSERT_EQ(quantize(dense_model(), {"--calibrate", text, "--save-calibration", kept}).code, kOk);
  const auto own = quantize(dense_model(), {"--calibration", kept});
  ASSERT_EQ(own.code, kOk) << own.err;
  EXPECT_THAT(own.err, Not(HasSubstr("does not say")));
  EXPECT_FAILS(quantize(other, {"--calibration", kept}), kFailure,
               "made with another model of the same sizes (fingerprint ");
  EXPECT_FAILS(
      call({"plan", other, file("p.yaml"), "--budget-size", "2MiB", "--estimate", "--calibration", kept}),
      kFailure, "(--foreign-calibration)");
  const auto all_the_same = quantize(other, {"--calibration", kept, "--foreign-calibration"});
  EXPECT_EQ(all_the_same.code, kOk) << all_the_same.err;
  // A file as it was before it said so.
  std::string bytes = read_file(kept);
  const std::size_t from = bytes.find("\"fingerprint\""), to = bytes.find("\"format\"", from);
  ASSERT_NE(to, std::string::npos);
  std::fill(bytes.begin() + static_cast<std::ptrdiff_t>(from),
            bytes.begin() + static_cast<std::ptrdiff_t>(to), ' ');
  const std::string version = "\"format_version\":\"2\"";
  bytes.replace(bytes.find(version), version.size(), "\"format_version\":\"1\"");
  write_file(kept, bytes);
  const auto older = quantize(dense_model(), {"--calibration", kept});
  EXPECT_EQ(older.code, kOk) << older.err;
  EXPECT_THAT(older.err, HasSubstr("an older file, which does not say what model it was made with"));
}

TEST_F(QuantizeChecksTest, ALayerOfAnotherModelIsNotTakenFromWork) {
  // Two models in one place, one after the other, of the same size and with the same time stamp.
  const std::string in = file("m.gguf"), work = file("work");
  fs::copy(dense_model(), in);
  const auto when = fs::last_write_time(in);
  const auto quantize = [&] {
    return call({"quantize", in, file("q.gguf"), "--method", "ls", "--work", work});
  };
  ASSERT_EQ(quantize().code, kOk);
  EXPECT_THAT(quantize().err, HasSubstr("2 layers were done before"));
  ASSERT_EQ(call({"synth", "--config", at("llama.json"), "--type", "f16", "--seed", "78", "-o", in}).code,
            kOk);
  fs::last_write_time(in, when);
  const auto other = quantize();
  ASSERT_EQ(other.code, kOk) << other.err;
  EXPECT_THAT(other.err, Not(HasSubstr("were done before")));
}

TEST_F(QuantizeChecksTest, ATensorThatIsNotFiniteIsNamedOnce) {
  for (const char* name : {"blk.1.ffn_up.weight", "token_embd.weight"}) {
    const std::string bad = file("bad.gguf");
    fs::copy_file(dense_model(), bad, fs::copy_options::overwrite_existing);
    {
      std::fstream out(bad, std::ios::in | std::ios::out | std::ios::binary);
      const auto gguf = GgufFile::open(bad);
      out.seekp(gguf->data(*gguf->find(name)).data() - gguf->file().bytes().data());
      const std::uint16_t nan = f32_to_f16(std::nanf(""));
      out.write(reinterpret_cast<const char*>(&nan), sizeof nan);
    }
    for (const char* type : {"extended", "hf", "tq2_0"}) {
      const auto o =
          call({"quantize", bad, file(std::string("out-") + type + name), "--method", "ls", "--type", type});
      EXPECT_FAILS(o, kFailure, "row 0, column 0 is nan, not finite");
      const std::size_t first = o.err.find("tensor '");
      EXPECT_NE(first, std::string::npos) << o.err;
      EXPECT_EQ(o.err.find("tensor '", first + 1), std::string::npos) << o.err;
    }
  }
}

}  // namespace
}  // namespace bitnet::cli
