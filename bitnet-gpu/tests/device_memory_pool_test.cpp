// The pool of device buffers: limits, reuse, trimming and misuse, on the first OpenCL device.
#include "device_memory_pool.hpp"

#include <gtest/gtest.h>

#include <thread>
#include <vector>

#include "bitnet/core/log.hpp"
#include "bitnet/testing/opencl.hpp"
#include "bitnet/testing/testing.hpp"
#include "device_list.hpp"

namespace bitnet::gpu {
namespace {

constexpr std::size_t kMiB = std::size_t{1} << 20;

class DevicePool : public ::testing::Test {
 protected:
  void SetUp() override {
    const DeviceList list = list_devices();
    BITNET_REQUIRE_OPENCL_DEVICE(!list.devices.empty());
    cl_int status = CL_SUCCESS;
    context_ = ClContext(clCreateContext(nullptr, 1, &list.devices[0].id, nullptr, nullptr, &status));
    check(status, "clCreateContext");
    pool_ = std::make_shared<DeviceMemoryPool>("dev", context_.get(), 4 * kMiB, 3 * kMiB);
  }
  std::size_t driver_bytes(cl_mem mem) {
    std::size_t bytes = 0;
    check(clGetMemObjectInfo(mem, CL_MEM_SIZE, sizeof bytes, &bytes, nullptr), "clGetMemObjectInfo");
    return bytes;
  }
  ClContext context_;
  std::shared_ptr<DeviceMemoryPool> pool_;
};

TEST_F(DevicePool, GivesBuffersOfTheDriverAndTakesThemBack) {
  {
    const PooledMem a(pool_, 1000, "kv pages"), b(pool_, 0, "weights");
    EXPECT_GE(driver_bytes(a.get()), 1000u);
    EXPECT_GE(driver_bytes(b.get()), 1u);
    const MemoryStats stats = pool_->stats();
    EXPECT_EQ(stats.allocations, 2u);
    EXPECT_EQ(stats.used, driver_bytes(a.get()) + driver_bytes(b.get()));
    EXPECT_LE(stats.used, stats.held);
    const auto tags = pool_->tags();
    ASSERT_EQ(tags.size(), 2u);
    EXPECT_EQ(tags[0].tag, "kv pages");
    EXPECT_EQ(tags[0].used, 1000u);
  }
  EXPECT_EQ(pool_->stats().used, 0u);
  EXPECT_EQ(pool_->stats().frees, 2u);
  EXPECT_EQ(pool_->tags()[0].used, 0u);
  EXPECT_EQ(pool_->tags()[0].peak, 1000u);
}

TEST_F(DevicePool, BuffersAreAtMostAnEighthLarger) {
  for (std::size_t bytes = 3000; bytes < 2 * kMiB; bytes = bytes * 21 / 20) {
    const PooledMem mem(pool_, bytes, "x");
    EXPECT_LE(driver_bytes(mem.get()) * 8, bytes * 9);
  }
}

TEST_F(DevicePool, ReusesWhatCameBackAndTrimGivesItToTheDriver) {
  cl_mem first = nullptr;
  {
    const PooledMem mem(pool_, kMiB, "x");
    first = mem.get();
  }
  {
    const PooledMem again(pool_, kMiB - 100, "x");
    EXPECT_EQ(again.get(), first);
    EXPECT_EQ(pool_->trim().offered, 0u);
  }
  EXPECT_EQ(pool_->stats().held, kMiB);
  EXPECT_EQ(pool_->trim().offered, kMiB);
  EXPECT_EQ(pool_->stats().held, 0u);
}

TEST_F(DevicePool, LimitsNameAskedUsedAndLimit) {
  { const PooledMem spare(pool_, 2 * kMiB, "x"); }
  const PooledMem a(pool_, 3 * kMiB, "x");  // the spare one gives way
  EXPECT_EQ(pool_->stats().held, 3 * kMiB);
  BITNET_EXPECT_ERROR(
      PooledMem(pool_, 2 * kMiB, "kv"), ErrorCode::kOutOfMemory,
      "'dev': asked for 2097152 bytes (kv), 3145728 used (3145728 held), limit 4194304 bytes, "
      "3145728 of one buffer; at most 1048576 fit");
  EXPECT_EQ(pool_->try_allocate(2 * kMiB), nullptr);
  EXPECT_EQ(pool_->try_allocate(4 * kMiB), nullptr);  // more than one buffer may have
  EXPECT_EQ(pool_->stats().refusals, 3u);
  EXPECT_EQ(pool_->free_bytes(), kMiB);
}

TEST_F(DevicePool, WhatIsSaidToFitFits) {
  constexpr std::size_t kRest = 1'104'272;
  pool_ = std::make_shared<DeviceMemoryPool>("dev", context_.get(), 3 * kMiB + kRest, 3 * kMiB + kRest);
  const PooledMem a(pool_, 3 * kMiB, "x");
  BITNET_EXPECT_ERROR(PooledMem(pool_, kRest + 1, "x"), ErrorCode::kOutOfMemory, "at most 1104272 fit");
  cl_mem first = nullptr;
  {
    const PooledMem less(pool_, 1'100'000, "x");  // rounded up it would not
    first = less.get();
    EXPECT_EQ(driver_bytes(less.get()), 1'100'000u);
  }
  {
    const PooledMem again(pool_, 1'099'000, "x");
    EXPECT_EQ(again.get(), first);
  }
  const PooledMem all(pool_, kRest, "x");
  EXPECT_EQ(pool_->free_bytes(), 0u);
  EXPECT_EQ(pool_->stats().held, pool_->stats().limit);
  EXPECT_EQ(pool_->stats().refusals, 1u);
}

TEST_F(DevicePool, WeightsAreAsLargeAsTheyAre) {
  for (std::size_t bytes = 3000; bytes < 2 * kMiB; bytes = bytes * 21 / 20) {
    const PooledMem mem(pool_, bytes, "weights");
    EXPECT_LT(driver_bytes(mem.get()), bytes + 256);
  }
}

TEST_F(DevicePool, StatisticsAreOfEachSize) {
  const PooledMem a(pool_, 1000, "x"), b(pool_, 1020, "x");
  { const PooledMem c(pool_, kMiB, "weights"); }
  const std::vector<SizeClassStats> sizes = pool_->stats().size_classes;
  ASSERT_EQ(sizes.size(), 2u);
  EXPECT_EQ(sizes[0].block_bytes, 1024u);
  EXPECT_EQ(sizes[0].allocations, 2u);
  EXPECT_EQ(sizes[0].live, 2u);
  EXPECT_EQ(sizes[1].block_bytes, kMiB);
  EXPECT_EQ(sizes[1].allocations, 1u);
  EXPECT_EQ(sizes[1].live, 0u);
}

TEST_F(DevicePool, MisuseIsAnError) {
  BITNET_EXPECT_ERROR(static_cast<void>(pool_->allocate(0)), ErrorCode::kInvalidArgument, "0 bytes");
  BITNET_EXPECT_ERROR(static_cast<void>(pool_->allocate(8, 3)), ErrorCode::kInvalidArgument,
                      "alignment of 3");
  int local = 0;
  BITNET_EXPECT_ERROR(pool_->deallocate(&local), ErrorCode::kInvalidArgument, "no live buffer");
  void* buffer = pool_->allocate(100);
  pool_->deallocate(buffer);
  BITNET_EXPECT_ERROR(pool_->deallocate(buffer), ErrorCode::kInvalidArgument, "free already");
  pool_->deallocate(nullptr);
  EXPECT_EQ(pool_->stats().frees, 1u);
}

TEST_F(DevicePool, BuffersOutliveTheirMaker) {
  PooledMem mem(pool_, 100, "x");
  pool_.reset();
  context_ = ClContext();
  EXPECT_GE(driver_bytes(mem.get()), 100u);
}

TEST_F(DevicePool, ThatEndsWithLiveBuffersSaysSo) {
  std::vector<std::string> said;
  set_log_sink([&](LogLevel, std::string_view text) { said.emplace_back(text); });
  static_cast<void>(pool_->allocate(256));
  pool_.reset();
  set_log_sink({});
  ASSERT_EQ(said.size(), 1u);
  EXPECT_EQ(said[0], "memory pool 'dev' ends with 256 bytes in use");
}

TEST_F(DevicePool, ThreadsShareIt) {
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([&] {
      for (std::size_t i = 0; i < 200; ++i) const PooledMem mem(pool_, 1 + i * 97 % 20000, "x");
    });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(pool_->stats().used, 0u);
  EXPECT_EQ(pool_->stats().allocations, 800u);
}

}  // namespace
}  // namespace bitnet::gpu
