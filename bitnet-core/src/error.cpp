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

Error::Error(ErrorCode code, std::string message, SourceLocation where)
    : code_(code), message_(std::move(message)), where_(where) {}

Error& Error::add_context(std::string_view context) {
  message_.insert(0, std::string(context) + ": ");
  return *this;
}

void throw_out_of_memory(std::string_view doing, SourceLocation where) {
  throw Error(ErrorCode::kOutOfMemory, std::string(doing) + ": out of memory", where);
}

Severity Error::severity() const noexcept {
  return code_ == ErrorCode::kInternal || code_ == ErrorCode::kDevice ? Severity::kFatal
                                                                      : Severity::kRecoverable;
}

}  // namespace bitnet
