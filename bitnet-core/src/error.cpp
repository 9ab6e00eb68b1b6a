// The one exception type: its codes' names, and with_context()'s prefixes, which make a message tell the
// whole story.
#include "bitnet/core/error.hpp"

#include <algorithm>
#include <utility>

#include "bitnet/core/text/utf8.hpp"

namespace bitnet {

std::string_view to_string(ErrorCode code) noexcept {
  switch (code) {
    case ErrorCode::kInvalidArgument:
      return "invalid argument";
    case ErrorCode::kNotFound:
      return "not found";
    case ErrorCode::kCorruptFile:
      return "corrupt file";
    case ErrorCode::kUnsupported:
      return "unsupported";
    case ErrorCode::kOutOfMemory:
      return "out of memory";
    case ErrorCode::kIo:
      return "input/output error";
    case ErrorCode::kDevice:
      return "device error";
    case ErrorCode::kCancelled:
      return "cancelled";
    case ErrorCode::kInternal:
      return "internal error";
  }
  return "?";
}

std::string_view to_string(Severity severity) noexcept {
  switch (severity) {
    case Severity::kNotice:
      return "notice";
    case Severity::kRecoverable:
      return "recoverable";
    case Severity::kSevere:
      return "severe";
    case Severity::kFatal:
      return "fatal";
  }
  return "?";
}

namespace {

bool is_control(char c) noexcept {
  const auto u = static_cast<unsigned char>(c);
  return (u < 0x20 && c != '\n' && c != '\t') || u == 0x7F;
}

/// The text with what is no UTF-8, and what would command a terminal, as "\xHH": messages quote names from
/// files, whatever is in them. Without such bytes it is the same string, and no memory is asked for.
std::string printable(std::string text) {
  constexpr char kDigits[] = "0123456789ABCDEF";
  const auto first_bad = [&](std::size_t from) {
    const std::string_view rest = std::string_view(text).substr(from);
    const std::size_t invalid = std::min(text::find_invalid_utf8(rest), rest.size());
    const auto control =
        std::find_if(rest.begin(), rest.begin() + static_cast<std::ptrdiff_t>(invalid), is_control);
    return from + static_cast<std::size_t>(control - rest.begin());
  };
  std::size_t at = first_bad(0);
  if (at == text.size()) return text;
  std::string out;
  for (std::size_t from = 0; from < text.size(); from = at + 1, at = first_bad(from)) {
    out.append(text, from, at - from);
    if (at == text.size()) break;
    const auto u = static_cast<unsigned char>(text[at]);
    out.append("\\x").append(1, kDigits[u >> 4]).append(1, kDigits[u & 15]);
  }
  return out;
}

}  // namespace

Error::Error(ErrorCode code, std::string message, SourceLocation where)
    : code_(code), text_(printable(std::move(message))), where_(where) {}

Error& Error::add_context(std::string_view context) {
  const std::string prefix = printable(std::string(context)) + ": ";
  text_.insert(0, prefix);
  message_ += prefix.size();
  return *this;
}

void throw_out_of_memory(std::string_view doing, SourceLocation where) {
  std::string message = "out of memory";  // fits into the string itself
  try {
    message.insert(0, std::string(doing) + ": ");
  } catch (const std::bad_alloc&) {
  }
  throw Error(ErrorCode::kOutOfMemory, std::move(message), where);
}

Severity Error::severity() const noexcept {
  switch (code_) {
    case ErrorCode::kCancelled:
      return Severity::kNotice;
    case ErrorCode::kDevice:
      return Severity::kSevere;
    case ErrorCode::kInternal:
      return Severity::kFatal;
    default:
      return Severity::kRecoverable;
  }
}

bool Error::is_transient() const noexcept {
  return code_ == ErrorCode::kOutOfMemory || code_ == ErrorCode::kIo || code_ == ErrorCode::kDevice;
}

std::string_view Error::message() const noexcept { return std::string_view(text_).substr(message_); }

std::string_view Error::context() const noexcept {
  return std::string_view(text_).substr(0, message_ == 0 ? 0 : message_ - 2);
}

}  // namespace bitnet
