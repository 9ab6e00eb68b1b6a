// The thread count (asked, environment, cores that this process may use), and who runs parallel_for(): the
// team of spinning threads (thread_team.cpp), or a oneTBB arena what is nested, concurrent or has more
// threads than cores that are left; where the system gives no such threads, the caller. Limits of control
// groups are read in cgroup.cpp.
#include "bitnet/core/execution.hpp"

#include <fmt/format.h>
#include <sched.h>
#include <tbb/blocked_range.h>
#include <tbb/global_control.h>
#include <tbb/parallel_for.h>
#include <tbb/partitioner.h>
#include <tbb/task_arena.h>

#include <algorithm>
#include <charconv>
#include <memory>
#include <mutex>

#include "bitnet/core/cgroup.hpp"
#include "bitnet/core/env.hpp"
#include "bitnet/core/error.hpp"
#include "bitnet/core/log.hpp"
#include "bitnet/core/memory/hybrid_memory_pool.hpp"
#include "thread_team.hpp"

// oneTBB's library is not instrumented, so ThreadSanitizer does not see that parallel_for() orders its caller
// and its bodies; these say so. Races between bodies stay visible.
#if defined(__SANITIZE_THREAD__)
#define BITNET_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define BITNET_TSAN 1
#endif
#endif
#if defined(BITNET_TSAN)
#include <sanitizer/tsan_interface.h>
#define BITNET_TSAN_ACQUIRE(address) __tsan_acquire(address)
#define BITNET_TSAN_RELEASE(address) __tsan_release(address)
#define BITNET_TSAN_BLIND __attribute__((noinline, no_sanitize("thread")))
#else
#define BITNET_TSAN_ACQUIRE(address) static_cast<void>(address)
#define BITNET_TSAN_RELEASE(address) static_cast<void>(address)
#define BITNET_TSAN_BLIND
#endif

namespace bitnet {
namespace {

constexpr std::size_t kMaxThreads = 1024;

/// The cores that the calling thread may use; none if the system does not say.
cpu_set_t affinity() noexcept {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) != 0) CPU_ZERO(&set);
  return set;
}

/// Whole cores of an affinity mask and the CPU quota.
std::size_t cores_of(const cpu_set_t& mask) {
  const auto n = static_cast<std::size_t>(std::max(1, CPU_COUNT(&mask)));
  const double quota = cgroup_limits().cores.value_or(kMaxThreads);
  return std::clamp<std::size_t>(static_cast<std::size_t>(std::min<double>(quota, kMaxThreads)), 1, n);
}

std::size_t choose_threads(std::size_t asked) {
  if (asked == 0) {
    if (const auto text = env("BITNET_THREADS")) {
      const auto [end, error] = std::from_chars(text->data(), text->data() + text->size(), asked);
      if (error != std::errc() || end != text->data() + text->size() || asked > kMaxThreads) {
        throw Error(
            ErrorCode::kInvalidArgument,
            fmt::format("BITNET_THREADS='{}': expected a whole number from 0 to {}", *text, kMaxThreads));
      }
    }
    if (asked == 0) return usable_cores();
  }
  if (asked > kMaxThreads) {
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("{} threads: at most {} are supported", asked, kMaxThreads));
  }
  return asked;
}

/// Without a control oneTBB has as many workers as there are cores, and of several controls the least counts:
/// hence one for all contexts, as large as any may be, that lives as long as one of them does. Workers are
/// made only as arenas ask for them.
std::shared_ptr<const tbb::global_control> allow_threads() {
  static std::mutex mutex;
  static std::weak_ptr<const tbb::global_control> shared;
  const std::lock_guard lock(mutex);
  std::shared_ptr<const tbb::global_control> control = shared.lock();
  if (control == nullptr) {
    control = std::make_shared<const tbb::global_control>(tbb::global_control::max_allowed_parallelism,
                                                          kMaxThreads);
    shared = control;
  }
  return control;
}

/// A thread that spins without a core of its own keeps from work the one that it waits for: null then.
std::shared_ptr<ThreadTeam> make_team(std::size_t threads) {
  if (threads == 1) return nullptr;
  const cpu_set_t mask = affinity();
  return team_for(threads, mask, cores_of(mask));
}

/// One parallel_for() in flight. Part p is [p·n/parts, (p+1)·n/parts): near-equal parts, one a thread, each
/// at least the grain but for rounding. What its maker did before comes before every part, and every part,
/// also one that ends by an exception, before what follows the Fork's end.
class Fork {
 public:
  Fork(std::size_t n, std::size_t parts, void (*call)(void*, std::size_t, std::size_t), void* body)
      : n_(n), parts_(parts), call_(call), body_(body) {
    BITNET_TSAN_RELEASE(&begin_);
  }
  ~Fork() { BITNET_TSAN_ACQUIRE(&end_); }
  Fork(const Fork&) = delete;
  Fork& operator=(const Fork&) = delete;

  void run(std::size_t first, std::size_t last) const {
    BITNET_TSAN_ACQUIRE(&begin_);
    const Ending ending{&end_};
    for (std::size_t p = first; p != last; ++p) call_(body_, p * n_ / parts_, (p + 1) * n_ / parts_);
  }

 private:
  struct Ending {
    char* end;
    ~Ending() { BITNET_TSAN_RELEASE(end); }
  };

  std::size_t n_, parts_;
  void (*call_)(void*, std::size_t, std::size_t);
  void* body_;
  mutable char begin_ = 0, end_ = 0;  // only their addresses matter
};

/// What oneTBB copies to its threads. ThreadSanitizer does not see what orders that copy, so it must not look
/// at how it is read; everything behind the pointer is ordered by the Fork.
struct ForkBody {
  const Fork* fork;
  BITNET_TSAN_BLIND void operator()(const tbb::blocked_range<std::size_t>& range) const {
    fork->run(range.begin(), range.end());
  }
};

}  // namespace

std::size_t usable_cores() { return std::min(cores_of(affinity()), kMaxThreads); }

struct ExecutionContext::Impl {
  Impl(std::size_t n, Isa i, std::shared_ptr<HybridMemoryPool> pool)
      : threads(n),
        isa(i),
        memory(std::move(pool)),
        team(make_team(n)),
        control(allow_threads()),
        arena(static_cast<int>(n)) {}
  std::size_t threads;
  Isa isa;
  std::once_flag memory_once;
  std::shared_ptr<HybridMemoryPool> memory;
  std::shared_ptr<ThreadTeam> team;  // null: everything is the arena's
  std::shared_ptr<const tbb::global_control> control;
  mutable tbb::task_arena arena;
  mutable std::once_flag arena_once;
  mutable bool has_arena = false;  // after arena_once
};

ExecutionContext::ExecutionContext() : ExecutionContext(Options{}) {}

ExecutionContext::ExecutionContext(const Options& options)
    : impl_(std::make_unique<Impl>(choose_threads(options.threads),
                                   options.isa ? isa_from_name(to_string(*options.isa)) : default_isa(),
                                   options.memory)) {
  static_cast<void>(log_level_from_env());  // a wrong name is an error here, as of the other variables
}

ExecutionContext::~ExecutionContext() = default;

std::size_t ExecutionContext::threads() const noexcept { return impl_->threads; }
Isa ExecutionContext::isa() const noexcept { return impl_->isa; }

const std::shared_ptr<HybridMemoryPool>& ExecutionContext::memory() const {
  std::call_once(impl_->memory_once, [this] {
    if (impl_->memory == nullptr) impl_->memory = default_memory_pool();
  });
  return impl_->memory;
}

void ExecutionContext::run(std::size_t n, std::size_t grain, void (*call)(void*, std::size_t, std::size_t),
                           void* body) const {
  if (n == 0) return;
  grain = std::max<std::size_t>(grain, 1);
  const std::size_t parts = std::min(impl_->threads, (n + grain - 1) / grain);
  if (parts <= 1) {
    call(body, 0, n);
    return;
  }
  if (impl_->team != nullptr && impl_->team->try_run(n, parts, call, body)) return;
  std::call_once(impl_->arena_once, [&] { impl_->has_arena = gives_threads(impl_->threads - 1); });
  if (!impl_->has_arena) {
    call(body, 0, n);
    return;
  }
  const Fork fork(n, parts, call, body);
  impl_->arena.execute([&] {
    tbb::parallel_for(tbb::blocked_range<std::size_t>(0, parts, 1), ForkBody{&fork},
                      tbb::static_partitioner());
  });
}

}  // namespace bitnet
