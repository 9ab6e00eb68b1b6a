// Random allocations and frees of a memory pool for as long as asked, on some threads that pass blocks to
// each other. Every block's ends are stamped and checked. Ends with nothing held, or with status 1:
//   bitnet_pool_soak [operations] [threads] [seed] [none|basic|standard|detailed] [large_cache_bytes]
// 10^8 operations take a few seconds of a release build; ctest runs 10^6 of them.
#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "bitnet/core/error.hpp"
#include "bitnet/core/memory/hybrid_memory_pool.hpp"

namespace {

using bitnet::HybridMemoryPool;

constexpr std::size_t kSlots = 2048, kMailboxes = 64;

/// The first bytes of every block; the last is stamped too.
struct Stamp {
  std::uint64_t address, bytes;
};

std::atomic<bool> failed{false};
std::array<std::atomic<void*>, kMailboxes> mailboxes{};

/// xorshift64*, Vigna 2016.
struct Random {
  std::uint64_t state;
  std::uint64_t next() {
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return state * 0x2545f4914f6cdd1d;
  }
  std::size_t below(std::size_t n) { return static_cast<std::size_t>(next() >> 33) % n; }
};

/// Of 1000 blocks 750 have up to 512 bytes, 230 up to 16 KiB, 19 up to 256 KiB and one up to 4 MiB.
std::size_t random_size(Random& random) {
  const std::size_t kind = random.below(1000);
  const std::size_t most = kind < 750 ? 512 : kind < 980 ? 16 << 10 : kind < 999 ? 256 << 10 : 4 << 20;
  return sizeof(Stamp) + 1 + random.below(most - sizeof(Stamp));
}

void* allocate(HybridMemoryPool& pool, Random& random) {
  const std::size_t bytes = random_size(random);
  auto* p = static_cast<unsigned char*>(pool.allocate(bytes));
  const Stamp stamp{reinterpret_cast<std::uintptr_t>(p), bytes};
  std::memcpy(p, &stamp, sizeof stamp);
  p[bytes - 1] = static_cast<unsigned char>(bytes);
  return p;
}

void free(HybridMemoryPool& pool, void* block) {
  Stamp stamp;
  std::memcpy(&stamp, block, sizeof stamp);
  const auto* p = static_cast<const unsigned char*>(block);
  if (stamp.address != reinterpret_cast<std::uintptr_t>(block) ||
      p[stamp.bytes - 1] != static_cast<unsigned char>(stamp.bytes)) {
    failed = true;
    throw bitnet::Error(bitnet::ErrorCode::kInternal, "a block does not hold what was written");
  }
  pool.deallocate(block);
}

void work(HybridMemoryPool& pool, std::uint64_t operations, std::uint64_t seed) {
  Random random{seed * 0x9e3779b97f4a7c15 + 1};
  std::vector<void*> slots(kSlots);
  for (std::uint64_t i = 0; i < operations; ++i) {
    void*& slot = slots[random.below(kSlots)];
    if (slot == nullptr) {
      slot = allocate(pool, random);
    } else {
      free(pool, slot);
      slot = nullptr;
    }
    // What another thread has left, in exchange.
    if (i % 16 == 0) slot = mailboxes[random.below(kMailboxes)].exchange(slot);
  }
  for (void* block : slots) {
    if (block != nullptr) free(pool, block);
  }
}

int run(std::uint64_t operations, std::uint64_t threads, std::uint64_t seed, std::string_view level,
        std::uint64_t large_cache_bytes) {
  bitnet::MemoryPoolOptions options;
  options.name = "soak";
  options.tracking = bitnet::parse_tracking_level(level);
  options.large_cache_bytes = large_cache_bytes;
  HybridMemoryPool pool(options);
  const auto begin = std::chrono::steady_clock::now();
  std::vector<std::thread> workers;
  for (std::uint64_t t = 0; t < threads; ++t) {
    workers.emplace_back([&, t] {
      try {
        work(pool, operations / threads, seed + t);
      } catch (const bitnet::Error& e) {
        failed = true;
        std::fprintf(stderr, "%s\n", e.what());
      }
    });
  }
  for (std::thread& worker : workers) worker.join();
  for (auto& mailbox : mailboxes) {
    if (void* block = mailbox.exchange(nullptr)) free(pool, block);
  }
  const std::chrono::duration<double> time = std::chrono::steady_clock::now() - begin;
  const bitnet::TrimReport trimmed = pool.trim();
  const bitnet::MemoryStats stats = pool.stats();
  std::printf(
      "%llu allocations, %llu frees in %.2f s on %llu threads; peak %zu bytes used, %zu held; %zu returned; "
      "at the end %zu used, %zu held\n",
      static_cast<unsigned long long>(stats.allocations), static_cast<unsigned long long>(stats.frees),
      time.count(), static_cast<unsigned long long>(threads), stats.peak_used, stats.peak_held,
      trimmed.returned, stats.used, stats.held);
  return !failed && stats.used == 0 && stats.held == 0 && stats.allocations == stats.frees ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const auto number = [&](int i, std::uint64_t otherwise) {
      return argc > i ? std::stoull(argv[i]) : otherwise;
    };
    return run(number(1, 1000000), number(2, 2), number(3, 1), argc > 4 ? argv[4] : "basic",
               number(5, bitnet::MemoryPoolOptions{}.large_cache_bytes));
  } catch (const std::exception& e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 2;
  }
}
