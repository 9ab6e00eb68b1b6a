#pragma once
// The one exception type of the project, and the coarse codes that callers branch on.
#include <cstddef>
#include <cstdint>
#include <exception>
#include <new>
#include <stdexcept>
#include <string>
#include <string_view>

namespace bitnet {

/// Where an Error was made. Not std::source_location: clang 14 (Debian 12's clang, clang-tidy and libFuzzer)
/// lacks the builtin libstdc++ needs for it, and these three builtins are in every g++ and clang we support.
struct SourceLocation {
  const char* file;
  const char* function;
  unsigned line;
  static constexpr SourceLocation current(const char* f = __builtin_FILE(),
                                          const char* fn = __builtin_FUNCTION(),
                                          unsigned l = static_cast<unsigned>(__builtin_LINE())) noexcept {
    return {f, fn, l};
  }
};

/// What went wrong, coarsely: what a caller may want to branch on. The message says the rest.
enum class ErrorCode : std::uint8_t {
  kInvalidArgument,  ///< the caller's value is out of range, unknown or inconsistent
  kNotFound,         ///< a file, tensor, device or key that was asked for is not there
  kCorruptFile,      ///< a file contradicts its format
  kUnsupported,      ///< well-formed, but beyond what this build, CPU or device does
  kOutOfMemory,      ///< a limit or the system refused memory
  kIo,               ///< the operating system refused a read or a write
  kDevice,           ///< a device or its driver failed
  kCancelled,        ///< the caller asked to stop
  kInternal,         ///< an invariant of ours does not hold: a bug
};

/// The code as lower-case words, e.g. "corrupt file".
std::string_view to_string(ErrorCode code) noexcept;

/// How bad it is for the one who catches it.
enum class Severity : std::uint8_t {
  kNotice,       ///< nothing is wrong: work ended because somebody asked for it (kCancelled)
  kRecoverable,  ///< the call failed; what its object is afterwards, the function says, usually as before
  kSevere,  ///< the device failed (kDevice): it may answer again, or only after it was opened anew, or never
  kFatal,   ///< an invariant is broken (kInternal), a bug: results of the objects concerned cannot be trusted
};

/// The severity as a lower-case word, e.g. "recoverable".
std::string_view to_string(Severity severity) noexcept;

/// Thrown by every bitnet function that fails. `what()` is the whole story, outermost context first:
/// "loading model 'm.gguf': tensor 'blk.0.attn_q.weight': expected 2 dims, got 3". A value: distinct objects
/// are used by distinct threads.
class Error : public std::exception {
 public:
  /// `where` is the caller's line. Functions that check or refuse for others take one, too, and hand it on,
  /// so that it is the line that found the fault.
  Error(ErrorCode code, std::string message, SourceLocation where = SourceLocation::current());

  /// Prefixes what() with `context` and ": ", for use in `catch (Error& e) { e.add_context("…"); throw; }`.
  Error& add_context(std::string_view context);

  ErrorCode code() const noexcept { return code_; }
  /// Follows from the code.
  Severity severity() const noexcept;
  /// True where the same call may succeed a little later: kOutOfMemory, kIo, kDevice. Of kDevice it may not:
  /// then the device has to be opened anew.
  bool is_transient() const noexcept;
  /// what() without the context: what was said where the Error was made.
  std::string_view message() const noexcept;
  /// The context alone, outermost first: "loading model 'm.gguf': tensor 'blk.0.attn_q.weight'"; empty if
  /// none.
  std::string_view context() const noexcept;
  const SourceLocation& where() const noexcept { return where_; }
  const char* what() const noexcept override { return text_.c_str(); }

 private:
  ErrorCode code_;
  std::string text_;         // context, each with ": " behind it, then the message
  std::size_t message_ = 0;  // where the message begins in it
  SourceLocation where_;
};

/// Throws Error(kOutOfMemory) "`doing`: out of memory", for use in `catch (const std::bad_alloc&)`.
[[noreturn]] void throw_out_of_memory(std::string_view doing,
                                      SourceLocation where = SourceLocation::current());

/// Runs `body()` and adds `context` to any Error that leaves it. Memory that the system, or a container's
/// limit, refuses leaves it as Error(kOutOfMemory), made at `where`: the caller, since std::bad_alloc tells
/// no place.
template <class Body>
decltype(auto) with_context(std::string_view context, Body&& body,
                            SourceLocation where = SourceLocation::current()) {
  try {
    return body();
  } catch (Error& e) {
    e.add_context(context);
    throw;
  } catch (const std::bad_alloc&) {
    throw_out_of_memory(context, where);
  } catch (const std::length_error&) {
    throw_out_of_memory(context, where);
  }
}

}  // namespace bitnet
