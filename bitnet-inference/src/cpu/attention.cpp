// Causal attention over the paged cache, on the CPU: stores the new rows, cuts
// the queries into items, and runs each over its tiles of keys in ascending
// order. With few items and long contexts, the tiles of the last items are
// computed by all threads and merged in the same order. The arithmetic is in
// bitnet-core/src/kernels/generic/attention*.inl.hpp, the cache's bytes in
// kv_layout.cpp.
#include "cpu/attention.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>

#include "cpu/kv_layout.hpp"
#include "cpu/memory.hpp"
#include "cpu/work.hpp"

namespace bitnet::inference::cpu {
namespace {

constexpr std::int64_t kTile = kAttentionTile;
constexpr std::int64_t kChunk = 128;  // elements of a query that lie together (AttentionTile::q)
// Up to this many rows an f16 tile is widened in registers, by each group of
// rows; beyond, once into a panel.
constexpr std::int64_t kDirectRows = 16;
// Items of at most this many rows may be cut at their tiles, and this many
// tiles a thread are in flight.
constexpr std::int64_t kSplitRows = 32, kSlotsPerThread = 16;

constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }
constexpr std::int64_t round_up(std::int64_t n, std::int64_t to) { return ceil_div(n, to) * to; }

/// A state for `rows` rows in memory of state_floats(rows, head_dim).
std::int64_t state_floats(std::int64_t rows, std::int64_t head_dim) {
  return 2 * (round_up(rows, 16) + 16) + rows * round_up(head_dim, 16);
}
AttentionState state_at(float* p, std::int64_t rows) {
  const std::int64_t padded = round_up(rows, 16) + 16;
  return {p, p + padded, p + 2 * padded};
}

/// What one thread works in.
struct Workspace {
  float *queries, *q8_scales, *scores, *panel, *state;
  std::int8_t* q8;
  std::uint8_t* weights;
  std::int32_t *q8_sums, *n_keys;

  static std::int64_t query_floats(std::int64_t head_dim) {
    return kAttentionRows * round_up(head_dim, kChunk);
  }
  static std::int64_t floats(std::int64_t head_dim) {
    return 2 * query_floats(head_dim) + 3 * kAttentionRows + kAttentionRows * kTile * 5 / 4 +
           static_cast<std::int64_t>(KvLayout::panel_floats(head_dim)) +
           state_floats(kAttentionRows, head_dim);
  }
  Workspace(float* p, std::int64_t head_dim) {
    const auto take = [&p](std::int64_t n) {
      float* const at = p;
      p += n;
      return at;
    };
    queries = take(query_floats(head_dim));
    q8 = reinterpret_cast<std::int8_t*>(take(query_floats(head_dim)));
    q8_scales = take(kAttentionRows);
    q8_sums = reinterpret_cast<std::int32_t*>(take(kAttentionRows));
    n_keys = reinterpret_cast<std::int32_t*>(take(kAttentionRows));
    scores = take(kAttentionRows * kTile);
    weights = reinterpret_cast<std::uint8_t*>(take(kAttentionRows * kTile / 4));
    panel = take(static_cast<std::int64_t>(KvLayout::panel_floats(head_dim)));
    state = take(state_floats(kAttentionRows, head_dim));
  }
};

class Call {
 public:
  Call(const ExecutionContext& context, const AttentionArgs& a)
      : a_(a),
        floats_(tested_f32_kernels(context.isa())),
        kernels_(tested_attention_kernels(context.isa())),
        layout_(a, floats_, kernels_),
        group_(a.n_heads / a.n_kv_heads),
        scale_(static_cast<float>(1.0 / std::sqrt(static_cast<double>(a.head_dim)))) {}

  const SequenceSlice& sequence(const AttentionItem& item) const {
    return a_.queried()[static_cast<std::size_t>(item.sequence)];
  }
  /// Keys that row j of a sequence sees.
  std::int64_t keys_of(const SequenceSlice& s, std::int64_t j) const { return s.past + j / group_ + 1; }
  std::int64_t tiles_of(const AttentionItem& item) const {
    return ceil_div(keys_of(sequence(item), item.end - 1), kTile);
  }
  std::int64_t group() const { return group_; }
  const KvLayout& layout() const { return layout_; }

  /// All tiles of an item, into its rows of `out`.
  void run(const AttentionItem& item, const Workspace& w) const {
    load_queries(item, w);
    const AttentionState state = state_at(w.state, item.end - item.begin);
    const std::int64_t tiles = tiles_of(item);
    for (std::int64_t t = 0; t < tiles; ++t) run_tile(item, t, w, state, t > 0);
    finish(item, state);
  }
  /// One tile of an item alone, into `state`.
  void run_part(const AttentionItem& item, std::int64_t tile, const Workspace& w,
                const AttentionState& state) const {
    load_queries(item, w);
    run_tile(item, tile, w, state, false);
  }
  /// What run_part() found in `tile` into what the tiles before it gave.
  void merge(const AttentionState& part, const AttentionItem& item, std::int64_t tile,
             const AttentionState& into) const {
    const std::int64_t skip = skipped(item, tile);
    kernels_.merge(from_row(part, skip), from_row(into, skip), item.end - item.begin - skip, a_.head_dim);
  }
  /// out = values / sum
  void finish(const AttentionItem& item, const AttentionState& state) const {
    const std::int64_t stride = round_up(a_.head_dim, 16);
    const auto n = static_cast<std::size_t>(a_.head_dim);
    for (std::int64_t j = item.begin; j < item.end; ++j) {
      const std::int64_t r = j - item.begin;
      float* const to = row(a_.out, item, j);
      std::memcpy(to, state.values + r * stride, n * sizeof(float));
      floats_.scale(1.0f / state.sum[r], to, n);
    }
  }

 private:
  float* row(const Matrix& m, const AttentionItem& item, std::int64_t j) const {
    const std::int64_t head = item.kv_head * group_ + j % group_, r = sequence(item).first_row + j / group_;
    return reinterpret_cast<float*>(static_cast<HostBuffer*>(m.buffer)->data() + m.offset) +
           (r * a_.n_heads + head) * a_.head_dim;
  }

  void load_queries(const AttentionItem& item, const Workspace& w) const {
    const std::int64_t rows = item.end - item.begin, stride = round_up(a_.head_dim, 4);
    for (std::int64_t r = 0; r < rows; ++r) {
      const float* const q = row(a_.q, item, item.begin + r);
      if (layout_.type() == DType::kI8) {
        std::int8_t* const q8 = w.q8 + r * stride;
        std::memset(q8 + stride - 4, 0, 4);
        w.q8_scales[r] = kernels_.quantize(q, q8, static_cast<std::size_t>(a_.head_dim)) * scale_;
        std::int32_t sum = 0;
        for (std::int64_t d = 0; d < stride; ++d) sum += q8[d];
        w.q8_sums[r] = sum;
        continue;
      }
      for (std::int64_t d = 0; d < a_.head_dim; d += kChunk) {
        const auto n = static_cast<std::size_t>(std::min(kChunk, a_.head_dim - d));
        float* const to = w.queries + (d / kChunk * rows + r) * kChunk;
        std::memcpy(to, q + d, n * sizeof(float));
        floats_.scale(scale_, to, n);
      }
    }
  }

  /// Rows whose last key is in an earlier tile.
  std::int64_t skipped(const AttentionItem& item, std::int64_t tile) const {
    std::int64_t skip = 0;
    while (keys_of(sequence(item), item.begin + skip) <= tile * kTile) ++skip;
    return skip;
  }
  AttentionState from_row(const AttentionState& s, std::int64_t r) const {
    return {s.largest + r, s.sum + r, s.values + r * round_up(a_.head_dim, 16)};
  }

  void run_tile(const AttentionItem& item, std::int64_t tile, const Workspace& w, AttentionState state,
                bool merge) const {
    const SequenceSlice& s = sequence(item);
    const std::int64_t rows = item.end - item.begin, before = tile * kTile;
    const std::int64_t skip = skipped(item, tile);
    for (std::int64_t r = skip; r < rows; ++r)
      w.n_keys[r] = static_cast<std::int32_t>(std::min(kTile, keys_of(s, item.begin + r) - before));
    TileBlocks blocks;
    const bool widened =
        layout_.gather(s, item.kv_head, tile, w.n_keys[rows - 1], rows - skip > kDirectRows, w.panel, blocks);
    AttentionTile t;
    TileBlocks next;
    if (rows - skip <= kDirectRows && layout_.blocked() && w.n_keys[rows - 1] == kTile) {
      const std::int64_t left = keys_of(s, item.end - 1) - before - kTile;
      next = blocks;  // blocks that the next tile lacks
      layout_.gather(s, item.kv_head, tile + 1, std::min(left, kTile), false, nullptr, next);
      t.next_keys = next.keys;
    }
    t.rows = rows - skip;
    t.head_dim = a_.head_dim;
    t.n_keys = w.n_keys + skip;
    t.q = w.queries + skip * kChunk;
    t.q_chunk_stride = rows * kChunk;
    t.q8 = w.q8 + skip * round_up(a_.head_dim, 4);
    t.q8_scales = w.q8_scales + skip;
    t.q8_sums = w.q8_sums + skip;
    t.keys = blocks.keys;
    t.values = blocks.values;
    t.key_scales = blocks.key_scales;
    t.value_scales = blocks.value_scales;
    t.scores = w.scores;
    t.weights = w.weights;
    t.state = from_row(state, skip);
    t.merge = merge;
    if (layout_.type() == DType::kI8)
      kernels_.tile_i8(t);
    else if (layout_.type() == DType::kF32 || widened)
      kernels_.tile_f32(t);
    else
      kernels_.tile_f16(t);
  }

  const AttentionArgs& a_;
  const F32Kernels& floats_;
  const AttentionKernels& kernels_;
  KvLayout layout_;
  std::int64_t group_;
  float scale_;
};

/// Rows of an item: many share a widened tile, but every thread should have
/// several items.
std::int64_t choose_rows(const Call& c, const AttentionArgs& a, std::size_t threads) {
  std::int64_t rows = kAttentionRows;
  const auto items = [&] {
    std::int64_t n = 0;
    for (const SequenceSlice& s : a.queried()) n += ceil_div(s.n_rows * c.group(), rows) * a.n_kv_heads;
    return n;
  };
  if (threads > 1)
    while (rows > kSplitRows && items() < 4 * static_cast<std::int64_t>(threads)) rows /= 2;
  return rows;
}

/// Items, those with the most keys of a sequence first: what is left at the end
/// is small.
void make_items(const Call& c, const AttentionArgs& a, std::size_t threads,
                std::vector<AttentionItem>& items) {
  const std::int64_t rows = choose_rows(c, a, threads);
  items.clear();
  const std::span<const SequenceSlice> queries = a.queried();
  for (std::size_t i = 0; i < queries.size(); ++i) {
    const std::int64_t n = queries[i].n_rows * c.group();
    for (std::int64_t begin = (n - 1) / rows * rows; begin >= 0; begin -= rows)
      for (std::int64_t h = 0; h < a.n_kv_heads; ++h)
        items.push_back(
            {static_cast<std::int32_t>(i), static_cast<std::int32_t>(h), begin, std::min(n, begin + rows)});
  }
}

/// Where the parts of split items go: tiles of the items [first, end) in order.
class Split {
 public:
  Split(const Call& c, std::span<const AttentionItem> items, float* states, float* slots,
        std::int64_t n_slots, std::int64_t stride)
      : c_(c), items_(items), states_(states), slots_(slots), n_slots_(n_slots), stride_(stride) {
    for (const AttentionItem& item : items) n_parts_ += c.tiles_of(item);
  }
  /// Parts of the next wave.
  std::int64_t wave() const { return std::min(n_slots_, n_parts_ - done_); }
  void run(std::int64_t i, const Workspace& w) const {
    const auto [item, tile] = at(done_ + i);
    c_.run_part(items_[item], tile, w, slot(i));
  }
  /// Merges the parts of a wave in ascending order.
  void merge_wave() {
    const std::int64_t n = wave();
    for (std::int64_t i = 0; i < n; ++i, ++done_) {
      const auto [item, tile] = at(done_);
      const AttentionItem& of = items_[item];
      float* const state = states_ + static_cast<std::int64_t>(item) * stride_;
      const AttentionState into = state_at(state, of.end - of.begin);
      if (tile == 0)
        std::copy_n(slots_ + i * stride_, stride_, state);
      else
        c_.merge(slot_of(i, of), of, tile, into);
      if (tile == c_.tiles_of(of) - 1) c_.finish(of, into);
    }
  }

 private:
  struct Part {
    std::size_t item;
    std::int64_t tile;
  };
  Part at(std::int64_t part) const {
    std::size_t item = 0;
    for (; part >= c_.tiles_of(items_[item]); ++item) part -= c_.tiles_of(items_[item]);
    return {item, part};
  }
  AttentionState slot_of(std::int64_t i, const AttentionItem& item) const {
    return state_at(slots_ + i * stride_, item.end - item.begin);
  }
  AttentionState slot(std::int64_t i) const { return slot_of(i, items_[at(done_ + i).item]); }

  const Call& c_;
  std::span<const AttentionItem> items_;
  float *states_, *slots_;
  std::int64_t n_slots_, stride_, n_parts_ = 0, done_ = 0;
};

/// How many of the last items to cut at their tiles: those that whole items
/// leave no even share of.
std::size_t count_split(const Call& c, std::span<const AttentionItem> items, std::size_t parts) {
  if (parts <= 1 || items.size() >= 8 * parts) return 0;
  const std::size_t rest = items.size() % parts;
  for (const AttentionItem& item : items.last(rest))
    if (item.end - item.begin > kSplitRows || c.tiles_of(item) < 2) return 0;
  return rest;
}

}  // namespace

float* AttentionScratch::aligned(std::size_t n) {
  constexpr std::size_t kAlignment = 64 / sizeof(float);
  if (floats.size() < n + kAlignment) floats.resize(n + kAlignment);
  const auto address = reinterpret_cast<std::uintptr_t>(floats.data()) / sizeof(float);
  return floats.data() + (kAlignment - address % kAlignment) % kAlignment;
}

void attention(const ExecutionContext& context, const AttentionArgs& a, AttentionScratch& scratch) {
  const Call c(context, a);
  const std::size_t threads = context.threads();
  std::int64_t cost = 2 * a.k.rows * a.k.cols;  // elements to store, and those that all queries meet
  for (const SequenceSlice& s : a.queried())
    cost += 2 * s.n_rows * (s.past + s.n_rows) * a.head_dim * a.n_heads;
  const std::size_t parts = count_parts(context, threads, static_cast<std::size_t>(cost) / threads);

  make_items(c, a, parts, scratch.items);
  const auto n_threads = static_cast<std::int64_t>(threads);
  const std::int64_t part_floats = Workspace::floats(a.head_dim), n_slots = kSlotsPerThread * n_threads,
                     split_floats = state_floats(kSplitRows, a.head_dim);
  // Fewer items than parts are ever split.
  const std::int64_t states = threads > 1 ? (n_slots + n_threads) * split_floats : 0;
  float* const memory = scratch.aligned(static_cast<std::size_t>(n_threads * part_floats + states));
  const auto workspace = [&](std::size_t part) {
    return Workspace(memory + static_cast<std::int64_t>(part) * part_floats, a.head_dim);
  };

  const auto pairs = a.sequences.size() * static_cast<std::size_t>(a.n_kv_heads);
  for_parts(context, pairs, std::min(parts, pairs),
            [&](std::size_t part, std::size_t begin, std::size_t end) {
              for (std::size_t i = begin; i < end; ++i) {
                const auto heads = static_cast<std::size_t>(a.n_kv_heads);
                c.layout().store(a, a.sequences[i / heads], static_cast<std::int64_t>(i % heads),
                                 workspace(part).queries);
              }
            });

  const std::span<const AttentionItem> items = scratch.items;
  const std::size_t n_split = count_split(c, items, parts), n_whole = items.size() - n_split;
  float* const split_states = memory + n_threads * part_floats;
  Split split(c, items.subspan(n_whole), split_states, split_states + n_threads * split_floats, n_slots,
              split_floats);
  // Items are taken, not dealt: a thread that the system holds up does not hold
  // up the rest.
  for (std::size_t whole = n_whole; whole > 0 || split.wave() > 0; whole = 0) {
    std::atomic<std::size_t> next{0};
    const std::size_t n = whole + static_cast<std::size_t>(split.wave());
    for_parts(context, parts, parts, [&](std::size_t part, std::size_t, std::size_t) {
      const Workspace w = workspace(part);
      for (std::size_t i = next++; i < n; i = next++) {
        if (i < whole)
          c.run(items[i], w);
        else
          split.run(static_cast<std::int64_t>(i - whole), w);
      }
    });
    split.merge_wave();
  }
}

}  // namespace bitnet::inference::cpu
