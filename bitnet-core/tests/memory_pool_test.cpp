// The memory pool's promises one by one: what a block is, limits, misuse. How freed memory is used again is
// in memory_reuse_test.cpp, handles and tracking in memory_handle_test.cpp, what the system refuses in
// memory_refusal_test.cpp, random sequences of operations in memory_pool_property_test.cpp.
#include "bitnet/core/memory/hybrid_memory_pool.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "bitnet/core/error.hpp"
#include "bitnet/core/log.hpp"
#include "bitnet/core/memory/memory_handle.hpp"
#include "memory/sanitizer.hpp"
#include "memory/small_block_pool.hpp"
#include "memory_support.hpp"

namespace bitnet {
namespace {

using testing::HasSubstr;

TEST(SizeClasses, HoldWhatIsAskedAndAddAtMostAnEighth) {
  unsigned last = 0;
  for (std::size_t bytes = 1; bytes <= memory::kLargestSmall; bytes += bytes < 5000 ? 1 : 61) {
    const unsigned c = memory::class_of(bytes);
    ASSERT_LT(c, memory::kMaxClasses);
    ASSERT_GE(c, last);
    ASSERT_GE(memory::class_bytes(c), bytes);
    if (c > 0) {
      ASSERT_LT(memory::class_bytes(c - 1), bytes);
    }
    if (bytes >= 128) {
      ASSERT_LE(memory::class_bytes(c) * 8, bytes * 9) << bytes;
    }
    last = c;
  }
  EXPECT_EQ(last, memory::kMaxClasses - 1);
  EXPECT_EQ(memory::class_bytes(last), memory::kLargestSmall);
}

TEST(SizeClasses, SpansWasteAtMostA64thTheFirstOnesAnEighth) {
  for (unsigned c = 0; c < memory::kMaxClasses; ++c) {
    const std::size_t span = memory::span_pages(c) * memory::kPageBytes, size = memory::class_bytes(c);
    EXPECT_LE(span % size * 64, span) << size;
    EXPECT_LE(span, std::max<std::size_t>(128 * kKiB, 6 * size)) << size;
    std::size_t last = 0;
    for (unsigned n = 0; n < memory::kSmallSpans; ++n) {
      const std::size_t first = memory::span_pages(c, n) * memory::kPageBytes;
      EXPECT_LE(first % size * 8, first) << size;
      EXPECT_GE(first, std::max(last, size)) << size;
      EXPECT_LE(first, span) << size;
      last = first;
    }
    EXPECT_EQ(memory::span_pages(c, memory::kSmallSpans), memory::span_pages(c));
  }
}

TEST(SizeClasses, AlignedClassesBeginAtMultiples) {
  for (std::size_t alignment = 16; alignment <= 4096; alignment *= 2) {
    for (std::size_t bytes = 1; bytes <= 70000; bytes += 37) {
      const unsigned c = memory::class_of(bytes, alignment);
      ASSERT_GE(memory::class_bytes(c), bytes);
      ASSERT_EQ(memory::class_bytes(c) % alignment, 0u);
    }
  }
}

class PoolBlocks : public testing::TestWithParam<bool> {};

TEST_P(PoolBlocks, AreAlignedDisjointAndKeepWhatIsWritten) {
  MemoryPoolOptions options = unchecked();
  options.check_blocks = GetParam();
  HybridMemoryPool pool(options);
  struct Made {
    unsigned char* p;
    std::size_t bytes;
    unsigned char value;
  };
  std::vector<Made> made;
  unsigned char value = 0;
  for (std::size_t alignment = 1; alignment <= 4096; alignment *= 2) {
    for (const std::size_t bytes : {1, 15, 16, 17, 100, 129, 4095, 4096, 4097, 65536, 65537, 3000000}) {
      auto* p = static_cast<unsigned char*>(pool.allocate(bytes, alignment));
      ASSERT_EQ(reinterpret_cast<std::uintptr_t>(p) % std::max<std::size_t>(alignment, 16), 0u);
      ASSERT_TRUE(pool.owns(p));
      std::memset(p, ++value, bytes);
      made.push_back({p, bytes, value});
    }
  }
  for (const Made& m : made) {
    ASSERT_TRUE(std::all_of(m.p, m.p + m.bytes, [&](unsigned char c) { return c == m.value; }));
    pool.deallocate(m.p);
  }
  EXPECT_EQ(pool.stats().used, 0u);
  EXPECT_EQ(pool.stats().allocations, made.size());
  EXPECT_EQ(pool.stats().frees, made.size());
}
INSTANTIATE_TEST_SUITE_P(CheckedAndNot, PoolBlocks, testing::Bool());

TEST(Pool, EveryThresholdServesTheSizesAroundIt) {
  for (std::size_t threshold = kKiB; threshold <= kMiB; threshold *= 2) {
    MemoryPoolOptions options = unchecked();
    options.small_threshold = threshold;
    HybridMemoryPool pool(options);
    for (const std::size_t bytes : {threshold - 1, threshold, threshold + 1}) {
      MemoryBlock block(pool, bytes);
      std::memset(block.data(), 1, bytes);
    }
    const MemoryStats stats = pool.stats();
    ASSERT_EQ(stats.size_classes.size(), 2u);
    EXPECT_EQ(stats.size_classes[0].block_bytes, threshold);
    EXPECT_EQ(stats.size_classes[0].allocations, 2u);
    EXPECT_EQ(stats.size_classes[1].block_bytes, 0u);  // large
  }
}

TEST(Pool, RefusesSizesAlignmentsAndOptionsThatMakeNoSense) {
  HybridMemoryPool pool(unchecked());
  const auto invalid = ErrorCode::kInvalidArgument;
  expect_error(invalid, {"'test'", "0 bytes", "at least 1"}, [&] { pool.deallocate(pool.allocate(0)); });
  expect_error(invalid, {"0 bytes"}, [&] { pool.deallocate(pool.try_allocate(0)); });
  for (const std::size_t alignment : {0, 3, 24, 8192}) {
    expect_error(invalid, {"alignment of " + std::to_string(alignment), "up to 4096"},
                 [&] { pool.deallocate(pool.allocate(64, alignment)); });
  }
  expect_error(ErrorCode::kOutOfMemory, {"18446744073709551615 bytes", "limit none"},
               [&] { pool.deallocate(pool.allocate(~std::size_t{0})); });
  EXPECT_EQ(pool.try_allocate(~std::size_t{0}), nullptr);
  expect_error(invalid, {"elements of 8 bytes"}, [&] { MemoryArray<double>(pool, ~std::size_t{0} / 4); });
  for (const std::size_t threshold : {0, 512, 65000, 2 << 20}) {
    MemoryPoolOptions options = unchecked();
    options.small_threshold = threshold;
    expect_error(invalid, {std::to_string(threshold), "power of two from 1024 to 1048576"},
                 [&] { HybridMemoryPool{options}; });
  }
  expect_error(invalid, {"limit of 100 bytes", "65536"}, [&] { HybridMemoryPool{with_limit(100)}; });
}

TEST(Pool, HugeSizesAreRefusedWithBlocksCheckedToo) {
  HybridMemoryPool pool(checked_blocks());
  for (const std::size_t less : {0, 1, 15, 16, 48, 4096, 5000})
    EXPECT_EQ(pool.try_allocate(~std::size_t{0} - less, 4096), nullptr) << less;
}

TEST(Pool, LimitNamesAskedUsedAndLimit) {
  HybridMemoryPool pool(with_limit(4 * kMiB));
  const MemoryBlock first(pool, 3 * kMiB);
  expect_error(ErrorCode::kOutOfMemory,
               {"'test'", "asked for 2097152 bytes (kv)", "3145728 used", "limit 4194304 bytes"},
               [&] { MemoryBlock(pool, 2 * kMiB, 16, "kv"); });
  EXPECT_FALSE(MemoryBlock::try_make(pool, 2 * kMiB));
  EXPECT_TRUE(MemoryBlock::try_make(pool, kMiB));
  EXPECT_EQ(pool.stats().refusals, 2u);
  EXPECT_LE(pool.stats().peak_held, 4 * kMiB);
}

TEST(Pool, LimitHoldsForSmallBlocksAndFreedOnesServeOtherSizes) {
  HybridMemoryPool pool(with_limit(kMiB));
  for (const std::size_t bytes : {64, 1000, 20000, 300}) {
    std::vector<void*> blocks;
    while (void* p = pool.try_allocate(bytes)) blocks.push_back(p);
    EXPECT_GE(blocks.size() * bytes, kMiB * 8 / 10) << bytes;  // 15 spans of 16, and their unused ends
    EXPECT_LE(pool.held(), kMiB);
    for (void* p : blocks) pool.deallocate(p);
  }
  const MemoryBlock all(pool, kMiB);  // nothing stays behind in caches
}

TEST(Pool, DoubleFreeIsAnError) {
  for (const bool check : {false, true}) {
    MemoryPoolOptions options = unchecked();
    options.check_blocks = check;
    HybridMemoryPool pool(options);
    for (const std::size_t bytes : {16, 100, 5000, 65536, 200000}) {
      void* p = pool.allocate(bytes);
      pool.deallocate(p);
      expect_error(ErrorCode::kInvalidArgument, {"'test'", "free already"}, [&] { pool.deallocate(p); });
      pool.trim();
      expect_error(ErrorCode::kInvalidArgument, {"'test'"}, [&] { pool.deallocate(p); });
      EXPECT_EQ(pool.stats().used, 0u);
    }
  }
}

TEST(Pool, ForeignPointersAreErrors) {
  for (const bool check : {false, true}) {
    MemoryPoolOptions options = unchecked();
    options.check_blocks = check;
    HybridMemoryPool pool(options), other(options);
    int local = 0;
    expect_error(ErrorCode::kInvalidArgument, {"not of this pool"}, [&] { pool.deallocate(&local); });
    const MemoryBlock foreign(other, 100);
    expect_error(ErrorCode::kInvalidArgument, {"not of this pool"}, [&] { pool.deallocate(foreign.data()); });
    for (const std::size_t bytes : {100, 5000, 200000}) {
      const MemoryBlock block(pool, bytes);
      auto* p = static_cast<std::byte*>(block.data());
      std::memset(p, 0, bytes);
      for (const std::size_t inside : {1, 8, 16, 32, 64})
        expect_error(ErrorCode::kInvalidArgument, {"'test'"}, [&] { pool.deallocate(p + inside); });
    }
    // Blocks of a span that nobody was given yet.
    MemoryBlock lone(pool, 30000);
    auto* p = static_cast<std::byte*>(lone.data());
    expect_error(ErrorCode::kInvalidArgument, {},
                 [&] { pool.deallocate(p + 2 * 30720 + (check ? 2048 : 0)); });
  }
}

TEST(Pool, NullIsFreedAsNothing) {
  HybridMemoryPool pool(unchecked());
  pool.deallocate(nullptr);
  EXPECT_EQ(pool.stats().frees, 0u);
}

// With AddressSanitizer these writes end the program, as they should.
#if !defined(BITNET_ASAN)
TEST(Pool, WritesToFreeBlocksAreReportedWhenTheyAreHandedOutAgain) {
  for (const std::size_t offset : {0, 8}) {
    HybridMemoryPool pool(unchecked());
    auto* p = static_cast<std::byte*>(pool.allocate(64));
    pool.deallocate(p);
    std::memset(p + offset, 0x5a, 8);
    expect_error(ErrorCode::kInternal, {"'test'", "free block", "was written to"},
                 [&] { pool.deallocate(pool.allocate(64)); });
    const MemoryBlock goes_on(pool, 64);
  }
}

TEST(Pool, WritesToFreeBlocksThatATrimMeetsAreCountedAndLoggedOnce) {
  std::vector<std::string> said;
  set_log_sink([&](LogLevel, std::string_view text) { said.emplace_back(text); });
  {
    HybridMemoryPool pool(unchecked());
    std::vector<void*> blocks;
    for (int i = 0; i < 20; ++i) blocks.push_back(pool.allocate(64));
    for (void* block : blocks) pool.deallocate(block);
    std::memset(blocks[10], 0x5a, 16);
    EXPECT_EQ(pool.stats().damaged, 0u);  // nobody looked yet
    pool.trim();
    pool.trim();
    const MemoryStats stats = pool.stats();
    EXPECT_EQ(stats.damaged, 1u);
    EXPECT_EQ(stats.used, 0u);
    for (int i = 0; i < 100; ++i) blocks.push_back(pool.allocate(64));  // the pool goes on
    for (std::size_t i = 20; i < blocks.size(); ++i) pool.deallocate(blocks[i]);
    char address[32];
    std::snprintf(address, sizeof address, "%p", blocks[10]);
    ASSERT_EQ(said.size(), 1u);
    EXPECT_THAT(said[0],
                testing::AllOf(HasSubstr("'test'"), HasSubstr("was written to"), HasSubstr(address)));
  }
  set_log_sink({});
  EXPECT_EQ(said.size(), 1u);
}

TEST(Pool, WritesToFreeBlocksAreReportedFromSharedListsToo) {
  HybridMemoryPool pool(unchecked());
  std::vector<void*> blocks;
  for (int i = 0; i < 1000; ++i) blocks.push_back(pool.allocate(64));
  for (std::size_t i = 0; i < blocks.size(); i += 2) pool.deallocate(blocks[i]);
  pool.trim();  // the caches are empty: free blocks are on their spans' lists
  for (std::size_t i = 0; i < blocks.size(); i += 2) std::memset(blocks[i], 0x5a, 64);
  expect_error(ErrorCode::kInternal, {"was written to"}, [&] {
    for (int i = 0; i < 1000; ++i) static_cast<void>(pool.allocate(64));
  });
  for (std::size_t i = 1; i < blocks.size(); i += 2) pool.deallocate(blocks[i]);
  pool.reset();
}

TEST(Pool, DamagedHeadersAndEndsAreReportedWhereBlocksAreChecked) {
  for (const std::size_t bytes : {40, 5000, 100000}) {
    HybridMemoryPool pool(checked_blocks());
    auto* before = static_cast<std::byte*>(pool.allocate(bytes, 16, "before"));
    for (int at = -1; at >= -32; --at) {
      before[at] ^= std::byte{1};
      try {
        pool.deallocate(before);
        ADD_FAILURE() << "byte " << at;
      } catch (const Error& e) {  // "… damaged: mark 0x1, expected 0x2"
        EXPECT_EQ(e.code(), ErrorCode::kInternal);
        const std::string what = e.what();
        EXPECT_THAT(what, testing::AllOf(HasSubstr("'test'"), HasSubstr("header"), HasSubstr("damaged: ")));
        const std::size_t found = what.find(" 0x", what.find("damaged: ")), expected = what.rfind(" 0x");
        ASSERT_NE(found, expected) << what;
        EXPECT_NE(what.substr(found, what.find_first_of(", ", found + 1) - found), what.substr(expected))
            << what;
      }
      before[at] ^= std::byte{1};
    }
    pool.deallocate(before);
    auto* behind = static_cast<std::byte*>(pool.allocate(bytes, 16, "behind"));
    behind[bytes] ^= std::byte{1};
    expect_error(ErrorCode::kInternal, {"'behind'", std::to_string(bytes) + " bytes", "past its end"},
                 [&] { pool.deallocate(behind); });
    behind[bytes] ^= std::byte{1};
    pool.deallocate(behind);
  }
}
#else
TEST(Pool, AddressSanitizerKnowsWhatMayNotBeTouched) {
  HybridMemoryPool pool(unchecked());
  for (const std::size_t bytes : {40, 5000, 100000}) {
    auto* p = static_cast<std::byte*>(pool.allocate(bytes));
    EXPECT_EQ(__asan_region_is_poisoned(p, bytes), nullptr);
    EXPECT_TRUE(__asan_address_is_poisoned(p + bytes));
    pool.deallocate(p);
    EXPECT_TRUE(__asan_address_is_poisoned(p));
    EXPECT_TRUE(__asan_address_is_poisoned(p + bytes - 1));
  }
}
#endif

TEST_P(PoolBlocks, OfZerosAreZeroWhateverWasThereBefore) {
  MemoryPoolOptions options = unchecked();
  options.check_blocks = GetParam();
  HybridMemoryPool pool(options);
  for (const std::size_t bytes : {1, 100, 5000, 65537, 1000000, 5000000}) {
    for (int round = 0; round < 3; ++round) {
      auto* p = static_cast<unsigned char*>(pool.allocate_zeroed(bytes));
      ASSERT_TRUE(std::all_of(p, p + bytes, [](unsigned char c) { return c == 0; })) << bytes;
      std::memset(p, 1, bytes);
      pool.deallocate(p);
      auto* other = static_cast<unsigned char*>(pool.allocate(bytes / 2 + 1));
      std::memset(other, 1, bytes / 2 + 1);
      pool.deallocate(other);
    }
  }
}

}  // namespace
}  // namespace bitnet
