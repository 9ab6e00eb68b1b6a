// The transformer, as the papers have it: LLaMA's block (Touvron et al. 2023) with the sub-norms and relu² of
// BitNet b1.58 2B4T (Ma et al. 2025, section 2). A linear() is a BitLinear or a dense matrix, which the
// weights know. No dispatch, threads or file formats here: those are the backend's and model_io's.
#include "forward.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <limits>
#include <numeric>
#include <utility>

#include "adapter_weights.hpp"
#include "bitnet/core/error.hpp"
#include "bitnet/core/profiler.hpp"
#include "bitnet/inference/adapter_set.hpp"
#include "model_weights.hpp"

namespace bitnet::inference {

namespace {

/// Rows first … first + n − 1 of m.
Matrix part(Matrix m, std::int64_t first, std::int64_t n) {
  m.offset += static_cast<std::size_t>(first * m.cols) * sizeof(float);
  m.rows = n;
  return m;
}

/// The weights of at most three linears, as the backend's ops take them.
class Weights {
 public:
  template <class Linears>
  explicit Weights(const Linears& linears) {
    for (const auto& l : linears) list_[n_++] = l.weights;
  }
  operator std::span<const PreparedWeights* const>() const noexcept { return {list_.data(), n_}; }

 private:
  std::array<const PreparedWeights*, 3> list_{};
  std::size_t n_ = 0;
};

/// Whether a backend takes them in one call: all ternary, or none.
template <class Linears>
bool one_kind(const Linears& linears) {
  return std::all_of(linears.begin(), linears.end(), [&](const auto& l) {
    return l.weights->ternary() == linears.front().weights->ternary();
  });
}

}  // namespace

ForwardPass::ForwardPass(std::shared_ptr<const Model> model, std::int64_t n_ctx, std::int64_t max_rows,
                         std::int64_t max_logit_rows)
    : model_(std::move(model)),
      backend_(model_->backend()),
      workspace_(backend_, model_->config(), n_ctx, max_rows, max_logit_rows),
      max_logit_rows_(max_logit_rows),
      numbers_(static_cast<std::size_t>(max_rows)) {
  std::iota(numbers_.begin(), numbers_.end(), 0);
  positions_.reserve(numbers_.size());
  runs_.reserve(numbers_.size());
  queries_.reserve(numbers_.size());
  asked_positions_.reserve(numbers_.size());
}

void ForwardPass::run(const KvPool& pool, std::span<const SequenceSlice> sequences,
                      std::span<const TokenId> ids, std::span<const std::int32_t> asked,
                      std::span<const AdapterSet* const> adapters) {
  const ProfileZone zone(backend_.profiler(), "forward", 0, static_cast<std::int64_t>(ids.size()));
  const ModelWeights& weights = model_->weights();
  const auto n_rows = static_cast<std::int64_t>(ids.size());
  workspace_.set_rows(n_rows);
  plan(sequences, asked, adapters);
  const std::array<Run, 1> whole{{{0, 0, n_rows}}};
  const Rows all{whole, sequences, positions_, n_rows, adapted_};
  const Rows last{runs_, queries_, asked_positions_, static_cast<std::int64_t>(asked_positions_.size()),
                  asked_adapted_};

  const Matrix x = workspace_.residual();
  backend_.embed(*weights.embedding, ids, x);
  for (std::size_t i = 0; i < weights.layers.size(); ++i) {
    if (observation_ != nullptr && static_cast<std::int64_t>(i) > observation_->last_layer) return;
    // What the last layer adds to a row is seen by nothing but that row's logits.
    const Rows& rows = i + 1 < weights.layers.size() ? all : last;
    attention_block(i, pool.layer(static_cast<std::int64_t>(i)), sequences, rows);
    if (rows.n > 0) feed_forward_block(i, rows);
  }
  for (const Run& r : last.runs) {
    backend_.rms_norm(part(x, r.row, r.n), *weights.output_norm, model_->config().rms_norm_eps,
                      part(workspace_.normed(), r.at, r.n));
  }
}

void ForwardPass::reserve(const AdapterSet& adapters) {
  if (adapters.rank() <= adapter_rank_) return;
  const ModelConfig& c = model_->config();
  const std::int64_t widest = std::max({c.hidden_size, c.q_dim(), c.kv_dim(), c.intermediate_size});
  const auto floats = [&](std::int64_t cols) {
    return backend_.allocate(static_cast<std::size_t>(workspace_.max_rows() * cols) * sizeof(float),
                             "adapter activations");
  };
  low_ = floats(adapters.rank());
  if (update_ == nullptr) update_ = floats(widest);
  adapter_rank_ = adapters.rank();
  adapted_.reserve(numbers_.size());
  asked_adapted_.reserve(numbers_.size());
}

/// The positions of all rows; runs, slices and positions of those that are asked for; whose adapters they
/// have.
void ForwardPass::plan(std::span<const SequenceSlice> sequences, std::span<const std::int32_t> asked,
                       std::span<const AdapterSet* const> adapters) {
  positions_.clear();
  runs_.clear();
  queries_.clear();
  asked_positions_.clear();
  adapted_.clear();
  asked_adapted_.clear();
  std::size_t next = 0;
  for (std::size_t k = 0; k < sequences.size(); ++k) {
    const SequenceSlice& s = sequences[k];
    const AdapterSet* const own = adapters.empty() ? nullptr : adapters[k];
    if (own != nullptr) extend(adapted_, s.first_row, s.n_rows, own);
    for (std::int64_t i = 0; i < s.n_rows; ++i) {
      positions_.push_back(static_cast<std::int32_t>(s.past + i));
      if (next == asked.size() || asked[next] != s.first_row + i) continue;
      ask(s, s.first_row + i, own);
      ++next;
    }
  }
  if (next != asked.size()) {
    throw Error(ErrorCode::kInvalidArgument, fmt::format("asked[{}] = {} is not one of {} ascending rows",
                                                         next, asked[next], positions_.size()));
  }
}

/// Appends rows [first, first + n), to the last entry where they go on with the same adapters.
void ForwardPass::extend(std::vector<Adapted>& to, std::int64_t first, std::int64_t n,
                         const AdapterSet* adapters) const {
  if (&adapters->model() != model_.get() || adapters->rank() > adapter_rank_)
    throw Error(ErrorCode::kInvalidArgument, "a pass with adapters of another model, or not reserved");
  if (!to.empty() && to.back().adapters == adapters && to.back().first + to.back().n == first) {
    to.back().n += n;
  } else {
    to.push_back({first, n, adapters});
  }
}

void ForwardPass::ask(const SequenceSlice& sequence, std::int64_t row, const AdapterSet* adapters) {
  const auto at = static_cast<std::int64_t>(asked_positions_.size());
  const std::int64_t position = sequence.past + row - sequence.first_row;
  if (adapters != nullptr) extend(asked_adapted_, at, 1, adapters);
  asked_positions_.push_back(static_cast<std::int32_t>(position));
  const bool adjoins = !runs_.empty() && runs_.back().row + runs_.back().n == row;
  if (adjoins) {
    ++runs_.back().n;
  } else {
    runs_.push_back({row, at, 1});
  }
  if (adjoins && row != sequence.first_row) {
    ++queries_.back().n_rows;
  } else {
    queries_.push_back({at, 1, position, sequence.pages});
  }
}

/// outs = norm(x) · weightsᵀ for the rows of x that are in `rows`, adapters included.
void ForwardPass::norm_linear(std::span<const LinearOf> linears, std::size_t layer, const Buffer& norm,
                              const Rows& rows, std::span<const Matrix> outs) {
  const float eps = model_->config().rms_norm_eps;
  const Matrix x = workspace_.residual(), h = part(workspace_.normed(), 0, rows.n);
  const TensorRole input = input_role(linears.front().role);
  if (rows.runs.size() == 1 && rows.adapted.empty() && one_kind(linears) && !observed(input, layer)) {
    backend_.norm_linear(Weights(linears), part(x, rows.runs[0].row, rows.n), norm, eps, h, outs);
    return;
  }
  for (const Run& r : rows.runs)
    backend_.rms_norm(part(x, r.row, r.n), norm, eps, part(workspace_.normed(), r.at, r.n));
  show(input, layer, h);
  linear(linears, layer, rows, h, outs);
}

/// outs = x · weightsᵀ for a block's rows x, adapters included.
void ForwardPass::linear(std::span<const LinearOf> linears, std::size_t layer, const Rows& rows, Matrix x,
                         std::span<const Matrix> outs) {
  if (one_kind(linears)) {
    backend_.linear(Weights(linears), x, outs);
  } else {
    for (std::size_t i = 0; i < linears.size(); ++i)
      backend_.linear(Weights(linears.subspan(i, 1)), x, outs.subspan(i, 1));
  }
  for (std::size_t i = 0; i < linears.size(); ++i) adapt(linears[i].role, layer, rows, x, outs[i]);
}

bool ForwardPass::observed(TensorRole input, std::size_t layer) const {
  return observation_ != nullptr && observation_->wanted({input, static_cast<std::int64_t>(layer)});
}

/// The rows of x, the input of a block's linears, to who wants them.
void ForwardPass::show(TensorRole input, std::size_t layer, Matrix x) {
  if (!observed(input, layer)) return;
  shown_.resize(static_cast<std::size_t>(x.rows * x.cols));
  backend_.download(*x.buffer, x.offset, std::as_writable_bytes(std::span(shown_)));
  observation_->see({input, static_cast<std::int64_t>(layer)}, shown_);
}

/// out += B·(A·x) for the rows that have adapters for this linear.
void ForwardPass::adapt(TensorRole role, std::size_t layer, const Rows& rows, Matrix x, Matrix out) {
  for (const Adapted& s : rows.adapted) {
    const LowRank& factors = s.adapters->weights().of(role, layer);
    if (factors.a == nullptr) continue;
    const Matrix low{low_.get(), 0, s.n, factors.a->out()}, update{update_.get(), 0, s.n, out.cols};
    const std::array<const PreparedWeights*, 1> a{factors.a.get()}, b{factors.b.get()};
    backend_.linear(a, part(x, s.first, s.n), std::array<Matrix, 1>{low});
    backend_.linear(b, low, std::array<Matrix, 1>{update});
    backend_.add(part(out, s.first, s.n), update);
  }
}

/// x += h for the rows of x that are in `rows`.
void ForwardPass::add(const Rows& rows) {
  for (const Run& r : rows.runs)
    backend_.add(part(workspace_.residual(), r.row, r.n), part(workspace_.normed(), r.at, r.n));
}

// x += Wo · sub_norm(attention(rope(Wq·h), rope(Wk·h), Wv·h)), h = norm(x)
void ForwardPass::attention_block(std::size_t index, const KvLayer& cache,
                                  std::span<const SequenceSlice> sequences, const Rows& rows) {
  const LayerWeights& layer = model_->weights().layers[index];
  const ModelConfig& c = model_->config();
  const Matrix x = workspace_.residual(), k = workspace_.k(), v = workspace_.v();
  const Matrix h = part(workspace_.normed(), 0, rows.n), q = part(workspace_.q(), 0, rows.n),
               mixed = part(workspace_.attention(), 0, rows.n);

  const std::array<LinearOf, 3> kvq{{{layer.k.get(), TensorRole::kAttnK},
                                     {layer.v.get(), TensorRole::kAttnV},
                                     {layer.q.get(), TensorRole::kAttnQ}}};
  const std::array<Matrix, 3> outs{k, v, q};
  const bool every = rows.n == x.rows;  // keys and values are every row's
  const std::size_t n = every ? 3 : 2;
  const std::array<Run, 1> whole{{{0, 0, x.rows}}};
  const Rows all{whole, sequences, positions_, x.rows, adapted_};
  norm_linear(std::span(kvq).first(n), index, *layer.attn_norm, all, std::span(outs).first(n));
  if (!every && rows.n > 0) norm_linear(std::span(kvq).last(1), index, *layer.attn_norm, rows, {&q, 1});
  backend_.rope(q, rows.positions, workspace_.rope_table(), c.head_dim);
  backend_.rope(k, positions_, workspace_.rope_table(), c.head_dim);
  backend_.attention({q, k, v, mixed, cache, sequences, c.n_heads, c.n_kv_heads, c.head_dim, rows.slices});
  if (rows.n == 0) return;
  const std::array<LinearOf, 1> o{{{layer.o.get(), TensorRole::kAttnOutput}}};
  const std::array<Matrix, 1> to{h};
  if (layer.attn_sub_norm && rows.adapted.empty() && !observed(TensorRole::kAttnOutput, index)) {
    backend_.norm_linear(Weights(o), mixed, *layer.attn_sub_norm, c.rms_norm_eps, mixed, to);
  } else {
    if (layer.attn_sub_norm) backend_.rms_norm(mixed, *layer.attn_sub_norm, c.rms_norm_eps, mixed);
    show(TensorRole::kAttnOutput, index, mixed);
    linear(o, index, rows, mixed, to);
  }
  add(rows);
}

// x += Wdown · sub_norm(f(Wgate·h) ⊙ Wup·h), h = norm(x)
void ForwardPass::feed_forward_block(std::size_t index, const Rows& rows) {
  const LayerWeights& layer = model_->weights().layers[index];
  const ModelConfig& c = model_->config();
  const Matrix h = part(workspace_.normed(), 0, rows.n), gate = part(workspace_.gate(), 0, rows.n),
               up = part(workspace_.up(), 0, rows.n);

  const std::array<LinearOf, 2> gate_up{
      {{layer.gate.get(), TensorRole::kFfnGate}, {layer.up.get(), TensorRole::kFfnUp}}};
  norm_linear(gate_up, index, *layer.ffn_norm, rows, std::array<Matrix, 2>{gate, up});
  if (rows.adapted.empty() && !observed(TensorRole::kFfnDown, index)) {
    backend_.gated_linear(c.activation, gate, up, layer.ffn_sub_norm.get(), c.rms_norm_eps, *layer.down, h);
  } else {
    backend_.gated_activation(c.activation, gate, up, gate);
    if (layer.ffn_sub_norm) backend_.rms_norm(gate, *layer.ffn_sub_norm, c.rms_norm_eps, gate);
    show(TensorRole::kFfnDown, index, gate);
    const std::array<LinearOf, 1> down{{{layer.down.get(), TensorRole::kFfnDown}}};
    linear(down, index, rows, gate, std::array<Matrix, 1>{h});
  }
  add(rows);
}

void ForwardPass::logits(std::int64_t first, std::int64_t n, std::span<float> to, std::int64_t needed) {
  const auto asked = static_cast<std::int64_t>(asked_positions_.size());
  if (first < 0 || n < 0 || n > max_logit_rows_ || first + n > asked) {
    throw Error(ErrorCode::kInternal, fmt::format("logits of rows {} … {} of {} asked for, workspace for {}",
                                                  first, first + n, asked, max_logit_rows_));
  }
  const Matrix out = workspace_.logits(n);
  const auto rows = std::span<const std::int32_t>(numbers_).subspan(static_cast<std::size_t>(first),
                                                                    static_cast<std::size_t>(n));
  backend_.logits(*model_->weights().head, part(workspace_.normed(), 0, asked), rows, out);
  if (needed > 0 && needed < out.cols && backend_.top_saves(needed)) return largest_logits(out, needed, to);
  backend_.download(*out.buffer, out.offset,
                    std::as_writable_bytes(to.first(static_cast<std::size_t>(out.rows * out.cols))));
}

/// The `needed` largest of each row of `logits` where they belong, −∞ elsewhere.
void ForwardPass::largest_logits(Matrix logits, std::int64_t needed, std::span<float> to) {
  const auto rows = static_cast<std::size_t>(logits.rows), cols = static_cast<std::size_t>(logits.cols),
             most = static_cast<std::size_t>(needed);
  top_.resize(rows * most);
  backend_.top(logits, needed, top_);
  std::fill_n(to.begin(), rows * cols, -std::numeric_limits<float>::infinity());
  for (std::size_t i = 0; i < top_.size(); ++i)
    to[i / most * cols + static_cast<std::size_t>(top_[i].column)] = top_[i].value;
}

}  // namespace bitnet::inference
