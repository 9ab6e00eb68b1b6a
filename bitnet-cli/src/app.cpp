// run(): finds the command, runs it, and turns what it throws into a message and an exit code.
#include "bitnet/cli/app.hpp"

#include <istream>
#include <mutex>
#include <new>
#include <ostream>

#include "bitnet/core/log.hpp"
#include "bitnet/core/text/suggest.hpp"
#include "commands.hpp"
#include "common.hpp"

namespace bitnet::cli {
namespace {

/// Sends the libraries' log to `io.err` while it lives.
class LogToErr {
 public:
  explicit LogToErr(Io& io) {
    set_log_sink([&io](LogLevel, std::string_view message) {
      const std::lock_guard lock(output_mutex());
      io.err << "warning: " << message << '\n';
    });
  }
  ~LogToErr() { set_log_sink({}); }
  LogToErr(const LogToErr&) = delete;
  LogToErr& operator=(const LogToErr&) = delete;
};

const Command& command_of(std::string_view name) {
  if (const Command* command = find_command(name)) return *command;
  std::vector<std::string> words;
  for (const Command& c : commands()) words.emplace_back(c.name);
  if (name.starts_with("-"))
    throw UsageError("unknown option '" + std::string(name) + "'; a command comes first");
  throw UsageError("unknown command '" + std::string(name) + "'" + suggestion(name, words));
}

int dispatch(int argc, const char* const* argv, Io& io, std::string& prefix) {
  const std::string_view first = argc > 1 ? argv[1] : "";
  if (first.empty()) {
    io.err << general_help();
    return kUsage;
  }
  const bool asks_help = first == "help" || first == "--help" || first == "-h";
  if (asks_help) {
    io.out << (first == "help" && argc > 2 ? command_help(command_of(argv[2])) : general_help());
    return kOk;
  }
  if (first == "--version" || first == "version") {
    io.out << version_text();
    return kOk;
  }
  const Command& command = command_of(first);
  prefix = "bitnet " + std::string(command.name);
  const Values values = parse_command_line(command, argc, argv, 2);
  if (values.flag(opt::kHelp)) {
    io.out << command_help(command);
    return kOk;
  }
  return command.body(values, io);
}

int run_guarded(int argc, const char* const* argv, Io& io) {
  std::string prefix = "bitnet";
  const auto fail = [&](std::string_view what) {
    io.out.flush();
    io.err << prefix << ": " << what << '\n';
    return kFailure;
  };
  try {
    const int code = dispatch(argc, argv, io, prefix);
    io.out.flush();
    if (!io.out && code == kOk) return fail("cannot write to standard output (is the disk full?)");
    return code;
  } catch (const UsageError& e) {
    io.err << prefix << ": " << e.what() << "\nTry '" << prefix << " --help'.\n";
    return kUsage;
  } catch (const Error& e) {
    if (e.code() == ErrorCode::kCancelled) {
      io.out.flush();
      io.err << prefix << ": interrupted\n";
      return kInterrupted;
    }
    return fail(failure_text(e));
  } catch (const std::bad_alloc&) {
    return fail("out of memory");
  } catch (const std::exception& e) {
    return fail(std::string("internal error: ") + e.what());
  }
}

}  // namespace

int run(int argc, const char* const* argv, Io& io) {
  try {
    const LogToErr log(io);
    return run_guarded(argc, argv, io);
  } catch (...) {  // writing the message failed: there is nobody left to tell
    return kFailure;
  }
}

}  // namespace bitnet::cli
