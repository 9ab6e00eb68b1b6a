#pragma once
// The threads that run the ops of a step. One static part a thread, no lock and no queue: the caller writes a
// job, sets a word in each worker's cache line, does part 0 itself and waits until the others have counted
// themselves out. Workers spin for a moment after a job, so that the next op of the step finds them awake,
// and then sleep until the next request. Work that is nested, concurrent or oversubscribed is oneTBB's;
// execution.cpp decides.
#include <sched.h>

#include <atomic>
#include <cstddef>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace bitnet {

/// The caller and workers called "bitnet-team", as many as its largest job so far had other parts. One caller
/// at a time: try_run() of another one, or of a part, says false. A child that fork() made has no workers and
/// must not use its parent's team.
class ThreadTeam {
 public:
  using Call = void (*)(void* body, std::size_t begin, std::size_t end);

  ThreadTeam() noexcept;
  ~ThreadTeam();
  ThreadTeam(const ThreadTeam&) = delete;
  ThreadTeam& operator=(const ThreadTeam&) = delete;

  /// Calls call(body, p·n/parts, (p + 1)·n/parts) for each p < parts, at once, each p on the same
  /// thread in every job; in fewer parts where the system gives fewer threads. Returns false, and has done
  /// nothing, when the team is at work. The first exception, in the order of parts, is rethrown after all
  /// parts have ended.
  bool try_run(std::size_t n, std::size_t parts, Call call, void* body);

 private:
  struct Worker;
  void start_threads(std::size_t parts) noexcept;
  void work(Worker& self, std::size_t part) noexcept;
  void run_part(std::size_t part) noexcept;
  void wait_for_workers() noexcept;

  std::atomic<bool> busy_{false};
  std::vector<std::unique_ptr<Worker>> workers_;  // of parts 1, 2, …
  bool refused_ = false;                          // the system gave no more threads

  // The job. Written by the caller before the workers' words, read by them after; unchanged until pending_ is
  // 0.
  std::size_t n_ = 0, parts_ = 0;
  Call call_ = nullptr;
  void* body_ = nullptr;
  std::vector<std::exception_ptr> errors_;   // [largest parts]
  alignas(64) std::atomic<int> pending_{0};  // parts of other threads that have not ended
  std::atomic<bool> caller_sleeps_{false};
};

/// Logs it, whatever happens.
void warn_of_refused_threads(std::size_t given, std::size_t asked) noexcept;
/// Whether the system gives `n` more threads now; logs that it does not. oneTBB ends the process then.
bool gives_threads(std::size_t n) noexcept;

/// A team for jobs of up to `size` parts, on threads that may use the `cores` whole cores of `mask`. One of
/// its own while the threads of all teams of this process that may run there, callers included, have a core
/// each; else one of the same mask that exists, for as many parts, or made larger if that is so then; else
/// null. So no more threads spin than there are cores, however many contexts there are.
std::shared_ptr<ThreadTeam> team_for(std::size_t size, const cpu_set_t& mask, std::size_t cores);

}  // namespace bitnet
