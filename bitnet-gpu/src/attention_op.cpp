// See attention_op.hpp.
#include "attention_op.hpp"

#include <fmt/format.h>

#include <cmath>
#include <limits>

#include "bitnet/core/error.hpp"

namespace bitnet::gpu {
namespace {

cl_ulong float_offset(const Matrix& m) { return m.offset / sizeof(float); }

std::size_t groups(std::int64_t items, std::size_t local) {
  return (static_cast<std::size_t>(items) + local - 1) / local;
}

/// The kernels know places in the cache as 32-bit token numbers.
void check_places(const KvLayer& cache) {
  if (cache.n_pages > std::numeric_limits<std::int32_t>::max() / cache.page_size)
    throw Error(ErrorCode::kDevice,
                fmt::format("attention: a cache of {} pages of {} tokens has more than 2^31 of them",
                            cache.n_pages, cache.page_size));
}

}  // namespace

std::uint32_t AttentionOp::make_plan(const AttentionArgs& args) {
  const std::int64_t page_size = args.cache.page_size;
  plan_.clear();
  for (const SequenceSlice& s : args.sequences) {
    for (std::int64_t t = s.past; t < s.past + s.n_rows; ++t)
      plan_.push_back(static_cast<std::int32_t>(s.pages[static_cast<std::size_t>(t / page_size)] * page_size +
                                                t % page_size));
  }
  const std::size_t queries_at = plan_.size();
  plan_.resize(queries_at + 2 * static_cast<std::size_t>(args.q.rows));
  std::size_t at = queries_at;
  for (const SequenceSlice& s : args.queried()) {
    const auto pages_at = static_cast<std::int32_t>(plan_.size());
    for (std::int64_t t = s.past; t < s.past + s.n_rows; ++t) {
      plan_[at++] = static_cast<std::int32_t>(t + 1);
      plan_[at++] = pages_at;
    }
    const std::int64_t used = (s.past + s.n_rows - 1) / page_size + 1;
    plan_.insert(plan_.end(), s.pages.begin(), s.pages.begin() + used);
  }
  return static_cast<std::uint32_t>(queries_at);
}

void AttentionOp::run(const AttentionArgs& args, const AttentionMemory& memory) {
  check_places(args.cache);
  const AttentionKernelPair& kernels = kernels_.attention(
      {args.cache.type, args.head_dim, args.cache.page_size, args.n_heads / args.n_kv_heads});
  const cl_uint queries_at = make_plan(args), tokens_at = 0;
  const cl_mem plan = inputs_.get(plan_);
  const auto heads = static_cast<cl_uint>(args.n_kv_heads);
  // An item stores a head's row of int8, or one float.
  const std::int64_t items = args.cache.type == DType::kI8 ? args.n_kv_heads : args.k.cols;
  queue_.launch(kernels.store, {groups(items, kernels.store.local[0]), static_cast<std::size_t>(args.k.rows)},
                memory.k, float_offset(args.k), memory.v, float_offset(args.v), plan, tokens_at, heads,
                memory.keys, memory.values);
  if (args.q.rows == 0) return;
  const auto scale = static_cast<cl_float>(1.0 / std::sqrt(static_cast<double>(args.head_dim)));
  queue_.launch(
      kernels.attend,
      {static_cast<std::size_t>(args.n_heads / kernels.heads), static_cast<std::size_t>(args.q.rows)},
      memory.q, float_offset(args.q), memory.keys, memory.values, plan, queries_at, heads, scale, memory.out,
      float_offset(args.out));
}

}  // namespace bitnet::gpu
