// Requests that are kept until their result is final, and given to a new scheduler when one has failed; see
// recovering_scheduler.hpp.
#include "bitnet/inference/recovering_scheduler.hpp"

#include <map>
#include <optional>
#include <utility>
#include <vector>

#include "bitnet/core/error.hpp"

namespace bitnet::inference {
namespace {

/// Failures of the pass, not of the request.
bool is_of_the_pass(const GenerationResult& r) {
  return r.error && (r.error->code() == ErrorCode::kOutOfMemory || r.error->code() == ErrorCode::kDevice);
}

}  // namespace

struct RecoveringScheduler::Impl {
  Impl(Factory f, Recovery& r) : factory(std::move(f)), recovery(r) {}

  /// A request that has no final result.
  struct Kept {
    Request request;
    std::optional<GenerationResult> failed;  // of the pass that failed under it
  };

  void make();
  void give(RequestId id, Kept& kept);
  void done(RequestId id, const GenerationResult& result);
  void finish(RequestId id, const GenerationResult& result);
  void recover(const Error& error);

  Factory factory;
  Recovery& recovery;
  std::unique_ptr<BatchScheduler> scheduler;
  std::map<RequestId, Kept> kept;  // ascending: the order of submission
  std::vector<std::int64_t> tried;
  RequestId next_id = 1;
  std::int64_t sequences = 0;
  bool discarding = false;  // the scheduler is being destroyed: cancelled requests are kept
  bool failed = false;      // since the last recovery
};

/// A scheduler with all that is kept; asks the rules until there is one.
void RecoveringScheduler::Impl::make() {
  while (scheduler == nullptr) {
    try {
      scheduler = factory();
    } catch (const Error& e) {
      if (recovery.decide("making a batch", e, tried) == RecoveryStep::kSkip) throw;
    }
  }
  sequences = scheduler->max_sequences();
  std::vector<std::pair<RequestId, Error>> refused;  // a smaller scheduler may lack room for one
  for (auto& [id, one] : kept) {
    try {
      give(id, one);
    } catch (const Error& e) {
      refused.emplace_back(id, e);
    }
  }
  for (auto& [id, error] : refused) {
    GenerationResult result;
    result.finish_reason = FinishReason::kError;
    result.error = std::move(error);
    finish(id, result);
  }
}

void RecoveringScheduler::Impl::give(RequestId id, Kept& one) {
  Request copy{one.request.prompt, one.request.options, {}, {}};
  copy.on_done = [this, id](RequestId, const GenerationResult& r) { done(id, r); };
  scheduler->submit(std::move(copy));
}

/// Called by the scheduler, also while it is destroyed.
void RecoveringScheduler::Impl::done(RequestId id, const GenerationResult& result) {
  Kept& one = kept.at(id);
  if (discarding) return;
  if (!is_of_the_pass(result)) return finish(id, result);
  one.failed = result;
  failed = true;
}

void RecoveringScheduler::Impl::finish(RequestId id, const GenerationResult& result) {
  tried.clear();
  auto node = kept.extract(id);
  if (node.mapped().request.on_done) node.mapped().request.on_done(id, result);
}

void RecoveringScheduler::Impl::recover(const Error& error) {
  failed = false;
  std::optional<Error> last;
  try {
    if (recovery.decide("a batch", error, tried) == RecoveryStep::kAgain) {
      for (auto& [id, one] : kept) one.failed.reset();
      discarding = true;
      scheduler.reset();
      discarding = false;
      return;
    }
  } catch (const Error& e) {
    last = e;
  }
  std::vector<std::pair<RequestId, GenerationResult>> over;
  for (auto& [id, one] : kept)
    if (one.failed) over.emplace_back(id, std::move(*one.failed));
  for (auto& [id, result] : over) {
    if (last) result.error = last;
    finish(id, result);
  }
}

RecoveringScheduler::RecoveringScheduler(Factory factory, Recovery& recovery)
    : impl_(std::make_unique<Impl>(std::move(factory), recovery)) {
  impl_->make();
}

RecoveringScheduler::~RecoveringScheduler() {
  Impl& m = *impl_;
  m.discarding = true;
  m.scheduler.reset();
  GenerationResult cancelled;
  cancelled.finish_reason = FinishReason::kCancelled;
  while (!m.kept.empty()) m.finish(m.kept.begin()->first, cancelled);
}

RequestId RecoveringScheduler::submit(Request request) {
  Impl& m = *impl_;
  if (request.on_text)
    throw Error(ErrorCode::kInvalidArgument, "a request that may start anew cannot stream its text");
  if (m.scheduler == nullptr) m.make();
  const RequestId id = m.next_id++;
  const auto it = m.kept.emplace(id, Impl::Kept{std::move(request), {}}).first;
  try {
    m.give(id, it->second);
  } catch (...) {
    m.kept.erase(it);
    throw;
  }
  return id;
}

bool RecoveringScheduler::step() {
  Impl& m = *impl_;
  if (m.scheduler == nullptr) {
    if (m.kept.empty()) return false;
    m.make();
  }
  m.scheduler->step();
  if (m.failed) {
    std::optional<Error> first;
    for (const auto& [id, one] : m.kept)
      if (!first && one.failed) first = one.failed->error;
    m.recover(*first);
  }
  return !m.kept.empty();
}

SchedulerStats RecoveringScheduler::stats() const noexcept {
  return impl_->scheduler != nullptr ? impl_->scheduler->stats() : SchedulerStats{};
}

std::int64_t RecoveringScheduler::max_sequences() const noexcept { return impl_->sequences; }

}  // namespace bitnet::inference
