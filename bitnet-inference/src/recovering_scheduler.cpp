// Requests that are kept until their result is final, and given to a new scheduler when one has failed; see
// recovering_scheduler.hpp. Whatever memory is refused here, each request ends once: what must not fail moves
// instead of copying (scarce_memory.hpp).
#include "bitnet/inference/recovering_scheduler.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <new>
#include <optional>
#include <utility>
#include <vector>

#include "bitnet/core/error.hpp"
#include "scarce_memory.hpp"

namespace bitnet::inference {
namespace {

/// of_the_pass: see GenerationResult.
GenerationResult ended_by(Error error, bool of_the_pass) noexcept {
  GenerationResult result;
  if (error.code() == ErrorCode::kCancelled) {
    result.finish_reason = FinishReason::kCancelled;
  } else {
    result.error = std::move(error);
    result.of_the_pass = of_the_pass;
  }
  return result;
}

/// `sum` with what `more`, of a later scheduler, counted; what is of the moment is that one's.
SchedulerStats added(const SchedulerStats& sum, SchedulerStats more) noexcept {
  more.steps += sum.steps;
  more.prompt_tokens += sum.prompt_tokens;
  more.generated_tokens += sum.generated_tokens;
  more.drafted_tokens += sum.drafted_tokens;
  more.accepted_tokens += sum.accepted_tokens;
  more.finished += sum.finished;
  more.preemptions += sum.preemptions;
  more.yielded += sum.yielded;
  more.kv_discarded += sum.kv_discarded;
  more.max_running = std::max(more.max_running, sum.max_running);
  more.kv_pages_peak = std::max(more.kv_pages_peak, sum.kv_pages_peak);
  more.step_seconds += sum.step_seconds;
  return more;
}

}  // namespace

struct RecoveringScheduler::Impl {
  Impl(Factory f, Recovery& r) : factory(std::move(f)), recovery(r) {}

  /// A request that has no final result.
  struct Kept {
    Request request;
    std::optional<GenerationResult> failed = {};  // of the pass that failed under it
    bool given = false;                           // to the present scheduler
    std::int64_t failures = 0;                    // passes that failed under it
  };

  void make();
  void give(RequestId id, Kept& kept);
  void give_all();
  void done(RequestId id, GenerationResult result);
  void finish(RequestId id, GenerationResult result);
  void pass();
  void discard() noexcept;
  void recover();
  template <class Which>
  void end(const Which& which, const Error& error);
  void cancel_all() noexcept;

  Factory factory;
  Recovery& recovery;
  std::unique_ptr<BatchScheduler> scheduler;
  std::map<RequestId, Kept> kept;  // ascending: the order of submission
  std::vector<std::int64_t> tried;
  SchedulerStats earlier;  // of the schedulers that are gone
  RequestId next_id = 1;
  std::int64_t sequences = 0;
  bool discarding = false;  // the scheduler is being destroyed: cancelled requests are kept
  bool failed = false;      // since the last recovery
};

/// A scheduler; asks the rules until there is one, or throws the Error.
void RecoveringScheduler::Impl::make() {
  while (scheduler == nullptr) {
    std::optional<Error> error;
    try {
      scheduler = factory();
      if (scheduler == nullptr) throw Error(ErrorCode::kInternal, "the factory made no scheduler");
    } catch (...) {
      error = current_error();
    }
    if (error && recovery.decide("making a batch", *error, tried) == RecoveryStep::kSkip) throw *error;
  }
  sequences = scheduler->max_sequences();
}

void RecoveringScheduler::Impl::give(RequestId id, Kept& one) {
  Request copy{one.request.prompt, one.request.options, {}, {}};
  copy.on_done = [this, id](RequestId, GenerationResult r) { done(id, std::move(r)); };
  scheduler->submit(std::move(copy));
  one.given = true;
}

/// What a new scheduler refuses (a smaller one may lack room) ends here.
void RecoveringScheduler::Impl::give_all() {
  for (auto next = kept.begin(); next != kept.end();) {
    const auto present = next++;
    if (present->second.given) continue;
    try {
      give(present->first, present->second);
    } catch (...) {
      finish(present->first, ended_by(current_error(), false));
    }
  }
}

/// Called by the scheduler, also while it is destroyed. Must not throw.
void RecoveringScheduler::Impl::done(RequestId id, GenerationResult result) {
  if (discarding) return;
  if (!result.error || !result.of_the_pass) return finish(id, std::move(result));
  kept.at(id).failed = std::move(result);
  failed = true;
}

void RecoveringScheduler::Impl::finish(RequestId id, GenerationResult result) {
  if (result.finish_reason == FinishReason::kStop || result.finish_reason == FinishReason::kLength)
    tried.clear();
  auto node = kept.extract(id);
  if (node.mapped().request.on_done) node.mapped().request.on_done(id, std::move(result));
}

/// Ends the requests of which which(kept) holds.
template <class Which>
void RecoveringScheduler::Impl::end(const Which& which, const Error& error) {
  for (auto next = kept.begin(); next != kept.end();) {
    const auto present = next++;
    Kept& one = present->second;
    if (!which(one)) continue;
    GenerationResult result = ended_by(copy_of(error), true);
    if (one.failed) {  // with the text until then
      one.failed->finish_reason = result.finish_reason;
      one.failed->error = std::move(result.error);
      result = std::move(*one.failed);
    }
    finish(present->first, std::move(result));
  }
}

/// Without an Error: whatever memory is refused, requests are cancelled.
void RecoveringScheduler::Impl::cancel_all() noexcept {
  while (!kept.empty()) {
    auto& [id, one] = *kept.begin();
    GenerationResult result;
    if (one.failed) result = std::move(*one.failed);  // with the text until then
    result.finish_reason = FinishReason::kCancelled;
    result.error.reset();
    finish(id, std::move(result));
  }
}

void RecoveringScheduler::Impl::discard() noexcept {
  if (scheduler == nullptr) return;
  SchedulerStats gone = scheduler->stats();
  gone.running = gone.waiting = gone.kv_pages = gone.kv_pages_used = 0;
  gone.kv_bytes = 0;
  earlier = added(earlier, gone);
  discarding = true;
  scheduler.reset();
  discarding = false;
  for (auto& [id, one] : kept) one.given = false;
}

/// One pass; what it took with it is recovered or ends.
void RecoveringScheduler::Impl::pass() {
  std::optional<Error> error;
  bool more = false;
  try {
    more = scheduler->step();
  } catch (...) {
    error = current_error();
  }
  if (!error && !failed && !more)  // for requests that it lost, if there are any
    error =
        error_or_short([] { return Error(ErrorCode::kInternal, "the batch ended without this request"); });
  if (error) {  // nobody knows whose it is
    for (auto& [id, one] : kept) {
      if (!one.given || one.failed) continue;
      one.failed = ended_by(copy_of(*error), true);
      failed = true;
    }
  }
  if (failed) recover();
}

/// The scheduler goes first: what it holds may be what is missing, and the cache of a device that failed
/// cannot be trusted.
void RecoveringScheduler::Impl::recover() {
  failed = false;
  discard();
  const auto is_failed = [](const Kept& one) { return one.failed.has_value(); };
  Error cause = out_of_memory();
  for (const auto& [id, one] : kept) {
    if (!is_failed(one)) continue;
    cause = copy_of(*one.failed->error);
    break;
  }
  bool again = false;
  try {
    again = recovery.decide("a batch", cause, tried) == RecoveryStep::kAgain;
  } catch (...) {
    cause = current_error();
  }
  if (!again) {
    tried.clear();
    return end(is_failed, cause);
  }
  for (auto& [id, one] : kept)
    if (one.failed && ++one.failures < kMostFailures) one.failed.reset();
  end(is_failed, error_or_short([&] {
        Error last = cause;
        last.add_context(fmt::format("a request that {} passes failed under", kMostFailures));
        return last;
      }));
}

RecoveringScheduler::RecoveringScheduler(Factory factory, Recovery& recovery)
    : impl_(std::make_unique<Impl>(std::move(factory), recovery)) {
  impl_->make();
}

RecoveringScheduler::~RecoveringScheduler() {
  impl_->discard();
  impl_->cancel_all();
}

RequestId RecoveringScheduler::submit(Request request) try {
  Impl& m = *impl_;
  if (request.on_text)
    throw Error(ErrorCode::kInvalidArgument, "a request that may start anew cannot stream its text");
  const RequestId id = m.next_id++;
  const auto it = m.kept.emplace(id, Impl::Kept{.request = std::move(request)}).first;
  if (m.scheduler == nullptr) return id;
  try {
    m.give(id, it->second);
  } catch (...) {
    m.kept.erase(it);
    throw;
  }
  return id;
} catch (const std::bad_alloc&) {
  throw_out_of_memory("queueing a request");
}

bool RecoveringScheduler::step() noexcept {
  Impl& m = *impl_;
  if (m.kept.empty()) return false;
  try {
    m.make();
  } catch (...) {
    m.tried.clear();
    m.end([](const Impl::Kept&) { return true; }, current_error());
    return false;
  }
  m.give_all();
  m.pass();
  return !m.kept.empty();
}

SchedulerStats RecoveringScheduler::stats() const noexcept {
  const Impl& m = *impl_;
  SchedulerStats stats = m.scheduler != nullptr ? added(m.earlier, m.scheduler->stats()) : m.earlier;
  stats.waiting = static_cast<std::int64_t>(m.kept.size()) - stats.running;
  return stats;
}

std::int64_t RecoveringScheduler::max_sequences() const noexcept { return impl_->sequences; }

}  // namespace bitnet::inference
