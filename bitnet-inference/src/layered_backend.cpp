// Several backends as one, a range of layers each. What belongs to a layer lies on its stage; what all layers
// work in lies on every stage, and each stage knows which bytes of it are current there.
#include "bitnet/inference/layered_backend.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <limits>
#include <numeric>
#include <utility>

#include "bitnet/core/error.hpp"
#include "bitnet/core/memory/hybrid_memory_pool.hpp"
#include "bitnet/core/profiler.hpp"
#include "byte_set.hpp"
#include "layer_placement.hpp"
#include "own_object.hpp"

namespace bitnet::inference {
namespace {

/// A buffer on one stage, or on all of them; zeros at first, which are current everywhere.
class StagedBuffer final : public Buffer {
 public:
  StagedBuffer(std::size_t bytes, MemoryTag t, std::size_t n_stages)
      : Buffer(bytes), tag(t), at(n_stages), current(n_stages) {
    for (ByteSet& set : current) set.add({0, bytes});
  }
  const MemoryTag tag;
  mutable std::vector<BufferPtr> at;     // of each stage; null: not there
  mutable std::vector<ByteSet> current;  // of each stage: bytes that no other stage has written since
  mutable std::size_t last_written = 0;  // stage
};

/// Weights on the stage that they belong to; a table that is embedding and head on the first and the last
/// one.
class StagedWeights final : public PreparedWeights {
 public:
  StagedWeights(std::vector<PreparedPtr> on, std::size_t stage)
      : PreparedWeights(on[stage]->out(), on[stage]->in(), on[stage]->ternary(),
                        std::accumulate(on.begin(), on.end(), std::size_t{0},
                                        [](std::size_t sum, const PreparedPtr& p) {
                                          return sum + (p != nullptr ? p->bytes() : 0);
                                        })),
        at(std::move(on)) {}
  const std::vector<PreparedPtr> at;  // of each stage; null: not there
  std::size_t first() const noexcept {
    return static_cast<std::size_t>(
        std::find_if(at.begin(), at.end(), [](const PreparedPtr& p) { return p != nullptr; }) - at.begin());
  }
  std::size_t last() const noexcept {
    return at.size() - 1 -
           static_cast<std::size_t>(
               std::find_if(at.rbegin(), at.rend(), [](const PreparedPtr& p) { return p != nullptr; }) -
               at.rbegin());
  }
};

const StagedBuffer& staged(const Buffer& buffer) { return own_buffer<StagedBuffer>(buffer); }
const StagedWeights& staged(const PreparedWeights& weights) { return own_weights<StagedWeights>(weights); }

void check_stages(const std::vector<Stage>& stages, const ModelConfig& config) {
  std::int64_t sum = 0;
  for (const Stage& s : stages) {
    if (s.backend == nullptr) throw Error(ErrorCode::kInvalidArgument, "a stage without a backend");
    if (s.n_layers < 0 || s.n_layers > config.n_layers)
      throw Error(ErrorCode::kInvalidArgument,
                  fmt::format("a stage of {} layers of {}", s.n_layers, config.n_layers));
    sum += s.n_layers;
  }
  if (stages.empty() || sum != config.n_layers)
    throw Error(ErrorCode::kInvalidArgument, fmt::format("{} stages of {} layers in all, the model has {}",
                                                         stages.size(), sum, config.n_layers));
}

class LayeredBackend final : public Backend, public LayerPlacer {
 public:
  LayeredBackend(std::vector<Stage> stages, const ModelConfig& config)
      : stages_(std::move(stages)), tied_(config.tied_embeddings), n_layers_(config.n_layers) {
    std::vector<std::string_view> names;
    for (const Stage& s : stages_) {
      names.push_back(s.backend->name());
      MemoryResource* const pool = s.backend->memory();
      if (host_ == nullptr || dynamic_cast<HybridMemoryPool*>(host_) == nullptr) host_ = pool;
    }
    name_ = fmt::format("{}", fmt::join(names, "+"));
  }

  std::string_view name() const noexcept override { return name_; }
  std::string description() const override {
    std::vector<std::string> all;
    for (const Stage& s : stages_)
      all.push_back(
          fmt::format("{} layers on {} ({})", s.n_layers, s.backend->name(), s.backend->description()));
    return fmt::format("{}", fmt::join(all, "; "));
  }
  bool supports(BackendOp op) const noexcept override {
    return std::all_of(stages_.begin(), stages_.end(),
                       [&](const Stage& s) { return s.backend->supports(op); });
  }
  bool supports_extended_linears() const noexcept override {
    return std::all_of(stages_.begin(), stages_.end(),
                       [](const Stage& s) { return s.backend->supports_extended_linears(); });
  }
  std::size_t available_memory() const override {
    std::size_t least = std::numeric_limits<std::size_t>::max();
    for (const Stage& s : stages_)
      if (s.n_layers > 0)
        least = std::min(least, s.backend->available_memory() / static_cast<std::size_t>(s.n_layers));
    return least > std::numeric_limits<std::size_t>::max() / static_cast<std::size_t>(n_layers_)
               ? std::numeric_limits<std::size_t>::max()
               : least * static_cast<std::size_t>(n_layers_);
  }
  MemoryResource* memory() const noexcept override { return host_; }
  std::vector<MemoryResource*> memories() const override {
    std::vector<MemoryResource*> all;
    for (const Stage& s : stages_)
      for (MemoryResource* one : s.backend->memories())
        if (std::find(all.begin(), all.end(), one) == all.end()) all.push_back(one);
    return all;
  }
  bool top_saves(std::int64_t k) const noexcept override { return stages_.back().backend->top_saves(k); }
  DeviceStatistics statistics() const override;

  void place(std::optional<TensorId> id) noexcept override { placed_ = id; }
  std::vector<const Backend*> parts() const override {
    std::vector<const Backend*> all;
    for (const Stage& s : stages_) all.push_back(s.backend.get());
    return all;
  }

 private:
  Backend& at(std::size_t stage) const noexcept { return *stages_[stage].backend; }

  /// Where what belongs to `id` is made and used.
  std::size_t stage_of(TensorId id) const noexcept {
    if (id.role == TensorRole::kTokenEmbedding) return 0;
    if (id.layer < 0) return stages_.size() - 1;
    std::size_t stage = 0;
    for (std::int64_t end = stages_[0].n_layers; id.layer >= end && stage + 1 < stages_.size();)
      end += stages_[++stage].n_layers;
    return stage;
  }

  Buffer& memory(const StagedBuffer& b, std::size_t stage) {
    if (b.at[stage] == nullptr) b.at[stage] = at(stage).allocate(b.bytes(), b.tag);
    return *b.at[stage];
  }

  /// Makes `range` current on `stage` and returns the buffer there.
  Buffer& current(const Buffer& buffer, ByteRange range, std::size_t stage) {
    const StagedBuffer& b = staged(buffer);
    Buffer& to = memory(b, stage);
    if (b.current[stage].contains(range)) return to;
    for (const ByteRange& missing : b.current[stage].missing(range)) {
      for (std::size_t from = 0; from < stages_.size(); ++from) {
        if (from == stage || b.at[from] == nullptr) continue;
        for (const ByteRange& r : b.current[from].within(missing)) copy(b, r, from, stage);
      }
    }
    b.current[stage].add(range);
    return to;
  }

  void copy(const StagedBuffer& b, ByteRange r, std::size_t from, std::size_t to) {
    const ProfileZone zone(profiler(), "copy", 2 * (r.end - r.begin));
    if (copied_.size() < r.end - r.begin) copied_.resize(r.end - r.begin);
    const std::span<std::byte> bytes(copied_.data(), r.end - r.begin);
    at(from).download(*b.at[from], r.begin, bytes);
    at(to).upload(*b.at[to], r.begin, bytes);
  }

  void written(const Buffer& buffer, ByteRange range, std::size_t stage) {
    const StagedBuffer& b = staged(buffer);
    for (std::size_t s = 0; s < stages_.size(); ++s) {
      if (s == stage)
        b.current[s].add(range);
      else
        b.current[s].remove(range);
    }
    b.last_written = stage;
  }

  Matrix input(Matrix m, std::size_t stage) {
    m.buffer = &current(*m.buffer, range_of(m), stage);
    return m;
  }
  /// A matrix that the op overwrites whole.
  Matrix output(Matrix m, std::size_t stage) {
    written(*m.buffer, range_of(m), stage);
    m.buffer = &memory(staged(*m.buffer), stage);
    return m;
  }
  const Buffer& whole(const Buffer& b, std::size_t stage) { return current(b, {0, b.bytes()}, stage); }
  static std::size_t last_written(const Matrix& m) { return staged(*m.buffer).last_written; }

  BufferPtr do_allocate(std::size_t bytes, MemoryTag tag) override {
    auto buffer = std::make_shared<StagedBuffer>(bytes, tag, stages_.size());
    for (std::size_t s = 0; s < stages_.size(); ++s)
      if (!placed_ || stage_of(*placed_) == s) memory(*buffer, s);
    if (placed_) buffer->last_written = stage_of(*placed_);
    return buffer;
  }

  std::size_t do_discard(Buffer& buffer, std::size_t offset, std::size_t bytes) override {
    const StagedBuffer& b = staged(buffer);
    std::size_t given = 0;
    for (std::size_t s = 0; s < stages_.size(); ++s)
      if (b.at[s] != nullptr) given += at(s).discard(*b.at[s], offset, bytes);
    return given;
  }

  void do_upload(Buffer& to, std::size_t offset, std::span<const std::byte> from) override {
    const StagedBuffer& b = staged(to);
    const ByteRange range{offset, offset + from.size()};
    for (std::size_t s = 0; s < stages_.size(); ++s) {
      if (b.at[s] == nullptr) {
        b.current[s].remove(range);
        continue;
      }
      at(s).upload(*b.at[s], offset, from);
      b.current[s].add(range);
    }
  }

  void do_download(const Buffer& from, std::size_t offset, std::span<std::byte> to) override {
    const std::size_t s = staged(from).last_written;
    const Buffer& here = current(from, {offset, offset + to.size()}, s);
    at(s).download(here, offset, to);
  }

  PreparedPtr do_prepare(const LinearWeights& w) override {
    const std::size_t stage = placed_ ? stage_of(*placed_) : stages_.size() - 1;
    std::vector<PreparedPtr> on(stages_.size());
    on[stage] = at(stage).prepare(w);
    return std::make_shared<StagedWeights>(std::move(on), stage);
  }

  PreparedPtr do_prepare_embedding(const LinearWeights& w) override {
    const std::size_t stage = placed_ ? stage_of(*placed_) : stages_.size() - 1;
    std::vector<PreparedPtr> on(stages_.size());
    on[stage] = at(stage).prepare_embedding(w);
    if (on.back() == nullptr && tied_) on.back() = stages_.back().backend->prepare_embedding(w);
    return std::make_shared<StagedWeights>(std::move(on), stage);
  }

  void do_prepare_steps(const ModelConfig& config, DType kv_type, std::int64_t page_size) override {
    for (const Stage& s : stages_) s.backend->prepare_steps(config, kv_type, page_size);
  }

  /// The stage of all of `weights`, which go to `list_`.
  std::size_t take(std::span<const PreparedWeights* const> weights) {
    const std::size_t stage = staged(*weights[0]).last();
    list_.clear();
    for (const PreparedWeights* w : weights) {
      list_.push_back(staged(*w).at[stage].get());
      if (list_.back() == nullptr)
        throw Error(ErrorCode::kInvalidArgument,
                    fmt::format("{}: a linear of weights of several layers", name()));
    }
    return stage;
  }
  void take_outputs(std::span<const Matrix> outs, std::size_t stage) {
    outs_.clear();
    for (const Matrix& m : outs) outs_.push_back(output(m, stage));
  }

  void do_linear(std::span<const PreparedWeights* const> weights, Matrix x,
                 std::span<const Matrix> outs) override {
    const std::size_t s = take(weights);
    const Matrix from = input(x, s);
    take_outputs(outs, s);
    at(s).linear(list_, from, outs_);
  }

  void do_norm_linear(std::span<const PreparedWeights* const> weights, Matrix x, const Buffer& norm,
                      float eps, Matrix normed, std::span<const Matrix> outs) override {
    const std::size_t s = take(weights);
    const Matrix from = input(x, s), scratch = output(normed, s);
    take_outputs(outs, s);
    at(s).norm_linear(list_, from, whole(norm, s), eps, scratch, outs_);
  }

  void do_gated_linear(Activation f, Matrix gate, Matrix up, const Buffer* norm, float eps,
                       const PreparedWeights& weights, Matrix out) override {
    const PreparedWeights* const one = &weights;
    const std::size_t s = take({&one, 1});
    const Matrix g = input(gate, s), u = input(up, s);
    written(*gate.buffer, range_of(gate), s);  // scratch
    at(s).gated_linear(f, g, u, norm != nullptr ? &whole(*norm, s) : nullptr, eps, *list_[0], output(out, s));
  }

  void do_embed(const PreparedWeights& table, std::span<const std::int32_t> ids, Matrix out) override {
    const std::size_t s = staged(table).first();
    at(s).embed(*staged(table).at[s], ids, output(out, s));
  }

  void do_rms_norm(Matrix x, const Buffer& weight, float eps, Matrix out) override {
    const std::size_t s = staged(weight).last_written;
    const Matrix from = input(x, s);
    at(s).rms_norm(from, whole(weight, s), eps, output(out, s));
  }

  void do_rope(Matrix x, std::span<const std::int32_t> positions, const Buffer& table,
               std::int64_t head_dim) override {
    const std::size_t s = last_written(x);
    const Matrix in_place = input(x, s);
    at(s).rope(in_place, positions, whole(table, s), head_dim);
    written(*x.buffer, range_of(x), s);
  }

  void do_attention(const AttentionArgs& args) override {
    const std::size_t s = staged(*args.cache.keys).last_written;
    AttentionArgs a = args;
    a.q = input(args.q, s);
    a.k = input(args.k, s);
    a.v = input(args.v, s);
    a.out = output(args.out, s);
    for (Buffer* KvLayer::*half : {&KvLayer::keys, &KvLayer::values}) {
      Buffer& cache = *(args.cache.*half);
      a.cache.*half = &current(cache, {0, cache.bytes()}, s);
      written(cache, {0, cache.bytes()}, s);
    }
    at(s).attention(a);
  }

  void do_gated_activation(Activation f, Matrix gate, Matrix up, Matrix out) override {
    const std::size_t s = last_written(gate);
    const Matrix g = input(gate, s), u = input(up, s);
    at(s).gated_activation(f, g, u, output(out, s));
  }

  void do_add(Matrix x, Matrix y) override {
    const std::size_t s = last_written(y);
    const Matrix to = input(x, s);
    at(s).add(to, input(y, s));
    written(*x.buffer, range_of(x), s);
  }

  void do_logits(const PreparedWeights& head, Matrix hidden, std::span<const std::int32_t> rows,
                 Matrix out) override {
    const std::size_t s = staged(head).last();
    const Matrix from = input(hidden, s);
    at(s).logits(*staged(head).at[s], from, rows, output(out, s));
  }

  void do_top(Matrix x, std::int64_t k, std::span<TopValue> out) override {
    const std::size_t s = last_written(x);
    at(s).top(input(x, s), k, out);
  }

  void do_sync() override {
    for (const Stage& s : stages_) s.backend->sync();
  }

  void profiler_changed() noexcept override {
    for (const Stage& s : stages_) {
      s.backend->set_inner_profiler(profiler());
      s.backend->take_device_times(takes_device_times());
    }
  }

  std::vector<Stage> stages_;
  bool tied_;
  std::int64_t n_layers_;
  std::string name_;
  MemoryResource* host_ = nullptr;
  std::optional<TensorId> placed_;
  std::vector<std::byte> copied_;
  std::vector<const PreparedWeights*> list_;  // of a linear
  std::vector<Matrix> outs_;
};

DeviceStatistics LayeredBackend::statistics() const {
  std::vector<DeviceStatistics> all;
  for (const Stage& stage : stages_) all.push_back(stage.backend->statistics());
  return add_up(all);
}

}  // namespace

DeviceStatistics add_up(std::span<const DeviceStatistics> all) {
  DeviceStatistics sum;
  for (const DeviceStatistics& s : all) {
    for (const auto member :
         {&DeviceStatistics::launches, &DeviceStatistics::waits, &DeviceStatistics::replays,
          &DeviceStatistics::replayed_launches, &DeviceStatistics::uploads, &DeviceStatistics::upload_bytes,
          &DeviceStatistics::downloads, &DeviceStatistics::download_bytes,
          &DeviceStatistics::timed_upload_bytes, &DeviceStatistics::timed_download_bytes,
          &DeviceStatistics::buffers, &DeviceStatistics::reused_buffers, &DeviceStatistics::programs,
          &DeviceStatistics::compiled_programs})
      sum.*member += s.*member;
    sum.upload_seconds += s.upload_seconds;
    sum.download_seconds += s.download_seconds;
    for (const DeviceStatistics::KernelTime& k : s.kernels) {
      const auto same = std::find_if(sum.kernels.begin(), sum.kernels.end(),
                                     [&](const auto& one) { return one.name == k.name; });
      if (same == sum.kernels.end()) {
        sum.kernels.push_back(k);
      } else {
        same->launches += k.launches;
        same->seconds += k.seconds;
      }
    }
  }
  std::stable_sort(sum.kernels.begin(), sum.kernels.end(),
                   [](const auto& a, const auto& b) { return a.seconds > b.seconds; });
  return sum;
}

std::unique_ptr<Backend> with_layers_split(std::vector<Stage> stages, const ModelConfig& config) {
  check_stages(stages, config);
  return std::make_unique<LayeredBackend>(std::move(stages), config);
}

}  // namespace bitnet::inference
