// Where the elements of tensors live: the pool that was given, the context's for results and temporaries of
// ops, the process's own otherwise; limits, lifetimes, a pool that took its blocks back.
#include <array>
#include <cstdlib>
#include <memory>
#include <vector>

#include "bitnet/core/indexing.hpp"
#include "bitnet/core/linalg.hpp"
#include "bitnet/core/memory/hybrid_memory_pool.hpp"
#include "bitnet/core/ops.hpp"
#include "bitnet/core/reductions.hpp"
#include "bitnet/core/rng.hpp"
#include "bitnet/testing/testing.hpp"

namespace bitnet {
namespace {

std::shared_ptr<HybridMemoryPool> pool(std::size_t limit = kNoMemoryLimit) {
  return std::make_shared<HybridMemoryPool>(
      MemoryPoolOptions{.name = "tensors", .limit = limit, .tracking = TrackingLevel::kStandard});
}

TagStats of_tensors(const HybridMemoryPool& pool) {
  for (const TagStats& tag : pool.tags())
    if (tag.tag == "tensor") return tag;
  return {};
}

Tensor random(Shape shape, std::uint64_t seed) {
  Rng rng(seed);
  Tensor t(DType::kF32, shape);
  for (float& v : t.span<float>()) v = static_cast<float>(2 * rng.uniform() - 1);
  return t;
}

TEST(TensorMemory, IsOfTheResourceGiven) {
  const auto memory = pool();
  Tensor t(DType::kF32, {100, 10}, memory);
  EXPECT_TRUE(memory->owns(t.data()));
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(t.data()) % 64, 0u);
  EXPECT_EQ(of_tensors(*memory).used, 4000u);
  const Tensor view = t.transpose(0, 1), copy = view.contiguous(memory), half = t.to(DType::kF16, memory);
  EXPECT_EQ(of_tensors(*memory).used, 10000u);
  t = Tensor();
  EXPECT_EQ(of_tensors(*memory).used, 10000u);  // the view still needs it
  EXPECT_FALSE(memory->owns(Tensor(DType::kF32, {4}).data()));
  const Tensor empty(DType::kI8, {0}, memory);
  EXPECT_TRUE(memory->owns(empty.data()));
}

TEST(TensorMemory, ZerosAreZerosWhereBlocksAreUsedAgain) {
  const auto memory = pool();
  for (const std::int64_t n : {10, 5000, 400000})
    for (int round = 0; round < 3; ++round) {
      Tensor t(DType::kF32, {n}, memory);
      for (float& v : t.span<float>()) {
        ASSERT_EQ(v, 0.0f) << n;
        v = 1;
      }
    }
  const Tensor trits(DType::kTernary, {8, 4}, memory), floats = trits.to(DType::kF32);
  for (const float v : floats.span<float>()) EXPECT_EQ(v, 0.0f);
}

TEST(TensorMemory, KeepsItsResourceAlive) {
  Tensor sum;
  std::weak_ptr<HybridMemoryPool> watched;
  {
    const auto memory = pool();
    watched = memory;
    const ExecutionContext context({.threads = 1, .isa = {}, .memory = memory});
    const Tensor x = random({50}, 1);
    sum = ops::add(context, x, x);
  }
  EXPECT_FALSE(watched.expired());
  EXPECT_EQ(sum.numel(), 50);
  sum = Tensor();
  EXPECT_TRUE(watched.expired());
}

TEST(TensorMemory, OpsTakeResultsAndTemporariesFromTheirContext) {
  const auto memory = pool();
  const ExecutionContext context({.threads = 2, .isa = {}, .memory = memory});
  const Tensor x = random({60, 60}, 1), y = x.transpose(0, 1), w = random({60}, 2), h = x.to(DType::kF16);
  const Tensor bytes = x.to(DType::kI8), square = ops::matmul(context, x, y);
  const Tensor index = Tensor::of<std::int32_t>({2}, std::vector<std::int32_t>{1, 59});
  EXPECT_TRUE(memory->owns(square.data()));
  const std::size_t before = of_tensors(*memory).used;
  const auto of_context = [&](const Tensor& t) { EXPECT_TRUE(memory->owns(t.data())); };
  of_context(ops::binary(context, ops::Binary::kMul, y, 2.0));
  of_context(ops::unary(context, ops::Unary::kExp, y));
  of_context(ops::compare(context, ops::Comparison::kLess, x, y));
  of_context(ops::where(context, ops::compare(context, ops::Comparison::kLess, x, y), x, y));
  of_context(ops::clamp(context, h, 0, 1));
  of_context(ops::matmul(context, h, h));
  of_context(ops::matmul(context, bytes, bytes));
  of_context(ops::reduce(context, ops::Reduction::kVar, y, {1}));
  of_context(ops::reduce(context, ops::Reduction::kSum, bytes, {1}));
  of_context(ops::argmax(context, y, 1));
  of_context(ops::softmax(context, y, 1));
  of_context(ops::rms_norm(context, y, w, 0));
  of_context(ops::take(context, y, index, 0));
  of_context(ops::stack(context, std::array{x, y}, 0));
  of_context(linalg::qr(context, y).q);
  of_context(linalg::least_squares(context, x, w).rank);
  EXPECT_EQ(of_tensors(*memory).used, before);
  // A transposed copy of y on the way to its variance.
  EXPECT_GE(of_tensors(*memory).peak, before + 60 * 60 * 4 + 60 * 4);
}

TEST(TensorMemory, LimitsAreErrorsThatNameTheTensor) {
  const auto memory = pool(std::size_t{1} << 20);
  const ExecutionContext context({.threads = 1, .isa = {}, .memory = memory});
  const Tensor x = random({600, 600}, 1);
  BITNET_EXPECT_ERROR((void)ops::add(context, x, x), ErrorCode::kOutOfMemory, "tensor [600, 600] of f32");
  BITNET_EXPECT_ERROR((void)Tensor(DType::kF32, {600, 600}, memory), ErrorCode::kOutOfMemory,
                      "asked for 1440000 bytes (tensor)");
  EXPECT_EQ(of_tensors(*memory).used, 0u);
  EXPECT_NO_THROW((void)ops::add(context, x.slice(0, 0, 10), x.slice(0, 0, 10)));
}

TEST(TensorMemory, EndsQuietlyAfterAReset) {
  const auto memory = pool();
  Tensor t(DType::kF32, {100}, memory);
  memory->reset();
  const Tensor other(DType::kF32, {100}, memory);  // perhaps where t was
  t = Tensor();
  EXPECT_EQ(of_tensors(*memory).used, 400u);
}

TEST(TensorMemory, LastsToTheProcessesEnd) {
  static struct AtExit {
    Tensor early = Tensor(DType::kF32, {3});
    ~AtExit() {  // after main() and the objects that were made later
      const Tensor late(DType::kF32, {1000, 1000});
      if (late.span<float>()[999999] != early.span<float>()[2]) std::abort();
    }
  } at_exit;
  EXPECT_EQ(at_exit.early.numel(), 3);
}

}  // namespace
}  // namespace bitnet
