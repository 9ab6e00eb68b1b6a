// Help of every command: it names an example, the exit codes and each option, and lines fit a wide terminal.
#include "bitnet/core/io/atomic_file.hpp"
#include "bitnet/core/isa.hpp"
#include "bitnet/testing/testing.hpp"
#include "commands.hpp"

namespace bitnet::cli {
namespace {

using ::testing::HasSubstr;

TEST(Help, EveryCommandHasAnExampleAndNamesEachOption) {
  for (const Command& command : commands()) {
    const std::string text = command_help(command);
    const std::string call = "bitnet " + std::string(command.name) + " ";
    EXPECT_THAT(text, HasSubstr("Usage: " + call));
    const std::size_t example = text.find("\nExample:\n");
    ASSERT_NE(example, std::string::npos) << command.name;
    EXPECT_NE(text.find(call.substr(0, call.size() - 1), example), std::string::npos) << command.name;
    EXPECT_THAT(text, HasSubstr("Exit codes: 0 ok, 1 failure, 2 wrong usage, 130"));
    for (const Option* o : command.options) EXPECT_THAT(text, HasSubstr("--" + std::string(o->name)));
    EXPECT_THAT(text, HasSubstr("-h, --help"));
  }
}

TEST(Help, LinesAreNotTooLong) {
  for (const Command& command : commands()) {
    const std::string text = command_help(command);
    std::size_t begin = 0;
    while (begin < text.size()) {
      const std::size_t end = text.find('\n', begin);
      EXPECT_LE(end - begin, 110u) << text.substr(begin, end - begin);
      begin = end + 1;
    }
  }
}

TEST(Help, GeneralHelpListsEveryCommand) {
  const std::string text = general_help();
  for (const Command& command : commands())
    EXPECT_THAT(text, HasSubstr("\n  " + std::string(command.name) + " "));
}

TEST(Guide, NamesEveryCommandAndEveryKeyOfABatchItem) {
  const std::string guide = read_file(testing::source_path("docs/guides/cli.md"));
  for (const Command& command : commands())
    EXPECT_THAT(guide, HasSubstr("| `" + std::string(command.name) + "` |"));
  for (const Option* o : sampling_options()) EXPECT_THAT(guide, HasSubstr("`" + std::string(o->key) + "`"));
}

TEST(Version, NamesTheProjectAndTheInstructionSets) {
  EXPECT_THAT(version_text(), ::testing::StartsWith("bitnet 0."));
  for (const Isa isa : compiled_isas()) EXPECT_THAT(version_text(), HasSubstr(std::string(to_string(isa))));
}

}  // namespace
}  // namespace bitnet::cli
