// Continuous batching. A step: drop what is cancelled, admit waiting requests while pages last, give each
// sequence its share of the step's rows (plan), make room by preempting the youngest, run one forward pass,
// sample. What a single request does with its logits is generator.cpp's.
#include "bitnet/inference/batch_scheduler.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <new>
#include <utility>

#include "bitnet/core/error.hpp"
#include "bitnet/core/log.hpp"
#include "bitnet/core/memory/memory_pressure.hpp"
#include "bitnet/inference/adapter_set.hpp"
#include "bitnet/inference/kv_cache.hpp"
#include "bitnet/inference/session.hpp"
#include "forward.hpp"
#include "generator.hpp"
#include "pool_values.hpp"
#include "scarce_memory.hpp"

namespace bitnet::inference {
namespace {

constexpr std::int64_t kMostSequences = 64;    // chosen when max_sequences is 0
constexpr std::int64_t kSequenceLimit = 4096;  // accepted
constexpr std::int64_t kRowLimit = 1 << 16;

/// One request, queued or running.
struct Sequence {
  Sequence(RequestId request_id, const Model& model, Request& request, std::int64_t n_ctx)
      : id(request_id),
        generator(model, request.prompt, request.options, std::move(request.on_text), n_ctx),
        on_done(std::move(request.on_done)) {}

  /// Tokens that the model has not seen yet.
  std::int64_t pending() const noexcept {
    return static_cast<std::int64_t>(generator.tokens().size()) - cache->length();
  }

  RequestId id;
  Generator generator;
  std::function<void(RequestId, GenerationResult)> on_done;
  std::optional<KvCache> cache;  // while running
  std::int64_t rows = 0;         // in the step that is being made, without drafts
  std::int64_t drafts = 0;       // in that step, behind the rows
  std::int64_t seen = 0;         // most tokens ever evaluated: a preemption does not lower it
};
using SequencePtr = std::unique_ptr<Sequence>;

struct Sizes {
  std::int64_t n_ctx, max_sequences, step_rows, draft_rows, page_size, n_pages;
  DType kv_type;

  std::int64_t logit_rows() const noexcept { return max_sequences + draft_rows; }
};

void require(bool holds, const char* name, std::int64_t value, std::int64_t from, std::int64_t to) {
  if (!holds) {
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("scheduler option {} = {}: expected {} … {}", name, value, from, to));
  }
}

/// Batch size and pages from the options and the memory there is.
Sizes choose_sizes(const Model& model, const SchedulerOptions& o) {
  Sizes s{};
  s.n_ctx = resolve_context(model.config(), o.n_ctx);
  require(o.page_size >= 1 && o.page_size <= s.n_ctx + 1024, "page_size", o.page_size, 1, s.n_ctx + 1024);
  require(o.step_rows >= 1 && o.step_rows <= kRowLimit, "step_rows", o.step_rows, 1, kRowLimit);
  require(o.max_sequences >= 0 && o.max_sequences <= kSequenceLimit, "max_sequences", o.max_sequences, 0,
          kSequenceLimit);
  require(o.draft_rows >= 0 && o.draft_rows <= kRowLimit, "draft_rows", o.draft_rows, 0, kRowLimit);
  s.page_size = o.page_size;
  s.kv_type = model.kv_type(o.kv_type);
  const std::size_t page = KvPool::page_bytes(model.config(), o.page_size, s.kv_type);
  const std::size_t budget =
      o.kv_memory_bytes != 0 ? o.kv_memory_bytes : model.backend().available_memory() / 2;
  const std::int64_t pages_per_sequence = (s.n_ctx + o.page_size - 1) / o.page_size;
  const auto affordable = static_cast<std::int64_t>(std::min<std::size_t>(budget / page, 1 << 30));
  if (affordable < 1) {
    throw Error(ErrorCode::kOutOfMemory,
                fmt::format("a KV budget of {} bytes holds no page of {} tokens ({} bytes)", budget,
                            o.page_size, page));
  }
  const std::int64_t wanted = o.max_sequences != 0 ? o.max_sequences : kMostSequences;
  s.n_pages = std::min(affordable, wanted * pages_per_sequence);
  // Without a stated number: as many as would fit at half a context each, which is what requests use on
  // average at most; preemption covers the rest.
  const std::int64_t by_memory = std::max<std::int64_t>(1, 2 * s.n_pages / pages_per_sequence);
  s.max_sequences = o.max_sequences != 0 ? o.max_sequences : std::min(kMostSequences, by_memory);
  s.max_sequences = std::min(s.max_sequences, s.n_pages);
  s.step_rows = std::max(o.step_rows, s.max_sequences);  // every running sequence decodes in every step
  s.draft_rows = std::min(o.draft_rows, s.step_rows - 1);
  return s;
}

}  // namespace

struct BatchScheduler::Impl {
  Impl(std::shared_ptr<const Model> m, const Sizes& s, const SchedulerOptions& o)
      : model(std::move(m)),
        sizes(s),
        pressure(o.pressure),
        default_adapters(o.adapters),
        forward(model, s.n_ctx, s.step_rows, s.logit_rows()),
        pool(model->backend(), model->config(), s.n_pages, s.page_size, s.kv_type),
        logits_memory(model->backend(), "logits"),
        logits(static_cast<std::size_t>(s.logit_rows() * model->config().vocab_size),
               logits_memory.resource()) {
    ids.reserve(static_cast<std::size_t>(s.step_rows));
    rows.reserve(static_cast<std::size_t>(s.logit_rows()));
    slices.reserve(static_cast<std::size_t>(s.max_sequences));
    adapters.reserve(static_cast<std::size_t>(s.max_sequences));
    running.reserve(static_cast<std::size_t>(s.max_sequences));
  }

  /// Makes collect_finished() the business of the outermost public call: callbacks may call back, and what
  /// they end must stay in its list while somebody walks through it.
  struct Scope {
    explicit Scope(Impl& impl) : m(impl) { ++m.depth; }
    ~Scope() { --m.depth; }
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;
    Impl& m;
  };

  Sequence* find(RequestId id);
  SequencePtr pop_finished();
  void retire(Sequence& s);
  void drop_cancelled();
  void heed_pressure();
  void admit();
  void send_back_last();
  void make_room();
  void plan();
  std::int64_t room_in_pages(const Sequence& s) const;
  std::span<const TokenId> draft(Sequence& s, std::int64_t most);
  void evaluate();
  std::int64_t needed_logits() const noexcept;
  void fail_batch(const Error& error);
  void sample();
  void run_batch();
  void collect_finished();

  std::shared_ptr<const Model> model;
  Sizes sizes;
  std::shared_ptr<const PressureMonitor> pressure;
  std::shared_ptr<const AdapterSet> default_adapters;
  MemoryPressure level = MemoryPressure::kNone;  // as of this step
  ForwardPass forward;
  KvPool pool;
  std::deque<SequencePtr> waiting;
  std::vector<SequencePtr> running;  // in the order in which they joined
  SchedulerStats counts;
  RequestId next_id = 1;
  int depth = 0;         // public calls on the stack; > 1 in a callback
  bool closing = false;  // in the destructor
  // The step that is being made.
  std::vector<TokenId> ids;
  std::vector<SequenceSlice> slices;
  std::vector<const AdapterSet*> adapters;  // of each slice, perhaps null
  std::vector<std::int32_t> rows;           // whose logits are wanted: of each sequence one, and one a draft
  PoolValues logits_memory;
  std::pmr::vector<float> logits;  // [rows, vocab]
};

Sequence* BatchScheduler::Impl::find(RequestId id) {
  for (const SequencePtr& s : running)
    if (s->id == id) return s.get();
  for (const SequencePtr& s : waiting)
    if (s->id == id) return s.get();
  return nullptr;
}

SequencePtr BatchScheduler::Impl::pop_finished() {
  const auto pop = [](auto& list) {
    const auto it =
        std::find_if(list.begin(), list.end(), [](const SequencePtr& s) { return s->generator.finished(); });
    if (it == list.end()) return SequencePtr();
    SequencePtr s = std::move(*it);
    list.erase(it);
    return s;
  };
  SequencePtr s = pop(running);
  return s != nullptr ? std::move(s) : pop(waiting);
}

/// Hands the result out; the sequence is in no list any more.
void BatchScheduler::Impl::retire(Sequence& s) {
  s.cache.reset();
  ++counts.finished;
  if (!s.on_done) return;
  try {
    s.on_done(s.id, std::move(s.generator.result()));
  } catch (...) {
    if (!closing) throw;
    log(LogLevel::kWarning, fmt::format("request {}: on_done threw while the scheduler ended", s.id));
  }
}

/// Every callback may end others, hence one at a time until none is left; none is taken out in a nested call.
void BatchScheduler::Impl::collect_finished() {
  if (depth > 1) return;
  while (const SequencePtr s = pop_finished()) retire(*s);
}

// By index here and below: a callback may submit, which appends to `waiting`.
void BatchScheduler::Impl::drop_cancelled() {
  for (std::size_t i = 0; i < running.size(); ++i)
    if (running[i]->generator.cancelled()) running[i]->generator.finish(FinishReason::kCancelled);
  for (std::size_t i = 0; i < waiting.size(); ++i)
    if (waiting[i]->generator.cancelled()) waiting[i]->generator.finish(FinishReason::kCancelled);
  collect_finished();
}

/// What a rise of the monitor's level asks for; its hysteresis keeps this from happening all the time.
void BatchScheduler::Impl::heed_pressure() {
  if (pressure == nullptr) return;
  const MemoryPressure before = std::exchange(level, pressure->level());
  if (level <= before) return;
  if (level == MemoryPressure::kCritical) {
    const std::size_t keep = (running.size() + 1) / 2;
    for (; running.size() > keep; ++counts.yielded) send_back_last();
  }
  try {
    counts.kv_discarded += pool.discard_free_pages();
    if (level < MemoryPressure::kHigh) return;
    for (MemoryResource* memory : model->backend().memories()) memory->trim();
  } catch (const std::bad_alloc&) {  // for their own lists: then they keep what they have
  }
}

/// Lets the head of the queue join while there is a place and pages for all of its tokens.
void BatchScheduler::Impl::admit() {
  while (!waiting.empty() && static_cast<std::int64_t>(running.size()) < sizes.max_sequences) {
    if (level >= MemoryPressure::kHigh && !running.empty()) return;
    Sequence& s = *waiting.front();
    try {
      s.cache.emplace(pool, sizes.n_ctx);
    } catch (const std::bad_alloc&) {
      s.generator.fail(error_or_short(
          [] { return Error(ErrorCode::kOutOfMemory, "the list of a request's KV pages: out of memory"); }));
      return;  // the next step goes on behind it
    }
    if (!s.cache->reserve(static_cast<std::int64_t>(s.generator.tokens().size()))) {
      s.cache.reset();
      return;  // first come, first served: nobody overtakes
    }
    s.generator.start();
    running.push_back(std::move(waiting.front()));
    waiting.pop_front();
  }
}

/// A sequence for which the queue has no memory ends.
void BatchScheduler::Impl::send_back_last() {
  SequencePtr s = std::move(running.back());
  running.pop_back();
  s->cache.reset();
  try {
    waiting.emplace_front();
  } catch (const std::bad_alloc&) {
    s->generator.fail(error_or_short(
        [] { return Error(ErrorCode::kOutOfMemory, "sending a request back to the queue: out of memory"); }));
    return retire(*s);
  }
  waiting.front() = std::move(s);
}

/// Pages for every running sequence's tokens; those that joined last give way. The first always fits:
/// submit() refused what the whole pool could not hold.
void BatchScheduler::Impl::make_room() {
  for (std::size_t i = 0; i < running.size(); ++i) {
    while (i < running.size() &&
           !running[i]->cache->reserve(static_cast<std::int64_t>(running[i]->generator.tokens().size()))) {
      send_back_last();
      ++counts.preemptions;
    }
  }
}

/// Tokens that `s` could store beyond its own.
std::int64_t BatchScheduler::Impl::room_in_pages(const Sequence& s) const {
  const auto pages = static_cast<std::int64_t>(s.cache->pages().size()) + pool.free_pages();
  return pages * pool.page_size() - static_cast<std::int64_t>(s.generator.tokens().size());
}

/// Drafts of a sequence whose logits are wanted, with pages for them: nobody gives way for a guess.
std::span<const TokenId> BatchScheduler::Impl::draft(Sequence& s, std::int64_t most) {
  const auto drafts = s.generator.draft(std::min(most, room_in_pages(s)));
  s.drafts = static_cast<std::int64_t>(drafts.size());
  s.cache->reserve(static_cast<std::int64_t>(s.generator.tokens().size() + drafts.size()));
  return drafts;
}

/// Rows of the step: one for each sequence that decodes, then prompt chunks, first come first served, then
/// drafts, in equal shares.
void BatchScheduler::Impl::plan() {
  std::int64_t left = sizes.step_rows;
  for (const SequencePtr& s : running) {
    s->rows = s->pending() == 1 ? 1 : 0;
    left -= s->rows;
  }
  for (const SequencePtr& s : running) {
    if (s->rows != 0) continue;
    s->rows = std::min(left, s->pending());
    left -= s->rows;
  }
  left = level == MemoryPressure::kNone ? std::min(left, sizes.draft_rows) : 0;
  std::int64_t sharing = std::count_if(running.begin(), running.end(),
                                       [](const SequencePtr& s) { return s->rows == s->pending(); });
  ids.clear();
  slices.clear();
  adapters.clear();
  rows.clear();
  for (const SequencePtr& sequence : running) {
    Sequence& s = *sequence;
    s.drafts = 0;
    if (s.rows == 0) continue;
    const std::int64_t past = s.cache->length();
    const auto tokens =
        s.generator.tokens().subspan(static_cast<std::size_t>(past), static_cast<std::size_t>(s.rows));
    const auto begin = static_cast<std::int64_t>(ids.size());
    ids.insert(ids.end(), tokens.begin(), tokens.end());
    if (s.rows == s.pending()) {
      const auto drafts = draft(s, (left + sharing - 1) / sharing);
      left -= s.drafts;
      --sharing;
      for (std::int64_t i = 0; i <= s.drafts; ++i)
        rows.push_back(static_cast<std::int32_t>(begin + s.rows - 1 + i));
      ids.insert(ids.end(), drafts.begin(), drafts.end());
    }
    slices.push_back({begin, s.rows + s.drafts, past, s.cache->pages()});
    adapters.push_back(s.generator.adapters().get());
  }
}

/// Of all that run; 0, all, where one needs all.
std::int64_t BatchScheduler::Impl::needed_logits() const noexcept {
  std::int64_t most = 0;
  for (const SequencePtr& s : running) {
    const std::int64_t own = s->generator.needed_logits();
    if (own == 0) return 0;
    most = std::max(most, own);
  }
  return most;
}

void BatchScheduler::Impl::evaluate() {
  forward.run(pool, slices, ids, rows, adapters);
  if (!rows.empty()) forward.logits(0, static_cast<std::int64_t>(rows.size()), logits, needed_logits());
  for (const SequencePtr& s : running) {
    const std::int64_t end = s->cache->length() + s->rows;
    // Rows of generated tokens that are evaluated for the first time are not the prompt's.
    const std::int64_t prompt_end = std::max(s->seen, s->generator.result().prompt_tokens);
    counts.prompt_tokens += static_cast<std::uint64_t>(s->rows - std::max<std::int64_t>(0, end - prompt_end));
    s->seen = std::max(s->seen, end);
    s->cache->set_length(end + s->drafts);
  }
}

void BatchScheduler::Impl::fail_batch(const Error& error) {
  for (std::size_t i = 0; i < running.size(); ++i) {
    Sequence& s = *running[i];
    if (s.rows != 0 && !s.generator.finished()) s.generator.fail(copy_of(error), true);
  }
}

void BatchScheduler::Impl::sample() {
  const auto vocab = static_cast<std::size_t>(model->config().vocab_size);
  std::size_t row = 0;
  for (std::size_t i = 0; i < running.size(); ++i) {
    Sequence& s = *running[i];
    Generator& g = s.generator;
    const std::int64_t end = s.cache->length() - s.drafts;
    if (s.rows == 0 || end != static_cast<std::int64_t>(g.tokens().size())) continue;  // a part of its prompt
    const auto n_rows = static_cast<std::size_t>(s.drafts) + 1;
    const auto own = std::span<const float>(logits).subspan(row * vocab, n_rows * vocab);
    row += n_rows;
    if (g.finished()) continue;  // cancelled by a callback of another
    const GenerationResult& r = g.result();
    const std::int64_t sampled = r.completion_tokens, drafted = r.drafted_tokens, held = r.accepted_tokens;
    s.cache->truncate(end + g.advance(own));
    s.seen = std::max(s.seen, s.cache->length());
    counts.generated_tokens += static_cast<std::uint64_t>(r.completion_tokens - sampled);
    counts.drafted_tokens += static_cast<std::uint64_t>(r.drafted_tokens - drafted);
    counts.accepted_tokens += static_cast<std::uint64_t>(r.accepted_tokens - held);
  }
}

void BatchScheduler::Impl::run_batch() {
  const auto step_failed = [this](ErrorCode code, const char* why) {
    fail_batch(
        error_or_short([&] { return Error(code, fmt::format("a step of {} rows: {}", ids.size(), why)); }));
  };
  try {
    plan();
    evaluate();
    sample();
  } catch (const Error& e) {
    fail_batch(e);
  } catch (const std::bad_alloc&) {
    step_failed(ErrorCode::kOutOfMemory, "out of memory");
  } catch (const std::exception& e) {
    step_failed(ErrorCode::kInternal, e.what());
  }
}

BatchScheduler::BatchScheduler(std::shared_ptr<const Model> model, const SchedulerOptions& options) try {
  const Sizes sizes = choose_sizes(*model, options);
  impl_ = std::make_unique<Impl>(std::move(model), sizes, options);
} catch (const std::bad_alloc&) {
  throw_out_of_memory("a batch");
}

BatchScheduler::~BatchScheduler() {
  Impl& m = *impl_;
  const Impl::Scope scope(m);
  m.closing = true;
  for (std::size_t i = 0; i < m.running.size(); ++i) m.running[i]->generator.finish(FinishReason::kCancelled);
  for (std::size_t i = 0; i < m.waiting.size(); ++i) m.waiting[i]->generator.finish(FinishReason::kCancelled);
  m.collect_finished();
}

RequestId BatchScheduler::submit(Request request) try {
  if (impl_->closing) throw Error(ErrorCode::kCancelled, "the scheduler is ending: it takes no request");
  if (request.options.adapters == nullptr) request.options.adapters = impl_->default_adapters;
  auto s = std::make_unique<Sequence>(impl_->next_id, *impl_->model, request, impl_->sizes.n_ctx);
  // The last token is never evaluated, hence − 1; a prompt needs all of its own.
  const std::int64_t most = std::max<std::int64_t>(s->generator.max_length() - 1,
                                                   static_cast<std::int64_t>(s->generator.tokens().size()));
  if (impl_->pool.pages_for(most) > impl_->pool.n_pages()) {
    throw Error(ErrorCode::kOutOfMemory,
                fmt::format("a request of up to {} tokens: the KV pool holds {} ({} bytes)", most,
                            impl_->pool.n_pages() * impl_->pool.page_size(), impl_->pool.bytes()));
  }
  if (const auto& adapters = s->generator.adapters()) impl_->forward.reserve(*adapters);
  impl_->waiting.push_back(std::move(s));
  return impl_->next_id++;
} catch (const std::bad_alloc&) {
  throw_out_of_memory("queueing a request");
}

bool BatchScheduler::step() {
  const auto begin = std::chrono::steady_clock::now();
  Impl& m = *impl_;
  if (m.depth != 0) throw Error(ErrorCode::kInvalidArgument, "step() was called by a callback of step()");
  const Impl::Scope scope(m);
  m.drop_cancelled();
  m.heed_pressure();
  m.make_room();
  m.admit();
  // A request for no tokens is done before it is evaluated.
  for (std::size_t i = 0; i < m.running.size(); ++i) {
    Generator& g = m.running[i]->generator;
    if (static_cast<std::int64_t>(g.tokens().size()) >= g.max_length()) g.finish(FinishReason::kLength);
  }
  m.collect_finished();
  if (!m.running.empty()) {
    m.run_batch();
    ++m.counts.steps;
    m.counts.max_running = std::max(m.counts.max_running, static_cast<std::int64_t>(m.slices.size()));
    m.counts.kv_pages_peak = std::max(m.counts.kv_pages_peak, m.pool.n_pages() - m.pool.free_pages());
    m.collect_finished();
  }
  m.counts.step_seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  return !idle();
}

void BatchScheduler::run() {
  while (step()) {
  }
}

bool BatchScheduler::cancel(RequestId id) {
  const Impl::Scope scope(*impl_);
  Sequence* s = impl_->find(id);
  if (s == nullptr || s->generator.finished()) return false;
  s->generator.finish(FinishReason::kCancelled);
  impl_->collect_finished();
  return true;
}

bool BatchScheduler::idle() const noexcept { return impl_->running.empty() && impl_->waiting.empty(); }
std::int64_t BatchScheduler::n_ctx() const noexcept { return impl_->sizes.n_ctx; }
std::int64_t BatchScheduler::max_sequences() const noexcept { return impl_->sizes.max_sequences; }

SchedulerStats BatchScheduler::stats() const noexcept {
  SchedulerStats s = impl_->counts;
  s.running = static_cast<std::int64_t>(impl_->running.size());
  s.waiting = static_cast<std::int64_t>(impl_->waiting.size());
  s.kv_pages = impl_->pool.n_pages();
  s.kv_pages_used = s.kv_pages - impl_->pool.free_pages();
  s.kv_bytes = impl_->pool.bytes();
  return s;
}

}  // namespace bitnet::inference
