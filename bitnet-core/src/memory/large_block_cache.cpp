// Shards and the depot. Locks nest in the order shard, bucket, page pool.
#include "large_block_cache.hpp"

#include <algorithm>
#include <mutex>
#include <new>
#include <thread>
#include <utility>

namespace bitnet::memory {
namespace {

constexpr std::uint32_t kNone = LargeBlockPool::kNone;
constexpr std::uint32_t kMostAtOnce = 8;  // blocks between a shard and the depot
constexpr unsigned kSearched = 16;        // blocks of a bucket looked at for one size
// Of larger blocks, of which fewer would fit, nearly every one would push another out of the depot, which
// costs more than joining it with its buddies.
constexpr std::size_t kLeastInDepot = 4;

/// Threads are numbered as they come.
std::atomic<unsigned> n_threads{0};
constinit thread_local unsigned thread_number = 0;  // 0: not yet

}  // namespace

LargeBlockCache::LargeBlockCache(LargeBlockPool& pages, UseTotal* total, std::size_t bytes,
                                 std::size_t release_from) noexcept
    : pages_(pages),
      total_(total),
      shard_pages_(bytes / 2 / kShards / kPageBytes),
      depot_pages_(bytes / 2 / kPageBytes),
      longest_(depot_pages_ / kLeastInDepot),
      release_from_(release_from) {
  shards_[0].store(&first_, std::memory_order_relaxed);
}

LargeBlockCache::~LargeBlockCache() {
  for (unsigned i = 1; i < kShards; ++i) delete shards_[i].load(std::memory_order_relaxed);
}

LargeBlockCache::Shard& LargeBlockCache::shard() noexcept {
  if (thread_number == 0) [[unlikely]]
    thread_number = n_threads.fetch_add(1, std::memory_order_relaxed) + 1;
  std::atomic<Shard*>& place = shards_[(thread_number - 1) % kShards];
  Shard* found = place.load(std::memory_order_acquire);
  if (found != nullptr) [[likely]]
    return *found;
  auto* made = new (std::nothrow) Shard;
  if (made == nullptr) return first_;
  if (place.compare_exchange_strong(found, made, std::memory_order_acq_rel)) return *made;
  delete made;
  return *found;
}

LargeBlockCache::Bucket& LargeBlockCache::bucket_of(std::uint32_t pages) noexcept {
  return buckets_[pages * 0x9e3779b1u >> 29];
}

std::uint32_t LargeBlockCache::batch_of(std::uint32_t pages) const noexcept {
  return static_cast<std::uint32_t>(std::min<std::size_t>(kMostAtOnce, shard_pages_ / 2 / pages));
}

template <class Body>
void LargeBlockCache::for_each_shard(Body&& body) const {
  for (const auto& place : shards_) {
    if (Shard* shard = place.load(std::memory_order_acquire)) body(*shard);
  }
}

std::uint32_t LargeBlockCache::take(Shard& shard, std::uint32_t pages) noexcept {
  auto& blocks = shard.blocks;
  for (std::uint32_t i = shard.count; i-- > 0;) {
    if (blocks[i].pages != pages) continue;
    const std::uint32_t page = blocks[i].page;
    std::copy(blocks.begin() + i + 1, blocks.begin() + shard.count, blocks.begin() + i);
    --shard.count;
    shard.waiting.set(shard.waiting.get() - pages);
    return page;
  }
  return kNone;
}

void LargeBlockCache::put(Shard& shard, std::uint32_t page, std::uint32_t pages) noexcept {
  if (shard.count == kBlocks) evict(shard, kBlocks / 2);
  while (shard.count > 0 && shard.waiting.get() + pages > shard_pages_)
    evict(shard, std::max(1u, shard.count / 2));
  shard.blocks[shard.count++] = {page, pages};
  shard.waiting.add(pages);
}

void LargeBlockCache::evict(Shard& shard, std::uint32_t n) noexcept {
  auto& blocks = shard.blocks;
  moving_.fetch_add(1, std::memory_order_relaxed);
  for (std::uint32_t i = 0; i < n;) {  // runs of one size as one list
    const Block first = blocks[i];
    std::uint32_t last = first.page;
    std::size_t sum = first.pages;
    for (++i; i < n && blocks[i].pages == first.pages; ++i) {
      pages_.next_cached(last) = blocks[i].page;
      last = blocks[i].page;
      sum += first.pages;
    }
    shard.waiting.set(shard.waiting.get() - sum);
    put_into_depot(first.page, last, sum);
  }
  moving_.fetch_sub(1, std::memory_order_release);
  std::copy(blocks.begin() + n, blocks.begin() + shard.count, blocks.begin());
  shard.count -= n;
}

std::uint32_t LargeBlockCache::take_list(Bucket& bucket) noexcept {
  std::uint32_t first = kNone;
  {
    const std::lock_guard guard(bucket.lock);
    first = std::exchange(bucket.first, kNone);
  }
  std::size_t sum = 0;
  for (std::uint32_t page = first; page != kNone; page = pages_.next_cached(page)) sum += pages_of(page);
  in_depot_.fetch_sub(sum, std::memory_order_relaxed);
  return first;
}

template <class Take>
void LargeBlockCache::give_back(Take&& take) noexcept {
  moving_.fetch_add(1, std::memory_order_relaxed);
  pages_.free_list(take());
  moving_.fetch_sub(1, std::memory_order_release);
}

bool LargeBlockCache::make_room(std::size_t n_pages) noexcept {
  for (unsigned tries = 0; tries < kBuckets; ++tries) {
    if (in_depot_.load(std::memory_order_relaxed) + n_pages <= depot_pages_) return true;
    Bucket& bucket = buckets_[evicted_.fetch_add(1, std::memory_order_relaxed) % kBuckets];
    give_back([&] { return take_list(bucket); });
  }
  return in_depot_.load(std::memory_order_relaxed) + n_pages <= depot_pages_;
}

void LargeBlockCache::put_into_depot(std::uint32_t first, std::uint32_t last, std::size_t n_pages) noexcept {
  pages_.next_cached(last) = kNone;
  if (n_pages > depot_pages_ || !make_room(n_pages)) {
    pages_.free_list(first);
    return;
  }
  in_depot_.fetch_add(n_pages, std::memory_order_relaxed);
  Bucket& bucket = bucket_of(pages_of(first));
  const std::lock_guard guard(bucket.lock);
  pages_.next_cached(last) = bucket.first;
  bucket.first = first;
}

std::uint32_t LargeBlockCache::take_from_depot(std::uint32_t pages, std::uint32_t most) noexcept {
  Bucket& bucket = bucket_of(pages);
  std::uint32_t list = kNone, n = 0;
  {
    const std::lock_guard guard(bucket.lock);
    std::uint32_t* link = &bucket.first;
    for (unsigned seen = 0; seen < kSearched && n < most && *link != kNone; ++seen) {
      const std::uint32_t page = *link;
      if (pages_of(page) != pages) {
        link = &pages_.next_cached(page);
        continue;
      }
      *link = pages_.next_cached(page);
      pages_.next_cached(page) = list;
      list = page;
      ++n;
    }
  }
  if (n > 0) in_depot_.fetch_sub(std::size_t{n} * pages, std::memory_order_relaxed);
  return list;
}

std::uint32_t LargeBlockCache::allocate(std::uint32_t pages, std::size_t asked, Outcome& outcome) noexcept {
  Shard& mine = shard();
  std::unique_lock guard(mine.lock);
  std::uint32_t page = take(mine, pages);
  if (page == kNone && pages <= longest_) {
    page = take_from_depot(pages, std::max(1u, batch_of(pages)));
    while (page != kNone && pages_.next_cached(page) != kNone) {
      const std::uint32_t next = pages_.next_cached(page);
      put(mine, page, pages);
      page = next;
    }
  }
  if (page != kNone) {
    outcome.zero = false;
    pages_.open(page);
  } else {
    guard.unlock();
    page = pages_.allocate(pages, PageKind::kLarge, 0, outcome);
    if (page == kNone) return kNone;
    guard.lock();
  }
  const std::size_t bytes = std::size_t{pages} * kPageBytes;
  mine.allocations.add(1);
  mine.asked.add(asked);
  mine.given.add(bytes);
  guard.unlock();
  if (total_ != nullptr) total_->add(static_cast<std::int64_t>(bytes));
  return page;
}

bool LargeBlockCache::free(std::uint32_t page) noexcept {
  const std::uint32_t n = pages_.close(page);
  if (n == 0) return false;
  const std::size_t bytes = std::size_t{n} * kPageBytes;
  if (total_ != nullptr) total_->add(-static_cast<std::int64_t>(bytes));
  Shard& mine = shard();
  const bool waits = bytes < release_from_ && n <= longest_, in_shard = waits && batch_of(n) > 0;
  {
    const std::lock_guard guard(mine.lock);
    mine.frees.add(1);
    mine.freed.add(bytes);
    if (in_shard) put(mine, page, n);
  }
  if (waits && !in_shard) {
    moving_.fetch_add(1, std::memory_order_relaxed);
    put_into_depot(page, page, n);
    moving_.fetch_sub(1, std::memory_order_release);
  }
  if (!waits) pages_.free_large(page, bytes >= release_from_);
  return true;
}

bool LargeBlockCache::flush() noexcept {
  bool any = false;
  for_each_shard([&](Shard& shard) {
    std::uint32_t list = kNone;
    const std::lock_guard guard(shard.lock);
    for (std::uint32_t i = 0; i < shard.count; ++i)
      pages_.next_cached(shard.blocks[i].page) = std::exchange(list, shard.blocks[i].page);
    any = any || shard.count > 0;
    shard.count = 0;
    shard.waiting.set(0);  // first: meanwhile it is rather held than waiting
    pages_.free_list(list);
  });
  for (Bucket& bucket : buckets_) {
    give_back([&] {
      const std::uint32_t list = take_list(bucket);
      any = any || list != kNone;
      return list;
    });
  }
  // What others have taken off a list is free a moment later. Threads that never stop moving blocks are not
  // waited for: each pause lets the owner of a move finish it.
  constexpr int kPauses = 1000;
  for (int i = 0; i < kPauses && moving_.load(std::memory_order_acquire) > 0; ++i) {
    any = true;
    std::this_thread::yield();
  }
  return any || waiting() > 0;  // what moved from a shard to the depot or back behind our back
}

void LargeBlockCache::reset() noexcept {
  for_each_shard([](Shard& shard) {
    shard.count = 0;
    shard.waiting.set(0);
    shard.frees.set(shard.allocations.get());
    shard.freed.set(shard.given.get());
  });
  for (Bucket& bucket : buckets_) bucket.first = kNone;
  in_depot_.store(0, std::memory_order_relaxed);
}

std::size_t LargeBlockCache::waiting() const noexcept {
  std::size_t n_pages = in_depot_.load(std::memory_order_relaxed);
  for_each_shard([&](const Shard& shard) { n_pages += shard.waiting.get(); });
  return n_pages * kPageBytes;
}

std::size_t LargeBlockCache::largest_waiting() const noexcept {
  std::uint32_t most = 0;
  for_each_shard([&](Shard& shard) {
    const std::lock_guard guard(shard.lock);
    for (std::uint32_t i = 0; i < shard.count; ++i) most = std::max(most, shard.blocks[i].pages);
  });
  for (Bucket& bucket : buckets_) {
    const std::lock_guard guard(bucket.lock);
    std::uint32_t page = bucket.first;
    for (unsigned seen = 0; seen < kSearched && page != kNone; ++seen, page = pages_.next_cached(page))
      most = std::max(most, pages_of(page));
  }
  return std::size_t{most} * kPageBytes;
}

LargeBlockCache::Counts LargeBlockCache::counts() const noexcept {
  Counts sum;
  for_each_shard([&](const Shard& shard) {
    sum.frees += shard.frees.get();
    sum.freed += shard.freed.get();
    sum.allocations += shard.allocations.get();
    sum.asked += shard.asked.get();
    sum.given += shard.given.get();
  });
  return sum;
}

std::size_t LargeBlockCache::table_bytes() const noexcept {
  std::size_t shards = 0;
  for_each_shard([&](const Shard&) { ++shards; });
  return sizeof shards_ + sizeof buckets_ + shards * sizeof(Shard);
}

}  // namespace bitnet::memory
