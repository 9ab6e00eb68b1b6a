#pragma once
// Small things that several commands need: required options, text input, printable text, the progress bar,
// the machine as the options describe it.
#include <chrono>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>

#include "bitnet/cli/app.hpp"
#include "bitnet/core/execution.hpp"
#include "bitnet/core/memory/hybrid_memory_pool.hpp"
#include "options.hpp"

namespace bitnet::cli {

/// The option's text. Throws UsageError when there is none.
std::string require(const Values& values, const Option& option);

/// What `use` makes of the option's value; its Error names where the value is from, and is a UsageError when
/// that is the command line.
template <class Use>
auto checked(const Values& values, const Option& option, Use&& use) {
  const Origin origin = values.origin(option);
  if (origin == Origin::kEnvironment)
    return with_context(option.env, [&] { return use(values.text(option)); });
  if (origin != Origin::kCommandLine)
    return with_context(std::string(option.key), [&] { return use(values.text(option)); });
  try {
    return use(values.text(option));
  } catch (const Error& e) {
    throw UsageError("--" + std::string(option.name) + ": " + e.what());
  }
}

/// The whole of a file, or of standard input for "-". Throws Error(kNotFound | kIo | kCancelled).
std::string read_text(const std::string& path, Io& io);

/// Whether writing a file `out` replaces `in` or, where that is a directory, a file in it; false where one of
/// them is not there.
bool would_replace(const std::filesystem::path& out, const std::filesystem::path& in);

/// Whether two names are those of one file, which need not be there.
bool same_file(const std::filesystem::path& a, const std::filesystem::path& b);

/// Refuses, before anything runs, to write `out` over what options name to be read: the model, a file of one,
/// an adapter, texts, plans, configurations. `subject` begins the message ("'x.html': the page").
/// Throws Error(kInvalidArgument).
void check_replaces_no_input(const Values& values, const std::filesystem::path& out,
                             const std::string& subject);

/// The file of `option`, where a report goes, `name` in messages, that the command writes beside its text on
/// standard output. Throws UsageError for "-" and what check_replaces_no_input() throws.
std::filesystem::path report_path(const Values& values, const Option& option, std::string_view name);

struct InputText {
  std::string text;
  std::string path;  ///< empty: the text is the option's own
};

/// TEXT of `text_option` or the contents of `file_option`'s file; exactly one must be given (UsageError), but
/// one from the command line wins over the other from a yaml file.
InputText text_or_file(const Values& values, const Option& text_option, const Option& file_option, Io& io);

/// `text` in double quotes with line breaks and other control characters as escapes.
std::string quoted(std::string_view text);

/// "1,234,567", "3.1 MiB", "1:05:09"
std::string grouped(std::int64_t n);
std::string human_bytes(std::uint64_t bytes);
std::string human_time(double seconds);
/// Fixed-point with `digits` behind the point.
std::string fixed(double x, int digits);
/// The same, but of numbers that would have fewer than two digits left three: "0.0123", "4.56e-06".
std::string significant(double x, int digits);

/// what(); of a broken invariant, which is a bug to be reported, with the place: "… (internal error at
/// x.cpp:7)".
std::string failure_text(const Error& error);

/// To be held by threads of a command that write to Io while others may; log lines are written with it.
std::recursive_mutex& output_mutex();

/// Throws Error(kCancelled) once Ctrl-C was pressed.
void check_cancelled(const Io& io);
/// Throws Error(kIo) when standard output does not take text any more.
void check_out(Io& io);

/// Of a value of --threads: 0 stands for all cores that this process may use, whatever the environment says.
std::size_t thread_count(std::int64_t asked);
/// "1000000", "512MiB", "1.5 GiB" in bytes. Throws Error(kInvalidArgument).
std::size_t parse_bytes(const std::string& text);
/// Of a value of --memory-limit or --device-memory-limit: bytes, from a pool's least limit on. Throws
/// Error(kInvalidArgument).
std::size_t parse_limit(const std::string& text);
/// Of --memory-limit: the options of a host's pool with that limit, or without one.
MemoryPoolOptions pool_options(const Values& values);
/// A pool with the limit of --memory-limit; null where there is none: contexts then share the default pool.
std::shared_ptr<HybridMemoryPool> limited_pool(const Values& values);
/// Of --threads, --isa and, without `memory`, --memory-limit, which makes a pool.
std::shared_ptr<const ExecutionContext> make_context(const Values& values,
                                                     std::shared_ptr<HybridMemoryPool> memory = nullptr);

/// Largest resident memory of this process so far, in bytes.
std::uint64_t peak_memory_bytes();

/// Seconds since it was made.
class Stopwatch {
 public:
  double seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

/// A bar with a time to go on a terminal, nothing elsewhere.
class ProgressBar {
 public:
  ProgressBar(Io& io, std::string unit) : io_(io), unit_(std::move(unit)) {}
  ~ProgressBar() { clear(); }
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;
  /// Draws at most ten times a second. `remark` is put at the end ("34.5 tokens/s").
  void update(double done, double total, const std::string& remark = {});
  /// Removes the line.
  void clear();

  /// The line for a terminal of `columns`, without the carriage return.
  static std::string line(double done, double total, double seconds, const std::string& unit,
                          const std::string& remark, int columns);

 private:
  Io& io_;
  std::string unit_;
  Stopwatch watch_;
  double drawn_at_ = -1;
  bool visible_ = false;
};

}  // namespace bitnet::cli
