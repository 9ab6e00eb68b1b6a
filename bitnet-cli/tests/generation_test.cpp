// run, chat and perplexity with tiny random models: what goes where, determinism, and every wrong input.
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>

#include "bitnet/testing/trace.hpp"
#include "cli_fixture.hpp"
#include "common.hpp"

namespace bitnet::cli {
namespace {

using nlohmann::json;

class RunTest : public CliTest {
 protected:
  static Outcome run_model(std::vector<std::string> more, const CallOptions& options = {}) {
    std::vector<std::string> arguments{"run", "-m", model(), "-n", "12"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return call(arguments, options);
  }
};

TEST_F(RunTest, TextGoesOutAndFiguresGoToErr) {
  const auto o = run_model({"-p", "hello", "--seed", "1", "--special"});
  ASSERT_EQ(o.code, kOk) << o.err;
  EXPECT_NE(o.out, "");
  EXPECT_THAT(o.err, HasSubstr("load "));
  EXPECT_THAT(o.err, HasSubstr("prompt 6 tokens"));
  EXPECT_THAT(o.err, HasSubstr("tokens/s"));
  EXPECT_THAT(o.err, HasSubstr("peak memory"));
  EXPECT_THAT(o.err, Not(HasSubstr("seed")));
}

TEST_F(RunTest, TheSameSeedGivesTheSameTextWithAnyNumberOfThreads) {
  const auto a = run_model({"-p", "hello", "--seed", "5"});
  EXPECT_EQ(run_model({"-p", "hello", "--seed", "5", "--threads", "1"}).out, a.out);
  EXPECT_EQ(run_model({"-p", "hello", "--seed", "5", "--threads", "3"}).out, a.out);
  EXPECT_NE(run_model({"-p", "hello", "--seed", "6"}).out, a.out);
}

TEST_F(RunTest, ARandomSeedIsPrintedAndCanBeUsedAgain) {
  const auto a = run_model({"-p", "hello"});
  const std::size_t at_seed = a.err.find("seed: ");
  ASSERT_NE(at_seed, std::string::npos);
  const std::string seed = a.err.substr(at_seed + 6, a.err.find('\n', at_seed) - at_seed - 6);
  EXPECT_EQ(run_model({"-p", "hello", "--seed", seed}).out, a.out);
}

TEST_F(RunTest, AProfileIsATraceOfEveryOpAndChangesNoText) {
  const auto plain = run_model({"-p", "hello", "--seed", "5", "--temp", "0"});
  const auto o = run_model({"-p", "hello", "--seed", "5", "--temp", "0", "--profile", file("trace.json")});
  ASSERT_EQ(o.code, kOk) << o.err;
  EXPECT_EQ(o.out, plain.out);
  std::map<std::string, int> calls;
  double forward_begin = 0, forward_end = 0;
  const json trace = testing::expect_trace(read_file(file("trace.json")));  // must outlive the loop
  for (const json& e : trace["traceEvents"]) {
    if (e["ph"] != "X") continue;
    const std::string name = e["name"];
    const double begin = e["ts"], end = begin + e["dur"].get<double>();
    ++calls[name];
    if (name == "forward") forward_begin = begin, forward_end = end;
    if (name != "norm_linear" && name != "attention") continue;
    EXPECT_GT(e["args"]["bytes"], 0);
    EXPECT_GE(begin, forward_begin - 0.002);  // inside the pass it belongs to; times are rounded to 1 ns
    EXPECT_LE(end, forward_end + 0.002);
  }
  // Two layers; a pass for the prompt and one for each token but the last.
  const int passes = calls["forward"];
  EXPECT_GE(passes, 1);
  EXPECT_LE(passes, 12);
  EXPECT_EQ(calls["sample"], passes);
  EXPECT_EQ(calls["text"], passes);  // a token each; the last one is not evaluated, but has text
  EXPECT_EQ(calls["load"], 1);
  EXPECT_GT(calls["prepare"], 0);
  EXPECT_EQ(calls["prepare_embedding"], 1);
  EXPECT_GT(calls["upload"], 0);  // the norms
  EXPECT_EQ(calls["logits"], passes);
  EXPECT_EQ(calls["attention"], 2 * passes);
  EXPECT_EQ(calls["rope"], 4 * passes);
  EXPECT_THAT(o.err, HasSubstr("own ms"));
  EXPECT_THAT(o.err, HasSubstr("\ngated_linear"));
  EXPECT_FAILS(run_model({"-p", "a", "--profile", file("no/such/folder.json")}), kFailure, "no/such");
}

TEST_F(RunTest, AProfileReplacesNothingThatIsRead) {
  const std::string text = file("p.txt", "hello");
  const auto bytes = read_file(model());
  EXPECT_FAILS(run_model({"-p", "a", "--profile", model()}), kFailure, "would replace the model");
  EXPECT_FAILS(run_model({"-f", text, "--profile", text}), kFailure, "would replace the file of --file");
  EXPECT_FAILS(run_model({"-p", "a", "--profile", "-"}), kUsage, "--profile needs a file");
  EXPECT_EQ(read_file(model()), bytes);
  EXPECT_EQ(read_file(text), "hello");
}

TEST_F(RunTest, ARunThatFailsHasAProfileToo) {
  const std::string prompt = "a prompt that does not fit";
  EXPECT_FAILS(run_model({"-p", prompt, "-c", "3", "--profile", file("failed.json")}), kFailure, "context");
  const json trace = testing::expect_trace(read_file(file("failed.json")));
  EXPECT_THAT(trace.dump(), HasSubstr("\"prepare\""));
}

TEST_F(RunTest, PromptsComeFromTextFileOrStandardInput) {
  const auto a = run_model({"-p", "two\nlines", "--seed", "1"});
  EXPECT_EQ(run_model({"-f", file("p.txt", "two\nlines\n"), "--seed", "1"}).out, a.out);
  EXPECT_EQ(run_model({"-f", "-", "--seed", "1"}, {.input = "two\nlines"}).out, a.out);
  EXPECT_EQ(run_model({"-p", "two\nlines", "--seed", "1", "--echo"}).out, "two\nlines" + a.out);
  EXPECT_EQ(run_model({"-p", "two\nlines", "--seed", "1"}, {.out_is_terminal = true}).out, a.out + "\n");
}

TEST_F(RunTest, ThePromptOfTheCommandLineWinsOverTheOtherKindInAYamlFile) {
  const std::string names_file = file("f.yaml", "file: " + file("p.txt", "from the file\n") + "\n");
  const std::string has_prompt = file("p.yaml", "prompt: from yaml\n");
  const std::vector<std::string> common{"--seed", "1", "--echo"};
  const auto with = [&](std::vector<std::string> more) {
    more.insert(more.end(), common.begin(), common.end());
    return run_model(more).out;
  };
  EXPECT_THAT(with({"-p", "typed\n", "--config", names_file}), ::testing::StartsWith("typed\n"));
  EXPECT_THAT(with({"-f", file("p.txt"), "--config", has_prompt}), ::testing::StartsWith("from the file"));
  EXPECT_THAT(with({"--config", has_prompt}), ::testing::StartsWith("from yaml"));
  const std::string both = file("b.yaml", "prompt: a\nfile: b\n");
  EXPECT_FAILS(run_model({"--config", both}), kUsage, "not both");
}

TEST_F(RunTest, NoTokensAreNoSpeed) {
  const auto o = call({"run", "-m", model(), "-p", "hello", "-n", "0"});
  EXPECT_EQ(o.code, kOk);
  EXPECT_EQ(o.out, "");
  EXPECT_THAT(o.err, HasSubstr("prompt 6 tokens, generation 0 tokens"));
  EXPECT_THAT(o.err, Not(HasSubstr("tokens/s")));
}

TEST_F(RunTest, AHugeContextTakesMemoryOnlyForTheTextThatCanBe) {
  const auto small = run_model({"-p", "hello", "--seed", "1", "-c", "20"});
  // Pages that are touched count: a cache and tables for four million tokens would take a gigabyte more.
  const std::uint64_t before = peak_memory_bytes();
  const auto huge = run_model({"-p", "hello", "--seed", "1", "-c", "4000000"});
  EXPECT_EQ(huge.code, kOk) << huge.err;
  EXPECT_EQ(huge.out, small.out);
  EXPECT_LT(peak_memory_bytes() - before, std::uint64_t{256} << 20);
  // A context that is too short is still named as the user gave it.
  EXPECT_FAILS(run_model({"-p", "hello", "-c", "3"}), kFailure, "but the context holds 3");
}

TEST_F(RunTest, SpecialTokensInThePromptNeedSpecial) {
  EXPECT_THAT(run_model({"-p", "<|eot_id|>", "--seed", "1"}).err, HasSubstr("prompt 11 tokens"));
  EXPECT_THAT(run_model({"-p", "<|eot_id|>", "--seed", "1", "--special"}).err, HasSubstr("prompt 2 tokens"));
}

TEST_F(RunTest, DraftsChangeNothingButTheFigures) {
  const std::vector<std::string> common{"-p", "abcabcabcabcabcabc", "-n", "60", "--seed", "3", "--temp",
                                        "0.1"};
  const auto with = [&](std::vector<std::string> more) {
    more.insert(more.end(), common.begin(), common.end());
    return run_model(more);
  };
  const auto plain = with({}), drafted = with({"--draft", "6", "--draft-ngram", "1"});
  ASSERT_EQ(drafted.code, kOk) << drafted.err;
  EXPECT_EQ(drafted.out, plain.out);
  EXPECT_THAT(drafted.err, HasSubstr("drafted tokens accepted"));
  EXPECT_THAT(plain.err, Not(HasSubstr("drafted")));
  const auto from_yaml = with({"--config", file("d.yaml", "draft: 6\ndraft_ngram: 1\n")});
  EXPECT_EQ(from_yaml.out, plain.out);
  EXPECT_THAT(from_yaml.err, HasSubstr("drafted tokens accepted"));
  EXPECT_FAILS(with({"--draft", "17"}), kUsage, "from 0 to 16");
  EXPECT_FAILS(with({"--draft-ngram", "0"}), kUsage, "from 1 to 16");
}

TEST_F(RunTest, AStopStringEndsTheTextBeforeIt) {
  const auto a = run_model({"-p", "hello", "--temp", "0", "--special"});
  ASSERT_GT(a.out.size(), 4u);
  const std::string stop = a.out.substr(2, 2);
  const auto b = run_model({"-p", "hello", "--temp", "0", "--special", "--stop", stop});
  EXPECT_EQ(b.out, a.out.substr(0, a.out.find(stop)));
}

TEST_F(RunTest, TheBarOfTheLoadingIsGoneBeforeAWarning) {
  const auto o = call({"run", "-m", model(), "-p", "a", "-n", "1", "-c", "256"}, {.err_is_terminal = true});
  EXPECT_THAT(o.err, HasSubstr("loading\x1b[K\r\x1b[Kwarning: a context of 256 tokens"));
}

TEST_F(RunTest, VerboseSaysWhatIsUsed) {
  const auto o = run_model({"-p", "hello", "-v", "--threads", "2"});
  EXPECT_THAT(o.err, HasSubstr("device: cpu: the default"));
  EXPECT_THAT(o.err, HasSubstr("instruction set: "));
  EXPECT_THAT(o.err, HasSubstr("threads: 2"));
  EXPECT_THAT(o.err, HasSubstr("ternary linear weights"));
  EXPECT_THAT(o.err, HasSubstr("embedding and head: int8"));
  EXPECT_THAT(o.err, HasSubstr("finished: "));
  EXPECT_THAT(run_model({"-p", "hello", "-v", "--head-type", "stored"}).err,
              HasSubstr("embedding and head: as stored"));
  EXPECT_THAT(run_model({"-p", "hello", "-v", "--head-type", "f16"}).err,
              HasSubstr("embedding and head: f16"));
  EXPECT_FAILS(run_model({"-p", "hello", "--head-type", "q6_k"}), kUsage,
               "--head-type: expected one of auto, int8, f16, stored, got 'q6_k'");
  const auto dense = call({"run", "-m", dense_model(), "-p", "x", "-n", "2", "-v"});
  EXPECT_EQ(dense.code, kOk) << dense.err;
  EXPECT_THAT(dense.err, HasSubstr("dense linear weights"));
  EXPECT_THAT(dense.err, HasSubstr("embedding and head: as stored"));
  EXPECT_THAT(dense.err, HasSubstr("context: 128 tokens\n"));
}

TEST_F(RunTest, VerboseSaysThatTheContextIsLessThanWhatTheModelWasTrainedFor) {
  std::string config = tiny_config();
  const std::string trained = "\"max_position_embeddings\": ";
  config.replace(config.find(trained + "128"), trained.size() + 3, trained + "32768");
  ASSERT_EQ(call({"synth", "--config", file("long.json", config), "-o", file("long.gguf")}).code, kOk);
  const auto o = call({"run", "-m", file("long.gguf"), "-p", "x", "-n", "1", "-v"});
  EXPECT_THAT(o.err, HasSubstr("context: 4,096 tokens of the 32,768 that the model was trained for"));
  const auto all = call({"run", "-m", file("long.gguf"), "-p", "x", "-n", "1", "-v", "-c", "32768"});
  EXPECT_THAT(all.err, HasSubstr("context: 32,768 tokens\n"));
}

TEST_F(RunTest, QuantizeMakesADenseModelTernaryWithAWarning) {
  const auto o = call({"run", "-m", dense_model(), "-p", "x", "-n", "2", "-v", "--quantize", "absmean"});
  EXPECT_EQ(o.code, kOk) << o.err;
  EXPECT_THAT(o.err, HasSubstr("ternary linear weights"));
  EXPECT_THAT(o.err, HasSubstr("destroyed by it"));
}

TEST_F(RunTest, ValuesFromYaml) {
  const std::string yaml = file("c.yaml", "model: " + model() + "\nmax_tokens: 12\nseed: 1\n");
  const auto o = call({"run", "-p", "hello", "--config", yaml});
  EXPECT_EQ(o.code, kOk) << o.err;
  EXPECT_EQ(o.out, run_model({"-p", "hello", "--seed", "1"}).out);
  EXPECT_FAILS(run_model({"-p", "x", "--config", file("bad.yaml", "\ntop_kk: 3\n")}), kFailure,
               "bad.yaml:2: unknown key 'top_kk', did you mean 'top_k'?");
}

TEST_F(RunTest, WrongInputIsAnErrorThatSaysWhy) {
  EXPECT_FAILS(run_model({}), kUsage, "missing --prompt or --file");
  EXPECT_FAILS(run_model({"-p", "x", "--stop", ""}), kUsage, "--stop");
  EXPECT_FAILS(run_model({"-p", "x", "--system", "y"}), kUsage, "--system needs --chat-template");
  EXPECT_FAILS(run_model({"-p", "a\xC3"}), kFailure, "the prompt: invalid UTF-8 at byte 1");
  EXPECT_FAILS(run_model({"-f", file("bad.txt", "ab\xFF")}), kFailure, "bad.txt': invalid UTF-8 at byte 2");
  EXPECT_FAILS(run_model({"-f", file("none.txt")}), kFailure, "none.txt");
  EXPECT_FAILS(run_model({"-p", std::string(500, 'x')}), kFailure, "501");  // with BOS
  EXPECT_FAILS(run_model({"-p", std::string(500, 'x')}), kFailure, "128");
  EXPECT_FAILS(run_model({"-p", "x", "--device", "opencl:9:9"}), kFailure, "there is no device 'opencl:9:9'");
  EXPECT_FAILS(run_model({"-p", "x", "--isa", "mmx"}), kUsage, "--isa: unknown ISA 'mmx'");
  EXPECT_FAILS(run_model({"-p", "x", "--config", file("isa.yaml", "isa: mmx\n")}), kFailure,
               "isa: unknown ISA 'mmx'");
  EXPECT_FAILS(run_model({"-p", "x", "--chat-template", "nope"}), kUsage,
               "--chat-template: no chat template is called 'nope'");
  EXPECT_FAILS(run_model({"-p", "x", "--chat-template", "auto"}), kFailure,
               "leave the option out to continue the prompt");
  EXPECT_FAILS(run_model({"-p", "x", "--repeat-last-n", "1048577"}), kUsage,
               "--repeat-last-n: expected a whole number from 0 to 1048576");
  EXPECT_FAILS(run_model({"-p", "x", "-n", "many"}), kUsage, "--max-tokens: expected a whole number");
  EXPECT_FAILS(call({"run", "-m", file("none.gguf"), "-p", "x"}), kFailure,
               "there is no file or directory '");
  EXPECT_FAILS(call({"run", "-m", file("notes.md", "# hello"), "-p", "x"}), kFailure, "notes.md");
}

TEST_F(RunTest, AFullDiskBehindStandardOutputIsAnError) {
  std::ofstream full("/dev/full");
  CallOptions options;
  options.out = &full;
  EXPECT_FAILS(run_model({"-p", "hello", "--special"}, options), kFailure, "cannot write to standard output");
}

TEST_F(RunTest, CtrlCIs130) {
  std::atomic<bool> cancelled{true};
  EXPECT_EQ(run_model({"-p", "hello"}, {.cancelled = &cancelled}).code, kInterrupted);
}

TEST_F(RunTest, AChatTemplateWrapsThePrompt) {
  const auto plain = run_model({"-p", "hello", "--seed", "1"});
  const auto wrapped =
      run_model({"-p", "hello", "--seed", "1", "--chat-template", "bitnet", "--system", "s"});
  EXPECT_EQ(wrapped.code, kOk) << wrapped.err;
  EXPECT_NE(wrapped.out, plain.out);
  EXPECT_THAT(wrapped.err, Not(HasSubstr("prompt 6 tokens")));
}

class ChatTest : public CliTest {
 protected:
  static Outcome chat(const std::string& input, std::vector<std::string> more = {}) {
    std::vector<std::string> arguments{"chat", "-m",     model(), "--chat-template", "bitnet", "-n",
                                       "4",    "--seed", "1"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return call(arguments, {.input = input});
  }
};

TEST_F(ChatTest, ABaseModelNeedsATemplateOrRun) {
  const auto o = call({"chat", "-m", model()}, {.input = "hi\n"});
  EXPECT_EQ(o.code, kFailure);
  EXPECT_THAT(o.err, HasSubstr("run"));
  EXPECT_THAT(o.err, HasSubstr("--chat-template"));
}

TEST_F(ChatTest, RemembersTheConversation) {
  const auto o = chat("one\ntwo\n/history\n", {"--system", "be brief"});
  ASSERT_EQ(o.code, kOk) << o.err;
  const std::size_t history = o.out.find("system: be brief\nuser: one\nassistant: ");
  ASSERT_NE(history, std::string::npos) << o.out;
  EXPECT_NE(o.out.find("\nuser: two\nassistant: ", history), std::string::npos);
  EXPECT_EQ(chat("one\ntwo\n/history\n", {"--system", "be brief"}).out, o.out);
}

TEST_F(ChatTest, CommandsInside) {
  const std::string saved = file("talk.json");
  const auto o =
      chat("/help\none\n/save " + saved + "\n/stats\n/clear\n/history\n/hlep\n/save\n/exit\nnever\n");
  EXPECT_EQ(o.code, kOk) << o.err;
  for (const std::string word : {"/help", "/clear", "/history", "/save FILE", "/stats", "/exit", "context: "})
    EXPECT_THAT(o.out, HasSubstr(word));
  EXPECT_THAT(o.out, Not(HasSubstr("user:")));
  EXPECT_THAT(o.err, HasSubstr("unknown command '/hlep', did you mean '/help'?"));
  EXPECT_THAT(o.err, HasSubstr("/save needs a file name"));
  const auto messages = json::parse(read_file(saved))["messages"];
  ASSERT_EQ(messages.size(), 2u);
  EXPECT_EQ(messages[0]["content"], "one");
}

TEST_F(ChatTest, AFullContextForgetsTheOldestTurnsAndKeepsTheSystemPrompt) {
  std::string input;
  for (int i = 0; i < 6; ++i) input += "message number " + std::to_string(i) + "\n";
  const auto o = chat(input + "/history\n", {"--system", "stay"});
  EXPECT_EQ(o.code, kOk) << o.err;
  EXPECT_THAT(o.err, HasSubstr("forgot the oldest"));
  EXPECT_THAT(o.out, HasSubstr("system: stay\nuser: message number "));
  EXPECT_THAT(o.out, Not(HasSubstr("user: message number 0")));
  EXPECT_THAT(o.out, HasSubstr("user: message number 5"));
}

TEST_F(ChatTest, AMessageThatDoesNotFitIsAnErrorAndTheChatGoesOn) {
  const auto o = chat(std::string(300, 'x') + "\nbad \xFF\nok\n/history\n");
  EXPECT_EQ(o.code, kFailure);
  EXPECT_THAT(o.err, HasSubstr("128"));
  EXPECT_THAT(o.err, HasSubstr("invalid UTF-8 at byte 4"));
  EXPECT_THAT(o.out, HasSubstr("user: ok\n"));
  EXPECT_THAT(o.out, Not(HasSubstr("xxx")));
}

class PerplexityTest : public CliTest {};

TEST_F(PerplexityTest, MeasuresAndWritesJson) {
  const std::string text = file("t.txt", std::string(600, 'a'));
  const auto o = call({"perplexity", "-m", model(), "-f", text, "-c", "64"});
  ASSERT_EQ(o.code, kOk) << o.err;
  EXPECT_THAT(o.out, ::testing::StartsWith("perplexity "));
  EXPECT_THAT(o.out, HasSubstr(" ± "));
  EXPECT_THAT(o.out, HasSubstr("bits per byte"));
  EXPECT_THAT(o.out, HasSubstr("in 9 chunks of 64"));
  EXPECT_EQ(o.err.find("warning"), std::string::npos);
  const auto beyond = call({"perplexity", "-m", model(), "-f", text, "-c", "256", "--chunks", "1"});
  EXPECT_THAT(beyond.out, HasSubstr("in 1 chunk of 256"));
  EXPECT_THAT(beyond.err, HasSubstr("warning: chunks of 256 tokens: the model was trained for 128"));
  const auto j =
      json::parse(call({"perplexity", "-m", model(), "-f", text, "-c", "64", "--json", "--chunks", "2"}).out);
  EXPECT_EQ(j["chunks"], 2);
  EXPECT_GT(j["perplexity"], 1.0);
}

TEST_F(PerplexityTest, KvTypesDifferLittle) {
  const std::string text =
      file("t.txt", "It was the best of times, it was the worst of times, " + std::string(90, 'a'));
  const auto perplexity = [&](const std::string& type) {
    const auto o = call({"perplexity", "-m", model(), "-f", text, "-c", "64", "--json", "--kv-type", type});
    EXPECT_EQ(o.code, kOk) << o.err;
    return json::parse(o.out)["perplexity"].get<double>();
  };
  const double f32 = perplexity("f32"), f16 = perplexity("f16"), i8 = perplexity("i8");
  EXPECT_NE(f16, f32);
  EXPECT_NE(i8, f16);
  EXPECT_NEAR(f16, f32, 0.01 * f32);
  EXPECT_NEAR(i8, f32, 0.1 * f32);
  EXPECT_FAILS(call({"perplexity", "-m", model(), "-f", text, "--kv-type", "bf16"}), kUsage,
               "--kv-type: expected one of f16, i8, f32, got 'bf16'");
}

TEST_F(PerplexityTest, WrongInput) {
  EXPECT_FAILS(call({"perplexity", "-m", model()}), kUsage, "missing option -f (--file)");
  EXPECT_FAILS(call({"perplexity", "-m", model(), "-f", file("s.txt", "short")}), kFailure,
               "s.txt': the text has 6 tokens, but one chunk needs 512");
  EXPECT_FAILS(call({"perplexity", "-m", model(), "-f", file("b.txt", "\xFF")}), kFailure,
               "invalid UTF-8 at byte 0");
  EXPECT_FAILS(call({"perplexity", "-m", model(), "-f", file("s.txt", "short"), "-c", "2"}), kUsage,
               "from 8");
}

class ProfileTest : public CliTest {};

TEST_F(ProfileTest, MemoryIsPrintedAndDrawn) {
  const std::string page = file("memory.html");
  const auto o =
      call({"profile", "memory", "-m", model(), "-p", "hello", "-n", "4", "--seed", "1", "-o", page});
  ASSERT_EQ(o.code, kOk) << o.err;
  EXPECT_THAT(o.out, ::testing::StartsWith("memory pool 'host'\n"));
  for (const char* part :
       {"fragmentation of it", "bytes of a block", "kv pages", "activations", "allocations/s"})
    EXPECT_THAT(o.out, HasSubstr(part));
  EXPECT_THAT(o.out, HasSubstr("nothing is left of"));
  std::ifstream in(page);
  const std::string html((std::istreambuf_iterator<char>(in)), {});
  EXPECT_THAT(html, HasSubstr("<svg"));
  EXPECT_THAT(html, HasSubstr("Memory over time"));
  const auto none =
      call({"profile", "memory", "-m", model(), "-p", "hello", "-n", "4", "--tracking", "none"});
  ASSERT_EQ(none.code, kOk) << none.err;
  EXPECT_THAT(none.out, HasSubstr("not kept"));
}

TEST_F(ProfileTest, ThePageReplacesNothingThatIsRead) {
  const std::string text = file("p.txt", "hello");
  const auto bytes = read_file(model());
  const auto profile = [](std::vector<std::string> more) {
    more.insert(more.begin(), {"profile", "memory", "-n", "2"});
    return call(more);
  };
  EXPECT_FAILS(profile({"-m", model(), "-p", "a", "-o", model()}), kFailure,
               "--output '" + model() + "': the page would replace the model");
  EXPECT_FAILS(profile({"-m", model(), "-f", text, "-o", text}), kFailure,
               "the page would replace the file of --file");
  EXPECT_FAILS(profile({"-m", model(), "-p", "a", "-o", "-"}), kUsage, "--output needs a file");
  const auto nowhere = profile({"-m", model(), "-p", "a", "-o", file("no/such/x.html")});
  EXPECT_FAILS(nowhere, kFailure, "no/such");
  EXPECT_EQ(nowhere.err.find("tokens/s"), std::string::npos) << "found out after the run";
  EXPECT_EQ(read_file(model()), bytes);
  EXPECT_EQ(read_file(text), "hello");
}

TEST_F(ProfileTest, WrongUsageSaysWhatThereIs) {
  EXPECT_FAILS(call({"profile", "time", "-m", model(), "-p", "a"}), kUsage, "only `bitnet profile memory`");
  EXPECT_FAILS(call({"profile", "memory", "-p", "a"}), kUsage, "missing option -m (--model)");
  EXPECT_FAILS(call({"profile", "memory", "-m", model(), "-p", "a", "--tracking", "all"}), kUsage,
               "none, basic, standard, detailed");
}

}  // namespace
}  // namespace bitnet::cli
