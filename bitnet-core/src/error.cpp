// The one exception type: its codes' names, and with_context()'s prefixes, which make a message tell the
// whole story.
#include "bitnet/core/error.hpp"

#include <utility>

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

Error::Error(ErrorCode code, std::string message, SourceLocation where)
    : code_(code), text_(std::move(message)), where_(where) {}

Error& Error::add_context(std::string_view context) {
  text_.insert(0, std::string(context) + ": ");
  message_ += context.size() + 2;
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
