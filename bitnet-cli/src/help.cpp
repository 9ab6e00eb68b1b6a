// The texts of --help and --version, made from the tables of commands and options.
#include <algorithm>

#include "bitnet/core/isa.hpp"
#include "commands.hpp"

namespace bitnet::cli {
namespace {

constexpr std::size_t kHelpColumn = 30, kWidth = 100;

constexpr std::string_view kExitCodes =
    "Exit codes: 0 ok, 1 failure, 2 wrong usage, 130 interrupted by Ctrl-C.\n";

/// `text` broken at spaces so that lines starting at column `indent` end before kWidth.
std::string wrap(std::string_view text, std::size_t indent) {
  std::string out;
  std::size_t column = indent;
  while (!text.empty()) {
    const std::size_t end = std::min(text.find(' '), text.size());
    if (column > indent && column + 1 + end > kWidth) {
      out += '\n' + std::string(indent, ' ');
      column = indent;
    } else if (column > indent) {
      out += ' ';
      ++column;
    }
    out += text.substr(0, end);
    column += end;
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return out;
}

std::string option_help(const Option& o) {
  std::string text(o.help);
  std::vector<std::string> remarks;
  if (!o.fallback.empty()) remarks.push_back("default " + std::string(o.fallback));
  if (o.env != nullptr) remarks.push_back("environment " + std::string(o.env));
  for (std::size_t i = 0; i < remarks.size(); ++i) text += (i == 0 ? " (" : ", ") + remarks[i];
  return remarks.empty() ? text : text + ")";
}

std::string option_line(const Option& o) {
  std::string line = "  " + option_heading(o);
  if (line.size() + 2 > kHelpColumn) {
    line += '\n' + std::string(kHelpColumn, ' ');
  } else {
    line.resize(kHelpColumn, ' ');
  }
  return line + wrap(option_help(o), kHelpColumn) + "\n";
}

std::string indented(std::string_view lines) {
  std::string out;
  while (!lines.empty()) {
    const std::size_t end = std::min(lines.find('\n'), lines.size());
    out += "  " + std::string(lines.substr(0, end)) + "\n";
    lines.remove_prefix(std::min(end + 1, lines.size()));
  }
  return out;
}

}  // namespace

std::string option_heading(const Option& o) {
  std::string heading = o.letter != 0 ? std::string("-") + o.letter + ", " : "    ";
  heading += "--" + std::string(o.name);
  if (!o.value.empty()) heading += " " + std::string(o.value);
  return heading;
}

std::string command_help(const Command& command) {
  const std::string name(command.name);
  std::string text = "bitnet " + name + ": " + std::string(command.summary) + "\n\n";
  text += "Usage: bitnet " + name + " " + std::string(command.usage) + "\n\n";
  if (!command.description.empty()) {
    std::string_view rest = command.description;
    while (!rest.empty()) {
      const std::size_t end = std::min(rest.find('\n'), rest.size());
      text += wrap(rest.substr(0, end), 0) + "\n";
      rest.remove_prefix(std::min(end + 1, rest.size()));
    }
    text += "\n";
  }
  std::vector<const Option*> options = command.options;
  options.push_back(&opt::kHelp);
  std::vector<std::string_view> groups;
  for (const Option* o : options)
    if (std::find(groups.begin(), groups.end(), o->group) == groups.end()) groups.push_back(o->group);
  for (const std::string_view group : groups) {
    text += std::string(group) + ":\n";
    for (const Option* o : options)
      if (o->group == group) text += option_line(*o);
    text += "\n";
  }
  text += std::string(kExitCodes) + "\n";
  text += "Example:\n" + indented(command.example);
  return text;
}

std::string general_help() {
  std::string text = "bitnet: train, pack, run and measure BitNet b1.58 models\n\n";
  text += "Usage: bitnet <command> [options]\n\nCommands:\n";
  for (const Command& c : commands()) {
    std::string line = "  " + std::string(c.name);
    line.resize(14, ' ');
    text += line + std::string(c.summary) + "\n";
  }
  text += "\n`bitnet <command> --help` says more, with an example. `bitnet --version` names this build.\n";
  text += std::string(kExitCodes) + "\nExample:\n" + indented(commands().front().example);
  return text;
}

std::string version_text() {
  std::string text = "bitnet " BITNET_VERSION " (" BITNET_COMPILER;
#ifdef BITNET_WITH_TRAINING
  text += ", training";
#endif
#ifdef BITNET_WITH_GPU
  text += ", gpu";
#endif
  text += "; instruction sets:";
  for (const Isa isa : compiled_isas()) text += " " + std::string(to_string(isa));
  return text + ")\n";
}

}  // namespace bitnet::cli
