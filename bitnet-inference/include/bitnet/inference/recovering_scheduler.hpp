#pragma once
// A batch that survives what a BatchScheduler does not: memory that runs out, a device that fails. Which
// remedies there are is the caller's list of rules (bitnet/core/recovery.hpp).
#include <cstdint>
#include <functional>
#include <memory>

#include "bitnet/core/recovery.hpp"
#include "bitnet/inference/batch_scheduler.hpp"

namespace bitnet::inference {

/// Hands requests to a BatchScheduler and keeps each until its result is final. When a forward pass
/// (GenerationResult::of_the_pass) or the making of a scheduler fails, the scheduler is destroyed and the
/// rules are asked. After RecoveryStep::kAgain a new one is made in the next step() and every unfinished
/// request begins anew, in order: its tokens are the same, because they depend on prompt, options and seed
/// alone. After kSkip, or when no rule helps, the requests of the failed pass end with that Error, and the
/// others begin anew. Any other Error of a request is its own result. Every request ends once, also where
/// memory is refused at any point.
///
/// Bounds: a rule's `per_run` counts from one request that ended well to the next; a request that
/// kMostFailures passes failed under ends with the Error of the last. Not thread-safe.
class RecoveringScheduler {
 public:
  static constexpr std::int64_t kMostFailures = 16;

  /// Makes a scheduler; called at once and after a failure. What it returned is destroyed before the rules
  /// are asked and before it is called again.
  using Factory = std::function<std::unique_ptr<BatchScheduler>()>;

  /// Makes the first scheduler; throws the Error when no rule helps. `recovery`: not owned.
  RecoveringScheduler(Factory factory, Recovery& recovery);
  /// Unfinished requests end with kCancelled.
  ~RecoveringScheduler();
  RecoveringScheduler(const RecoveringScheduler&) = delete;
  RecoveringScheduler& operator=(const RecoveringScheduler&) = delete;

  /// As BatchScheduler::submit(), but after a failure, before the next step(), what is wrong with a request
  /// is its result. Throws Error(kInvalidArgument) if on_text is set, since a text that was streamed cannot
  /// be taken back. Ids are this object's own. on_done must neither throw nor call back.
  RequestId submit(Request request);
  /// One pass, and the recovery of what failed in it; false when nothing is left to do. Throws nothing: when
  /// no scheduler can be made, all requests end with that Error (kCancelled: as cancelled), and the next
  /// step() with requests tries again.
  bool step() noexcept;

  /// Counts of all schedulers together; `waiting` is every request that has no result and does not run.
  SchedulerStats stats() const noexcept;
  /// Of the present scheduler, or of the last one.
  std::int64_t max_sequences() const noexcept;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace bitnet::inference
