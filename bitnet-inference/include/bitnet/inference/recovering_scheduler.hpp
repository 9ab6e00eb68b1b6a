#pragma once
// A batch that survives what a BatchScheduler does not: memory that runs out, a device that fails. Which
// remedies there are is the caller's list of rules (bitnet/core/recovery.hpp).
#include <cstdint>
#include <functional>
#include <memory>

#include "bitnet/core/recovery.hpp"
#include "bitnet/inference/batch_scheduler.hpp"

namespace bitnet::inference {

/// Hands requests to a BatchScheduler and keeps each until its result is final. When a pass, or making the
/// scheduler, fails with kOutOfMemory or kDevice, the rules are asked; after RecoveryStep::kAgain a new
/// scheduler is made and every unfinished request starts anew, in order: its tokens are the same, because
/// they depend on prompt, options and seed only. After kSkip, or when no rule helps, the requests of the
/// failed pass end with that Error and the others go on. Other errors of a request are its result, as ever.
/// Not thread-safe.
class RecoveringScheduler {
 public:
  /// Makes a scheduler; called at once and after a failure. What it returned is destroyed before it is called
  /// again.
  using Factory = std::function<std::unique_ptr<BatchScheduler>()>;

  /// Makes the first scheduler; throws the Error when no rule helps. `recovery`: not owned. The times of its
  /// rules' `per_run` begin anew whenever a request has finished.
  RecoveringScheduler(Factory factory, Recovery& recovery);
  /// Unfinished requests end with kCancelled.
  ~RecoveringScheduler();
  RecoveringScheduler(const RecoveringScheduler&) = delete;
  RecoveringScheduler& operator=(const RecoveringScheduler&) = delete;

  /// As BatchScheduler::submit(). Throws Error(kInvalidArgument) if
  /// on_text is set, since a text that was streamed cannot be taken back. Ids are this object's own. on_done
  /// must neither throw nor call back.
  RequestId submit(Request request);
  /// One pass, or one recovery; false when nothing is left to do. Throws the Error when a scheduler cannot be
  /// made at all; the requests are kept, and destroyed with this object.
  bool step();

  /// Of the present scheduler; its counts begin anew with each one. All 0 when there is none.
  SchedulerStats stats() const noexcept;
  /// Of the present scheduler, or of the last one.
  std::int64_t max_sequences() const noexcept;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace bitnet::inference
