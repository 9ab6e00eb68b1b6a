#pragma once
// Continuous batching: requests join and leave one ragged batch between steps; prompts go in chunks, so that
// long ones do not hold up the others. Every request's tokens are the same as if it ran alone.
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "bitnet/core/memory/memory_pressure.hpp"
#include "bitnet/inference/generation.hpp"
#include "bitnet/inference/model.hpp"

namespace bitnet::inference {

using RequestId = std::uint64_t;

struct Request {
  std::vector<TokenId> prompt;  ///< not empty
  GenerationOptions options;
  TextCallback on_text;  ///< may be empty
  /// Called once, in step(), cancel() or shutdown, when the request is finished for whatever reason; the
  /// result is moved to it. Must not throw.
  std::function<void(RequestId, GenerationResult)> on_done;
};

struct SchedulerOptions {
  std::int64_t n_ctx = 0;           ///< per sequence; 0: the model's own, at most 4096
  std::int64_t max_sequences = 0;   ///< running at once; 0: from memory headroom, at most 64
  std::size_t kv_memory_bytes = 0;  ///< of the page pool; 0: half of the backend's available memory, and no
                                    ///< more than max_sequences full contexts need
  std::int64_t step_rows = 256;     ///< rows (decode tokens and prefill chunks) of one step
  std::int64_t page_size = 16;      ///< tokens a KV page
  /// Drafts of one step at most, of all sequences that ask for them (GenerationOptions::draft); they take
  /// what is left of step_rows and of the pool, and 2 · vocabulary floats each are allocated for them.
  std::int64_t draft_rows = 16;
  std::optional<DType> kv_type = {};  ///< of the KV cache; none: what the model's policy says (f16)
  /// What each step heeds, or null. From kLow on nothing is drafted; from kHigh on nobody joins while others
  /// run; when kCritical comes, the younger half goes back to the queue. Each time that the level rises, the
  /// cache gives the memory of its free pages back, from kHigh on the backend's pool its free blocks, too.
  std::shared_ptr<const PressureMonitor> pressure = {};
  /// LoRA adapters of requests that name none (GenerationOptions::adapters), or null. Requests with different
  /// sets run in one pass.
  std::shared_ptr<const AdapterSet> adapters = {};
};

struct SchedulerStats {
  std::uint64_t steps = 0;
  std::uint64_t prompt_tokens = 0;  ///< evaluated, those recomputed after a preemption included
  std::uint64_t generated_tokens = 0;
  std::uint64_t drafted_tokens = 0;   ///< guessed and evaluated
  std::uint64_t accepted_tokens = 0;  ///< of those, the ones that were also sampled
  std::uint64_t finished = 0;
  std::uint64_t preemptions = 0;  ///< sequences sent back to the queue because the pool was full
  std::uint64_t yielded = 0;      ///< sequences sent back to the queue because of memory pressure
  std::size_t kv_discarded = 0;   ///< bytes of free pages that the system could have back because of it
  std::int64_t max_running = 0;   ///< most sequences in one step
  std::int64_t running = 0, waiting = 0;
  std::int64_t kv_pages = 0, kv_pages_used = 0, kv_pages_peak = 0;
  std::size_t kv_bytes = 0;
  double step_seconds = 0;  ///< total time in step()
};

/// Not thread-safe, except for GenerationOptions::cancellation. Callbacks may submit() and cancel(), but not
/// step(), run() or destroy it; on_done of what a callback cancels comes when that callback has returned.
/// Admission is first come, first served. When
/// the pool runs out of pages, the sequence that joined last goes back to the head of the queue and is
/// recomputed later.
class BatchScheduler {
 public:
  /// Allocates pool and workspace once. Throws Error(kInvalidArgument | kOutOfMemory).
  explicit BatchScheduler(std::shared_ptr<const Model> model, const SchedulerOptions& options = {});
  /// Unfinished requests end with kCancelled; their callbacks' submit() is refused (Error(kCancelled)).
  ~BatchScheduler();

  /// Queues a request, which holds little more than its prompt until it joins. Throws Error(kInvalidArgument)
  /// for an empty prompt, an id outside the vocabulary, bad options, or a prompt that does not fit the
  /// context (both numbers named); Error(kOutOfMemory) when the request could not run even alone in the pool,
  /// or there is no memory to queue it.
  RequestId submit(Request request);
  /// Runs one forward pass over what fits; returns false when nothing is queued or running. An error of one
  /// sequence ends that sequence only; a failed pass (Error(kDevice)) ends the sequences that were in it.
  bool step();
  /// step() until nothing is left.
  void run();
  /// Ends a request with kCancelled; false when it is finished already.
  bool cancel(RequestId id);

  bool idle() const noexcept;
  std::int64_t n_ctx() const noexcept;
  std::int64_t max_sequences() const noexcept;
  SchedulerStats stats() const noexcept;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace bitnet::inference
