#pragma once
// The one table of commands. Each command is a file of src/commands; this header is how app.cpp, the help and
// the tests see them.
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "bitnet/cli/app.hpp"
#include "options.hpp"

namespace bitnet::cli {

struct Command {
  std::string_view name;
  std::string_view summary;                 ///< one line, for the list of commands
  std::string_view usage;                   ///< after "bitnet <name> "
  std::string_view description;             ///< paragraphs for --help
  std::string_view example;                 ///< command lines, one a line
  std::vector<std::string_view> arguments;  ///< names of the positional arguments, all required
  std::vector<const Option*> options;       ///< without --help, which every command has
  int (*body)(const Values& values, Io& io);
};

std::span<const Command> commands();
/// Null when there is none.
const Command* find_command(std::string_view name);

/// Text of `bitnet --help` and of `bitnet <command> --help`.
std::string general_help();
std::string command_help(const Command& command);
/// "bitnet 0.1.0 (…)\n"
std::string version_text();

/// Reads argv[first …] of `command`, the environment and the yaml file of --config into values.
/// Throws UsageError, Error(kNotFound | kIo | kInvalidArgument).
Values parse_command_line(const Command& command, int argc, const char* const* argv, int first);

/// Adds the keys of a yaml file. Throws Error(kNotFound | kIo | kInvalidArgument) with file and line on a
/// file that is no yaml map, an unknown or repeated key, or a value of the wrong kind.
void read_yaml_config(const Command& command, const std::string& path, Values& values);

/// The text of one option's line in help and in the guide.
std::string option_heading(const Option& option);

}  // namespace bitnet::cli
