// Values from a yaml file (--config). Every key is an option of the command; anything else is an error with
// its line.
#include <yaml-cpp/depthguard.h>
#include <yaml-cpp/yaml.h>

#include <set>

#include "bitnet/core/io/atomic_file.hpp"
#include "bitnet/core/text/suggest.hpp"
#include "bitnet/yaml/documents.hpp"
#include "commands.hpp"

namespace bitnet::cli {
namespace {

constexpr std::uint64_t kMaxConfigBytes = 1 << 20;

std::string place(const std::string& path, const YAML::Mark& mark) {
  return mark.is_null() ? path : path + ":" + std::to_string(mark.line + 1);
}

[[noreturn]] void refuse(const std::string& where, const std::string& message,
                         SourceLocation place = SourceLocation::current()) {
  throw Error(ErrorCode::kInvalidArgument, where + ": " + message, place);
}

void set_scalar(const Option& option, const YAML::Node& node, const std::string& where, Values& values) {
  if (!node.IsScalar()) refuse(where, "expected a single value");
  std::string text = node.Scalar();
  bool truth = false;
  if (option.kind == Kind::kFlag && YAML::convert<bool>::decode(node, truth)) text = truth ? "true" : "false";
  values.set(option, text, Origin::kYaml, where);
}

const Option& option_of_key(const Command& command, const std::string& key, const std::string& where) {
  std::vector<std::string> keys;
  for (const Option* o : command.options) {
    if (o->key.empty()) continue;
    if (o->key == key) return *o;
    keys.emplace_back(o->key);
  }
  refuse(where, "unknown key '" + key + "'" + suggestion(key, keys));
}

}  // namespace

void read_yaml_config(const Command& command, const std::string& path, Values& values) {
  const std::string text = read_file(path, kMaxConfigBytes, FileKind::kAny);
  YAML::Node root;
  try {
    const std::vector<YAML::Node> documents = yaml::load_all(text);
    if (documents.size() > 1)
      refuse(place(path, documents[1].Mark()), "expected one document, found another after '---'");
    if (!documents.empty()) root = documents.front();
    if (root.IsNull()) return;  // an empty file, or only comments
    if (!root.IsMap()) refuse(place(path, root.Mark()), "expected keys and values (key: value)");
    std::set<std::string> seen;
    for (const auto& entry : root) {
      const std::string where = place(path, entry.first.Mark());
      if (!entry.first.IsScalar()) refuse(where, "expected a plain key");
      const std::string key = entry.first.Scalar();
      const Option& option = option_of_key(command, key, where);
      if (!seen.insert(key).second) refuse(where, "key '" + key + "' is given twice");
      const std::string what = where + ": " + key;
      if (option.kind == Kind::kList && entry.second.IsSequence()) {
        for (const auto& element : entry.second) set_scalar(option, element, what, values);
      } else {
        set_scalar(option, entry.second, what, values);
      }
    }
  } catch (const YAML::DeepRecursion& e) {
    refuse(place(path, e.mark), "nested too deeply");
  } catch (const YAML::Exception& e) {
    refuse(place(path, e.mark), e.msg);
  }
}

}  // namespace bitnet::cli
