#pragma once
// The program `bitnet` as a function, so that it can be tested without a process. The commands are in
// src/commands, their options in src/options.cpp; signals and the terminal are main.cpp's business. Not
// thread-safe: one run at a time in a process.
#include <atomic>
#include <iosfwd>

namespace bitnet {
class BackendRegistry;
}

namespace bitnet::cli {

/// Exit codes, the same for every command.
enum ExitCode : int {
  kOk = 0,
  kFailure = 1,        ///< the input, a file, a device or a limit; `batch`: an item failed
  kUsage = 2,          ///< an unknown command or option, a value out of range, something missing
  kInterrupted = 130,  ///< Ctrl-C; what was done is kept
};

/// What a run of the program reads and writes. Does not own.
struct Io {
  std::istream& in;
  std::ostream& out;  ///< results
  std::ostream& err;  ///< figures, notes, progress, errors
  bool in_is_terminal = false;
  bool out_is_terminal = false;
  bool err_is_terminal = false;
  int columns = 80;                          ///< width of the terminal behind `err`
  std::atomic<bool>* cancelled = nullptr;    ///< set by Ctrl-C; may be null
  const BackendRegistry* devices = nullptr;  ///< to run models on; null: those of this build

  bool is_cancelled() const noexcept { return cancelled != nullptr && cancelled->load(); }
};

/// Runs one command line (argv[0] is skipped) and returns its exit code. Never throws, never exits. Takes the
/// libraries' log sink while it runs, so one run at a time.
int run(int argc, const char* const* argv, Io& io);

}  // namespace bitnet::cli
