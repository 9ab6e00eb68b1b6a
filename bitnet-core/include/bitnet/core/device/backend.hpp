#pragma once
// The seam a device plugs into: op-level, not a graph. bitnet-inference sees only this header; its CPU
// backend and bitnet-gpu implement it. Public functions check every argument once, then call a private
// virtual.
#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "bitnet/core/device/backend_types.hpp"
#include "bitnet/core/memory/memory_resource.hpp"
#include "bitnet/core/model/model_config.hpp"

namespace bitnet {

class Profiler;

/// The one list of ops. A backend says for each whether it can run it.
enum class BackendOp : std::uint8_t {
  kLinear,
  kEmbed,
  kRmsNorm,
  kRope,
  kAttention,
  kGatedActivation,
  kAdd,
  kLogits
};
inline constexpr std::size_t kBackendOpCount = 8;
std::string_view to_string(BackendOp op) noexcept;

/// A device that runs the ops of a transformer step. Two phases: allocate and prepare may throw any Error;
/// the ops throw Error(kInvalidArgument) on arguments that contradict each other (a bug of the caller) and
/// otherwise only Error(kDevice). Ops of one backend object are issued from one thread at a time; prepared
/// weights and buffers may be shared. Ops may be asynchronous until sync() or download().
class Backend {
 public:
  virtual ~Backend() = default;

  virtual std::string_view name() const noexcept = 0;  ///< "cpu", "opencl:0:0"
  virtual std::string description() const = 0;         ///< device, ISA or driver, for people
  virtual bool supports(BackendOp op) const noexcept = 0;
  /// Whether prepare() takes LinearWeights that are extended(); else they are Error(kUnsupported).
  virtual bool supports_extended_linears() const noexcept { return false; }
  /// Free memory that caches may take, in bytes.
  virtual std::size_t available_memory() const = 0;

  /// How fast the device reads its memory, in GB/s (10^9 bytes): measured now, which takes some memory and
  /// tenths of a second. None where the backend cannot tell. Throws Error(kOutOfMemory | kDevice).
  std::optional<double> measure_bandwidth();

  /// Where its buffers come from, for reports and limits; null where a backend has no pool. Of one that runs
  /// on several sides: the host's.
  virtual MemoryResource* memory() const noexcept { return nullptr; }
  /// All pools that it takes memory from, the host's first.
  virtual std::vector<MemoryResource*> memories() const {
    return memory() == nullptr ? std::vector<MemoryResource*>() : std::vector<MemoryResource*>{memory()};
  }

  /// Zero-filled; `tag` says in reports of memory what it is for. Throws Error(kOutOfMemory).
  BufferPtr allocate(std::size_t bytes, MemoryTag tag = "buffers");
  /// What lies in these bytes is not needed any more: the backend may give their memory back, and what is
  /// read there before the next write is unspecified. Returns the bytes given back.
  std::size_t discard(Buffer& buffer, std::size_t offset, std::size_t bytes);
  void upload(Buffer& to, std::size_t offset, std::span<const std::byte> from);
  void download(const Buffer& from, std::size_t offset, std::span<std::byte> to);
  /// Repacks a linear for this device.
  PreparedPtr prepare(const LinearWeights& weights);
  /// Repacks a token embedding or output head [vocab, hidden] (dense); embed() and logits() share one when
  /// tied.
  PreparedPtr prepare_embedding(const LinearWeights& weights);
  /// Says what the steps to come are like, when the weights are prepared: those of `config`, with a KV cache
  /// of this type and page size. A device that compiles programs does so now, and not in an op; the ops do
  /// without it, too. Throws Error(kInvalidArgument) on what attention() refuses, Error(kDevice).
  void prepare_steps(const ModelConfig& config, DType kv_type, std::int64_t page_size);

  /// outs[i] = x · weights[i]ᵀ. Ternary weights: x's rows are quantised once (absmax int8, half to even) for
  /// all of them; the integer products are exact. All weights of a call are of one kind.
  void linear(std::span<const PreparedWeights* const> weights, Matrix x, std::span<const Matrix> outs);
  /// linear() of rms_norm(x, norm, eps). `normed`, of x's shape and possibly x itself, is scratch: what is in
  /// it afterwards is unspecified. The same bits as the two ops one after the other, which is the default.
  void norm_linear(std::span<const PreparedWeights* const> weights, Matrix x, const Buffer& norm, float eps,
                   Matrix normed, std::span<const Matrix> outs);
  /// linear() of f(gate) · up, with rms_norm(·, norm, eps) between them if `norm` is not null. `gate` is
  /// scratch, too; the same bits as the single ops, which are the default.
  void gated_linear(Activation f, Matrix gate, Matrix up, const Buffer* norm, float eps,
                    const PreparedWeights& weights, Matrix out);
  /// out[r] = row ids[r] of the table. Throws Error(kInvalidArgument) on an id outside it.
  void embed(const PreparedWeights& table, std::span<const std::int32_t> ids, Matrix out);
  /// out = x / sqrt(mean(x²) + eps) · weight; `out` may be `x`.
  void rms_norm(Matrix x, const Buffer& weight, float eps, Matrix out);
  /// Rotate-half RoPE in place on each head of x [n_rows, n · head_dim]: with c, s = table[positions[r]], the
  /// pair (x[i], x[i + head_dim/2]) becomes (x_i·c_i − x_j·s_i, x_j·c_i + x_i·s_i). table: f32 [n_positions,
  /// head_dim/2 cosines then head_dim/2 sines].
  void rope(Matrix x, std::span<const std::int32_t> positions, const Buffer& table, std::int64_t head_dim);
  void attention(const AttentionArgs& args);
  /// out = f(gate) · up; `out` may be `gate`.
  void gated_activation(Activation f, Matrix gate, Matrix up, Matrix out);
  /// x += y
  void add(Matrix x, Matrix y);
  /// out[i] = hidden[rows[i]] · headᵀ, in f32.
  void logits(const PreparedWeights& head, Matrix hidden, std::span<const std::int32_t> rows, Matrix out);
  /// The `k` largest values of each row of x, 1 ≤ k ≤ columns, the largest first, of equal ones the one of
  /// the smallest column; a NaN is larger than everything. out: [rows, k]. Waits for the device.
  void top(Matrix x, std::int64_t k, std::span<TopValue> out);
  /// Whether top(x, k, …) moves less between device and host than download() of x does.
  virtual bool top_saves(std::int64_t /*k*/) const noexcept { return false; }
  /// Empty where a backend is the host itself.
  virtual DeviceStatistics statistics() const { return {}; }
  /// Returns when everything issued is done; reports errors of asynchronous work.
  void sync();

  /// Every later op, prepare(), upload() and download() is a zone of `profiler` (null: none; not owned, it
  /// must outlive its use here), with the bytes that it has to read and write at least. While there is one,
  /// ops wait until the device is done. To be called by the thread that issues ops.
  void set_profiler(Profiler* profiler) noexcept { set_profiler(profiler, true); }
  /// The same for a backend that another one is made of, where ops are zones of that one: zones are only what
  /// the device says of kernels and copies.
  void set_inner_profiler(Profiler* profiler) noexcept { set_profiler(profiler, false); }
  Profiler* profiler() const noexcept { return profiler_; }
  /// From now on a device takes the times of its kernels and copies, for statistics(), or does so no more; no
  /// op waits for that, or becomes another one. With a profiler they are taken anyway. To be called by the
  /// thread that issues ops.
  void take_device_times(bool yes) noexcept {
    takes_device_times_ = yes;
    profiler_changed();
  }
  bool takes_device_times() const noexcept { return takes_device_times_; }

 protected:
  /// top() on the host, after a download, for devices that cannot do the case at hand.
  void top_of_download(Matrix x, std::int64_t k, std::span<TopValue> out);
  // The single ops that norm_linear() and gated_linear() are made of, for devices that cannot fuse the case
  // at hand.
  void norm_then_linear(std::span<const PreparedWeights* const> weights, Matrix x, const Buffer& norm,
                        float eps, Matrix normed, std::span<const Matrix> outs);
  void gate_then_linear(Activation f, Matrix gate, Matrix up, const Buffer* norm, float eps,
                        const PreparedWeights& weights, Matrix out);

 private:
  virtual std::optional<double> do_measure_bandwidth() { return std::nullopt; }
  virtual BufferPtr do_allocate(std::size_t bytes, MemoryTag tag) = 0;
  virtual std::size_t do_discard(Buffer&, std::size_t /*offset*/, std::size_t /*bytes*/) { return 0; }
  virtual void do_upload(Buffer& to, std::size_t offset, std::span<const std::byte> from) = 0;
  virtual void do_download(const Buffer& from, std::size_t offset, std::span<std::byte> to) = 0;
  virtual PreparedPtr do_prepare(const LinearWeights& weights) = 0;
  virtual PreparedPtr do_prepare_embedding(const LinearWeights& weights) = 0;
  virtual void do_prepare_steps(const ModelConfig&, DType /*kv_type*/, std::int64_t /*page_size*/) {}
  virtual void do_linear(std::span<const PreparedWeights* const> weights, Matrix x,
                         std::span<const Matrix> outs) = 0;
  virtual void do_norm_linear(std::span<const PreparedWeights* const> weights, Matrix x, const Buffer& norm,
                              float eps, Matrix normed, std::span<const Matrix> outs);
  virtual void do_gated_linear(Activation f, Matrix gate, Matrix up, const Buffer* norm, float eps,
                               const PreparedWeights& weights, Matrix out);
  virtual void do_embed(const PreparedWeights& table, std::span<const std::int32_t> ids, Matrix out) = 0;
  virtual void do_rms_norm(Matrix x, const Buffer& weight, float eps, Matrix out) = 0;
  virtual void do_rope(Matrix x, std::span<const std::int32_t> positions, const Buffer& table,
                       std::int64_t head_dim) = 0;
  virtual void do_attention(const AttentionArgs& args) = 0;
  virtual void do_gated_activation(Activation f, Matrix gate, Matrix up, Matrix out) = 0;
  virtual void do_add(Matrix x, Matrix y) = 0;
  virtual void do_logits(const PreparedWeights& head, Matrix hidden, std::span<const std::int32_t> rows,
                         Matrix out) = 0;
  virtual void do_top(Matrix x, std::int64_t k, std::span<TopValue> out) { top_of_download(x, k, out); }
  virtual void do_sync() = 0;
  /// Another profiler(), or takes_device_times() has changed.
  virtual void profiler_changed() noexcept {}

  template <class Bytes, class Body>
  void zone(const char* op, std::int64_t rows, Bytes&& bytes, Body&& body);
  void set_profiler(Profiler* profiler, bool ops_are_zones) noexcept {
    profiler_ = profiler;
    of_ops_ = ops_are_zones ? profiler : nullptr;
    profiler_changed();
  }
  Profiler* profiler_ = nullptr;
  Profiler* of_ops_ = nullptr;  // profiler_, or null where ops are no zones
  bool takes_device_times_ = false;
};

}  // namespace bitnet
