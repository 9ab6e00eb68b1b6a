#pragma once
// Typed look-ups in parsed JSON that name the place when something else is there. For the tokenizer readers
// only.
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "bitnet/core/error.hpp"

namespace bitnet::text {

using Json = nlohmann::json;

/// A value and where it is, e.g. "tokenizer.json: pre_tokenizer.pattern".
class JsonPlace {
 public:
  JsonPlace(const Json& value, std::string place) : value_(&value), place_(std::move(place)) {}

  const Json& value() const noexcept { return *value_; }
  const std::string& place() const noexcept { return place_; }

  /// The member, or null where it is absent.
  JsonPlace at(const char* key) const {
    static const Json kNull;
    const std::string place = place_ + "." + key;
    const auto found = value_->find(key);
    return {found == value_->end() ? kNull : *found, place};
  }
  JsonPlace at(std::size_t i) const { return {(*value_)[i], place_ + "[" + std::to_string(i) + "]"}; }
  bool null() const noexcept { return value_->is_null(); }

  const JsonPlace& object() const { return expect(value_->is_object(), "an object"); }
  const JsonPlace& array() const { return expect(value_->is_array(), "an array"); }
  const std::string& string() const {
    expect(value_->is_string(), "a string");
    return value_->get_ref<const std::string&>();
  }
  bool boolean() const {
    expect(value_->is_boolean(), "true or false");
    return value_->get<bool>();
  }
  bool boolean(bool otherwise) const { return null() ? otherwise : boolean(); }
  std::int32_t id() const {
    expect(value_->is_number_integer() && *value_ >= 0 && *value_ < (1 << 24), "an integer of 0 to 16777215");
    return value_->get<std::int32_t>();
  }

  [[noreturn]] void unsupported(const std::string& what,
                                SourceLocation where = SourceLocation::current()) const {
    throw Error(ErrorCode::kUnsupported, place_ + ": " + what + " is not supported", where);
  }
  [[noreturn]] void corrupt(const std::string& message,
                            SourceLocation where = SourceLocation::current()) const {
    throw Error(ErrorCode::kCorruptFile, place_ + ": " + message, where);
  }

 private:
  const JsonPlace& expect(bool ok, const char* what, SourceLocation where = SourceLocation::current()) const {
    if (!ok) corrupt(std::string("expected ") + what + ", found " + value_->type_name(), where);
    return *this;
  }
  const Json* value_;
  std::string place_;
};

}  // namespace bitnet::text
