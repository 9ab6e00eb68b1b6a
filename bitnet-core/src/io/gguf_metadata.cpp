// GgufMetadata: typed look-ups in, and additions to, the key-values of a GGUF file. Their bytes are
// gguf_reader.cpp's and gguf_writer.cpp's business.
#include <fmt/format.h>

#include <algorithm>
#include <limits>

#include "bitnet/core/error.hpp"
#include "io/gguf_types.hpp"

namespace bitnet {
namespace {

using namespace gguf;

std::string type_name(const GgufValue& value) {
  if (value.type != kArray) return std::string(value_type_name(value.type));
  return fmt::format("array of {}", value_type_name(value.element_type));
}

[[noreturn]] void wrong_type(std::string_view key, const char* expected, const GgufValue& found,
                             SourceLocation where = SourceLocation::current()) {
  throw Error(ErrorCode::kCorruptFile,
              fmt::format("key '{}': expected {}, found {}", key, expected, type_name(found)), where);
}

std::int64_t narrow(std::string_view key, std::uint64_t v) {
  if (v > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max()))
    throw Error(ErrorCode::kCorruptFile,
                fmt::format("key '{}': expected an integer below 2^63, got {}", key, v));
  return static_cast<std::int64_t>(v);
}

const GgufArray* array_of(const GgufValue* value) {
  return value ? std::get_if<GgufArray>(&value->data) : nullptr;
}

}  // namespace

GgufMetadata::GgufMetadata(std::vector<std::pair<std::string, GgufValue>> entries)
    : entries_(std::move(entries)) {
  std::vector<std::string_view> keys;
  keys.reserve(entries_.size());
  for (const auto& entry : entries_) keys.push_back(entry.first);
  std::sort(keys.begin(), keys.end());
  const auto twice = std::adjacent_find(keys.begin(), keys.end());
  if (twice != keys.end())
    throw Error(ErrorCode::kInvalidArgument, fmt::format("key '{}' occurs twice", *twice));
}

const GgufValue* GgufMetadata::find(std::string_view key) const noexcept {
  for (const auto& [name, value] : entries_)
    if (name == key) return &value;
  return nullptr;
}

std::optional<std::int64_t> GgufMetadata::integer(std::string_view key) const {
  const GgufValue* value = find(key);
  if (!value) return {};
  if (const auto* i = std::get_if<std::int64_t>(&value->data)) return *i;
  if (const auto* u = std::get_if<std::uint64_t>(&value->data)) return narrow(key, *u);
  wrong_type(key, "an integer", *value);
}

std::optional<double> GgufMetadata::number(std::string_view key) const {
  const GgufValue* value = find(key);
  if (!value) return {};
  if (const auto* d = std::get_if<double>(&value->data)) return *d;
  if (const auto* i = std::get_if<std::int64_t>(&value->data)) return static_cast<double>(*i);
  if (const auto* u = std::get_if<std::uint64_t>(&value->data)) return static_cast<double>(*u);
  wrong_type(key, "a number", *value);
}

std::optional<bool> GgufMetadata::boolean(std::string_view key) const {
  const GgufValue* value = find(key);
  if (!value) return {};
  if (const auto* b = std::get_if<bool>(&value->data)) return *b;
  wrong_type(key, "a bool", *value);
}

std::optional<std::string> GgufMetadata::string(std::string_view key) const {
  const GgufValue* value = find(key);
  if (!value) return {};
  if (const auto* s = std::get_if<std::string>(&value->data)) return *s;
  wrong_type(key, "a string", *value);
}

std::optional<std::vector<std::string>> GgufMetadata::strings(std::string_view key) const {
  const GgufValue* value = find(key);
  if (!value) return {};
  const GgufArray* array = array_of(value);
  const auto* s = array ? std::get_if<std::vector<std::string>>(array) : nullptr;
  if (!s) wrong_type(key, "an array of strings", *value);
  return *s;
}

std::optional<std::vector<std::int64_t>> GgufMetadata::integers(std::string_view key) const {
  const GgufValue* value = find(key);
  if (!value) return {};
  const GgufArray* array = array_of(value);
  if (array)
    if (const auto* i = std::get_if<std::vector<std::int64_t>>(array)) return *i;
  const auto* u = array ? std::get_if<std::vector<std::uint64_t>>(array) : nullptr;
  if (!u) wrong_type(key, "an array of integers", *value);
  std::vector<std::int64_t> out;
  out.reserve(u->size());
  for (const std::uint64_t v : *u) out.push_back(narrow(key, v));
  return out;
}

std::optional<std::vector<double>> GgufMetadata::numbers(std::string_view key) const {
  const GgufValue* value = find(key);
  if (!value) return {};
  const GgufArray* array = array_of(value);
  if (!array) wrong_type(key, "an array of numbers", *value);
  if (const auto* d = std::get_if<std::vector<double>>(array)) return *d;
  if (const auto* i = std::get_if<std::vector<std::int64_t>>(array))
    return std::vector<double>(i->begin(), i->end());
  if (const auto* u = std::get_if<std::vector<std::uint64_t>>(array))
    return std::vector<double>(u->begin(), u->end());
  wrong_type(key, "an array of numbers", *value);
}

void GgufMetadata::set(std::string_view key, GgufValue v) {
  for (auto& [name, value] : entries_) {
    if (name != key) continue;
    value = std::move(v);
    return;
  }
  entries_.emplace_back(std::string(key), std::move(v));
}

void GgufMetadata::set_u32(std::string_view key, std::uint32_t v) { set(key, {kU32, 0, std::uint64_t{v}}); }
void GgufMetadata::set_i32(std::string_view key, std::int32_t v) { set(key, {kI32, 0, std::int64_t{v}}); }
void GgufMetadata::set_f32(std::string_view key, float v) { set(key, {kF32, 0, static_cast<double>(v)}); }
void GgufMetadata::set_bool(std::string_view key, bool v) { set(key, {kBool, 0, v}); }
void GgufMetadata::set_string(std::string_view key, std::string v) { set(key, {kString, 0, std::move(v)}); }
void GgufMetadata::set_strings(std::string_view key, std::vector<std::string> v) {
  set(key, {kArray, kString, GgufArray(std::move(v))});
}
void GgufMetadata::set_i32s(std::string_view key, std::span<const std::int32_t> v) {
  set(key, {kArray, kI32, GgufArray(std::vector<std::int64_t>(v.begin(), v.end()))});
}
void GgufMetadata::set_f32s(std::string_view key, std::span<const float> v) {
  set(key, {kArray, kF32, GgufArray(std::vector<double>(v.begin(), v.end()))});
}

}  // namespace bitnet
