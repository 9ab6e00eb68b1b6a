// Hand-over of jobs to spinning threads; see thread_team.hpp.
#include "thread_team.hpp"

#include <fmt/format.h>
#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <utility>

#include "bitnet/core/log.hpp"

namespace bitnet {
namespace {

// How long a thread looks for work before it sleeps. Longer than what lies between two ops of a step or two
// steps of a generation (sampling from 128,000 logits takes some 0.3 ms), short against the time between two
// requests. A sleeper costs the next job some 40 µs (bitnet_bench_fork, pause:5000us).
constexpr std::chrono::microseconds kSpin{2000};
// Between two looks at the clock, some 1.7 µs on a Zen 5; from the second look on others may have the core.
constexpr int kPausesPerLook = 64;

inline void pause() noexcept {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

/// True as soon as done() is, false after kSpin without it.
template <class Done>
bool spin_until(Done done) noexcept {
  for (int i = 0; i < kPausesPerLook; ++i) {
    if (done()) return true;
    pause();
  }
  const auto end = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < kPausesPerLook; ++i) {
      if (done()) return true;
      pause();
    }
    std::this_thread::yield();
  } while (std::chrono::steady_clock::now() < end);
  return false;
}

/// Signals are for the threads of the application: it may stop a generation with one, which a worker cannot.
class BlockSignals {
 public:
  BlockSignals() noexcept {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old_);
  }
  ~BlockSignals() { pthread_sigmask(SIG_SETMASK, &old_, nullptr); }
  BlockSignals(const BlockSignals&) = delete;
  BlockSignals& operator=(const BlockSignals&) = delete;

 private:
  sigset_t old_{};
};

}  // namespace

void warn_of_refused_threads(std::size_t given, std::size_t asked) noexcept {
  try {
    log(LogLevel::kWarning,
        fmt::format("the system gives {} of {} threads: the work is done by those", given, asked));
  } catch (...) {  // the work matters more than the word
    return;
  }
}

bool gives_threads(std::size_t n) noexcept {
  const BlockSignals blocked;
  std::atomic<bool> go{false};
  std::vector<std::thread> threads;
  bool all = true;
  try {
    threads.reserve(n);
    while (threads.size() < n) threads.emplace_back([&go] { go.wait(false); });
  } catch (const std::exception&) {  // bad_alloc, system_error
    all = false;
  }
  go.store(true);
  go.notify_all();
  for (std::thread& t : threads) t.join();
  if (!all) warn_of_refused_threads(1, n + 1);
  return all;
}

/// What one worker looks at, in a cache line of its own.
struct alignas(64) ThreadTeam::Worker {
  static constexpr int kQuit = -1;
  std::atomic<int> job{0};  // changes when there is one; kQuit ends the thread
  std::atomic<bool> sleeps{false};
  std::thread thread;

  void hand_over(int value) noexcept {
    job.store(
        value);  // sequentially consistent with `sleeps`: either it is seen, or the sleeper sees the job
    if (sleeps.load()) job.notify_one();
  }
};

ThreadTeam::ThreadTeam() noexcept = default;

ThreadTeam::~ThreadTeam() {
  for (const auto& w : workers_) w->hand_over(Worker::kQuit);
  for (const auto& w : workers_) w->thread.join();
}

void ThreadTeam::start_threads(std::size_t parts) noexcept {
  const BlockSignals blocked;
  try {
    errors_.resize(std::max(errors_.size(), parts));
    workers_.reserve(parts - 1);
    for (std::size_t part = workers_.size() + 1; part < parts; ++part) {
      auto worker = std::make_unique<Worker>();
      Worker& self = *worker;
      worker->thread = std::thread([this, &self, part] { work(self, part); });
      workers_.push_back(std::move(worker));
    }
  } catch (const std::exception&) {  // bad_alloc, system_error: those that run do the work
    refused_ = true;
    warn_of_refused_threads(workers_.size() + 1, parts);
  }
}

void ThreadTeam::work(Worker& self, std::size_t part) noexcept {
  pthread_setname_np(pthread_self(), "bitnet-team");
  for (int seen = 0;;) {
    const auto has_job = [&] { return self.job.load(std::memory_order_acquire) != seen; };
    if (!spin_until(has_job)) {
      self.sleeps.store(true);
      while (self.job.load() == seen) self.job.wait(seen);
      self.sleeps.store(false, std::memory_order_relaxed);
    }
    seen = self.job.load(std::memory_order_acquire);
    if (seen == Worker::kQuit) return;
    run_part(part);
    if (pending_.fetch_sub(1) == 1 && caller_sleeps_.load()) pending_.notify_one();
  }
}

void ThreadTeam::run_part(std::size_t part) noexcept {
  try {
    call_(body_, part * n_ / parts_, (part + 1) * n_ / parts_);
  } catch (...) {
    errors_[part] = std::current_exception();
  }
}

void ThreadTeam::wait_for_workers() noexcept {
  if (spin_until([&] { return pending_.load(std::memory_order_acquire) == 0; })) return;
  caller_sleeps_.store(true);
  for (int left = pending_.load(); left != 0; left = pending_.load()) pending_.wait(left);
  caller_sleeps_.store(false, std::memory_order_relaxed);
}

bool ThreadTeam::try_run(std::size_t n, std::size_t parts, Call call, void* body) {
  if (busy_.exchange(true, std::memory_order_acquire)) return false;
  const std::unique_ptr<std::atomic<bool>, void (*)(std::atomic<bool>*)> release(
      &busy_, [](std::atomic<bool>* b) { b->store(false, std::memory_order_release); });
  if (workers_.size() + 1 < parts && !refused_) start_threads(parts);
  parts = std::min({parts, workers_.size() + 1, std::max<std::size_t>(errors_.size(), 1)});
  if (parts == 1) {
    call(body, 0, n);
    return true;
  }
  n_ = n;
  parts_ = parts;
  call_ = call;
  body_ = body;
  pending_.store(static_cast<int>(parts) - 1, std::memory_order_relaxed);
  for (std::size_t p = 1; p < parts; ++p) {
    Worker& worker = *workers_[p - 1];
    worker.hand_over((worker.job.load(std::memory_order_relaxed) + 1) & 0x3fffffff);
  }
  run_part(0);
  wait_for_workers();
  std::exception_ptr first;
  for (std::size_t p = 0; p < parts; ++p) {
    if (errors_[p] == nullptr) continue;
    if (first == nullptr) first = errors_[p];
    errors_[p] = nullptr;
  }
  if (first != nullptr) std::rethrow_exception(first);
  return true;
}

namespace {

struct KnownTeam {
  std::weak_ptr<ThreadTeam> team;
  std::size_t size;
  cpu_set_t mask;
};

bool overlap(const cpu_set_t& a, const cpu_set_t& b) noexcept {
  cpu_set_t both;
  CPU_AND(&both, &a, &b);
  return CPU_COUNT(&both) > 0;
}

}  // namespace

std::shared_ptr<ThreadTeam> team_for(std::size_t size, const cpu_set_t& mask, std::size_t cores) {
  static std::mutex mutex;
  static std::vector<KnownTeam> teams;
  static pid_t owner = 0;
  if (size < 2 || size > cores) return nullptr;
  std::vector<std::shared_ptr<ThreadTeam>> alive;  // until this function has chosen
  const std::lock_guard lock(mutex);
  if (owner != getpid()) teams.clear();  // the parent's: their threads are not here
  owner = getpid();
  std::erase_if(teams, [&](const KnownTeam& t) { return alive.emplace_back(t.team.lock()) == nullptr; });
  std::size_t threads = 0;
  KnownTeam* enough = nullptr;  // the least that is
  KnownTeam* largest = nullptr;
  for (KnownTeam& t : teams) {
    if (!overlap(t.mask, mask)) continue;
    threads += t.size;
    if (!CPU_EQUAL(&t.mask, &mask)) continue;
    if (t.size >= size && (enough == nullptr || t.size < enough->size)) enough = &t;
    if (largest == nullptr || t.size > largest->size) largest = &t;
  }
  if (threads + size > cores) {
    if (enough != nullptr) return enough->team.lock();
    if (largest == nullptr || threads - largest->size + size > cores) return nullptr;
    largest->size = size;
    return largest->team.lock();
  }
  auto made = std::make_shared<ThreadTeam>();
  teams.push_back({made, size, mask});
  return made;
}

}  // namespace bitnet
