#pragma once
// One section of a yaml configuration: its values by type, its errors with file and line. Which keys there
// are and what they may be is config.cpp.
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "bitnet/core/error.hpp"
#include "bitnet/training/config.hpp"

namespace bitnet::training {

/// Where each section ("model") and key ("model.heads") of the file stands, counted from 1.
using Lines = std::map<std::string, int>;

[[noreturn]] inline void fail_at(const std::string& file, int line, const std::string& what) {
  throw Error(ErrorCode::kInvalidArgument, file + ":" + std::to_string(line) + ": " + what);
}

inline int line_of(const YAML::Node& node) { return std::max(node.Mark().line, 0) + 1; }

/// Adds the keys of a mapping, each of which must be a word and there once, to `lines`.
inline void add_keys(const std::string& file, const YAML::Node& map, const std::string& prefix,
                     Lines& lines) {
  for (const auto& entry : map) {
    const int line = line_of(entry.first);
    if (!entry.first.IsScalar()) fail_at(file, line, "expected a word as key");
    const auto [before, fresh] = lines.emplace(prefix + entry.first.Scalar(), line);
    if (!fresh)
      fail_at(file, line,
              "key '" + entry.first.Scalar() + "' is given twice, first in line " +
                  std::to_string(before->second));
  }
}

/// One mapping of the file; hands out its keys and refuses those that nobody asked for.
class Section {
 public:
  Section(std::string file, std::string name, const YAML::Node& root, Lines& lines)
      : file_(std::move(file)), name_(std::move(name)), lines_(lines) {
    const YAML::Node node = root[name_];
    if (!node.IsDefined()) return;
    node_ = node;
    if (!node_.IsMap() && !node_.IsNull()) fail(node_, "'" + name_ + "' must be a mapping");
    if (node_.IsMap()) add_keys(file_, node_, name_ + ".", lines_);
  }

  bool has(const char* key) const { return lines_.contains(name_ + "." + key); }

  template <class T>
  void read(const char* key, T& value, bool required = false) {
    known_[key] = true;
    const YAML::Node n = node_.IsMap() ? node_[key] : YAML::Node(YAML::NodeType::Undefined);
    if (!n.IsDefined()) {
      if (required) fail(node_, "section '" + name_ + "' needs the key '" + key + "'");
      return;
    }
    const auto wrong = [&](const std::string& why) {
      fail_at(file_, lines_.at(name_ + "." + key), "'" + name_ + "." + key + "'" + why);
    };
    if (!n.IsScalar()) wrong(" must be " + expectation(value));
    try {
      assign(n, value);
    } catch (const YAML::Exception&) {
      wrong(" must be " + expectation(value));
    } catch (const Error& e) {
      wrong(": " + std::string(e.what()));
    }
  }

  /// A list of linears' names.
  void read_targets(const char* key, std::vector<TensorRole>& value) {
    known_[key] = true;
    if (!has(key)) return;
    const YAML::Node n = node_[key];
    if (!n.IsSequence()) refuse(key, "must be a list of linears' names");
    value.clear();
    for (const auto& entry : n) {
      if (!entry.IsScalar()) refuse(key, "must be a list of linears' names");
      try {
        value.push_back(target_from_string(entry.Scalar()));
      } catch (const Error& e) {
        refuse(key, std::string("cannot be used: ") + e.what());
      }
    }
  }

  /// Runs `body`, which opens what the key names: its errors begin with the key's file and line.
  template <class Body>
  void with_file(const char* key, Body&& body) const {
    const std::string name = name_ + "." + key;
    with_context(file_ + ":" + std::to_string(lines_.at(name)) + ": " + name, body);
  }

  /// `rule` is one that the value of the key breaks.
  [[noreturn]] void refuse(const char* key, const std::string& rule) const {
    const std::string name = name_ + "." + key;
    fail_at(file_, lines_.at(name), name + " " + rule);
  }

  void refuse_unknown() const {
    if (!node_.IsMap()) return;
    for (const auto& entry : node_) {
      const auto key = entry.first.as<std::string>();
      if (known_.contains(key)) continue;
      std::string all;
      for (const auto& [k, unused] : known_) all += (all.empty() ? "" : ", ") + k;
      fail(entry.first, "unknown key '" + key + "' in '" + name_ + "'; known are " + all);
    }
  }

 private:
  [[noreturn]] void fail(const YAML::Node& at, const std::string& what) const {
    fail_at(file_, line_of(at), what);
  }
  static void assign(const YAML::Node& n, std::filesystem::path& v) { v = n.as<std::string>(); }
  static void assign(const YAML::Node& n, ScheduleKind& v) { v = schedule_from_string(n.as<std::string>()); }
  static void assign(const YAML::Node& n, ScaleGranularity& v) {
    v = scale_granularity_from_string(n.as<std::string>());
  }
  static void assign(const YAML::Node& n, ScaleStatistic& v) {
    v = scale_statistic_from_string(n.as<std::string>());
  }
  static void assign(const YAML::Node& n, StraightThrough& v) {
    v = straight_through_from_string(n.as<std::string>());
  }
  static void assign(const YAML::Node& n, QuantizerScheduleKind& v) {
    v = quantizer_schedule_from_string(n.as<std::string>());
  }
  static void assign(const YAML::Node& n, OptimizerKind& v) {
    v = optimizer_from_string(n.as<std::string>());
  }
  static void assign(const YAML::Node& n, TextFormat& v) { v = text_format_from_string(n.as<std::string>()); }
  static void assign(const YAML::Node& n, LongRecords& v) {
    v = long_records_from_string(n.as<std::string>());
  }
  static void assign(const YAML::Node& n, DType& v) { v = dtype_from_name(n.as<std::string>()); }
  static void assign(const YAML::Node& n, Quantization& v) {
    const auto s = n.as<std::string>();
    if (s == "ternary") {
      v = Quantization::kTernary;
    } else if (s == "none") {
      v = Quantization::kNone;
    } else {
      throw Error(ErrorCode::kInvalidArgument, "unknown quantization '" + s + "': expected ternary or none");
    }
  }
  template <class T>
  static void assign(const YAML::Node& n, T& v) {
    v = n.as<T>();
  }
  static std::string expectation(const std::int64_t&) { return "a whole number"; }
  static std::string expectation(const int&) { return "a whole number"; }
  static std::string expectation(const bool&) { return "true or false"; }
  static std::string expectation(const std::uint64_t&) { return "a whole number, not negative"; }
  static std::string expectation(const double&) { return "a number"; }
  static std::string expectation(const float&) { return "a number"; }
  static std::string expectation(const std::filesystem::path&) { return "a path"; }
  template <class T>
  static std::string expectation(const T&) {
    return "a word";
  }

  std::string file_, name_;
  Lines& lines_;
  YAML::Node node_;  ///< null where the section is not there
  std::map<std::string, bool> known_;
};

}  // namespace bitnet::training
