// The shared side of small blocks: spans, batches, and which cache belongs to which thread.
#include "small_block_pool.hpp"

#include <fmt/format.h>

#include <pthread.h>

#include <algorithm>
#include <chrono>
#include <new>
#include <random>
#include <unordered_map>
#include <utility>

#include "bitnet/core/error.hpp"

namespace bitnet::memory {
namespace {

/// The pools there are, so that a thread that ends gives its blocks to those that still live.
struct Registry {
  std::mutex mutex;
  std::unordered_map<std::uint64_t, SmallBlockPool*> pools;  // under mutex
};

Registry& registry();

Registry& registry() {
  // Never destroyed: threads may end after static objects. No fork() comes while it is locked.
  static Registry& made = []() -> Registry& {
    auto& lasting = *new Registry;
    pthread_atfork([] { registry().mutex.lock(); }, [] { registry().mutex.unlock(); },
                   [] { registry().mutex.unlock(); });
    return lasting;
  }();
  return made;
}

std::atomic<std::uint64_t> last_id{0};

/// Spans of fewer pages than most, and those whose number a thread has taken before it finds that there are
/// no pages for it.
constexpr std::size_t kSpansInFlight = 4096;
static_assert(kMaxClasses * kSmallSpans < kSpansInFlight / 2);
constexpr std::int64_t kAskEvery = 10;  // ms

std::uint64_t random_bits() {
  std::random_device device;
  return std::uint64_t{device()} << 32 | device();
}

constinit thread_local bool thread_ended = false;

}  // namespace

constinit thread_local SmallBlockPool::Slot SmallBlockPool::slots[kSlots];

/// A thread's caches; ends with the thread and gives them to their pools.
struct ThreadEnd {
  struct Entry {
    std::uint64_t pool;
    ThreadCache* cache;
  };
  std::vector<Entry> entries;

  ThreadCache* find(std::uint64_t pool) const noexcept {
    for (const Entry& entry : entries) {
      if (entry.pool == pool) return entry.cache;
    }
    return nullptr;
  }
  void add(std::uint64_t pool, ThreadCache* cache) {
    const std::lock_guard guard(registry().mutex);
    std::erase_if(entries, [](const Entry& e) { return !registry().pools.contains(e.pool); });
    entries.push_back({pool, cache});
  }
  ~ThreadEnd() {
    thread_ended = true;  // other thread_local objects that end later use the shared cache
    for (SmallBlockPool::Slot& slot : SmallBlockPool::slots) slot = {};
    const std::lock_guard guard(registry().mutex);
    for (const Entry& entry : entries) {
      const auto found = registry().pools.find(entry.pool);
      if (found != registry().pools.end()) found->second->retire(entry.cache);
    }
  }
};

SmallBlockPool::SmallBlockPool(LargeBlockPool& pages, UseTotal& total, std::size_t threshold,
                               std::size_t thread_cache_bytes)
    : pages_(pages),
      total_(total),
      id_(last_id.fetch_add(1) + 1),
      secret_(random_bits()),
      thread_cache_bytes_(thread_cache_bytes),
      n_classes_(class_of(threshold) + 1),
      span_table_((pages.n_pages() / span_pages(0) + kSpansInFlight) * sizeof(Span)),
      spans_(static_cast<Span*>(span_table_.data())) {
  const std::lock_guard guard(registry().mutex);
  registry().pools.emplace(id_, this);
}

SmallBlockPool::~SmallBlockPool() {
  {
    const std::lock_guard guard(registry().mutex);
    registry().pools.erase(id_);
  }
  for (unsigned c = 0; c < n_classes_; ++c) {
    if (is_shared(c)) delete[] shared_of(c).batches;
  }
}

/// Under caches_mutex_.
ThreadCache* SmallBlockPool::take_cache() {
  const auto unused = std::find_if(caches_.begin(), caches_.end(), [](const auto& c) { return !c->in_use; });
  if (unused == caches_.end()) return caches_.emplace_back(std::make_unique<ThreadCache>()).get();
  (*unused)->in_use = true;
  return unused->get();
}

ThreadCache* SmallBlockPool::find_cache() noexcept {
  if (thread_ended) return nullptr;
  thread_local ThreadEnd mine;
  ThreadCache* cache = mine.find(id_);
  if (cache == nullptr) {
    try {
      {
        const std::lock_guard guard(caches_mutex_);
        cache = take_cache();
      }
      cache->flush_epoch = flush_epoch_.load(std::memory_order_relaxed);
      mine.add(id_, cache);  // if this throws, the pool keeps an empty cache that nobody uses
    } catch (const std::bad_alloc&) {
      return nullptr;
    }
  }
  slots[id_ % kSlots] = {id_, cache};
  return cache;
}

void SmallBlockPool::retire(ThreadCache* cache) noexcept {
  flush(*cache);
  total_.add(std::exchange(cache->unpublished, 0));
  const std::lock_guard guard(caches_mutex_);
  cache->in_use = false;
}

void SmallBlockPool::count_damaged(const FreeBlock* block) noexcept {
  const void* none = nullptr;
  first_damaged_.compare_exchange_strong(none, block, std::memory_order_relaxed);
  damaged_.fetch_add(1, std::memory_order_relaxed);
}

void SmallBlockPool::drop_damaged(Bin& bin) {
  const FreeBlock* block = bin.head;
  count_damaged(block);
  bin.head = nullptr;  // where its links lead nobody knows: the list is lost, the pool goes on
  bin.count = 0;
  throw Error(ErrorCode::kInternal,
              fmt::format("a free block at {} was written to: its header is {:#x}, expected {:#x}",
                          static_cast<const void*>(block), mark_of(block), mark_for(block, next_of(block))));
}

void* SmallBlockPool::block_at(const void* p, std::size_t& bytes) const noexcept {
  const Span& span = span_of(p);
  bytes = kClasses[span.size_class].bytes;
  return pages_.address(span.first_page) + offset_in(span, p) / bytes * bytes;
}

bool SmallBlockPool::make_bin(ThreadCache& cache, unsigned size_class) noexcept {
  const std::lock_guard guard(caches_mutex_);
  if (!cache.has(size_class) && !cache.add(size_class)) return false;
  if (is_shared(size_class)) return true;
  const unsigned place = n_shared_;
  auto& lists = shared_lists_[place / kSharedAtOnce];
  if (lists == nullptr) lists.reset(new (std::nothrow) Shared[kSharedAtOnce]);
  if (lists == nullptr) return false;
  ++n_shared_;
  shared_places_[size_class].store(static_cast<std::uint8_t>(place + 1), std::memory_order_release);
  return true;
}

bool SmallBlockPool::refill(ThreadCache& cache, unsigned size_class, Outcome& outcome) noexcept {
  if (cache.flush_epoch != flush_epoch_.load(std::memory_order_relaxed)) flush(cache);
  if (!(cache.has(size_class) && is_shared(size_class)) && !make_bin(cache, size_class)) {
    outcome.why = Refusal::kSystem;
    return false;
  }
  Bin& bin = cache.bin(size_class);
  if (bin.spare != nullptr) {
    bin.head = std::exchange(bin.spare, nullptr);
    bin.count = bin.batch;
    cache.spare_bytes -= std::size_t{bin.batch} * bytes_of(size_class);
    return true;
  }
  Shared& shared = shared_of(size_class);
  const std::lock_guard guard(shared.lock);
  if (shared.n_batches != 0) {
    bin.head = shared.batches[--shared.n_batches];
    bin.count = bin.batch;
    return true;
  }
  bin.count = bin.batch;
  bin.head = take_from_spans(shared, size_class, bin.count, outcome);
  return bin.head != nullptr;
}

bool SmallBlockPool::make_room(ThreadCache& cache, unsigned size_class) noexcept {
  if (!cache.has(size_class)) return make_bin(cache, size_class);
  if (cache.flush_epoch != flush_epoch_.load(std::memory_order_relaxed)) {
    flush(cache);
    return true;
  }
  Bin& bin = cache.bin(size_class);
  const std::size_t bytes = std::size_t{bin.batch} * bytes_of(size_class);
  FreeBlock* full = std::exchange(bin.head, nullptr);
  bin.count = 0;
  if (bin.spare == nullptr && cache.spare_bytes + bytes <= thread_cache_bytes_) {
    bin.spare = full;
    cache.spare_bytes += bytes;
    return true;
  }
  Shared& shared = shared_of(size_class);
  const std::lock_guard guard(shared.lock);
  give_batch(shared, full);
  return true;
}

void SmallBlockPool::free_without_bin(void* p, unsigned size_class) noexcept {
  auto* block = static_cast<FreeBlock*>(p);
  set_free(block, nullptr, mark_for(block, nullptr));
  poison(block, bytes_of(size_class));
  other_frees_.fetch_add(1, std::memory_order_relaxed);
  other_bytes_.fetch_add(bytes_of(size_class), std::memory_order_relaxed);
  Shared& shared = shared_of(size_class);
  const std::lock_guard guard(shared.lock);
  return_to_spans(shared, block);
}

void SmallBlockPool::flush(ThreadCache& cache) noexcept {
  cache.flush_epoch = flush_epoch_.load(std::memory_order_relaxed);
  for (unsigned c = 0; c < n_classes_; ++c) {
    Bin& bin = cache.bin(c);
    if (bin.head == nullptr && bin.spare == nullptr) continue;
    Shared& shared = shared_of(c);
    const std::lock_guard guard(shared.lock);
    return_to_spans(shared, std::exchange(bin.head, nullptr));
    return_to_spans(shared, std::exchange(bin.spare, nullptr));
    bin.count = 0;
  }
  cache.spare_bytes = 0;
}

void SmallBlockPool::reclaim(bool now) noexcept {
  using namespace std::chrono;
  const std::int64_t time = duration_cast<milliseconds>(steady_clock::now().time_since_epoch()).count();
  if (now || time - last_asked_.load(std::memory_order_relaxed) >= kAskEvery) {
    last_asked_.store(time, std::memory_order_relaxed);
    flush_epoch_.fetch_add(1, std::memory_order_relaxed);
  }
  if (ThreadCache* mine = cache()) flush(*mine);
  with_shared_cache([&](ThreadCache& shared) { flush(shared); });
  for (unsigned c = 0; c < n_classes_; ++c) {
    if (!is_shared(c)) continue;
    Shared& shared = shared_of(c);
    const std::lock_guard guard(shared.lock);
    while (shared.n_batches != 0) return_to_spans(shared, shared.batches[--shared.n_batches]);
    if (shared.empty != 0) drop_span(shared, std::exchange(shared.empty, 0));
  }
}

Span* SmallBlockPool::new_span(Shared& shared, unsigned size_class, Outcome& outcome) noexcept {
  std::uint32_t number = 0;
  {
    const std::lock_guard guard(spans_lock_);
    number = free_spans_;
    if (number != 0) {
      free_spans_ = spans_[number].next;
    } else {
      number = n_spans_.fetch_add(1, std::memory_order_relaxed);
    }
  }
  Span* span = &spans_[number];
  const std::uint32_t pages = span_pages(size_class, shared.n_spans);
  span->first_page = pages_.allocate(pages, PageKind::kSpan, number, outcome);
  if (span->first_page == LargeBlockPool::kNone) {
    const std::lock_guard guard(spans_lock_);
    span->next = free_spans_;
    free_spans_ = number;
    return nullptr;
  }
  if (shared.n_spans < kSmallSpans) ++shared.n_spans;
  span->pages = static_cast<std::uint16_t>(pages);
  span->size_class = static_cast<std::uint8_t>(size_class);
  span->blocks = static_cast<std::uint16_t>(pages * kPageBytes / bytes_of(size_class));
  span->carved.store(0, std::memory_order_relaxed);
  span->out = 0;
  span->free = nullptr;
  span->next = span->previous = 0;
  return span;
}

void SmallBlockPool::drop_span(Shared& shared, std::uint32_t number) noexcept {
  Span& span = spans_[number];
  const std::uint32_t full = span_pages(span.size_class);
  if (span.pages < full && shared.n_spans > 0) --shared.n_spans;
  pages_.free_span(span.first_page, span.pages);
  const std::lock_guard guard(spans_lock_);
  span.next = free_spans_;
  free_spans_ = number;
}

void SmallBlockPool::link(Shared& shared, Span* span) noexcept {
  span->previous = 0;
  span->next = shared.partial;
  if (shared.partial != 0) spans_[shared.partial].previous = number_of(span);
  shared.partial = number_of(span);
}

void SmallBlockPool::unlink(Shared& shared, Span* span) noexcept {
  (span->previous == 0 ? shared.partial : spans_[span->previous].next) = span->next;
  if (span->next != 0) spans_[span->next].previous = span->previous;
}

FreeBlock* SmallBlockPool::take_one(Span& span, FreeBlock* list) noexcept {
  ++span.out;
  if (FreeBlock* block = span.free; block != nullptr) {
    FreeBlock* next = next_of(block);
    const bool damaged = mark_of(block) != mark_for(block, next);
    if (damaged) {
      next = nullptr;
      span.blocks = span.out;  // gives no more until all that are out are back
    }
    span.free = next;
    set_free(block, list, mark_for(block, list) + damaged);  // a wrong mark: allocate() reports it
    return block;
  }
  const std::uint16_t index = span.carved.load(std::memory_order_relaxed);
  span.carved.store(static_cast<std::uint16_t>(index + 1), std::memory_order_relaxed);
  auto* block = reinterpret_cast<FreeBlock*>(pages_.address(span.first_page) +
                                             std::size_t{index} * bytes_of(span.size_class));
  set_free(block, list, mark_for(block, list));
  return block;
}

FreeBlock* SmallBlockPool::take_from_spans(Shared& shared, unsigned size_class, std::uint32_t& count,
                                           Outcome& outcome) noexcept {
  FreeBlock* list = nullptr;
  std::uint32_t taken = 0;
  while (taken < count) {
    Span* span = shared.partial == 0 ? nullptr : &spans_[shared.partial];
    if (span == nullptr) {
      if (const std::uint32_t empty = std::exchange(shared.empty, 0)) span = &spans_[empty];
      if (span == nullptr && taken == 0) span = new_span(shared, size_class, outcome);
      if (span == nullptr) break;
      link(shared, span);
    }
    while (taken < count && span->out < span->blocks) {
      list = take_one(*span, list);
      ++taken;
    }
    if (span->out == span->blocks) unlink(shared, span);
  }
  count = taken;
  return list;
}

void SmallBlockPool::give_batch(Shared& shared, FreeBlock* batch) noexcept {
  if (shared.batches == nullptr) shared.batches = new (std::nothrow) FreeBlock*[kMaxBatches];
  if (shared.batches != nullptr && shared.n_batches < kMaxBatches) {
    shared.batches[shared.n_batches++] = batch;
  } else {
    return_to_spans(shared, batch);
  }
}

void SmallBlockPool::return_to_spans(Shared& shared, FreeBlock* list) noexcept {
  while (list != nullptr) {
    FreeBlock* block = list;
    list = next_of(block);
    if (mark_of(block) != mark_for(block, list)) return count_damaged(block);  // the rest is lost
    Span& span = span_of(block);
    set_free(block, span.free, mark_for(block, span.free));
    span.free = block;
    if (span.out-- == span.blocks) link(shared, &span);
    if (span.out != 0) continue;
    unlink(shared, &span);
    if (shared.empty == 0) {
      shared.empty = number_of(&span);
    } else {
      drop_span(shared, number_of(&span));
    }
  }
}

void SmallBlockPool::reset() noexcept {
  const auto clear = [](ThreadCache& cache) {
    for (unsigned i = 1; i < cache.n_bins; ++i) {
      Bin& bin = cache.bins[i];
      bin.head = bin.spare = nullptr;
      bin.count = 0;
      bin.frees.set(bin.allocations.get());
    }
    cache.spare_bytes = 0;
    cache.unpublished = 0;
  };
  const std::lock_guard guard(caches_mutex_);
  for (const auto& cache : caches_) clear(*cache);
  clear(shared_);
  other_frees_ = other_bytes_ = 0;
  for (unsigned c = 0; c < n_classes_; ++c) {
    if (!is_shared(c)) continue;
    Shared& shared = shared_of(c);
    shared.n_batches = 0;
    shared.n_spans = 0;
    shared.partial = shared.empty = 0;
  }
  span_table_.clear();
  free_spans_ = 0;
  n_spans_.store(1, std::memory_order_relaxed);
}

SmallBlockPool::Counts SmallBlockPool::counts() const {
  Counts sum;
  sum.allocations.resize(n_classes_);
  sum.frees.resize(n_classes_);
  const auto add = [&](const ThreadCache& cache) {
    for (unsigned c = 0; c < n_classes_; ++c) {
      if (!cache.has(c)) continue;
      const Bin& bin = cache.bins[cache.place[c]];
      sum.frees[c] += bin.frees.get();
      sum.allocations[c] += bin.allocations.get();
    }
    sum.asked += cache.asked.get();
  };
  const std::lock_guard guard(caches_mutex_);
  for (const auto& cache : caches_) add(*cache);
  add(shared_);
  sum.other_frees = other_frees_.load(std::memory_order_relaxed);
  sum.other_bytes = other_bytes_.load(std::memory_order_relaxed);
  return sum;
}

std::size_t SmallBlockPool::table_bytes() const noexcept {
  const std::lock_guard guard(caches_mutex_);
  std::size_t bytes = sizeof shared_places_ + sizeof shared_lists_ + shared_.table_bytes() +
                      n_spans_.load(std::memory_order_relaxed) * sizeof(Span);
  for (const auto& cache : caches_) bytes += cache->table_bytes();
  for (const auto& lists : shared_lists_) bytes += lists == nullptr ? 0 : kSharedAtOnce * sizeof(Shared);
  for (unsigned c = 0; c < n_classes_; ++c) {
    if (!is_shared(c)) continue;
    Shared& shared = shared_of(c);
    const std::lock_guard shared_guard(shared.lock);
    if (shared.batches != nullptr) bytes += kMaxBatches * sizeof(FreeBlock*);
  }
  return bytes;
}

}  // namespace bitnet::memory
