// The executable: standard streams, terminals and Ctrl-C. Everything else is run() in app.cpp.
#include <signal.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <iostream>

#include "bitnet/cli/app.hpp"

namespace {

std::atomic<bool> cancelled{false};
static_assert(std::atomic<bool>::is_always_lock_free, "the signal handler needs it");

/// The first Ctrl-C asks to stop; a second one before that happened ends the process at once.
extern "C" void on_interrupt(int signal_number) {
  if (cancelled.exchange(true)) {
    signal(signal_number, SIG_DFL);
    raise(signal_number);
  }
}

int terminal_columns() {
  winsize size{};
  return ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

}  // namespace

int main(int argc, char** argv) {
  struct sigaction action {};
  action.sa_handler = on_interrupt;  // without SA_RESTART: a read from the keyboard ends
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);

  bitnet::cli::Io io{.in = std::cin, .out = std::cout, .err = std::cerr};
  io.in_is_terminal = isatty(STDIN_FILENO) == 1;
  io.out_is_terminal = isatty(STDOUT_FILENO) == 1;
  io.err_is_terminal = isatty(STDERR_FILENO) == 1;
  io.columns = terminal_columns();
  io.cancelled = &cancelled;
  return bitnet::cli::run(argc, argv, io);
}
