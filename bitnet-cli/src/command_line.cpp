// Command lines → values, with cxxopts doing the splitting. Values are checked by options.cpp, yaml files are
// read by yaml_config.cpp; this file decides the precedence: command line, environment, yaml file, default.
#define CXXOPTS_NO_REGEX  // std::regex recurses once a character: a long prompt would overflow the stack
#include <cxxopts.hpp>

#include "bitnet/core/env.hpp"
#include "bitnet/core/text/suggest.hpp"
#include "commands.hpp"

namespace bitnet::cli {
namespace {

std::vector<const Option*> with_help(const Command& command) {
  std::vector<const Option*> all = command.options;
  all.push_back(&opt::kHelp);
  return all;
}

const Option* find_option(const std::vector<const Option*>& options, std::string_view name) {
  for (const Option* o : options)
    if (o->name == name || (name.size() == 1 && o->letter == name[0])) return o;
  return nullptr;
}

std::vector<std::string> long_names(const std::vector<const Option*>& options) {
  std::vector<std::string> words;
  for (const Option* o : options) words.push_back("--" + std::string(o->name));
  return words;
}

[[noreturn]] void unknown_option(const std::string& text, const std::vector<const Option*>& options) {
  const std::string name = text.substr(0, text.find('='));
  // "-temp" is read as a group of letters: compare with the long names all the same.
  throw UsageError("unknown option '" + name + "'" +
                   suggestion(name.starts_with("--") ? name : "-" + name, long_names(options)));
}

/// "--verbose=maybe": cxxopts names the value only.
void check_flags(const std::vector<const Option*>& options, int argc, const char* const* argv, int first) {
  for (int i = first; i < argc && std::string_view(argv[i]) != "--"; ++i) {
    const std::string_view word = argv[i];
    const std::size_t equals = word.find('=');
    if (!word.starts_with("--") || equals == std::string_view::npos) continue;
    const Option* option = find_option(options, word.substr(2, equals - 2));
    if (option == nullptr || option->kind != Kind::kFlag) continue;
    Values().set(*option, word.substr(equals + 1), Origin::kCommandLine, word.substr(0, equals));
  }
}

/// The words as cxxopts wants them: "-n3" as two. Only numbers can stick to their letter: "-temp" would be -t
/// with the value "emp".
std::vector<std::string> separate(const std::vector<const Option*>& options,
                                  const std::vector<std::string>& words) {
  std::vector<std::string> out;
  bool ended = false;  // by "--"
  for (std::size_t i = 0; i < words.size(); ++i) {
    const std::string& word = words[i];
    out.push_back(word);
    ended = ended || word == "--";
    if (ended || word.size() < 2 || word[0] != '-') continue;
    const bool is_long = word[1] == '-';
    const Option* option =
        find_option(options, std::string_view(word).substr(is_long ? 2 : 1, is_long ? word.npos : 1));
    if (option == nullptr || option->kind == Kind::kFlag) continue;
    if (is_long || word.size() == 2) {
      if (++i < words.size()) out.push_back(words[i]);  // its value, whatever it looks like
      continue;
    }
    const std::string letter = word.substr(0, 2), rest = word.substr(2);
    const bool number = option->kind == Kind::kInteger || option->kind == Kind::kReal;
    if (!number || rest.find_first_not_of("+-.0123456789") != rest.npos) {
      const std::string near = suggestion("-" + word, long_names(options));
      if (!near.empty()) throw UsageError("unknown option '" + word + "'" + near);
      throw UsageError("'" + word + "': put a space between " + letter + " and its value");
    }
    out.back() = letter;
    out.push_back(rest);
  }
  return out;
}

cxxopts::ParseResult split(const std::vector<const Option*>& options, int argc, const char* const* argv,
                           int first) {
  // Everything is declared as text: kinds and ranges are checked by Values::set, with one wording for all
  // sources.
  cxxopts::Options parser("bitnet");
  auto add = parser.add_options();
  for (const Option* o : options) {
    std::string names(o->name);
    if (o->letter != 0) names.insert(0, std::string(1, o->letter) + ",");
    add(names, "", o->kind == Kind::kFlag ? cxxopts::value<bool>() : cxxopts::value<std::string>());
  }
  add("positional", "", cxxopts::value<std::vector<std::string>>());
  parser.parse_positional({"positional"});
  parser.allow_unrecognised_options();
  const std::vector<std::string> words = separate(options, {argv + first, argv + argc});
  std::vector<const char*> arguments{"bitnet"};
  for (const std::string& word : words) arguments.push_back(word.c_str());
  try {
    return parser.parse(static_cast<int>(arguments.size()), arguments.data());
  } catch (const cxxopts::exceptions::missing_argument&) {
    const std::string last = argv[argc - 1];  // only the last word can lack its value
    throw UsageError("option '" + last + "' needs a value");
  } catch (const cxxopts::exceptions::exception& e) {
    check_flags(options, argc, argv, first);
    throw UsageError(e.what());
  }
}

void check_positionals(const Command& command, const std::vector<std::string>& given) {
  if (given.size() > command.arguments.size())
    throw UsageError("unexpected argument '" + given[command.arguments.size()] + "'");
  if (given.size() < command.arguments.size())
    throw UsageError("missing argument " + std::string(command.arguments[given.size()]));
}

}  // namespace

Values parse_command_line(const Command& command, int argc, const char* const* argv, int first) {
  const auto options = with_help(command);
  const auto result = split(options, argc, argv, first);
  if (!result.unmatched().empty()) unknown_option(result.unmatched().front(), options);

  Values values;
  for (const auto& argument : result.arguments()) {
    if (argument.key() == "positional") {
      values.positionals.push_back(argument.value());
      continue;
    }
    const Option* option = find_option(options, argument.key());
    values.set(*option, argument.value(), Origin::kCommandLine, "--" + std::string(option->name));
  }
  if (values.flag(opt::kHelp)) return values;

  check_positionals(command, values.positionals);
  for (const Option* o : options) {
    if (!o->fallback.empty()) values.set(*o, o->fallback, Origin::kDefault, o->name);
    if (o->env == nullptr) continue;
    if (const auto text = env(o->env)) values.set(*o, *text, Origin::kEnvironment, o->env);
  }
  if (values.has(opt::kConfig)) read_yaml_config(command, values.text(opt::kConfig), values);
  return values;
}

}  // namespace bitnet::cli
