// The shared side of small blocks: spans, batches, and which cache belongs to which thread.
#include "small_block_pool.hpp"

#include <fmt/format.h>

#include <algorithm>
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

Registry& registry() {
  static Registry& made = *new Registry;  // never destroyed: threads may end after static objects
  return made;
}

std::atomic<std::uint64_t> last_id{0};

/// Threads that may at once have taken a span's number and found no pages for it.
constexpr std::size_t kSpansInFlight = 4096;

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
      spans_(static_cast<Span*>(span_table_.data())),
      shared_lists_(std::make_unique<Shared[]>(n_classes_)),
      shared_(n_classes_),
      retired_(n_classes_) {
  for (unsigned c = 0; c < kMaxClasses; ++c) class_bytes_[c] = static_cast<std::uint32_t>(class_bytes(c));
  const std::lock_guard guard(registry().mutex);
  registry().pools.emplace(id_, this);
}

SmallBlockPool::~SmallBlockPool() {
  const std::lock_guard guard(registry().mutex);
  registry().pools.erase(id_);
}

ThreadCache* SmallBlockPool::find_cache() noexcept {
  if (thread_ended) return nullptr;
  thread_local ThreadEnd mine;
  ThreadCache* cache = mine.find(id_);
  if (cache == nullptr) {
    try {
      auto made = std::make_unique<ThreadCache>(n_classes_);
      cache = made.get();
      cache->flush_epoch = flush_epoch_.load(std::memory_order_relaxed);
      {
        const std::lock_guard guard(caches_mutex_);
        caches_.push_back(std::move(made));
      }
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
  total_.add(cache->unpublished);
  const std::lock_guard guard(caches_mutex_);
  for (unsigned c = 0; c < n_classes_; ++c) {
    retired_.bins[c].allocations.add(cache->bins[c].allocations.get());
    retired_.bins[c].frees.add(cache->bins[c].frees.get());
  }
  retired_.asked.add(cache->asked.get());
  std::erase_if(caches_, [&](const auto& c) { return c.get() == cache; });
}

void SmallBlockPool::drop_damaged(Bin& bin, FreeBlock* block) {
  bin.head = nullptr;  // where its links lead nobody knows: the list is lost, the pool goes on
  bin.count = 0;
  throw Error(ErrorCode::kInternal,
              fmt::format("a free block at {} was written to: its header is {:#x}, expected {:#x}",
                          static_cast<const void*>(block), mark_of(block), mark_for(block, next_of(block))));
}

void* SmallBlockPool::block_at(const void* p, std::size_t& bytes) const noexcept {
  const Span& span = span_of(p);
  bytes = class_bytes_[span.size_class];
  return pages_.address(span.first_page) + offset_in(span, p) / bytes * bytes;
}

bool SmallBlockPool::refill(ThreadCache& cache, unsigned size_class, Outcome& outcome) noexcept {
  if (cache.flush_epoch != flush_epoch_.load(std::memory_order_relaxed)) flush(cache);
  Bin& bin = cache.bins[size_class];
  if (bin.spare != nullptr) {
    bin.head = std::exchange(bin.spare, nullptr);
    bin.count = bin.batch;
    cache.spare_bytes -= std::size_t{bin.batch} * class_bytes_[size_class];
    return true;
  }
  Shared& shared = shared_lists_[size_class];
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

void SmallBlockPool::make_room(ThreadCache& cache, unsigned size_class) noexcept {
  if (cache.flush_epoch != flush_epoch_.load(std::memory_order_relaxed)) {
    flush(cache);
    return;
  }
  Bin& bin = cache.bins[size_class];
  const std::size_t bytes = std::size_t{bin.batch} * class_bytes_[size_class];
  FreeBlock* full = std::exchange(bin.head, nullptr);
  bin.count = 0;
  if (bin.spare == nullptr && cache.spare_bytes + bytes <= thread_cache_bytes_) {
    bin.spare = full;
    cache.spare_bytes += bytes;
    return;
  }
  Shared& shared = shared_lists_[size_class];
  const std::lock_guard guard(shared.lock);
  give_batch(shared, full);
}

void SmallBlockPool::flush(ThreadCache& cache) noexcept {
  cache.flush_epoch = flush_epoch_.load(std::memory_order_relaxed);
  for (unsigned c = 0; c < n_classes_; ++c) {
    Bin& bin = cache.bins[c];
    if (bin.head == nullptr && bin.spare == nullptr) continue;
    Shared& shared = shared_lists_[c];
    const std::lock_guard guard(shared.lock);
    return_to_spans(shared, std::exchange(bin.head, nullptr));
    return_to_spans(shared, std::exchange(bin.spare, nullptr));
    bin.count = 0;
  }
  cache.spare_bytes = 0;
}

void SmallBlockPool::reclaim() noexcept {
  flush_epoch_.fetch_add(1, std::memory_order_relaxed);
  if (ThreadCache* mine = cache()) flush(*mine);
  with_shared_cache([&](ThreadCache& shared) { flush(shared); });
  for (unsigned c = 0; c < n_classes_; ++c) {
    Shared& shared = shared_lists_[c];
    const std::lock_guard guard(shared.lock);
    while (shared.n_batches != 0) return_to_spans(shared, shared.batches[--shared.n_batches]);
    if (shared.empty != nullptr) drop_span(std::exchange(shared.empty, nullptr));
  }
}

Span* SmallBlockPool::new_span(unsigned size_class, Outcome& outcome) noexcept {
  Span* span = nullptr;
  {
    const std::lock_guard guard(spans_lock_);
    if (free_spans_ != nullptr) {
      span = free_spans_;
      free_spans_ = span->next;
    } else {
      span = &spans_[n_spans_.fetch_add(1, std::memory_order_relaxed)];
    }
  }
  const std::uint32_t pages = span_pages(size_class);
  const std::size_t size = class_bytes_[size_class];
  span->first_page =
      pages_.allocate(pages, PageKind::kSpan, static_cast<std::uint32_t>(span - spans_), outcome);
  if (span->first_page == LargeBlockPool::kNone) {
    const std::lock_guard guard(spans_lock_);
    span->next = free_spans_;
    free_spans_ = span;
    return nullptr;
  }
  span->pages = pages;
  span->size_class = size_class;
  span->blocks = static_cast<std::uint32_t>(pages * kPageBytes / size);
  span->inverse = static_cast<std::uint32_t>((std::uint64_t{1} << 32) / size + 1);
  span->carved.store(0, std::memory_order_relaxed);
  span->out = 0;
  span->free = nullptr;
  span->next = span->previous = nullptr;
  return span;
}

void SmallBlockPool::drop_span(Span* span) noexcept {
  pages_.free_span(span->first_page, span->pages);
  const std::lock_guard guard(spans_lock_);
  span->next = free_spans_;
  free_spans_ = span;
}

void SmallBlockPool::link(Shared& shared, Span* span) noexcept {
  span->previous = nullptr;
  span->next = shared.partial;
  if (shared.partial != nullptr) shared.partial->previous = span;
  shared.partial = span;
}

void SmallBlockPool::unlink(Shared& shared, Span* span) noexcept {
  (span->previous == nullptr ? shared.partial : span->previous->next) = span->next;
  if (span->next != nullptr) span->next->previous = span->previous;
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
  const std::uint32_t index = span.carved.load(std::memory_order_relaxed);
  span.carved.store(index + 1, std::memory_order_relaxed);
  auto* block = reinterpret_cast<FreeBlock*>(pages_.address(span.first_page) +
                                             std::size_t{index} * class_bytes_[span.size_class]);
  set_free(block, list, mark_for(block, list));
  return block;
}

FreeBlock* SmallBlockPool::take_from_spans(Shared& shared, unsigned size_class, std::uint32_t& count,
                                           Outcome& outcome) noexcept {
  FreeBlock* list = nullptr;
  std::uint32_t taken = 0;
  while (taken < count) {
    Span* span = shared.partial;
    if (span == nullptr) {
      span = std::exchange(shared.empty, nullptr);
      if (span == nullptr && taken == 0) span = new_span(size_class, outcome);
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
  if (shared.n_batches < kMaxBatches) {
    shared.batches[shared.n_batches++] = batch;
  } else {
    return_to_spans(shared, batch);
  }
}

void SmallBlockPool::return_to_spans(Shared& shared, FreeBlock* list) noexcept {
  while (list != nullptr) {
    FreeBlock* block = list;
    list = next_of(block);
    if (mark_of(block) != mark_for(block, list)) return;  // damaged: where the rest is nobody knows
    Span& span = span_of(block);
    set_free(block, span.free, mark_for(block, span.free));
    span.free = block;
    if (span.out-- == span.blocks) link(shared, &span);
    if (span.out != 0) continue;
    unlink(shared, &span);
    if (shared.empty == nullptr) {
      shared.empty = &span;
    } else {
      drop_span(&span);
    }
  }
}

void SmallBlockPool::reset() noexcept {
  const auto clear = [this](ThreadCache& cache) {
    for (unsigned c = 0; c < n_classes_; ++c) {
      Bin& bin = cache.bins[c];
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
  clear(retired_);
  for (unsigned c = 0; c < n_classes_; ++c) {
    Shared& shared = shared_lists_[c];
    shared.n_batches = 0;
    shared.partial = shared.empty = nullptr;
  }
  span_table_.clear();
  free_spans_ = nullptr;
  n_spans_.store(0, std::memory_order_relaxed);
}

SmallBlockPool::Counts SmallBlockPool::counts() const {
  Counts sum;
  sum.allocations.resize(n_classes_);
  sum.frees.resize(n_classes_);
  const auto add = [&](const ThreadCache& cache) {
    for (unsigned c = 0; c < n_classes_; ++c) {
      sum.allocations[c] += cache.bins[c].allocations.get();
      sum.frees[c] += cache.bins[c].frees.get();
    }
    sum.asked += cache.asked.get();
  };
  const std::lock_guard guard(caches_mutex_);
  for (const auto& cache : caches_) add(*cache);
  add(shared_);
  add(retired_);
  sum.caches = caches_.size();
  return sum;
}

std::size_t SmallBlockPool::table_bytes() const noexcept {
  const std::lock_guard guard(caches_mutex_);
  return n_spans_.load(std::memory_order_relaxed) * sizeof(Span) +
         (caches_.size() + 2) * (sizeof(ThreadCache) + n_classes_ * sizeof(Bin)) +
         n_classes_ * sizeof(Shared);
}

}  // namespace bitnet::memory
