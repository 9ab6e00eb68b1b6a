// The memory pool against a map: random operations, each with its effect on a plain model of what is live.
// RapidCheck shrinks what fails to a short sequence. Single promises are in memory_pool_test.cpp.
#include <gtest/gtest.h>
#include <rapidcheck.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <thread>
#include <vector>

#include "bitnet/core/error.hpp"
#include "bitnet/core/memory/hybrid_memory_pool.hpp"

namespace bitnet {
namespace {

constexpr std::size_t kLimit = std::size_t{24} << 20;

enum class Op : int { kAllocate, kFree, kFreeElsewhere, kFreeTwice, kFreeInside, kTrim, kReset };

/// One operation; which block it takes is `pick` modulo how many there are.
struct Step {
  Op op;
  std::size_t bytes, alignment, pick;
};

std::ostream& operator<<(std::ostream& out, const Step& s) {
  constexpr const char* kNames[] = {"allocate",    "free", "free elsewhere", "free twice",
                                    "free inside", "trim", "reset"};
  return out << kNames[static_cast<int>(s.op)] << "(" << s.bytes << " bytes, alignment " << s.alignment
             << ", pick " << s.pick << ")";
}

rc::Gen<Step> steps() {
  using rc::gen::inRange;
  return rc::gen::apply(
      [](Op op, std::size_t bytes, std::size_t alignment, std::size_t pick) {
        return Step{op, bytes, alignment, pick};
      },
      rc::gen::weightedElement<Op>({{40, Op::kAllocate},
                                    {20, Op::kFree},
                                    {4, Op::kFreeElsewhere},
                                    {5, Op::kFreeTwice},
                                    {5, Op::kFreeInside},
                                    {3, Op::kTrim},
                                    {1, Op::kReset}}),
      rc::gen::oneOf(inRange<std::size_t>(1, 300), inRange<std::size_t>(1, 9000),
                     inRange<std::size_t>(1, 200000), inRange<std::size_t>(1, 9000000)),
      rc::gen::map(inRange(0, 13), [](int shift) { return std::size_t{1} << shift; }),
      inRange<std::size_t>(0, 1000000));
}

/// The pool, and the model: every live block with its size and what was written into it.
class MapModel {
 public:
  explicit MapModel(bool check_blocks) : pool_(options(check_blocks)) {}
  ~MapModel() { pool_.reset(); }

  void apply(const Step& step) {
    switch (step.op) {
      case Op::kAllocate:
        return allocate(step);
      case Op::kFree:
      case Op::kFreeElsewhere:
        return free(step);
      case Op::kFreeTwice:
        return free_twice(step);
      case Op::kFreeInside:
        return free_inside(step);
      case Op::kTrim:
        pool_.trim();
        return;
      case Op::kReset:
        pool_.reset();
        live_.clear();
        freed_.clear();
        return;
    }
  }

  void check() const {
    std::size_t asked = 0;
    const unsigned char* end = nullptr;
    for (const auto& [p, block] : live_) {
      RC_ASSERT(p >= end);  // disjoint
      end = p + block.bytes;
      asked += block.bytes;
      // Every byte of the first and last 64, some between.
      for (std::size_t i = 0; i < block.bytes;) {
        RC_ASSERT(p[i] == block.value);
        i += i < 64 || i + 64 > block.bytes ? 1 : std::min<std::size_t>(1021, block.bytes - i - 63);
      }
    }
    const MemoryStats stats = pool_.stats();
    RC_ASSERT(stats.allocations - stats.frees == live_.size());
    RC_ASSERT(stats.used >= asked);
    RC_ASSERT(stats.held >= stats.used);
    RC_ASSERT(stats.held <= kLimit);
    std::uint64_t in_classes = 0;
    for (const SizeClassStats& size : stats.size_classes) in_classes += size.live;
    RC_ASSERT(in_classes == live_.size());
  }

  void finish() {
    for (const auto& [p, block] : live_) pool_.deallocate(p);
    live_.clear();
    pool_.trim();
    RC_ASSERT(pool_.held() == 0u);
    RC_ASSERT(pool_.stats().used == 0u);
  }

 private:
  struct Block {
    std::size_t bytes;
    unsigned char value;
  };

  static MemoryPoolOptions options(bool check_blocks) {
    MemoryPoolOptions out;
    out.name = "property";
    out.limit = kLimit;
    out.check_blocks = check_blocks;
    out.tracking = TrackingLevel::kStandard;
    return out;
  }

  void allocate(const Step& step) {
    auto* p = static_cast<unsigned char*>(pool_.try_allocate(step.bytes, step.alignment));
    if (p == nullptr) {
      // Half the limit is always there: a span or the block, with its header, fits beside what is held.
      RC_ASSERT(pool_.held() + step.bytes + (std::size_t{512} << 10) > kLimit / 2);
      return;
    }
    RC_ASSERT(reinterpret_cast<std::uintptr_t>(p) % step.alignment == 0u);
    const Block block{step.bytes, ++value_};
    std::memset(p, block.value, block.bytes);
    RC_ASSERT(live_.emplace(p, block).second);
    std::erase(freed_, p);
  }

  std::map<unsigned char*, Block>::iterator picked(const Step& step) {
    return std::next(live_.begin(), static_cast<std::ptrdiff_t>(step.pick % live_.size()));
  }

  void free(const Step& step) {
    if (live_.empty()) return;
    const auto block = picked(step);
    unsigned char* p = block->first;
    if (step.op == Op::kFree) {
      pool_.deallocate(p);
    } else {
      std::thread([&] { pool_.deallocate(p); }).join();
    }
    live_.erase(block);
    freed_.push_back(p);
  }

  /// With blocks checked, the place may lie inside of what is a block now: then it is no block's beginning.
  void free_twice(const Step& step) {
    if (!freed_.empty()) must_refuse(freed_[step.pick % freed_.size()]);
  }

  void free_inside(const Step& step) {
    if (live_.empty()) return;
    const auto block = picked(step);
    if (block->second.bytes > 1) must_refuse(block->first + 1 + step.pick % (block->second.bytes - 1));
  }

  void must_refuse(void* p) {
    try {
      pool_.deallocate(p);
    } catch (const Error& e) {
      RC_ASSERT(e.code() == ErrorCode::kInvalidArgument);
      return;
    }
    RC_FAIL("no error");
  }

  HybridMemoryPool pool_;
  std::map<unsigned char*, Block> live_;
  std::vector<unsigned char*> freed_;  // and not allocated since
  unsigned char value_ = 0;
};

class PoolProperty : public testing::TestWithParam<bool> {};

TEST_P(PoolProperty, BehavesLikeAMap) {
  const bool holds = rc::check([&] {
    const auto sequence = *rc::gen::scale(3.0, rc::gen::container<std::vector<Step>>(steps()));
    MapModel run(GetParam());
    for (const Step& step : sequence) {
      run.apply(step);
      run.check();
    }
    run.finish();
  });
  EXPECT_TRUE(holds);
}
INSTANTIATE_TEST_SUITE_P(BlocksChecked, PoolProperty, testing::Bool());

}  // namespace
}  // namespace bitnet
