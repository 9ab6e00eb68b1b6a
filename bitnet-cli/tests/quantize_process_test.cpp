// Quantising in a process of its own: killed with SIGKILL and called again it goes on with the layer that it
// was at and ends with the same file; its memory is that of a layer, however many there are; models in
// shards.
#include "quantize_process.hpp"

#include <sys/stat.h>

#include <map>

#include "cli_fixture.hpp"
#include "quantize_progress.hpp"

namespace bitnet::cli {
namespace {

namespace fs = std::filesystem;

class QuantizeProcessTest : public CliTest {
 protected:
  /// A dense Llama; the widths are such that a layer takes a moment.
  std::string float_model(int layers, int hidden = 512, int intermediate = 1280) {
    const std::string name = "m" + std::to_string(layers) + "x" + std::to_string(hidden);
    const std::string config =
        file(name + ".json",
             "{\"architectures\": [\"LlamaForCausalLM\"], \"model_type\": \"llama\", \"vocab_size\": 300, "
             "\"hidden_size\": " +
                 std::to_string(hidden) + ", \"intermediate_size\": " + std::to_string(intermediate) +
                 ", \"num_hidden_layers\": " + std::to_string(layers) +
                 ", \"num_attention_heads\": 8, \"num_key_value_heads\": 4, \"hidden_act\": \"silu\", "
                 "\"max_position_embeddings\": 128, \"rms_norm_eps\": 1e-05, \"rope_theta\": 10000.0, "
                 "\"tie_word_embeddings\": false}");
    const auto o = call({"synth", "--config", config, "--type", "f16", "-o", file(name + ".gguf")});
    EXPECT_EQ(o.code, kOk) << o.err;
    return file(name + ".gguf");
  }
  std::uint64_t peak_of(const std::vector<std::string>& words) {
    MeasuredProcess p(words, file("log"));
    EXPECT_EQ(p.wait(), 0) << read_file(file("log"));
    return p.peak();
  }
};

/// Finished layers by the name of their file, with what is not the same again when one is written once more.
std::map<std::string, std::pair<ino_t, fs::file_time_type>> finished(const fs::path& work) {
  std::map<std::string, std::pair<ino_t, fs::file_time_type>> all;
  std::error_code ignored;
  for (fs::directory_iterator it(work, ignored), end; !ignored && it != end; it.increment(ignored)) {
    if (it->path().extension() != ".safetensors") continue;
    struct stat s {};
    if (stat(it->path().c_str(), &s) == 0)
      all[it->path().filename().string()] = {s.st_ino, fs::last_write_time(it->path(), ignored)};
  }
  return all;
}

/// Files that are on their way, or were.
std::int64_t unfinished(const fs::path& directory) {
  std::int64_t n = 0;
  for (const auto& entry : fs::directory_iterator(directory))
    n += entry.path().filename().string().find(".partial") != std::string::npos ? 1 : 0;
  return n;
}

TEST_F(QuantizeProcessTest, KilledAtAnyLayerItGoesOnWithThatOne) {
  constexpr int kLayers = 6;
  const std::string in = float_model(kLayers);
  const auto words = [&](const std::string& directory) {  // the file's name is in the file
    fs::create_directory(file(directory));
    return std::vector<std::string>{"quantize",  in, file(directory + "/m.gguf"), "--method", "ls",
                                    "--threads", "1"};
  };
  ASSERT_EQ(call(words("whole")).code, kOk);
  auto resumable = words("killed");
  resumable.insert(resumable.end(), {"--work", file("work"), "--report", file("report.json")});
  std::size_t kills = 0;
  std::int64_t left = 0;
  for (std::size_t layers = 1; layers < kLayers; layers += 2) {
    const auto before = finished(file("work"));
    MeasuredProcess p(resumable, file("log"));
    while (!p.has_ended() && finished(file("work")).size() < std::max(layers, before.size() + 1))
      std::this_thread::sleep_for(std::chrono::microseconds(200));
    p.kill_now();
    const int code = p.wait();
    if (code == 0) break;  // it was faster
    ASSERT_EQ(code, -SIGKILL);
    ++kills;
    left += unfinished(file("killed")) + unfinished(file("work"));
    EXPECT_FALSE(fs::exists(file("killed/m.gguf")));
    const auto after = finished(file("work"));
    for (const auto& [name, state] : before) EXPECT_EQ(after.at(name), state) << name << " was done again";
  }
  EXPECT_GT(kills, 0u);
  const auto before = finished(file("work"));
  EXPECT_GT(before.size(), 0u);
  MeasuredProcess last(resumable, file("log"));
  ASSERT_EQ(last.wait(), 0) << read_file(file("log"));
  EXPECT_THAT(read_file(file("log")),
              HasSubstr("note: " + std::to_string(before.size()) + " layers were done before"));
  const auto after = finished(file("work"));
  for (const auto& [name, state] : before) EXPECT_EQ(after.at(name), state) << name << " was done again";
  EXPECT_TRUE(read_file(file("killed/m.gguf")) == read_file(file("whole/m.gguf")));
  EXPECT_GT(left, 0) << "the model was on its way";
  EXPECT_EQ(unfinished(file("killed")) + unfinished(file("work")), 0) << "what was left is removed";
  EXPECT_EQ(nlohmann::json::parse(read_file(file("report.json")))["linears"].size(),
            std::size_t{7} * kLayers);
}

/// All that can be seen of a file, or of a directory and what is in it: bytes, times of change, inodes,
/// modes.
std::map<std::string, std::string> state_of_all(const fs::path& path) {
  std::map<std::string, std::string> all;
  const auto add = [&](const fs::path& at) {
    struct stat s {};
    ASSERT_EQ(stat(at.c_str(), &s), 0) << at;
    std::string& state = all[at.string()];
    for (const auto value : {static_cast<std::int64_t>(s.st_mtim.tv_sec), s.st_mtim.tv_nsec, s.st_ctim.tv_sec,
                             s.st_ctim.tv_nsec, static_cast<std::int64_t>(s.st_ino),
                             static_cast<std::int64_t>(s.st_mode), static_cast<std::int64_t>(s.st_size)})
      state += std::to_string(value) + " ";
    if (S_ISREG(s.st_mode)) state += read_file(at);
  };
  add(path);
  if (fs::is_directory(path))
    for (const auto& entry : fs::recursive_directory_iterator(path)) add(entry.path());
  return all;
}

TEST_F(QuantizeProcessTest, TheOriginalIsTheSameHoweverItEnds) {
  const std::string gguf = float_model(3, 256, 256), shards = file("shards");
  write_shards(gguf, shards);
  for (const std::string& in : {gguf, shards}) {
    SCOPED_TRACE(in);
    const std::string work = file(fs::path(in).stem().string() + "-work");
    const auto before = state_of_all(in);
    const std::vector<std::string> words{"quantize", in,   file("out.gguf"), "--method",       "ls",
                                         "--work",   work, "--report",       file("lost.html")};
    MeasuredProcess killed(words, file("log"));
    while (!killed.has_ended() && finished(work).empty())
      std::this_thread::sleep_for(std::chrono::microseconds(100));
    killed.kill_now();
    killed.wait();
    EXPECT_TRUE(state_of_all(in) == before) << "killed";
    const auto resumed = call(words);
    ASSERT_EQ(resumed.code, kOk) << resumed.err;
    EXPECT_THAT(resumed.err, HasSubstr("layers were done before"));
    EXPECT_TRUE(fs::exists(file("lost.html")) && fs::exists(file("lost.json")));
    EXPECT_TRUE(state_of_all(in) == before) << "resumed, with a report";
    for (const char* type : {"i2_s", "hf", "extended"}) {
      const auto o = call({"quantize", in, file(std::string("plain-") + type), "--type", type});
      ASSERT_EQ(o.code, kOk) << o.err;
      fs::remove_all(file(std::string("plain-") + type));
    }
    EXPECT_TRUE(state_of_all(in) == before) << "done";
  }
}

TEST_F(QuantizeProcessTest, TheOriginalIsTheSameAfterAnErrorInTheMiddle) {
  const std::string gguf = float_model(3, 256, 256), shards = file("shards");
  write_shards(gguf, shards);
  for (const std::string& in : {gguf, shards}) {
    SCOPED_TRACE(in);
    const std::string work = file(fs::path(in).stem().string() + "-work");
    const auto before = state_of_all(in);
    // In the place of the last layer's file, which cannot be written therefore.
    fs::create_directories(fs::path(work) / "layer-00002.safetensors" / "in the way");
    EXPECT_FAILS(call({"quantize", in, file("out.gguf"), "--method", "ls", "--work", work, "--report",
                       file("lost.html")}),
                 kFailure, "layer-00002");
    EXPECT_TRUE(fs::is_regular_file(fs::path(work) / "layer-00001.safetensors"));  // it was in the middle
    EXPECT_FALSE(fs::exists(file("out.gguf")));
    EXPECT_FALSE(fs::exists(file("lost.html")));
    EXPECT_TRUE(state_of_all(in) == before);
  }
}

TEST_F(QuantizeProcessTest, NothingIsWrittenOverTheOriginal) {
  const std::string gguf = float_model(1, 256, 256), shards = file("shards"), text = file("t.txt", "words");
  write_shards(gguf, shards);
  fs::create_symlink(gguf, file("link.gguf"));
  fs::create_directory_symlink(shards, file("link"));
  fs::create_hard_link(gguf, file("hard.gguf"));
  const auto file_before = state_of_all(gguf), shards_before = state_of_all(shards);
  const auto refused = [&](std::vector<std::string> words, int code, const char* message) {
    words.insert(words.begin(), "quantize");
    EXPECT_FAILS(call(words), code, message);
    EXPECT_TRUE(state_of_all(gguf) == file_before) << words[2];
    EXPECT_TRUE(state_of_all(shards) == shards_before) << words[2];
  };
  const std::string in_other_words = file("shards/../" + fs::path(gguf).filename().string());
  for (const std::string& out : {gguf, in_other_words, file("link.gguf"), file("hard.gguf")})
    refused({gguf, out}, kFailure, "input and output are the same");
  for (const std::string& out : {shards, file("shards/."), file("link")})
    for (const char* type : {"hf", "extended"})
      refused({shards, out, "--type", type}, kFailure, "input and output are the same");
  std::string shard;
  for (const auto& entry : fs::directory_iterator(shards))
    if (entry.path().extension() == ".safetensors") shard = entry.path().string();
  refused({shards, shard}, kFailure, "is a file of the input");
  refused({shards, file("o.gguf"), "--report", shards + "/config.json"}, kUsage, "is a file of the input");
  refused({shards, file("o.gguf"), "--work", shards}, kUsage, "is the input, or a file of it");
  refused({shards, file("o.gguf"), "--work", shards + "/work"}, kUsage, "is the input, or a file of it");
  refused({gguf, file("o.gguf"), "--work", file("link.gguf")}, kUsage, "is the input, or a file of it");
  refused({gguf, file("o.gguf"), "--calibrate", text, "--save-calibration", gguf}, kUsage,
          "is a file of the input");
  EXPECT_FALSE(fs::exists(file("o.gguf")));
}

TEST_F(QuantizeProcessTest, MemoryIsThatOfALayer) {
#ifdef BITNET_SANITIZED
  GTEST_SKIP() << "sanitizers keep what is freed";
#endif
  const std::string few = float_model(2), many = float_model(12);
  const std::uint64_t more = fs::file_size(many) - fs::file_size(few);
  ASSERT_GT(more, std::uint64_t{50} << 20);
  for (const char* method : {"absmean", "ls"}) {
    const auto peak = [&](const std::string& in) {
      return peak_of({"quantize", in, file("out.gguf"), "--method", method, "--threads", "2"});
    };
    // Which linears are worked on at once is chance; of twelve layers two will be.
    const std::uint64_t a = std::max({peak(few), peak(few), peak(few)}), b = peak(many);
    EXPECT_LT(b, a + more / 4) << method << ": " << a << " and " << b;
  }
}

TEST_F(QuantizeProcessTest, ShardsInAndOut) {
  const std::string in = float_model(3, 256, 256);
  write_shards(in, file("shards"));
  ASSERT_GE(std::distance(fs::directory_iterator(file("shards")), {}), 5);
  ASSERT_EQ(call({"quantize", in, file("a.gguf"), "--method", "ls"}).code, kOk);
  const auto o = call({"quantize", file("shards"), file("b.gguf"), "--method", "ls"});
  ASSERT_EQ(o.code, kOk) << o.err;
  const auto e = call({"quantize", file("shards"), file("out"), "--method", "ls", "--type", "extended"});
  ASSERT_EQ(e.code, kOk) << e.err;
  EXPECT_TRUE(fs::exists(file("out/model.safetensors.index.json")));
  const auto a = quant::ModelReader::open(file("a.gguf")), b = quant::ModelReader::open(file("b.gguf")),
             c = quant::ModelReader::open(file("out"));
  for (const TensorId id : model_tensors(a->config())) {
    EXPECT_EQ(a->read(id).to_f32(), b->read(id).to_f32()) << gguf_name(id);
    EXPECT_EQ(a->read(id).to_f32(), c->read(id).to_f32()) << gguf_name(id);
  }
}

TEST(QuantizeProgressTest, TellsTheTimeToGo) {
  EXPECT_EQ(QuantizeProgress::line(3, 32, 10, 60, 5), "layer 3 of 32 done, 0:30 to go");
  EXPECT_EQ(QuantizeProgress::line(3, 32, 0, 60, 0), "layer 3 of 32 done");
  EXPECT_EQ(QuantizeProgress::line(32, 32, 60, 0, 5), "layer 32 of 32 done");
  ModelConfig model;
  model.n_layers = 2;
  model.hidden_size = 64;
  model.intermediate_size = 64;
  model.n_heads = model.n_kv_heads = 1;
  model.head_dim = 64;
  std::vector<quant::PlannedLinear> plans;
  for (std::int64_t layer = 0; layer < 2; ++layer)
    for (const TensorRole role : {TensorRole::kAttnQ, TensorRole::kFfnUp})
      plans.push_back({{role, layer}, {}});
  for (const bool terminal : {false, true}) {
    std::istringstream in;
    std::ostringstream out, err;
    Io io{.in = in, .out = out, .err = err};
    io.err_is_terminal = terminal;
    QuantizeProgress progress(io, plans, model, 0);
    for (const auto& plan : plans) {
      quant::LinearReport r;
      r.id = plan.id;
      r.out = r.in = 64;
      progress.done(r, 1);  // the first layer was there
    }
    if (terminal) {
      EXPECT_THAT(err.str(), HasSubstr("0/1 layers, 1 were done before"));
      EXPECT_THAT(err.str(), HasSubstr("1/1 layers"));
    } else {
      EXPECT_EQ(err.str(), "layer 1 of 2 done\nlayer 2 of 2 done\n");
    }
  }
}

}  // namespace
}  // namespace bitnet::cli
