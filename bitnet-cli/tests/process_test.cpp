// The executable itself: exit codes of a process, and Ctrl-C. Everything else is tested in-process.
#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cli_fixture.hpp"

#ifndef BITNET_EXE
#error "BITNET_EXE is set by tests/CMakeLists.txt"
#endif

namespace bitnet::cli {
namespace {

/// A running `bitnet` with pipes on its three streams.
class Process {
 public:
  explicit Process(const std::vector<std::string>& arguments) {
    int in[2], out[2], err[2];
    EXPECT_EQ(pipe2(in, O_CLOEXEC), 0);
    EXPECT_EQ(pipe2(out, O_CLOEXEC), 0);
    EXPECT_EQ(pipe2(err, O_CLOEXEC), 0);
    std::vector<char*> argv{const_cast<char*>(BITNET_EXE)};
    for (const std::string& a : arguments) argv.push_back(const_cast<char*>(a.c_str()));
    argv.push_back(nullptr);
    pid_ = fork();
    if (pid_ == 0) {
      dup2(in[0], 0);
      dup2(out[1], 1);
      dup2(err[1], 2);
      execv(BITNET_EXE, argv.data());
      _exit(127);
    }
    close(in[0]);
    close(out[1]);
    close(err[1]);
    in_ = in[1];
    out_ = out[0];
    err_ = err[0];
  }
  ~Process() {
    close(in_);
    close(out_);
    close(err_);
    if (!waited_) {
      kill(pid_, SIGKILL);
      waitpid(pid_, nullptr, 0);
    }
  }
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;

  /// One byte of standard output, or nothing at its end.
  std::string read_out() { return read_one(out_); }
  /// Standard error up to and with `text`, or to its end.
  std::string read_err_until(const std::string& text) {
    std::string all;
    while (all.find(text) == std::string::npos) {
      const std::string one = read_one(err_);
      if (one.empty()) break;
      all += one;
    }
    return all;
  }
  void interrupt() const { kill(pid_, SIGINT); }
  int wait() {
    int status = 0;
    while (!read_one(out_).empty()) {
    }
    EXPECT_EQ(waitpid(pid_, &status, 0), pid_);
    waited_ = true;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }

 private:
  static std::string read_one(int fd) {
    char c = 0;
    return read(fd, &c, 1) == 1 ? std::string(1, c) : "";
  }
  pid_t pid_ = -1;
  int in_ = -1, out_ = -1, err_ = -1;
  bool waited_ = false;
};

class ProcessTest : public CliTest {};

TEST_F(ProcessTest, ExitCodes) {
  EXPECT_EQ(Process({"--version"}).wait(), 0);
  EXPECT_EQ(Process({"inspect", "/nonexistent"}).wait(), 1);
  EXPECT_EQ(Process({"frobnicate"}).wait(), 2);
}

TEST_F(ProcessTest, CtrlCEndsARunningGeneration) {
  // So many tokens that it cannot be done before the signal arrives; the model ends no text after this
  // prompt.
  Process process(
      {"run", "-m", model(), "-p", "c", "-n", "-1", "--ctx-size", "100000", "--special", "--top-k", "1"});
  EXPECT_NE(process.read_out(), "");
  process.interrupt();
  EXPECT_EQ(process.wait(), 130);
}

TEST_F(ProcessTest, CtrlCAtThePromptEndsAChat) {
  Process process({"chat", "-m", model(), "--chat-template", "bitnet"});
  EXPECT_THAT(process.read_err_until("seed: "), HasSubstr("seed: "));
  usleep(300000);  // so that it waits for input: a signal just before that would be noticed at the next line
                   // only
  process.interrupt();
  EXPECT_EQ(process.wait(), 130);
}

}  // namespace
}  // namespace bitnet::cli
