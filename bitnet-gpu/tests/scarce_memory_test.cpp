// A driver that has no memory left, told to by the test (failing_queue.hpp): whoever asks for a buffer gets
// the whole story, wherever the driver notices; ops do without their scratch.
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <numeric>
#include <vector>

#include "bitnet/core/rng.hpp"
#include "bitnet/gpu/register.hpp"
#include "bitnet/testing/failing_queue.hpp"
#include "bitnet/testing/opencl.hpp"
#include "bitnet/testing/testing.hpp"

namespace bitnet {
namespace {

using testing::ClCall;
using testing::failing_queue;

constexpr std::size_t kMiB = std::size_t{1} << 20;

BufferPtr filled(Backend& on, std::size_t n, std::uint64_t seed) {
  Rng rng(seed);
  std::vector<float> values(n);
  for (float& v : values) v = static_cast<float>(rng.normal());
  BufferPtr buffer = on.allocate(n * sizeof(float));
  on.upload(*buffer, 0, std::as_bytes(std::span(values)));
  return buffer;
}

class ScarceMemory : public ::testing::Test {
 protected:
  void SetUp() override {
    failing_queue.heal();
    options_.memory_limit = 64 * kMiB;
    BITNET_REQUIRE_OPENCL_DEVICE(open() != nullptr);
  }
  std::unique_ptr<Backend> open() {
    BackendRegistry registry;
    gpu::register_backends(registry, options_);
    if (registry.devices().empty()) return nullptr;
    return registry.create(registry.devices()[0].name, context_);
  }
  static LinearWeights weights() {
    static const std::vector<std::int8_t> trits(std::size_t{64} * 304, 1);
    static const float scale = 1.0f;
    LinearWeights w;
    w.out = 64;
    w.in = 304;
    w.trits = trits;
    w.scales = {&scale, 1};
    w.rows_per_scale = 64;
    return w;
  }
  static void heal_and(ClCall call, int from, int n = testing::FailingQueue::kNever) {
    failing_queue.heal();
    failing_queue.fail_from(call, from, n);
  }

  std::shared_ptr<const ExecutionContext> context_ =
      std::make_shared<const ExecutionContext>(ExecutionContext::Options{.threads = 1, .isa = {}});
  gpu::Options options_;
};

constexpr const char* kStory =
    "asked for 5000 bytes (kv pages), 0 used (0 held), limit 67108864 bytes, 67108864 of one buffer; the "
    "limit "
    "leaves 67108864, but the driver has not 5000 bytes (others may use the device): ";

TEST_F(ScarceMemory, IsToldWhetherTheBufferOrItsFirstUseIsRefused) {
  const auto backend = open();
  if (backend->memory()->stats().limit != options_.memory_limit) GTEST_SKIP() << "a device with less memory";
  for (const ClCall call : {ClCall::kBuffer, ClCall::kFill}) {
    SCOPED_TRACE(static_cast<int>(call));
    heal_and(call, 1);
    BITNET_EXPECT_ERROR(backend->allocate(5000, "kv pages"), ErrorCode::kOutOfMemory, kStory);
    EXPECT_GT(failing_queue.failures, 0);
    EXPECT_EQ(backend->memory()->stats().held, 0u);
    heal_and(call, 1);
    BITNET_EXPECT_ERROR(backend->prepare(weights()), ErrorCode::kOutOfMemory,
                        "(activations), 0 used (0 held), limit 67108864 bytes");
  }
  // Its zeros, when it has its memory.
  heal_and(ClCall::kFill, 2, 1);
  BITNET_EXPECT_ERROR(backend->allocate(5000, "kv pages"), ErrorCode::kOutOfMemory,
                      "but the driver has not 5000 bytes");
  failing_queue.heal();
  EXPECT_EQ(backend->allocate(5000, "kv pages")->bytes(), 5000u);
}

TEST_F(ScarceMemory, OfAStagedWeightIsToldAsThePoolTellsIt) {
  options_.kernels.zero_copy = false;
  const auto backend = open();
  heal_and(ClCall::kWrite, 1);
  failing_queue.write_status = CL_MEM_OBJECT_ALLOCATION_FAILURE;
  BITNET_EXPECT_ERROR(backend->prepare(weights()), ErrorCode::kOutOfMemory,
                      "but the driver has not 4864 bytes (others may use the device): clEnqueueWriteBuffer "
                      "failed with CL_MEM_OBJECT_ALLOCATION_FAILURE");
  // Another failure of the same call is the device's.
  heal_and(ClCall::kWrite, 1);
  BITNET_EXPECT_ERROR(backend->prepare(weights()), ErrorCode::kDevice, "CL_OUT_OF_RESOURCES");
  failing_queue.heal();
  EXPECT_NE(backend->prepare(weights()), nullptr);
}

TEST_F(ScarceMemory, IsNotWhatALostLaunchIsTakenFor) {
  const auto backend = open();
  const BufferPtr x = backend->allocate(4096), y = backend->allocate(4096);
  heal_and(ClCall::kAsync, 1, 1);
  backend->add({x.get(), 0, 4, 256}, {y.get(), 0, 4, 256});
  BITNET_EXPECT_ERROR(backend->allocate(4096), ErrorCode::kDevice,
                      "clFinish failed with CL_OUT_OF_RESOURCES");
  EXPECT_EQ(backend->allocate(4096)->bytes(), 4096u);
}

/// Rows with as many tokens, whose keys are in tiles.
std::vector<float> attention_on(Backend& backend, int refused_from) {
  constexpr std::int64_t kRows = 300, kHeads = 4, kKvHeads = 2, kDim = 16, kPage = 16, kPages = 20;
  const BufferPtr q = filled(backend, kRows * kHeads * kDim, 1);
  const BufferPtr k = filled(backend, kRows * kKvHeads * kDim, 2);
  const BufferPtr v = filled(backend, kRows * kKvHeads * kDim, 3);
  const BufferPtr out = filled(backend, kRows * kHeads * kDim, 4);
  const std::size_t bytes = kPages * kv_page_bytes(DType::kF32, kPage, kKvHeads, kDim);
  const BufferPtr keys = backend.allocate(bytes), values = backend.allocate(bytes);
  std::vector<std::int32_t> pages(kPages);
  std::iota(pages.begin(), pages.end(), 0);
  const SequenceSlice slice{0, kRows, 0, pages};
  AttentionArgs args;
  args.q = {q.get(), 0, kRows, kHeads * kDim};
  args.k = {k.get(), 0, kRows, kKvHeads * kDim};
  args.v = {v.get(), 0, kRows, kKvHeads * kDim};
  args.out = {out.get(), 0, kRows, kHeads * kDim};
  args.cache = {keys.get(), values.get(), kPages, kPage, DType::kF32};
  args.sequences = {&slice, 1};
  args.n_heads = kHeads;
  args.n_kv_heads = kKvHeads;
  args.head_dim = kDim;
  failing_queue.heal();
  if (refused_from > 0) failing_queue.fail_from(ClCall::kBuffer, refused_from);
  backend.attention(args);
  const int failures = failing_queue.failures;
  failing_queue.heal();
  EXPECT_EQ(failures > 0, refused_from > 0);
  std::vector<float> got(kRows * kHeads * kDim);
  backend.download(*out, 0, std::as_writable_bytes(std::span(got)));
  return got;
}

TEST_F(ScarceMemory, LeavesAttentionUndivided) {
  options_.kernels.split_attention = true;
  const auto backend = open(), scarce = open();
  const std::vector<float> want = attention_on(*backend, 0);
  const std::uint64_t before = scarce->statistics().launches;
  EXPECT_EQ(attention_on(*scarce, 2), want);  // the first one is of the plan
  EXPECT_EQ(scarce->statistics().launches - before, backend->statistics().launches - 1);  // none to merge
  // Memory that comes back is used.
  EXPECT_EQ(attention_on(*scarce, 0), want);
  EXPECT_EQ(scarce->statistics().launches, 2 * backend->statistics().launches - 1);
}

TEST_F(ScarceMemory, LeavesTheLargestValuesToTheHost) {
  const auto backend = open();
  constexpr std::int64_t kRows = 2, kCols = 5000, kMost = 7;
  const BufferPtr x = filled(*backend, kRows * kCols, 5);
  const Matrix all{x.get(), 0, kRows, kCols};
  std::vector<TopValue> want(kRows * kMost), got(want.size());
  for (const int refused : {1, 2}) {  // each of two buffers
    const auto scarce = open();
    const BufferPtr same = filled(*scarce, kRows * kCols, 5);
    backend->top(all, kMost, want);
    heal_and(ClCall::kBuffer, refused);
    scarce->top({same.get(), 0, kRows, kCols}, kMost, got);
    EXPECT_GT(failing_queue.failures, 0);
    failing_queue.heal();
    for (std::size_t i = 0; i < got.size(); ++i) {
      EXPECT_EQ(got[i].column, want[i].column) << i;
      EXPECT_EQ(got[i].value, want[i].value) << i;
    }
  }
}

TEST_F(ScarceMemory, ForTheNumbersOfAStepIsAnErrorOfTheDevice) {
  const auto backend = open();
  const BufferPtr x = backend->allocate(16 * sizeof(float)), table = backend->allocate(16 * sizeof(float));
  const std::vector<std::int32_t> positions{1};
  const auto rope = [&] {
    backend->rope({x.get(), 0, 1, 16}, positions, *table, 8);
    backend->sync();
  };
  heal_and(ClCall::kBuffer, 1);
  BITNET_EXPECT_ERROR(rope(), ErrorCode::kDevice, "(step inputs)");
  heal_and(ClCall::kWrite, 1);
  failing_queue.write_status = CL_MEM_OBJECT_ALLOCATION_FAILURE;
  BITNET_EXPECT_ERROR(rope(), ErrorCode::kDevice, "CL_MEM_OBJECT_ALLOCATION_FAILURE");
  failing_queue.heal();
  EXPECT_NO_THROW(rope());
}

TEST_F(ScarceMemory, IsNotWastedWhereTheHostsIsTheDevices) {
  for (const bool shared : {true, false}) {
    options_.kernels.zero_copy = shared;
    const auto backend = open();
    const BufferPtr buffer = backend->allocate(4096);
    EXPECT_EQ((failing_queue.last_flags & CL_MEM_ALLOC_HOST_PTR) != 0, shared);
    const std::uint64_t before = backend->statistics().upload_bytes;
    const PreparedPtr prepared = backend->prepare(weights());
    EXPECT_EQ(backend->statistics().upload_bytes - before, shared ? 0 : prepared->bytes());
  }
}

}  // namespace
}  // namespace bitnet
