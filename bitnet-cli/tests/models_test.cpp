// Commands about model files: synth, inspect, tokenize, convert.
#include <sys/resource.h>

#include <cmath>
#include <csignal>
#include <nlohmann/json.hpp>

#include "bitnet/core/io/gguf.hpp"
#include "bitnet/core/model/tensor_names.hpp"
#include "bitnet/core/rng.hpp"
#include "scored_models.hpp"
#include "synth_model.hpp"

namespace bitnet::cli {
namespace {

using nlohmann::json;
namespace fs = std::filesystem;

class ModelsTest : public ScoredModels {};

TEST_F(ModelsTest, PerplexityOfLinesIsThatOfEachLineAlone) {
  const auto scores = [&](const std::string& text) {
    const auto o = call({"perplexity", "-m", model(), "-f", file("lines.txt", text), "--lines", "--json"});
    EXPECT_EQ(o.code, kOk) << o.err;
    return json::parse(o.out);
  };
  double nll = 0;
  for (const char* line : {"one", "a second line", "x"}) nll += scores(line)["nll"].get<double>();
  const json all = scores("one\r\n\na second line\nx\n");  // blank lines are no texts
  EXPECT_NEAR(all["nll"].get<double>(), nll, 1e-9 * nll);
  EXPECT_EQ(all["chunks"], 3);
  EXPECT_EQ(all["scored_tokens"], 3 + 13 + 1);  // bytes; the first token is BOS
  EXPECT_EQ(all["lines"], true);
  EXPECT_FAILS(call({"perplexity", "-m", model(), "-f", file("empty.txt", "\n\n"), "--lines"}), kFailure,
               "none of 0 texts has two tokens");
}

TEST_F(ModelsTest, SynthIsDeterministic) {
  const std::string copy = file("tiny.gguf");  // the same name: it is in the file, too
  const auto again = call({"synth", "--config", at("tiny.json"), "-o", copy, "--threads", "1"});
  ASSERT_EQ(again.code, kOk) << again.err;
  EXPECT_THAT(again.err, HasSubstr("wrote '" + copy + "'"));
  EXPECT_TRUE(read_file(copy) == read_file(model()));
  ASSERT_EQ(call({"synth", "--config", at("tiny.json"), "-o", copy, "--seed", "1"}).code, kOk);
  EXPECT_FALSE(read_file(copy) == read_file(model()));
}

TEST_F(ModelsTest, WhatIsNoModelIsNamedOnce) {
  EXPECT_EQ(call({"inspect", "no/model"}).err, "bitnet inspect: there is no file or directory 'no/model'\n");
  const std::string empty = file("empty");
  std::filesystem::create_directory(empty);
  EXPECT_EQ(call({"inspect", empty}).err, "bitnet inspect: directory '" + empty + "' has no config.json\n");
}

TEST_F(ModelsTest, SynthRefusesWhatItCannotDo) {
  const std::string config = at("tiny.json");
  EXPECT_FAILS(call({"synth", "-o", file("x.gguf")}), kUsage, "missing option --config");
  EXPECT_FAILS(call({"synth", "--config", config}), kUsage, "missing option -o (--output)");
  EXPECT_FAILS(call({"synth", "--config", file("none.json"), "-o", file("x.gguf")}), kFailure, "none.json");
  EXPECT_THAT(call({"synth", "--config", file("cut.json", "{"), "-o", file("x.gguf")}).err,
              Not(HasSubstr("json.exception")));
  EXPECT_FAILS(call({"synth", "--config", file("cut.json", "{\"hidden_size\": "), "-o", file("x.gguf")}),
               kFailure, "cut.json");
  const std::string own = file("own.json", read_file(config));
  EXPECT_FAILS(call({"synth", "--config", own, "-o", own}), kFailure,
               "the model would replace the file of --config");
  EXPECT_EQ(read_file(own), read_file(config));
  EXPECT_FAILS(call({"synth", "--config", config, "-o", file("no/x.gguf")}), kFailure,
               "there is no directory");
  EXPECT_FAILS(call({"synth", "--config", config, "-o", dir_.path().string()}), kFailure, "is a directory");
  EXPECT_FAILS(call({"synth", "--config", config, "-o", "/dev/null"}), kFailure, "is no ordinary file");
  EXPECT_FAILS(call({"synth", "--config", config, "--type", "hf", "-o", file("x.gguf")}), kFailure,
               "writes a directory");
  EXPECT_FALSE(fs::exists(file("x.gguf")));
}

TEST(Synth, AVocabularyThatNoTokenizerCanHoldGetsNone) {
  EXPECT_EQ(byte_tokenizer(260), nullptr);
  EXPECT_NE(byte_tokenizer(261), nullptr);
  // At once: a list of so many tokens would take gigabytes.
  EXPECT_EQ(byte_tokenizer((1 << 24) + 1), nullptr);
  EXPECT_EQ(byte_tokenizer(std::numeric_limits<std::int64_t>::max()), nullptr);
}

TEST_F(ModelsTest, InspectSaysWhatIsThere) {
  const auto o = call({"inspect", model()});
  ASSERT_EQ(o.code, kOk) << o.err;
  EXPECT_THAT(o.out, HasSubstr("ternary"));
  EXPECT_THAT(o.out, HasSubstr("I2_S"));
  EXPECT_THAT(o.out, HasSubstr("300"));
  EXPECT_THAT(o.out, HasSubstr("head when run     int8"));
  EXPECT_THAT(call({"inspect", dense_model()}).out,
              ::testing::AllOf(HasSubstr("dense"), HasSubstr("head when run     stored")));
  const auto j = json::parse(call({"inspect", "--json", model()}).out);
  EXPECT_EQ(j["config"]["hidden_size"], 256);
  EXPECT_EQ(j["config"]["weights"], "ternary");
  EXPECT_EQ(j["tensors"].size(), 2u + 2u * 11u);
  EXPECT_EQ(j["file_bytes"], fs::file_size(model()));
}

TEST_F(ModelsTest, BrokenModelsAreErrorsThatNameTheFile) {
  EXPECT_FAILS(call({"inspect", file("none.gguf")}), kFailure, "none.gguf");
  fs::create_directory(file("empty"));
  EXPECT_FAILS(call({"inspect", file("empty")}), kFailure, "empty");
  EXPECT_FAILS(call({"inspect", file("text.gguf", "this is no model")}), kFailure, "text.gguf");
  const std::string whole = read_file(model());
  for (const std::size_t size :
       {std::size_t{0}, std::size_t{10}, whole.size() / 100, whole.size() / 2, whole.size() - 1})
    EXPECT_FAILS(call({"run", "-m", file("cut.gguf", whole.substr(0, size)), "-p", "x"}), kFailure,
                 "cut.gguf");
}

TEST_F(ModelsTest, TokenizeAndBack) {
  const auto ids = call({"tokenize", "-m", model(), "-p", "héllo\n", "--ids"});
  ASSERT_EQ(ids.code, kOk) << ids.err;
  const auto lines = call({"tokenize", "-m", model(), "-p", "héllo\n"});
  EXPECT_EQ(std::count(lines.out.begin(), lines.out.end(), '\n'),
            std::count(ids.out.begin(), ids.out.end(), ' ') + 1);
  const auto text = call({"tokenize", "-m", model(), "--decode", "-p", ids.out});
  EXPECT_EQ(text.out, "héllo\n");
  EXPECT_EQ(call({"tokenize", "-m", model(), "--decode", "-f", "-"}, {.input = "[" + ids.out + "]"}).out,
            "héllo\n");
  const auto without = call({"tokenize", "-m", model(), "-p", "héllo\n", "--ids", "--no-bos"});
  EXPECT_LT(without.out.size(), ids.out.size());
}

TEST_F(ModelsTest, TokenizeParsesSpecialTokensOnlyWhenAsked) {
  const auto plain = call({"tokenize", "-m", model(), "-p", "<|eot_id|>", "--ids", "--no-bos"});
  EXPECT_EQ(std::count(plain.out.begin(), plain.out.end(), ' '), 9);
  const auto special =
      call({"tokenize", "-m", model(), "-p", "<|eot_id|>", "--ids", "--no-bos", "--special"});
  EXPECT_EQ(std::count(special.out.begin(), special.out.end(), ' '), 0);
  EXPECT_EQ(call({"tokenize", "-m", model(), "--decode", "-p", special.out}).out, "");
  EXPECT_EQ(call({"tokenize", "-m", model(), "--decode", "--special", "-p", special.out}).out, "<|eot_id|>");
}

TEST_F(ModelsTest, TokenizeTellsFiguresOfAText) {
  const auto o = call({"tokenize", "-m", model(), "-p", "aab\n\nb\n", "--no-bos", "--stats"});
  ASSERT_EQ(o.code, kOk) << o.err;
  EXPECT_THAT(o.out, HasSubstr("tokens\t7\nbytes\t7\nbytes a token\t1.000\ndistinct tokens\t3 of 300\n"));
  EXPECT_THAT(o.out, HasSubstr("lines\t2\ntokens a line\t1 … 3, mean 2.0"));
  const auto empty = call({"tokenize", "-m", model(), "-p", "", "--no-bos", "--stats"});
  EXPECT_EQ(empty.code, kOk) << empty.err;
}

TEST_F(ModelsTest, TokenizeSaysWhatIsWrong) {
  EXPECT_FAILS(call({"tokenize", "-m", model(), "-p", "ab\xFF"}), kFailure, "byte 2");
  EXPECT_FAILS(call({"tokenize", "-m", model(), "-p", "1 x", "--decode"}), kFailure, "id number 2");
  EXPECT_FAILS(call({"tokenize", "-m", model(), "-p", "300", "--decode"}), kFailure,
               "from 0 to 299, got '300'");
  EXPECT_FAILS(call({"tokenize", "-m", model()}), kUsage, "missing --prompt or --file");
  EXPECT_FAILS(call({"tokenize", "-m", model(), "-p", "a", "-f", "b"}), kUsage, "not both");
  EXPECT_FAILS(call({"tokenize", "-m", model(), "-f", file("bad.txt", "ab\xFF")}), kFailure,
               "bad.txt': invalid UTF-8 at byte 2");
  EXPECT_FAILS(call({"tokenize", "-m", model(), "-f", file("none.txt")}), kFailure, "none.txt");
  EXPECT_FAILS(call({"tokenize", "-m", model(), "-f", dir_.path().string()}), kFailure, "directory");
}

TEST_F(ModelsTest, TokenizeReadsVocabularyOnlyFiles) {
  BITNET_REQUIRE_TEST_DATA(data);
  const auto o =
      call({"tokenize", "-m", (data / "ggml-vocab-gpt-2.gguf").string(), "-p", "Hello world", "--ids"});
  EXPECT_EQ(o.code, kOk) << o.err;
  EXPECT_EQ(o.out, "15496 995\n");
}

TEST_F(ModelsTest, ConvertKeepsTheWeightsAndTheTokenizer) {
  const std::string expected = nll_of(model());
  const auto to_hf = call({"convert", model(), file("hf")});
  ASSERT_EQ(to_hf.code, kOk) << to_hf.err;
  EXPECT_EQ(nll_of(file("hf")), expected);
  ASSERT_EQ(call({"convert", file("hf"), file("back.gguf"), "--type", "i2_s"}).code, kOk);
  EXPECT_EQ(nll_of(file("back.gguf")), expected);
  const auto ids = call({"tokenize", "-m", model(), "-p", "a b", "--ids"}).out;
  EXPECT_EQ(call({"tokenize", "-m", file("hf"), "-p", "a b", "--ids"}).out, ids);
  EXPECT_EQ(call({"tokenize", "-m", file("back.gguf"), "-p", "a b", "--ids"}).out, ids);
  for (const std::string type : {"tq1_0", "tq2_0"}) {
    ASSERT_EQ(call({"convert", model(), file(type + ".gguf"), "--type", type}).code, kOk);
    // Their scales are f16, and 400 tokens do not average that out.
    EXPECT_NEAR(perplexity_of(file(type + ".gguf")) / perplexity_of(model()), 1.0, 2e-3);
  }
  EXPECT_THAT(call({"inspect", file("tq2_0.gguf")}).out, HasSubstr("TQ2_0"));
}

TEST_F(ModelsTest, TheShippedModelLosesLessThanAThousandthOfItsPerplexityAsTq) {
  BITNET_REQUIRE_TEST_DATA(data);
  const std::string shipped = testing::source_path("models/bitnet-demo-i2_s.gguf").string();
  const auto measure = [&](const std::string& path) {
    const auto o = call({"perplexity", "-m", path, "-f", (data / "tinyshakespeare.txt").string(), "-c", "128",
                         "--chunks", "100", "--json"});
    EXPECT_EQ(o.code, kOk) << o.err;
    const json scores = json::parse(o.out);
    EXPECT_GT(scores["scored_tokens"], 6000);  // fewer would not average the rounding out
    return std::exp(scores["nll"].get<double>() / scores["scored_tokens"].get<double>());
  };
  const double expected = measure(shipped);
  for (const std::string type : {"tq1_0", "tq2_0"}) {
    ASSERT_EQ(call({"convert", shipped, file(type + ".gguf"), "--type", type}).code, kOk);
    EXPECT_NEAR(measure(file(type + ".gguf")) / expected, 1.0, 1e-3) << type;
  }
}

TEST_F(ModelsTest, ConvertNeverChangesWeightsSilently) {
  EXPECT_FAILS(call({"convert", dense_model(), file("x.gguf"), "--type", "i2_s"}), kFailure,
               "types that can: hf, f16");
  EXPECT_FAILS(call({"convert", model(), file("x.gguf"), "--type", "f16"}), kFailure,
               "hf, i2_s, tq1_0, tq2_0");
  EXPECT_FAILS(call({"convert", model(), model()}), kFailure, "input and output are the same");
  EXPECT_FAILS(call({"convert", file("none"), file("x.gguf")}), kFailure, "none");
  // 192 columns fit neither a block of 128 nor one of 256.
  const std::string odd = file("odd.json", tiny_config("", 192));
  EXPECT_FAILS(call({"synth", "--config", odd, "--type", "i2_s", "-o", file("odd.gguf")}), kFailure, "hf");
  ASSERT_EQ(call({"synth", "--config", odd, "--type", "hf", "-o", file("odd")}).code, kOk);
  EXPECT_FAILS(call({"convert", file("odd"), file("x.gguf"), "--type", "tq2_0"}), kFailure, "hf");
  const std::string part = file("odd") + "/model.safetensors", link = file("link.gguf");
  const std::string bytes = read_file(part);
  fs::create_symlink(part, link);
  for (const std::string& out : {part, link})
    EXPECT_FAILS(call({"convert", file("odd"), out, "--type", "i2_s"}), kFailure, "is a file of the input");
  EXPECT_EQ(read_file(part), bytes);
  EXPECT_FALSE(fs::exists(file("x.gguf")));
}

TEST_F(ModelsTest, ConvertKeepsDenseModelsDense) {
  const std::string expected = nll_of(dense_model());
  ASSERT_EQ(call({"convert", dense_model(), file("hf")}).code, kOk);
  EXPECT_EQ(nll_of(file("hf")), expected);
  ASSERT_EQ(call({"convert", file("hf"), file("back.gguf")}).code, kOk);
  EXPECT_EQ(nll_of(file("back.gguf")), expected);
}

/// The GGUF `from` with the embedding, or all linears, in another type, of random bytes below 64: such halves
/// are small numbers.
void retyped(const fs::path& from, const fs::path& to, GgmlType type, bool linears = false) {
  const auto file = GgufFile::open(from);
  std::vector<GgufTensorInfo> infos(file->tensors().begin(), file->tensors().end());
  const auto chosen = [&](const GgufTensorInfo& info) {
    const TensorId id = tensor_from_gguf_name(info.name).value();
    return linears ? is_linear(id.role) : id.role == TensorRole::kTokenEmbedding;
  };
  for (GgufTensorInfo& info : infos)
    if (chosen(info)) info.type = type;
  GgufWriter writer(to, file->metadata(), infos);
  Rng rng(1);
  for (const GgufTensorInfo& info : infos) {
    const auto kept = file->data(*file->find(info.name));
    std::vector<std::byte> bytes(kept.begin(), kept.end());
    if (chosen(info)) {
      bytes.resize(ggml_bytes(type, info.dims));
      for (std::byte& b : bytes) b = static_cast<std::byte>(rng.below(64));
    }
    writer.write(info.name, bytes);
  }
  writer.finish();
}

TEST_F(ModelsTest, ConvertRoundsFloatsOnlyWhenAskedTo) {
  const std::string f32 = file("f32.gguf");
  ASSERT_EQ(call({"synth", "--config", at("llama.json"), "--type", "f32", "-o", f32}).code, kOk);
  for (const std::string& source : {f32, model()}) {
    for (const GgmlType type : {GgmlType::kF16, GgmlType::kBF16, GgmlType::kQ8_0, GgmlType::kQ6_K}) {
      SCOPED_TRACE(source + " " + bitnet::to_string(type));
      const std::string in = file("in.gguf"), hf = file("hf"), back = file("back.gguf");
      retyped(source, in, type);
      const std::string expected = nll_of(in);
      const auto o = call({"convert", in, hf});
      ASSERT_EQ(o.code, kOk) << o.err;
      const bool grows = type == GgmlType::kQ8_0 || type == GgmlType::kQ6_K;
      EXPECT_EQ(o.err.find("become f32, which keeps their values") != std::string::npos, grows) << o.err;
      EXPECT_EQ(o.err.find("rounds the values of"), std::string::npos) << o.err;
      EXPECT_EQ(nll_of(hf), expected);
      ASSERT_EQ(call({"convert", hf, back}).code, kOk);
      EXPECT_EQ(nll_of(back), expected);
    }
  }
  EXPECT_THAT(call({"convert", f32, file("x"), "--dense-type", "f16"}).err,
              HasSubstr("note: f16 rounds the values of 16 tensors that are stored in another type"));
  EXPECT_THAT(call({"convert", f32, file("x.gguf"), "--type", "bf16"}).err, HasSubstr("note: bf16 rounds"));
}

/// As llama.cpp's quantiser leaves a BitNet whose linears were floats.
TEST_F(ModelsTest, QuantizeTakesBlocksOfFloatsForFloats) {
  retyped(model(), file("q8.gguf"), GgmlType::kQ8_0, true);
  const auto o = call({"quantize", file("q8.gguf"), file("t.gguf"), "--type", "i2_s"});
  ASSERT_EQ(o.code, kOk) << o.err;
  EXPECT_EQ(nll_of(file("t.gguf")), nll_of(file("q8.gguf")));
}

TEST_F(ModelsTest, InspectSaysWhatAnExtendedModelIs) {
  const std::string plan = file("p.yaml",
                                "scheme: mixed_precision\n"
                                "weights: {method: ls, scales: group32}\n"
                                "layers:\n"
                                "  - {match: '*ffn_up', method: two-plane, scales: row}\n"
                                "  - {match: '*ffn_down', method: ls, scales: tensor, activation_bits: 4}\n"
                                "  - {match: '*attn_k', method: int8}\n"
                                "keep: ['*attn_output']\n");
  ASSERT_EQ(call({"quantize", dense_model(), file("m"), "--plan", plan, "--type", "extended"}).code, kOk);
  const auto o = call({"inspect", file("m")});
  ASSERT_EQ(o.code, kOk) << o.err;
  EXPECT_THAT(o.out,
              HasSubstr("extended: 6 ternary with scales by groups of 32 columns, 2 in full precision, "
                        "2 int8 with scales by row, 2 of two planes with scales by row, "
                        "2 ternary with one scale and 4-bit activations\n"));
  EXPECT_THAT(o.out, Not(HasSubstr("dense (float")));
  const auto j = json::parse(call({"inspect", "--json", file("m")}).out);
  EXPECT_EQ(j["config"]["weights"], "extended");
  EXPECT_EQ(j["linears"][0]["kind"], "ternary with scales by groups of 32 columns");
  EXPECT_EQ(j["linears"][0]["count"], 6);
  EXPECT_FALSE(json::parse(call({"inspect", "--json", dense_model()}).out).contains("linears"));
}

TEST_F(ModelsTest, ADirectoryMayBeNamedWithASlash) {
  for (const char* type : {"hf", "extended"}) {
    const std::string out = file(std::string(type) + "/");
    const auto o = call({"quantize", dense_model(), out, "--method", "ls", "--type", type});
    ASSERT_EQ(o.code, kOk) << o.err;
    EXPECT_EQ(call({"run", "-m", out, "-p", "x", "-n", "2"}).code, kOk);
    EXPECT_FAILS(call({"quantize", dense_model(), file("none/m/"), "--type", type}), kFailure,
                 "there is no directory '");
  }
  const auto o = call({"convert", model(), file("converted/")});
  ASSERT_EQ(o.code, kOk) << o.err;
  EXPECT_EQ(nll_of(file("converted/")), nll_of(model()));
  EXPECT_FAILS(call({"convert", model(), file("m.gguf/"), "--type", "hf"}), kFailure, "would mislead");
}

/// For its scope write() fails behind so many bytes of a file, as on a full disk, and needs no rights.
class SmallFiles {
 public:
  explicit SmallFiles(rlim_t bytes) : handler_(std::signal(SIGXFSZ, SIG_IGN)) {
    getrlimit(RLIMIT_FSIZE, &old_);
    const rlimit small{bytes, old_.rlim_max};
    EXPECT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
  }
  ~SmallFiles() {
    setrlimit(RLIMIT_FSIZE, &old_);
    std::signal(SIGXFSZ, handler_);
  }
  SmallFiles(const SmallFiles&) = delete;
  SmallFiles& operator=(const SmallFiles&) = delete;

 private:
  void (*handler_)(int);
  rlimit old_{};
};

TEST_F(ModelsTest, AFullDiskLeavesTheOldFileWhole) {
  const std::string disk = file("disk");
  fs::create_directory(disk);
  write_file(fs::path(disk) / "m.gguf", "old");
  const auto o = [&] {
    const SmallFiles limit(64 << 10);
    return call({"convert", model(), disk + "/m.gguf", "--type", "tq2_0"});
  }();
  EXPECT_EQ(o.code, kFailure);
  EXPECT_THAT(o.err, HasSubstr("m.gguf': File too large"));
  EXPECT_EQ(read_file(fs::path(disk) / "m.gguf"), "old");
  EXPECT_EQ(std::distance(fs::directory_iterator(disk), fs::directory_iterator{}), 1);
}

TEST_F(ModelsTest, ShippedShapesAreRead) {
  for (const std::string name : {"bitnet-2b-4t", "1bitllm-large", "llama3-8b-1.58", "falcon3-1b"}) {
    // Gigabytes are not written in a test: Ctrl-C comes when the shape is read.
    std::atomic<bool> cancelled{true};
    CallOptions options;
    options.cancelled = &cancelled;
    const std::string config = testing::source_path("configs/synth/" + name + ".json").string();
    EXPECT_EQ(call({"synth", "--config", config, "-o", file("x.gguf")}, options).code, kInterrupted) << name;
  }
  EXPECT_FALSE(fs::exists(file("x.gguf")));
}

}  // namespace
}  // namespace bitnet::cli
