// The executable in training, killed with SIGKILL wherever it is, resumed and killed again: at the end its
// files are those of a run that was never stopped.
#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <map>
#include <random>

#include "bitnet/core/io/safetensors.hpp"
#include "cli_fixture.hpp"

#ifndef BITNET_EXE
#error "BITNET_EXE is set by tests/CMakeLists.txt"
#endif

namespace bitnet::cli {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;
using std::chrono::microseconds;

/// A running `bitnet train` that nobody listens to.
class Child {
 public:
  explicit Child(const std::string& config) {
    pid_ = fork();
    if (pid_ != 0) return;
    const int null = open("/dev/null", O_RDWR);
    for (int stream = 0; stream < 3; ++stream) dup2(null, stream);
    setenv("BITNET_THREADS", "1", 1);  // threads of a busy machine wait for each other
    execl(BITNET_EXE, BITNET_EXE, "train", config.c_str(), "--resume", static_cast<char*>(nullptr));
    _exit(127);
  }
  ~Child() {
    if (!waited_) {
      kill(pid_, SIGKILL);
      wait();
    }
  }
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;

  void kill_now() const { kill(pid_, SIGKILL); }
  void pause() const { kill(pid_, SIGSTOP); }
  void go_on() const { kill(pid_, SIGCONT); }
  bool has_ended() {
    siginfo_t info{};
    return waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED | WNOHANG | WNOWAIT) == 0 &&
           info.si_pid != 0;
  }
  /// The exit code, or minus the signal.
  int wait() {
    int status = 0;
    EXPECT_EQ(waitpid(pid_, &status, 0), pid_);
    waited_ = true;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  }

 private:
  pid_t pid_ = -1;
  bool waited_ = false;
};

/// Whether a checkpoint is being written in `folder`.
bool writes_checkpoint(const fs::path& folder) {
  std::error_code ignored;
  for (fs::directory_iterator it(folder, ignored), end; !ignored && it != end; it.increment(ignored)) {
    const std::string name = it->path().filename().string();
    if (name.ends_with(".partial") && name.find(".safetensors.") != std::string::npos) return true;
  }
  return false;
}

/// Every file of a run that must not depend on where it was stopped, by its name: whole, or the tensors of a
/// checkpoint, whose metadata differ in the seconds spent.
std::map<std::string, std::string> results(const fs::path& folder) {
  std::map<std::string, std::string> all;
  for (const auto& entry : fs::recursive_directory_iterator(folder)) {
    if (!entry.is_regular_file() || entry.path().extension() == ".jsonl") continue;
    const std::string name = fs::relative(entry.path(), folder).string();
    if (!name.ends_with(".safetensors") || name.starts_with("model/")) {
      all[name] = read_file(entry.path());
      continue;
    }
    const auto file = SafeTensors::open(entry.path());
    for (const SafeTensorInfo& t : file->tensors()) {
      const auto bytes = file->data(t);
      all[name + ": " + t.name].assign(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    }
    for (const char* key : {"step", "tokens", "data.position", "data.epoch"}) {
      const auto it = file->metadata().find(key);
      all[name + ": " + key] = it == file->metadata().end() ? "missing" : it->second;
    }
  }
  return all;
}

class TrainKillTest : public CliTest {
 protected:
  void SetUp() override {
    if (call({"--version"}).out.find(", training") == std::string::npos)
      GTEST_SKIP() << "built without training";
    std::string text;
    for (int i = 0; i < 400; ++i)
      text += "Line " + std::to_string(i * 7919 % 1000) + ": the cat sat on the mat and looked at the dog.\n";
    file("text.txt", text);
  }
  std::string config(const std::string& output) {
    return file(output + ".yaml",
                "model: {vocab_size: 300, hidden_size: 128, intermediate_size: 128, layers: 1, heads: 2, "
                "kv_heads: 1, context: 64}\n"
                "data: {train: " +
                    file("text.txt") + ", validation: " + file("text.txt") +
                    ", validation_tokens: 64}\n"
                    "training: {steps: 30, warmup: 1, learning_rate: 2.0e-3, length: 32, batch: 2, "
                    "micro_batch: 1, spike_deviations: 6}\n"
                    "output: {directory: " +
                    file(output) +
                    ", log_every: 5, evaluate_every: 7, checkpoint_minutes: 0, keep_checkpoints: 2, "
                    "keep_best: true}\n");
  }
};

TEST_F(TrainKillTest, KilledAtRandomMomentsTheRunHasTheSameBits) {
  const auto begin = Clock::now();
  ASSERT_EQ(Child(config("whole")).wait(), kOk);
  const auto span = std::chrono::duration_cast<microseconds>(Clock::now() - begin).count();
  const auto expected = results(file("whole"));
  ASSERT_TRUE(expected.contains("model.gguf") && expected.contains("model/config.json") &&
              expected.contains("best.safetensors: step") &&
              expected.contains("checkpoint-29.safetensors: step"));

  const char* given = std::getenv("BITNET_KILL_SEED");
  const auto seed =
      given ? static_cast<std::uint32_t>(std::strtoul(given, nullptr, 10)) : std::random_device{}();
  SCOPED_TRACE("BITNET_KILL_SEED=" + std::to_string(seed));
  std::mt19937 random(seed);
  std::uniform_int_distribution<long> moment(0, span), which(0, 3);
  const std::string killed = config("killed");
  const auto expect_same = [&] {
    const auto got = results(file("killed"));
    for (const auto& [name, bytes] : expected) {
      const auto it = got.find(name);
      ASSERT_TRUE(it != got.end()) << name;
      EXPECT_TRUE(it->second == bytes) << name << " has other bytes";
    }
    EXPECT_EQ(got.size(), expected.size());
  };
  // Moments are random: kills until there were enough, through as many runs as that takes; a machine that
  // has other work to do is content with fewer.
  int kills = 0, in_writing = 0;
  const auto enough = [&] {
    const bool slow = Clock::now() - begin > std::chrono::seconds(20);
    return slow ? kills >= 2 && in_writing >= 1 : kills >= 8 && in_writing >= 2;
  };
  for (int start = 0; start < 100 && !enough(); ++start) {
    Child child(killed);
    if (start % 2 == 0) {  // any moment: while it starts, reads, steps, writes
      const auto until = Clock::now() + microseconds(moment(random));
      while (Clock::now() < until && !child.has_ended()) usleep(200);
    } else {  // some moment of the writing of a checkpoint
      for (long left = which(random); !child.has_ended();) {
        if (!writes_checkpoint(file("killed")) || left-- > 0) continue;
        child.pause();  // on a busy machine the moment would be over before the kill
        if (writes_checkpoint(file("killed"))) break;
        child.go_on();
      }
    }
    child.kill_now();
    const int status = child.wait();
    if (status == -SIGKILL) {
      ++kills;
      in_writing += writes_checkpoint(file("killed"));
      continue;
    }
    ASSERT_EQ(status, kOk);  // it was done before: compared, and the next run
    expect_same();
    fs::remove_all(file("killed"));
  }
  EXPECT_TRUE(enough()) << kills << " kills, " << in_writing << " of them while a checkpoint was written";
  ASSERT_EQ(Child(killed).wait(), kOk);
  expect_same();
}

}  // namespace
}  // namespace bitnet::cli
