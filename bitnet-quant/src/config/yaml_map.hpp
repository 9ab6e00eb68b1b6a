#pragma once
// One mapping of a yaml configuration: its values by type, its errors with file and line. Which keys there
// are is quant_config_yaml.cpp's business. Private to bitnet-quant.
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "bitnet/core/error.hpp"
#include "bitnet/core/text/suggest.hpp"

namespace bitnet::quant::config {

[[noreturn]] inline void fail_at(const std::string& file, int line, const std::string& what) {
  throw Error(ErrorCode::kInvalidArgument, file + ":" + std::to_string(line) + ": " + what);
}

inline int line_of(const YAML::Node& node) { return std::max(node.Mark().line, 0) + 1; }

/// Hands out the keys of a mapping; finish() refuses those that nobody asked for. An undefined node is an
/// empty mapping.
class YamlMap {
 public:
  YamlMap(std::string file, std::string name, const YAML::Node& node)
      : file_(std::move(file)), name_(std::move(name)) {
    if (!node.IsDefined() || node.IsNull()) return;
    if (!node.IsMap()) fail_at(file_, line_of(node), quoted(name_) + " must be a mapping of keys to values");
    node_ = node;
    for (const auto& entry : node_) {
      const int line = line_of(entry.first);
      if (!entry.first.IsScalar()) fail_at(file_, line, "expected a word as key");
      const std::string key = entry.first.Scalar();
      for (const auto& [before, at] : lines_)
        if (before == key)
          fail_at(file_, line, quoted(key) + " is given twice, first in line " + std::to_string(at));
      lines_.emplace_back(key, line);
    }
  }

  bool has(const std::string& key) const {
    return std::any_of(lines_.begin(), lines_.end(), [&](const auto& l) { return l.first == key; });
  }

  /// The node of a key, undefined where it is not given.
  YAML::Node take(const std::string& key) {
    known_.push_back(key);
    return has(key) ? node_[key] : YAML::Node(YAML::NodeType::Undefined);
  }

  template <class T>
  void read(const std::string& key, const char* expected, T& value) {
    read_with(key, [&](const YAML::Node& n) {
      if (!n.IsScalar() || !YAML::convert<T>::decode(n, value))
        refuse(key, std::string("expected ") + expected);
    });
  }

  /// A word that `parse` makes a value of.
  template <class T, class Parse>
  void read_word(const std::string& key, T& value, Parse&& parse) {
    read_with(key, [&](const YAML::Node& n) {
      if (!n.IsScalar()) refuse(key, "expected a word");
      try {
        value = parse(n.Scalar());
      } catch (const Error& e) {
        refuse(key, e.what());
      }
    });
  }

  /// A word, or a list of words.
  void read_words(const std::string& key, std::vector<std::string>& value) {
    read_with(key, [&](const YAML::Node& n) {
      value.clear();
      if (n.IsScalar()) {
        value.push_back(n.Scalar());
        return;
      }
      if (!n.IsSequence()) refuse(key, "expected a word or a list of words");
      for (const auto& entry : n) {
        if (!entry.IsScalar()) refuse(key, "expected a word or a list of words");
        value.push_back(entry.Scalar());
      }
    });
  }

  void read_numbers(const std::string& key, std::vector<double>& value) {
    read_with(key, [&](const YAML::Node& n) {
      if (!n.IsSequence()) refuse(key, "expected a list of numbers");
      value.clear();
      for (const auto& entry : n) {
        double v = 0;
        if (!entry.IsScalar() || !YAML::convert<double>::decode(entry, v))
          refuse(key, "expected a list of numbers");
        value.push_back(v);
      }
    });
  }

  void finish() const {
    for (const auto& [key, line] : lines_) {
      if (std::find(known_.begin(), known_.end(), key) != known_.end()) continue;
      std::string all;
      for (const std::string& k : known_) all += (all.empty() ? "" : ", ") + k;
      fail_at(file_, line,
              "unknown key " + quoted(key) + (name_.empty() ? "" : " in " + quoted(name_)) +
                  suggestion(key, known_) + " (there are " + all + ")");
    }
  }

  [[noreturn]] void refuse(const std::string& key, const std::string& why) const {
    int line = node_.IsDefined() ? line_of(node_) : 1;
    for (const auto& [k, at] : lines_)
      if (k == key) line = at;
    fail_at(file_, line, quoted(name_.empty() ? key : name_ + "." + key) + ": " + why);
  }

  const std::string& file() const noexcept { return file_; }

 private:
  static std::string quoted(const std::string& s) { return "'" + s + "'"; }

  template <class Body>
  void read_with(const std::string& key, Body&& body) {
    const YAML::Node n = take(key);
    if (n.IsDefined()) body(n);
  }

  std::string file_, name_;
  YAML::Node node_{YAML::NodeType::Undefined};
  std::vector<std::pair<std::string, int>> lines_;  // keys that are given
  std::vector<std::string> known_;                  // keys that were asked for, in that order
};

}  // namespace bitnet::quant::config
