// What the memory pool and contexts do where the system refuses: too few addresses (RLIMIT_AS), no writable
// pages (RLIMIT_DATA), and whether huge pages come where it grants them. Each limit is set in a child
// process, which must end with the status it is told to, and soon.
#include <gtest/gtest.h>

#include <pthread.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "bitnet/core/error.hpp"
#include "bitnet/core/execution.hpp"
#include "bitnet/core/log.hpp"
#include "bitnet/core/memory/hybrid_memory_pool.hpp"
#include "bitnet/core/memory/memory_handle.hpp"
#include "memory/address_range.hpp"

// Sanitizers keep shadows of all addresses, which such limits forbid.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define BITNET_SHADOWED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define BITNET_SHADOWED 1
#endif
#endif

#if !defined(BITNET_SHADOWED)
namespace {
/// Whether so many bytes may become writable; null: as the system says.
bool (*may_commit)(std::size_t bytes) = nullptr;
}  // namespace

extern "C" int mprotect(void* address, std::size_t bytes, int protection) noexcept {
  if (may_commit == nullptr || may_commit(bytes))
    return static_cast<int>(syscall(SYS_mprotect, address, bytes, protection));
  errno = ENOMEM;
  return -1;
}
#endif

namespace bitnet {
namespace {

constexpr std::size_t kMiB = std::size_t{1} << 20, kGiB = std::size_t{1} << 30;
constexpr int kFine = 0, kWrong = 1, kUnexpected = 2;
constexpr unsigned kSeconds = 60;  // longer is a hang

/// A number of kB in /proc/self/status, in bytes.
std::size_t status_bytes(const std::string& key) {
  std::ifstream file("/proc/self/status");
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with(key + ":")) return std::stoull(line.substr(key.size() + 1)) * 1024;
  }
  return 0;
}

void set_limit(decltype(RLIMIT_AS) what, std::size_t bytes) {
  rlimit limit{};
  if (getrlimit(what, &limit) != 0) _exit(kUnexpected);
  limit.rlim_cur = bytes;
  if (setrlimit(what, &limit) != 0) _exit(kUnexpected);
}

/// What body() returns in a child process, or 1000 + the signal that ended it.
template <class Body>
int in_child(Body&& body) {
  const pid_t child = fork();
  if (child == 0) {
    alarm(kSeconds);
    int result = kUnexpected;
    try {
      result = body();
    } catch (const std::exception& e) {
      std::fprintf(stderr, "unexpected: %s\n", e.what());
    }
    _exit(result);
  }
  int status = 0;
  if (child < 0 || waitpid(child, &status, 0) != child) return -1;
  return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
}

/// Whether body() throws Error(kOutOfMemory) with these words.
template <class Body>
bool refuses(std::string_view says, Body&& body) {
  try {
    body();
  } catch (const Error& e) {
    if (e.code() == ErrorCode::kOutOfMemory &&
        std::string_view(e.what()).find(says) != std::string_view::npos)
      return true;
    std::fprintf(stderr, "%s\n", e.what());
  }
  return false;
}

class Refusals : public testing::Test {
 protected:
  void SetUp() override {
#if defined(BITNET_SHADOWED)
    GTEST_SKIP() << "sanitizers need the addresses";
#endif
  }
};

TEST_F(Refusals, RangesTakeAQuarterOfTheAddressesAndSayWhenThatIsUsedUp) {
  EXPECT_EQ(kFine, in_child([] {
              set_limit(RLIMIT_AS, 4 * kGiB);
              const memory::AddressRange range(std::size_t{1} << 40, 64 * kMiB);
              if (range.bytes() != kGiB) return kWrong;
              HybridMemoryPool pool;
              std::vector<MemoryBlock> blocks;
              const bool refused = refuses("no piece of the address range is large enough", [&] {
                for (;;) blocks.emplace_back(pool, 32 * kMiB);
              });
              return refused && blocks.size() >= 16 ? kFine : kWrong;
            }));
}

TEST_F(Refusals, RangesLeaveAddressesToOthers) {
  EXPECT_EQ(kFine, in_child([] {
              set_limit(RLIMIT_AS, status_bytes("VmSize") + 300 * kMiB);
              const memory::AddressRange range(std::size_t{1} << 40, 4 * kMiB);
              if (range.bytes() > 128 * kMiB) return kWrong;
              std::thread([] {}).join();
              return kFine;
            }));
}

TEST_F(Refusals, TooFewAddressesAreAnError) {
  EXPECT_EQ(kFine, in_child([] {
              set_limit(RLIMIT_AS, status_bytes("VmSize") + 16 * kMiB);
              return refuses("addresses", [] { HybridMemoryPool pool; }) ? kFine : kWrong;
            }));
}

TEST_F(Refusals, PoolsThatTakeAllAddressesEndInAnError) {
  EXPECT_EQ(kFine, in_child([] {
              set_limit(RLIMIT_AS, 4 * kGiB);
              std::vector<std::unique_ptr<HybridMemoryPool>> pools;
              const bool refused = refuses("refuses", [&] {
                for (;;) pools.push_back(std::make_unique<HybridMemoryPool>());
              });
              return refused && pools.size() >= 4 ? kFine : kWrong;
            }));
}

TEST_F(Refusals, ContextsShareARangeAndWorkWithFewAddresses) {
  EXPECT_EQ(kFine, in_child([] {
              set_limit(RLIMIT_AS, 4 * kGiB);
              std::vector<std::unique_ptr<ExecutionContext>> contexts;
              ExecutionContext::Options options;
              options.threads = 4;
              for (int i = 0; i < 40; ++i) {
                contexts.push_back(std::make_unique<ExecutionContext>(options));
                const MemoryBlock block(*contexts.back()->memory(), 100000);
                std::atomic<int> sum{0};
                contexts.back()->parallel_for(100, 1, [&](std::size_t begin, std::size_t end) {
                  sum += static_cast<int>(end - begin);
                });
                if (sum != 100) return kWrong;
                if (contexts.back()->memory() != contexts.front()->memory()) return kWrong;
              }
              return kFine;
            }));
}

TEST_F(Refusals, FewAddressesAreTheCapacity) {
  EXPECT_EQ(kFine, in_child([] {
              set_limit(RLIMIT_AS, 4 * kGiB);
              const HybridMemoryPool pool;
              return pool.capacity() <= kGiB && pool.capacity() >= 64 * kMiB ? kFine : kWrong;
            }));
  MemoryPoolOptions options;
  options.limit = 5 * kMiB;
  EXPECT_EQ(HybridMemoryPool(options).capacity(), 5 * kMiB);
}

TEST_F(Refusals, AChildsDefaultPoolWorksWhateverItsParentWasDoing) {
  std::atomic<bool> done{false};
  std::vector<std::thread> busy;
  for (int i = 0; i < 2; ++i) {
    busy.emplace_back([&done, i] {
      HybridMemoryPool& pool = *default_memory_pool();
      while (!done) {
        const MemoryBlock small(pool, 100), middle(pool, 100000), large(pool, kMiB + 1);
        if (i == 0) pool.trim();
      }
    });
  }
  for (int round = 0; round < 50; ++round) {
    const HybridMemoryPool* const parents = default_memory_pool().get();
    const int ended = in_child([parents] {
      const auto& pool = default_memory_pool();
      const MemoryBlock small(*pool, 100), middle(*pool, 100000), large(*pool, kMiB + 1);
      return pool.get() != parents && pool == default_memory_pool() ? kFine : kWrong;
    });
    EXPECT_EQ(ended, kFine) << "round " << round;
    if (ended != kFine) break;
  }
  done = true;
  for (std::thread& t : busy) t.join();
}

TEST_F(Refusals, PagesThatMayNotBeWrittenAreAnErrorAndTheirBlockIsFreeAgain) {
  EXPECT_EQ(kFine, in_child([] {
              HybridMemoryPool pool;
              const MemoryBlock first(pool, 100);
              const std::size_t data = status_bytes("VmData");
              set_limit(RLIMIT_DATA, data + kMiB);
              for (int i = 0; i < 3; ++i) {
                if (pool.try_allocate(64 * kMiB) != nullptr) return kWrong;
                if (!refuses("the system refuses more", [&] { MemoryBlock(pool, 64 * kMiB); })) return kWrong;
              }
              if (pool.held() > kMiB || pool.stats().refusals != 6) return kWrong;
              set_limit(RLIMIT_DATA, data + 200 * kMiB);
              MemoryBlock block(pool, 64 * kMiB);
              std::memset(block.data(), 1, block.size());
              return kFine;
            }));
}

#if !defined(BITNET_SHADOWED)
HybridMemoryPool* refused_pool = nullptr;

TEST_F(Refusals, WhatAnotherThreadUsedBesideARefusedBlockIsNotTakenForZero) {
  MemoryPoolOptions options;
  options.check_blocks = false;
  HybridMemoryPool pool(options);
  refused_pool = &pool;
  may_commit = [](std::size_t bytes) {
    if (bytes < 24 * kMiB) return true;
    may_commit = [](std::size_t more) { return more < 24 * kMiB; };
    MemoryBlock other(*refused_pool, 8 * kMiB);  // as another thread might, meanwhile
    std::memset(other.data(), 0xab, other.size());
    return false;
  };
  EXPECT_EQ(pool.try_allocate(24 * kMiB), nullptr);
  may_commit = nullptr;
  const MemoryBlock first(pool, 2 * kMiB);
  auto* zeros = static_cast<const unsigned char*>(pool.allocate_zeroed(16 * kMiB));
  EXPECT_TRUE(std::all_of(zeros, zeros + 16 * kMiB, [](unsigned char c) { return c == 0; }));
  pool.deallocate(const_cast<unsigned char*>(zeros));
}
#endif

TEST_F(Refusals, ThreadsThatTheSystemRefusesAreDoneWithout) {
  for (const std::size_t threads : {2, 3, 64}) {  // a team, where there are two cores, and arenas
    EXPECT_EQ(kFine, in_child([&] {
                int n_warnings = 0;
                set_log_sink([&](LogLevel, std::string_view) { ++n_warnings; });
                ExecutionContext::Options options;
                options.threads = threads;
                const ExecutionContext context(options);
                static_cast<void>(context.memory());
                pthread_attr_t large;  // so that no stack of a thread that ended does
                if (pthread_attr_init(&large) != 0 || pthread_attr_setstacksize(&large, 256 * kMiB) != 0 ||
                    pthread_setattr_default_np(&large) != 0)
                  return kUnexpected;
                set_limit(RLIMIT_AS, status_bytes("VmSize") + 64 * kMiB);
                for (int round = 0; round < 3; ++round) {
                  std::atomic<int> sum{0};
                  context.parallel_for(1000, 1, [&](std::size_t begin, std::size_t end) {
                    sum += static_cast<int>(end - begin);
                  });
                  if (sum != 1000) return kWrong;
                }
                return n_warnings == 1 ? kFine : kWrong;
              }))
        << threads << " threads";
  }
}

TEST_F(Refusals, APoolTakesTheTablesItMayHave) {
  EXPECT_EQ(kFine, in_child([] {
              set_limit(RLIMIT_DATA, status_bytes("VmData") + 64 * kMiB);
              HybridMemoryPool pool;
              MemoryBlock block(pool, 24 * kMiB);
              std::memset(block.data(), 1, block.size());
              return pool.capacity() >= 64 * kMiB ? kFine : kWrong;
            }));
}

TEST_F(Refusals, TablesThatTheSystemRefusesAreAnError) {
  EXPECT_EQ(kFine, in_child([] {
              set_limit(RLIMIT_DATA, status_bytes("VmData") + 64 * 1024);
              const auto make = [] { HybridMemoryPool pool; };
              return refuses("refuses a memory pool's table", make) ? kFine : kWrong;
            }));
}

/// The bytes of huge pages in the mapping that holds the address; AnonHugePages in /proc/self/smaps.
std::size_t huge_bytes_at(const void* address) {
  const auto at = reinterpret_cast<std::uintptr_t>(address);
  std::ifstream smaps("/proc/self/smaps");
  bool here = false;
  for (std::string line; std::getline(smaps, line);) {
    unsigned long from = 0, to = 0, kib = 0;
    if (std::sscanf(line.c_str(), "%lx-%lx ", &from, &to) == 2) here = from <= at && at < to;
    if (here && std::sscanf(line.c_str(), "AnonHugePages: %lu kB", &kib) == 1) return kib * 1024;
  }
  return 0;
}

TEST(HugePages, LieUnderLargeBlocksThatAreTouched) {
  std::ifstream file("/sys/kernel/mm/transparent_hugepage/enabled");
  const std::string setting{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  if (setting.find("[madvise]") == setting.npos && setting.find("[always]") == setting.npos)
    GTEST_SKIP() << "this system gives none";
  MemoryPoolOptions options;
  for (const bool huge : {true, false}) {
    options.huge_pages = huge;
    HybridMemoryPool pool(options);
    const MemoryBlock block(pool, 16 * kMiB);
    std::memset(block.data(), 1, block.size());
    if (huge) {
      EXPECT_GE(huge_bytes_at(block.data()), 2 * kMiB);
    } else if (setting.find("[madvise]") != setting.npos) {
      EXPECT_EQ(huge_bytes_at(block.data()), 0u);
    }
  }
}

}  // namespace
}  // namespace bitnet
