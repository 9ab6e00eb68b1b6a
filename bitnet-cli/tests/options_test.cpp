// The option table, precedence of sources, command lines and yaml files.
#include "options.hpp"

#include <cstdlib>
#include <set>

#include "bitnet/core/env.hpp"
#include "bitnet/core/io/atomic_file.hpp"
#include "bitnet/testing/testing.hpp"
#include "commands.hpp"

namespace bitnet::cli {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::TempDir;

const Command& run_command() { return *find_command("run"); }

Values parse(std::vector<const char*> arguments, const Command& command = run_command()) {
  arguments.insert(arguments.begin(), "bitnet");
  return parse_command_line(command, static_cast<int>(arguments.size()), arguments.data(), 1);
}

void expect_usage(std::vector<const char*> arguments, const std::string& text,
                  const Command& command = run_command()) {
  try {
    parse(std::move(arguments), command);
    ADD_FAILURE() << "expected a UsageError: " << text;
  } catch (const UsageError& e) {
    EXPECT_THAT(std::string(e.what()), HasSubstr(text));
  }
}

TEST(OptionTable, DefaultsAreValuesOfTheirOptionsAndNamesAreUniqueInACommand) {
  for (const Command& command : commands()) {
    std::set<std::string_view> names{"help"}, keys;
    std::set<char> letters{'h'};
    for (const Option* o : command.options) {
      EXPECT_TRUE(names.insert(o->name).second) << command.name << " " << o->name;
      if (o->letter != 0) {
        EXPECT_TRUE(letters.insert(o->letter).second) << command.name << " " << o->name;
      }
      if (!o->key.empty()) {
        EXPECT_TRUE(keys.insert(o->key).second) << command.name << " " << o->key;
      }
      if (!o->fallback.empty()) {
        EXPECT_NO_THROW(check_value(*o, o->fallback, o->name));
      }
      if (o->env != nullptr) {
        EXPECT_NO_THROW(env(o->env)) << "every variable is listed in core's env.cpp";
      }
    }
  }
}

TEST(CommandLine, ReadsEveryWayOfWritingAnOption) {
  const auto v = parse({"-m", "a.gguf", "--prompt=-x=1", "-n5", "--temp", "0.25", "--stop", "a,b", "--stop",
                        "-n5", "-v", "--top-k=3", "-t+2", "-s7"});
  EXPECT_EQ(v.text(opt::kModel), "a.gguf");
  EXPECT_EQ(v.text(opt::kPrompt), "-x=1");
  EXPECT_EQ(v.integer(opt::kMaxTokens), 5);
  EXPECT_EQ(v.real(opt::kTemperature), 0.25);
  EXPECT_THAT(v.list(opt::kStop), ElementsAre("a,b", "-n5"));
  EXPECT_EQ(v.integer(opt::kThreads), 2);
  EXPECT_EQ(v.integer(opt::kSeed), 7);
  EXPECT_EQ(parse({"-n-1"}).integer(opt::kMaxTokens), -1);
  EXPECT_TRUE(v.flag(opt::kVerbose));
  EXPECT_FALSE(v.flag(opt::kSpecial));
  EXPECT_EQ(v.integer(opt::kTopK), 3);
  EXPECT_EQ(v.real(opt::kTopP), 0.95);
  EXPECT_FALSE(v.given(opt::kTopP));
  EXPECT_TRUE(v.given(opt::kTopK));
}

TEST(CommandLine, TakesALongPromptAndMinusAsAFile) {
  const std::string prompt(1 << 20, 'x');
  EXPECT_EQ(parse({"--prompt", prompt.c_str()}).text(opt::kPrompt), prompt);
  EXPECT_EQ(parse({("--prompt=" + prompt).c_str()}).text(opt::kPrompt), prompt);
  EXPECT_EQ(parse({"-f", "-"}).text(opt::kFile), "-");
  EXPECT_EQ(parse({"-n", "-1"}).integer(opt::kMaxTokens), -1);
}

TEST(CommandLine, MistakesAreUsageErrorsThatSayWhatIsExpected) {
  expect_usage({"--tempp", "1"}, "unknown option '--tempp', did you mean '--temp'?");
  expect_usage({"--promt=x"}, "unknown option '--promt', did you mean '--prompt'?");
  expect_usage({"-Z"}, "unknown option '-Z'");
  expect_usage({"--top-k", "many"}, "--top-k: expected a whole number from 0");
  expect_usage({"--top-k", "1.5"}, "got '1.5'");
  expect_usage({"--top-p", "1.1"}, "--top-p: expected a number from 0.001 to 1, got '1.1'");
  expect_usage({"--temp", "nan"}, "got 'nan'");
  expect_usage({"--seed", "-3"}, "of at least 0");
  expect_usage({"--seed", "99999999999999999999"}, "--seed: expected a whole number");
  expect_usage({"--quantize", "magic"}, "expected absmean, got 'magic'");
  expect_usage({"--verbose=maybe"}, "--verbose: expected true or false, got 'maybe'");
  expect_usage({"--layers", "100001"}, "from 0 to 100000, got", *find_command("synth"));
  expect_usage({"--prompt"}, "'--prompt' needs a value");
  expect_usage({"-phi", "-m", "x"}, "'-phi': put a space between -p and its value");
  expect_usage({"-ma.gguf"}, "'-ma.gguf': put a space between -m and its value");
  expect_usage({"-nmany"}, "'-nmany': put a space between -n and its value");
  expect_usage({"-temp", "1"}, "unknown option '-temp', did you mean '--temp'?");
  expect_usage({"--stop", ""}, "--stop: expected text that is not empty");
  expect_usage({"surplus"}, "unexpected argument 'surplus'");
  expect_usage({"a"}, "missing argument OUT", *find_command("convert"));
  expect_usage({"a", "b", "--type", "q4"}, "--type: expected one of hf, i2_s", *find_command("convert"));
}

TEST(CommandLine, DoubleDashEndsTheOptions) {
  const auto v = parse({"--type", "hf", "--", "--in", "-out"}, *find_command("convert"));
  EXPECT_THAT(v.positionals, ElementsAre("--in", "-out"));
}

class YamlTest : public ::testing::Test {
 protected:
  Values with_yaml(const std::string& yaml, std::vector<const char*> more = {}) {
    write_file(dir_ / "c.yaml", yaml);
    path_ = (dir_ / "c.yaml").string();
    more.insert(more.end(), {"--config", path_.c_str()});
    return parse(more);
  }
  TempDir dir_;
  std::string path_;
};

TEST_F(YamlTest, OptionBeatsEnvironmentBeatsYamlBeatsDefault) {
  ASSERT_EQ(setenv("BITNET_THREADS", "3", 1), 0);
  EXPECT_EQ(with_yaml("threads: 2").integer(opt::kThreads), 3);
  EXPECT_EQ(with_yaml("threads: 2", {"--threads", "4"}).integer(opt::kThreads), 4);
  unsetenv("BITNET_THREADS");
  EXPECT_EQ(with_yaml("threads: 2").integer(opt::kThreads), 2);
  EXPECT_EQ(with_yaml("# nothing\n").integer(opt::kThreads), 0);
  EXPECT_EQ(with_yaml("top_k: 7\ntemperature: 0", {"--temp", "0.5"}).real(opt::kTemperature), 0.5);
}

TEST_F(YamlTest, ListsAndFlags) {
  const auto v = with_yaml("stop: [\"a\", \"b, c\"]\nspecial: yes\nverbose: false\n");
  EXPECT_THAT(v.list(opt::kStop), ElementsAre("a", "b, c"));
  EXPECT_TRUE(v.flag(opt::kSpecial));
  EXPECT_FALSE(v.flag(opt::kVerbose));
  EXPECT_THAT(with_yaml("stop: [a]", {"--stop", "z"}).list(opt::kStop), ElementsAre("z"));
  EXPECT_THAT(with_yaml("stop: one").list(opt::kStop), ElementsAre("one"));
}

TEST_F(YamlTest, MistakesNameFileAndLine) {
  BITNET_EXPECT_ERROR(with_yaml("top_k: 1\ntemprature: 1\n"), ErrorCode::kInvalidArgument,
                      "c.yaml:2: unknown key 'temprature', did you mean 'temperature'?");
  BITNET_EXPECT_ERROR(with_yaml("top_k: 1\ntop_k: 2\n"), ErrorCode::kInvalidArgument,
                      "c.yaml:2: key 'top_k' is given twice");
  BITNET_EXPECT_ERROR(with_yaml("\ntop_k: many\n"), ErrorCode::kInvalidArgument,
                      "c.yaml:2: top_k: expected a whole number");
  BITNET_EXPECT_ERROR(with_yaml("top_k: [1]\n"), ErrorCode::kInvalidArgument,
                      "c.yaml:1: top_k: expected a single value");
  BITNET_EXPECT_ERROR(with_yaml("top_k: 1\n---\ntop_k: 2\n"), ErrorCode::kInvalidArgument,
                      "c.yaml:3: expected one document");
  BITNET_EXPECT_ERROR(with_yaml("- a\n"), ErrorCode::kInvalidArgument, "expected keys and values");
  BITNET_EXPECT_ERROR(with_yaml(", a\n"), ErrorCode::kInvalidArgument, "no document can begin here");
  BITNET_EXPECT_ERROR(with_yaml("a: [1, 2\n"), ErrorCode::kInvalidArgument, "c.yaml:");
  BITNET_EXPECT_ERROR(with_yaml("a: &x [*x]\n"), ErrorCode::kInvalidArgument, "c.yaml:1");
  BITNET_EXPECT_ERROR(with_yaml(std::string(100000, '[')), ErrorCode::kInvalidArgument, "nested too deeply");
  BITNET_EXPECT_ERROR(with_yaml("\nstop: [a, \"\"]\n"), ErrorCode::kInvalidArgument,
                      "c.yaml:2: stop: expected text that is not empty");
  BITNET_EXPECT_ERROR(with_yaml(std::string(2 << 20, '#')), ErrorCode::kInvalidArgument, "c.yaml");
  const std::string none = (dir_ / "none.yaml").string();
  BITNET_EXPECT_ERROR(parse({"--config", none.c_str()}), ErrorCode::kNotFound, "none.yaml");
}

TEST_F(YamlTest, ShippedConfigsAreRead) {
  const std::string run_yaml = testing::source_path("configs/run.yaml").string();
  EXPECT_EQ(parse({"--config", run_yaml.c_str()}).integer(opt::kTopK), 40);
  const std::string batch_yaml = testing::source_path("configs/batch.yaml").string();
  EXPECT_EQ(parse({"--config", batch_yaml.c_str()}, *find_command("batch")).integer(opt::kSeed), 1);
}

}  // namespace
}  // namespace bitnet::cli
