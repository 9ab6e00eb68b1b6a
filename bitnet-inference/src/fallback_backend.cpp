// Two backends as one. A buffer has a mirror on each side that needs it; each side keeps the byte ranges that
// it wrote last, and only those are copied when the other side reads them.
#include "bitnet/inference/fallback_backend.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <utility>

#include "bitnet/core/error.hpp"
#include "bitnet/core/log.hpp"
#include "bitnet/core/profiler.hpp"
#include "byte_set.hpp"
#include "layer_placement.hpp"
#include "own_object.hpp"

namespace bitnet::inference {
namespace {

enum Side : std::size_t { kDeviceSide = 0, kCpuSide = 1 };
constexpr Side other(Side s) { return s == kDeviceSide ? kCpuSide : kDeviceSide; }

/// A buffer on up to two sides. Both start as zeros; a side's memory is taken when it is first used.
class MirrorBuffer final : public Buffer {
 public:
  MirrorBuffer(std::size_t bytes, MemoryTag t) : Buffer(bytes), tag(t) {}
  const MemoryTag tag;
  mutable std::array<BufferPtr, 2> side;
  mutable std::array<ByteSet, 2> newer;  // written on this side and not yet copied to the other
};

/// Weights on the side, or sides, that use them.
class SplitWeights final : public PreparedWeights {
 public:
  SplitWeights(std::array<PreparedPtr, 2> side, const PreparedWeights& one)
      : PreparedWeights(one.out(), one.in(), one.ternary(),
                        (side[0] ? side[0]->bytes() : 0) + (side[1] ? side[1]->bytes() : 0)),
        side_(std::move(side)) {}
  const PreparedPtr& on(Side s) const noexcept { return side_[s]; }

 private:
  std::array<PreparedPtr, 2> side_;
};

const MirrorBuffer& mirror(const Buffer& buffer) { return own_buffer<MirrorBuffer>(buffer); }
const SplitWeights& split(const PreparedWeights& weights) { return own_weights<SplitWeights>(weights); }

MemoryResource& host_memory(const Backend& cpu) {
  if (cpu.memory() == nullptr)
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("'{}' has no memory pool for staging: expected a CPU backend", cpu.name()));
  return *cpu.memory();
}

class FallbackBackend final : public Backend {
 public:
  FallbackBackend(std::unique_ptr<Backend> device, std::unique_ptr<Backend> cpu, bool device_only)
      : sides_{std::move(device), std::move(cpu)},
        device_only_(device_only),
        staging_memory_(host_memory(*sides_[kCpuSide]), "staging") {}

  std::string_view name() const noexcept override { return sides_[kDeviceSide]->name(); }
  std::string description() const override {
    const std::vector<BackendOp> missing = missing_ops(*sides_[kDeviceSide]);
    return fmt::format("{}; on the CPU ({}): {}", sides_[kDeviceSide]->description(),
                       sides_[kCpuSide]->description(),
                       missing.empty() ? "linears that it does not hold" : list_ops(missing));
  }
  bool supports(BackendOp) const noexcept override { return true; }
  bool supports_extended_linears() const noexcept override { return true; }  // the sides say what they lack
  std::size_t available_memory() const override {
    return at(side_of(BackendOp::kAttention)).available_memory();
  }
  MemoryResource* memory() const noexcept override { return at(kCpuSide).memory(); }
  DeviceStatistics statistics() const override { return at(kDeviceSide).statistics(); }
  std::int64_t refused() const noexcept { return refused_; }
  std::vector<MemoryResource*> memories() const override {
    std::vector<MemoryResource*> all = at(kCpuSide).memories();
    for (MemoryResource* other : at(kDeviceSide).memories()) {
      if (std::find(all.begin(), all.end(), other) == all.end()) all.push_back(other);
    }
    return all;
  }

 private:
  Backend& at(Side s) const noexcept { return *sides_[s]; }
  Side side_of(BackendOp op) const noexcept {
    return sides_[kDeviceSide]->supports(op) ? kDeviceSide : kCpuSide;
  }

  /// The buffer's memory on side `s`.
  Buffer& memory(const MirrorBuffer& b, Side s) {
    if (b.side[s] == nullptr) b.side[s] = at(s).allocate(b.bytes(), b.tag);
    return *b.side[s];
  }

  /// Makes `range` current on side `s` and returns its memory there.
  Buffer& current(const Buffer& buffer, ByteRange range, Side s) {
    const MirrorBuffer& b = mirror(buffer);
    Buffer& to = memory(b, s);
    for (const ByteRange& r : b.newer[other(s)].within(range)) {
      const ProfileZone zone(profiler(), "copy", 2 * (r.end - r.begin));
      staging_.resize(r.end - r.begin);
      at(other(s)).download(memory(b, other(s)), r.begin, staging_);
      at(s).upload(to, r.begin, staging_);
      b.newer[other(s)].remove(r);
    }
    return to;
  }

  void written(const Buffer& buffer, ByteRange range, Side s) {
    const MirrorBuffer& b = mirror(buffer);
    if (range.begin == range.end) return;
    b.newer[s].add(range);
    b.newer[other(s)].remove(range);
  }

  Matrix input(Matrix m, Side s) {
    m.buffer = &current(*m.buffer, range_of(m), s);
    return m;
  }
  /// A matrix that the op overwrites whole.
  Matrix output(Matrix m, Side s) {
    written(*m.buffer, range_of(m), s);
    m.buffer = &memory(mirror(*m.buffer), s);
    return m;
  }

  std::optional<double> do_measure_bandwidth() override { return at(kDeviceSide).measure_bandwidth(); }

  BufferPtr do_allocate(std::size_t bytes, MemoryTag tag) override {
    return std::make_shared<MirrorBuffer>(bytes, tag);
  }

  std::size_t do_discard(Buffer& buffer, std::size_t offset, std::size_t bytes) override {
    const MirrorBuffer& b = mirror(buffer);
    std::size_t given = 0;
    for (const Side s : {kDeviceSide, kCpuSide}) {
      b.newer[s].remove({offset, offset + bytes});
      if (b.side[s] != nullptr) given += at(s).discard(*b.side[s], offset, bytes);
    }
    return given;
  }

  void do_upload(Buffer& to, std::size_t offset, std::span<const std::byte> from) override {
    // Kept on the CPU until a device op asks for it.
    at(kCpuSide).upload(memory(mirror(to), kCpuSide), offset, from);
    written(to, {offset, offset + from.size()}, kCpuSide);
  }

  void do_download(const Buffer& from, std::size_t offset, std::span<std::byte> to) override {
    const Buffer& here = current(from, {offset, offset + to.size()}, kCpuSide);
    at(kCpuSide).download(here, offset, to);
  }

  PreparedPtr wrap(std::array<PreparedPtr, 2> side) {
    const PreparedWeights& one = side[kDeviceSide] ? *side[kDeviceSide] : *side[kCpuSide];
    return std::make_shared<SplitWeights>(std::move(side), one);
  }

  /// prepare(backend) on the device, or on the CPU when the device refuses these weights.
  template <class Prepare>
  PreparedPtr prepare_one(bool on_device, Prepare&& prepare) {
    if (!on_device) return wrap({nullptr, prepare(at(kCpuSide))});
    try {
      return wrap({prepare(at(kDeviceSide)), nullptr});
    } catch (const Error& e) {
      if (device_only_ || e.code() != ErrorCode::kUnsupported) throw;
      if (refused_++ == 0)
        log(LogLevel::kWarning, fmt::format("{}: some weights run on the CPU: {}", name(), e.what()));
    }
    return wrap({nullptr, prepare(at(kCpuSide))});
  }

  PreparedPtr do_prepare(const LinearWeights& w) override {
    return prepare_one(side_of(BackendOp::kLinear) == kDeviceSide, [&](Backend& b) { return b.prepare(w); });
  }

  PreparedPtr do_prepare_embedding(const LinearWeights& w) override {
    const Side embed = side_of(BackendOp::kEmbed), logits = side_of(BackendOp::kLogits);
    const auto prepare = [&](Backend& b) { return b.prepare_embedding(w); };
    if (embed == logits) return prepare_one(embed == kDeviceSide, prepare);
    return wrap({prepare(at(kDeviceSide)), prepare(at(kCpuSide))});
  }

  /// Where weights that do one op lie: the device if it has them and runs the op.
  Side side_of(BackendOp op, const SplitWeights& w) const noexcept {
    return side_of(op) == kDeviceSide && w.on(kDeviceSide) ? kDeviceSide : kCpuSide;
  }

  void do_prepare_steps(const ModelConfig& config, DType kv_type, std::int64_t page_size) override {
    for (const Side s : {kDeviceSide, kCpuSide}) at(s).prepare_steps(config, kv_type, page_size);
  }

  void do_linear(std::span<const PreparedWeights* const> weights, Matrix x,
                 std::span<const Matrix> outs) override {
    for (const Side s : {kDeviceSide, kCpuSide}) {
      weights_.clear();
      outs_.clear();
      for (std::size_t i = 0; i < weights.size(); ++i) {
        const SplitWeights& w = split(*weights[i]);
        if (side_of(BackendOp::kLinear, w) != s) continue;
        weights_.push_back(w.on(s).get());
        outs_.push_back(output(outs[i], s));
      }
      if (!weights_.empty()) at(s).linear(weights_, input(x, s), outs_);
    }
  }

  void do_embed(const PreparedWeights& table, std::span<const std::int32_t> ids, Matrix out) override {
    const Side s = side_of(BackendOp::kEmbed, split(table));
    at(s).embed(*split(table).on(s), ids, output(out, s));
  }

  void do_rms_norm(Matrix x, const Buffer& weight, float eps, Matrix out) override {
    const Side s = side_of(BackendOp::kRmsNorm);
    const Matrix from = input(x, s);
    at(s).rms_norm(from, current(weight, {0, weight.bytes()}, s), eps, output(out, s));
  }

  void do_rope(Matrix x, std::span<const std::int32_t> positions, const Buffer& table,
               std::int64_t head_dim) override {
    const Side s = side_of(BackendOp::kRope);
    const Matrix in_place = input(x, s);
    at(s).rope(in_place, positions, current(table, {0, table.bytes()}, s), head_dim);
    written(*x.buffer, range_of(x), s);
  }

  void do_attention(const AttentionArgs& args) override {
    const Side s = side_of(BackendOp::kAttention);
    AttentionArgs a = args;
    a.q = input(args.q, s);
    a.k = input(args.k, s);
    a.v = input(args.v, s);
    a.out = output(args.out, s);
    // The whole cache and not the new rows: attention always runs on one side, and nothing else touches the
    // cache, so none of it is ever copied, and one range is the cheapest set to keep.
    for (Buffer* KvLayer::*half : {&KvLayer::keys, &KvLayer::values}) {
      const ByteRange all{0, (args.cache.*half)->bytes()};
      a.cache.*half = &current(*(args.cache.*half), all, s);
      written(*(args.cache.*half), all, s);
    }
    at(s).attention(a);
  }

  void do_gated_activation(Activation f, Matrix gate, Matrix up, Matrix out) override {
    const Side s = side_of(BackendOp::kGatedActivation);
    const Matrix g = input(gate, s), u = input(up, s);
    at(s).gated_activation(f, g, u, output(out, s));
  }

  void do_add(Matrix x, Matrix y) override {
    const Side s = side_of(BackendOp::kAdd);
    const Matrix to = input(x, s);
    at(s).add(to, input(y, s));
    written(*x.buffer, range_of(x), s);
  }

  void do_logits(const PreparedWeights& head, Matrix hidden, std::span<const std::int32_t> rows,
                 Matrix out) override {
    const Side s = side_of(BackendOp::kLogits, split(head));
    const Matrix from = input(hidden, s);
    at(s).logits(*split(head).on(s), from, rows, output(out, s));
  }

  void do_sync() override { at(kDeviceSide).sync(); }

  void profiler_changed() noexcept override {
    at(kDeviceSide).set_inner_profiler(profiler());
    at(kDeviceSide).take_device_times(takes_device_times());
  }

  std::array<std::unique_ptr<Backend>, 2> sides_;
  bool device_only_;
  std::int64_t refused_ = 0;
  PmrResource staging_memory_;
  std::pmr::vector<std::byte> staging_{&staging_memory_};
  std::vector<const PreparedWeights*> weights_;  // of one side, in do_linear
  std::vector<Matrix> outs_;
};

}  // namespace

std::vector<BackendOp> missing_ops(const Backend& backend) {
  std::vector<BackendOp> missing;
  for (std::size_t i = 0; i < kBackendOpCount; ++i)
    if (!backend.supports(static_cast<BackendOp>(i))) missing.push_back(static_cast<BackendOp>(i));
  return missing;
}

std::int64_t refused_weights(const Backend& backend) {
  if (const auto* const layered = dynamic_cast<const LayerPlacer*>(&backend)) {
    std::int64_t sum = 0;
    for (const Backend* part : layered->parts()) sum += refused_weights(*part);
    return sum;
  }
  const auto* const fallback = dynamic_cast<const FallbackBackend*>(&backend);
  return fallback != nullptr ? fallback->refused() : 0;
}

std::string list_ops(const std::vector<BackendOp>& ops) {
  std::vector<std::string_view> names;
  for (const BackendOp op : ops) names.push_back(to_string(op));
  return fmt::format("{}", fmt::join(names, ", "));
}

std::unique_ptr<Backend> with_cpu_fallback(std::unique_ptr<Backend> device, std::unique_ptr<Backend> cpu,
                                           bool device_only, bool extended_linears) {
  const std::vector<BackendOp> missing = missing_ops(*device);
  if (device_only && !missing.empty()) {
    throw Error(
        ErrorCode::kUnsupported,
        fmt::format("device '{}' cannot run: {} (the CPU runs them unless only the device is allowed)",
                    device->name(), list_ops(missing)));
  }
  const bool holds_all = !extended_linears || device_only || device->supports_extended_linears();
  if (missing.empty() && holds_all) return device;
  return std::make_unique<FallbackBackend>(std::move(device), std::move(cpu), device_only);
}

}  // namespace bitnet::inference
