// See attention_op.hpp.
#include "attention_op.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <utility>

#include "bitnet/core/error.hpp"

namespace bitnet::gpu {
namespace {

constexpr std::int64_t kTileKeys = 128;            // BN_TILE
constexpr std::int64_t kTilesThatPay = 4;          // for which the second launch does
constexpr std::int64_t kGroupsOfAUnit = 4;         // that keep a unit of the device busy
constexpr std::int64_t kMostPartFloats = 1 << 24;  // 64 MiB, where a device has them to spare

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
  most_keys_ = 0;
  for (const SequenceSlice& s : args.queried()) {
    const auto pages_at = static_cast<std::int32_t>(plan_.size());
    for (std::int64_t t = s.past; t < s.past + s.n_rows; ++t) {
      plan_[at++] = static_cast<std::int32_t>(t + 1);
      plan_[at++] = pages_at;
    }
    const std::int64_t used = (s.past + s.n_rows - 1) / page_size + 1;
    plan_.insert(plan_.end(), s.pages.begin(), s.pages.begin() + used);
    most_keys_ = std::max(most_keys_, s.past + s.n_rows);
  }
  return static_cast<std::uint32_t>(queries_at);
}

void AttentionOp::rope(const DeviceMatrix& x, cl_mem positions, cl_mem table, std::int64_t head_dim) {
  if (n_ropes_ == ropes_.size()) issue();
  check_op(clRetainMemObject(x.mem), "clRetainMemObject");
  ClMem kept_x(x.mem);
  check_op(clRetainMemObject(table), "clRetainMemObject");
  ropes_[n_ropes_++] = {x, positions, table, head_dim, std::move(kept_x), ClMem(table)};
}

void AttentionOp::issue() {
  const std::size_t n = std::exchange(n_ropes_, 0);
  for (std::size_t i = 0; i < n; ++i) {
    const Rope r = std::exchange(ropes_[i], {});
    const Kernel& k = kernels_.rows_op("rope");
    queue_.launch(k, {n_groups(r.x.cols / 2, k.local[0]), static_cast<std::size_t>(r.x.rows)}, r.x.mem,
                  r.x.offset, r.positions, r.table, static_cast<cl_uint>(r.x.cols),
                  static_cast<cl_uint>(r.head_dim / 2));
  }
}

/// Whether what is held back are the rotations of these queries and of these keys.
bool AttentionOp::ropes_of(const AttentionArgs& args, const AttentionMemory& memory) const {
  return n_ropes_ == 2 && ropes_[0].x == memory.q && ropes_[1].x == memory.k &&
         ropes_[0].table == ropes_[1].table && ropes_[0].head_dim == args.head_dim &&
         ropes_[1].head_dim == args.head_dim;
}

void AttentionOp::store(const AttentionArgs& args, const AttentionMemory& m, const AttentionKernels& kernels,
                        cl_mem plan) {
  const auto heads = static_cast<cl_uint>(args.n_kv_heads);
  const cl_uint tokens_at = 0;
  const bool rows_of_bytes = args.cache.type == DType::kI8;  // an item stores a head's row
  const auto rows = static_cast<std::size_t>(args.k.rows);
  if (!ropes_of(args, m)) {
    issue();
    const std::int64_t items = rows_of_bytes ? args.n_kv_heads : args.k.cols;
    queue_.launch(kernels.store, {n_groups(items, kernels.store.local[0]), rows}, m.k.mem, m.k.offset,
                  m.v.mem, m.v.offset, plan, tokens_at, heads, m.keys, m.values);
    return;
  }
  const Rope q = std::exchange(ropes_[0], {}), k = std::exchange(ropes_[1], {});
  n_ropes_ = 0;
  const std::int64_t all_heads = args.n_heads + args.n_kv_heads;
  const std::int64_t items = rows_of_bytes ? all_heads : all_heads * args.head_dim / 2;
  // A row of vectors is done before a second thread is awake.
  const std::size_t along = kernels_.wide() ? 1 : n_groups(items, kernels.rope_and_store.local[0]);
  queue_.launch(kernels.rope_and_store, {along, rows}, m.q.mem, m.q.offset, static_cast<cl_uint>(m.q.rows),
                q.positions, m.k.mem, m.k.offset, k.positions, q.table, m.v.mem, m.v.offset, plan, tokens_at,
                heads, m.keys, m.values);
}

std::int64_t AttentionOp::tiles_of(const AttentionArgs& args, std::int64_t heads_of_a_group) const {
  const std::int64_t tiles = (most_keys_ + kTileKeys - 1) / kTileKeys;
  const std::int64_t groups = args.q.rows * args.n_heads / heads_of_a_group;
  const std::int64_t floats = args.q.rows * args.n_heads * tiles * (args.head_dim + 2);
  const bool pays = groups < traits_.compute_units * kGroupsOfAUnit && tiles >= kTilesThatPay;
  return traits_.split_attention.value_or(pays) && floats <= kMostPartFloats ? tiles : 1;
}

bool AttentionOp::may_divide(std::int64_t n_heads, const AttentionShape& shape) const {
  return traits_.split_attention.value_or(n_heads / kernels_.attention(shape).heads <
                                          traits_.compute_units * kGroupsOfAUnit);
}

cl_mem AttentionOp::parts(const AttentionArgs& args, std::int64_t n_tiles) {
  const auto bytes =
      static_cast<std::size_t>(args.q.rows * args.n_heads * n_tiles * (args.head_dim + 2)) * sizeof(float);
  if (parts_.bytes() < bytes) {
    parts_ = PooledMem();
    parts_ = PooledMem::try_make(memory_, std::bit_ceil(bytes), "activations");
    if (parts_.get() == nullptr) parts_ = PooledMem::try_make(memory_, bytes, "activations");
  }
  return parts_.get();
}

void AttentionOp::run(const AttentionArgs& args, const AttentionMemory& memory) {
  check_places(args.cache);
  const AttentionShape shape{args.cache.type, args.head_dim, args.cache.page_size,
                             args.n_heads / args.n_kv_heads};
  const AttentionKernels& kernels = kernels_.attention(shape);
  const cl_uint queries_at = make_plan(args);
  const cl_mem plan = inputs_.get(plan_);
  store(args, memory, kernels, plan);
  if (args.q.rows == 0) return;
  const auto heads = static_cast<cl_uint>(args.n_kv_heads);
  const auto scale = static_cast<cl_float>(1.0 / std::sqrt(static_cast<double>(args.head_dim)));
  std::int64_t tiles = tiles_of(args, kernels.heads);
  const cl_mem scratch = tiles == 1 ? nullptr : parts(args, tiles);
  if (scratch == nullptr) tiles = 1;
  const auto n_tiles = static_cast<cl_uint>(tiles);
  const auto rows = static_cast<std::size_t>(args.q.rows);
  const auto head_groups = static_cast<std::size_t>(args.n_heads / kernels.heads * tiles);
  const auto attend = [&](const Kernel& kernel, cl_mem out, cl_ulong out_offset) {
    queue_.launch(kernel, {head_groups, rows}, memory.q.mem, memory.q.offset, memory.keys, memory.values,
                  plan, queries_at, heads, scale, out, out_offset, n_tiles);
  };
  if (tiles == 1) return attend(kernels.attend, memory.out.mem, memory.out.offset);
  const AttentionKernels& in_parts = kernels_.attention_in_parts(shape);
  attend(in_parts.parts, scratch, 0);
  queue_.launch(in_parts.merge, {static_cast<std::size_t>(args.n_heads), rows}, scratch, plan, queries_at,
                n_tiles, memory.out.mem, memory.out.offset);
}

}  // namespace bitnet::gpu
