// See linear_op.hpp.
#include "linear_op.hpp"

#include <algorithm>
#include <utility>

#include "bitnet/core/error.hpp"

namespace bitnet::gpu {
namespace {

constexpr std::size_t kSlack = 16;  // bytes behind the rows that ternary_groups.cl may read
// Arguments of ternary_matmul.cl that add() sets: added, x, x_offset.
constexpr std::size_t kAddedAt = 5;

// Multiply-adds of a launch below which a CPU device is done before a second thread is awake: some 7 µs of
// one thread.
constexpr std::int64_t kWorkOfOne = 1 << 20;
constexpr std::int64_t kBytesAsTrits = 4;  // products of bytes take as long as so many of trits

std::int64_t tiles_of(std::int64_t out) { return round_up(out, kTileColumns) / kTileColumns; }

template <class T>
const T* as(const PreparedWeights& weights) {
  return dynamic_cast<const T*>(&weights);
}

ActivationForm form_of(const PreparedWeights& weights) {
  if (const auto* const w = as<OpenClExtended>(weights)) return w->activations;
  if (const auto* const w = as<OpenClTernary>(weights)) return w->activations;
  throw Error(ErrorCode::kInvalidArgument, "weights prepared by another backend");
}

ClMem kept(cl_mem mem) {
  check_op(clRetainMemObject(mem), "clRetainMemObject");
  return ClMem(mem);
}

}  // namespace

void LinearOp::reserve(std::int64_t in, std::int64_t groups) {
  const auto chunk = static_cast<std::size_t>(kChunkRows);
  if (inv_scales_.get() == nullptr) {
    inv_scales_ = PooledMem(memory_, chunk * sizeof(float), "activations");
    sums_ = PooledMem(memory_, chunk * sizeof(cl_int), "activations");
  }
  const std::size_t bytes = chunk * static_cast<std::size_t>(round_up(in, kActivationBlock)) + kSlack;
  if (rows_.bytes() < bytes) rows_ = PooledMem(memory_, bytes, "activations");
  const std::size_t sums = groups == 0 ? 0 : chunk * static_cast<std::size_t>(groups) * sizeof(cl_int);
  if (group_sums_.bytes() < sums) group_sums_ = PooledMem(memory_, sums, "activations");
}

void LinearOp::quantize(const RowsToQuantize& r, ActivationForm form) {
  const Kernel& k = kernels_.normalize(r.gate, r.norm != nullptr, true, form);
  // What a variant does not read may be any buffer.
  const DeviceMatrix& up = r.gate != 0 ? r.up : r.x;
  queue_.launch(k, {static_cast<std::size_t>(r.x.rows), 1}, r.x.mem, r.x.offset, up.mem, up.offset, r.x.mem,
                r.x.offset, r.norm != nullptr ? r.norm : r.x.mem, r.eps, static_cast<cl_uint>(r.x.cols),
                static_cast<cl_uint>(round_up(r.x.cols, kActivationBlock)), rows_.get(), inv_scales_.get(),
                sums_.get());
}

void LinearOp::run(const RowsToQuantize& rows, std::span<const PreparedWeights* const> weights,
                   std::span<const DeviceMatrix> outs) {
  const std::int64_t n = rows.x.rows;
  for (std::int64_t first = 0; first < n; first += kChunkRows) {
    const std::int64_t count = std::min(kChunkRows, n - first);
    RowsToQuantize chunk = rows;
    chunk.x = rows.x.part(first, count);
    if (rows.gate != 0) chunk.up = rows.up.part(first, count);
    std::array<bool, 3> done{};
    bool gated = false;
    for (const PreparedWeights* const w : weights) {
      const ActivationForm form = form_of(*w);
      if (std::exchange(done[static_cast<std::size_t>(form)], true)) continue;
      issue();
      // The gate has been applied in place by the first form.
      if (std::exchange(gated, true)) chunk.gate = 0;
      quantize(chunk, form);
      multiply_form(weights, outs, form, first, count, n <= kChunkRows);
    }
  }
}

void LinearOp::run(const RowsToQuantize& rows, const OpenClInt8& weights, const DeviceMatrix& out) {
  for (std::int64_t first = 0; first < rows.x.rows; first += kChunkRows) {
    const std::int64_t count = std::min(kChunkRows, rows.x.rows - first);
    RowsToQuantize chunk = rows;
    chunk.x = rows.x.part(first, count);
    quantize(chunk, weights.activations);
    multiply(weights, out.part(first, count));
  }
}

/// The products of rows [first, first + n), which are quantised in this form.
void LinearOp::multiply_form(std::span<const PreparedWeights* const> weights,
                             std::span<const DeviceMatrix> outs, ActivationForm form, std::int64_t first,
                             std::int64_t n, bool hold) {
  std::array<Product, kMatrices> some{};
  std::size_t count = 0;
  for (std::size_t i = 0; i < weights.size(); ++i) {
    if (form_of(*weights[i]) != form) continue;
    const DeviceMatrix out = outs[i].part(first, n);
    if (const auto* const extended = as<OpenClExtended>(*weights[i])) {
      multiply(*extended, out);
      continue;
    }
    some[count++] = {as<OpenClTernary>(*weights[i]), out};
    if (count < kMatrices) continue;
    multiply(some, false);
    count = 0;
  }
  if (count > 0) multiply(std::span(some).first(count), hold && count == 1);
}

std::array<std::size_t, 2> LinearOp::groups_of(const RowsKernel& k, std::int64_t rows,
                                               std::int64_t out) const {
  const std::size_t row_groups = n_groups(rows, static_cast<std::size_t>(k.rows));
  if (kernels_.wide()) return {row_groups, static_cast<std::size_t>(tiles_of(out))};
  return {n_groups(out, k.kernel.local[0]), row_groups};
}

/// One launch for all, whose rows are the same.
void LinearOp::multiply(std::span<const Product> products, bool hold) {
  const std::int64_t rows = products.front().out.rows;
  const RowsKernel& k = kernels_.ternary(rows);
  std::array<Product, kMatrices> all{};
  std::array<cl_uint, kMatrices> columns{};
  std::array<std::size_t, 2> groups{};
  const std::size_t along = kernels_.wide() ? 1 : 0;  // where the matrices lie side by side
  for (std::size_t i = 0; i < kMatrices; ++i) {
    all[i] = products[std::min(i, products.size() - 1)];
    if (i >= products.size()) continue;
    columns[i] = static_cast<cl_uint>(all[i].weights->out());
    const auto own = groups_of(k, rows, all[i].weights->out());
    groups[along] += own[along];
    groups[1 - along] = own[1 - along];
  }
  std::int64_t outs = 0;
  for (const cl_uint n : columns) outs += n;
  if (kernels_.wide() && rows * outs * all[0].weights->in() <= kWorkOfOne) groups[along] = 1;
  const auto& [a, b, c] = all;
  const cl_uint words = static_cast<cl_uint>(round_up(a.weights->in(), kActivationBlock) / 16), none = 0;
  const Launch launch(k.kernel, groups, rows_.get(), sums_.get(), inv_scales_.get(), words,
                      static_cast<cl_uint>(rows), none, a.out.mem, a.out.offset, a.weights->codes.get(),
                      a.weights->scales.get(), a.weights->rows_per_scale, columns[0], a.out.mem, a.out.offset,
                      b.weights->codes.get(), b.weights->scales.get(), b.weights->rows_per_scale, columns[1],
                      b.out.mem, b.out.offset, c.weights->codes.get(), c.weights->scales.get(),
                      c.weights->rows_per_scale, columns[2], c.out.mem, c.out.offset);
  if (!hold) return queue_.issue(launch);
  kept_[0] = kept(a.weights->codes.get());
  kept_[1] = kept(a.weights->scales.get());
  kept_[2] = kept(a.out.mem);
  kept_[3] = kept(rows_.get());
  held_out_ = a.out;
  held_ = launch;
}

bool LinearOp::add(const DeviceMatrix& x, const DeviceMatrix& y) {
  if (held_.is_none() || held_out_ != y || x.mem == y.mem) return false;
  const cl_uint to_x = 1;
  held_.set(kAddedAt, to_x);
  held_.set(kAddedAt + 1, x.mem);
  held_.set(kAddedAt + 2, x.offset);
  issue();
  return true;
}

void LinearOp::issue() {
  if (held_.is_none()) return;
  const Launch launch = std::exchange(held_, {});
  const std::array<ClMem, 4> release = std::exchange(kept_, {});
  queue_.issue(launch);
}

void LinearOp::multiply(const OpenClExtended& w, const DeviceMatrix& out) {
  const auto rows = static_cast<cl_uint>(out.rows);
  const auto stride = static_cast<cl_uint>(round_up(w.in(), kActivationBlock));
  const Kernel& sums = kernels_.group_sums();
  const RowsKernel& k = kernels_.groups(out.rows);
  cl_uint added = 0;
  for (const OpenClExtended::Plane& p : w.planes) {
    queue_.launch(sums, {n_groups(p.groups, sums.local[0]), static_cast<std::size_t>(out.rows)}, rows_.get(),
                  stride, p.group_cols, p.group_words, p.groups, group_sums_.get());
    queue_.launch(k.kernel, groups_of(k, out.rows, w.out()), p.codes.get(), rows_.get(), stride, p.group_cols,
                  p.group_words, p.groups, group_sums_.get(), inv_scales_.get(), p.scales.get(),
                  static_cast<cl_uint>(w.out()), rows, added, out.mem, out.offset);
    added = 1;
  }
}

void LinearOp::multiply(const OpenClInt8& w, const DeviceMatrix& out) {
  const RowsKernel& k = kernels_.int8(out.rows);
  std::array<std::size_t, 2> groups = groups_of(k, out.rows, w.out());
  if (kernels_.wide() && kBytesAsTrits * out.rows * w.out() * w.in() <= kWorkOfOne) groups[1] = 1;
  queue_.launch(k.kernel, groups, w.table.get(), rows_.get(), inv_scales_.get(), w.scales.get(),
                static_cast<cl_uint>(round_up(w.in(), kActivationBlock) / 4), static_cast<cl_uint>(w.out()),
                static_cast<cl_uint>(out.rows), out.mem, out.offset);
}

}  // namespace bitnet::gpu
