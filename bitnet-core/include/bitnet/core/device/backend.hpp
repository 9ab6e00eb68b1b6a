#pragma once
// The seam a device plugs into: op-level, not a graph. bitnet-inference sees only this header; its CPU
// backend and bitnet-gpu implement it. Public functions check every argument once, then call a private
// virtual.
#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "bitnet/core/dtype.hpp"
#include "bitnet/core/model/model_config.hpp"

namespace bitnet {

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

/// Memory of a backend. Freed with the last reference.
class Buffer {
 public:
  virtual ~Buffer() = default;
  std::size_t bytes() const noexcept { return bytes_; }

 protected:
  explicit Buffer(std::size_t bytes) noexcept : bytes_(bytes) {}

 private:
  std::size_t bytes_;
};
using BufferPtr = std::shared_ptr<Buffer>;

/// A row-major f32 matrix [rows, cols] inside a buffer, at a byte offset. Does not own.
struct Matrix {
  Buffer* buffer = nullptr;
  std::size_t offset = 0;  ///< bytes
  std::int64_t rows = 0;
  std::int64_t cols = 0;
};

/// What a linear or a head is made from, in host memory; only read during prepare(). out × in, row-major.
struct LinearWeights {
  std::int64_t out = 0, in = 0;
  /// Ternary: trits in {−1, 0, 1} and `scales` with one f32 a group of rows_per_scale rows (multiply form).
  std::span<const std::int8_t> trits;  // [out, in] or empty
  std::span<const float> scales;       // [ceil(out / rows_per_scale)]
  std::int64_t rows_per_scale = 0;     ///< `out` for one scale per tensor
  /// Dense: exactly one of trits/dense is given.
  std::span<const std::byte> dense;  // [out, in] of dense_type
  DType dense_type = DType::kF32;    ///< kF32, kF16 or kBF16
};

/// A weight repacked for one backend by prepare(). Immutable, shared between sessions.
class PreparedWeights {
 public:
  virtual ~PreparedWeights() = default;
  std::int64_t out() const noexcept { return out_; }
  std::int64_t in() const noexcept { return in_; }
  bool ternary() const noexcept { return ternary_; }
  std::size_t bytes() const noexcept { return bytes_; }  ///< memory that it occupies

 protected:
  PreparedWeights(std::int64_t out, std::int64_t in, bool ternary, std::size_t bytes) noexcept
      : out_(out), in_(in), ternary_(ternary), bytes_(bytes) {}

 private:
  std::int64_t out_, in_;
  bool ternary_;
  std::size_t bytes_;
};
using PreparedPtr = std::shared_ptr<const PreparedWeights>;

/// One sequence's share of a ragged batch: rows first_row … first_row + n_rows of every matrix are its new
/// tokens, at positions past … past + n_rows; token t's keys and values lie in page pages[t / page_size],
/// slot t % page_size.
struct SequenceSlice {
  std::int64_t first_row = 0;
  std::int64_t n_rows = 0;              ///< > 0
  std::int64_t past = 0;                ///< tokens of it that are in the cache already
  std::span<const std::int32_t> pages;  // [≥ ceil((past + n_rows) / page_size)]
};

/// One layer's paged cache: f32 [n_pages, page_size, n_kv_heads, head_dim] for keys and the same for values.
struct KvLayer {
  Buffer* keys = nullptr;
  Buffer* values = nullptr;
  std::int64_t n_pages = 0;
  std::int64_t page_size = 0;
};

/// Arguments of attention(): stores the new rows' keys and values in their pages, then
/// out[r, h] = softmax(q[r, h] · Kᵀ / sqrt(head_dim), causal) · V over that row's own sequence.
struct AttentionArgs {
  Matrix q;     // [n_rows, n_heads · head_dim], RoPE applied
  Matrix k, v;  // [n_rows, n_kv_heads · head_dim], RoPE applied to k
  Matrix out;   // [n_rows, n_heads · head_dim]
  KvLayer cache;
  std::span<const SequenceSlice> sequences;  // cover all rows, ascending
  std::int64_t n_heads = 0, n_kv_heads = 0, head_dim = 0;
};

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
  /// Free memory that caches may take, in bytes.
  virtual std::size_t available_memory() const = 0;

  /// Zero-filled. Throws Error(kOutOfMemory).
  BufferPtr allocate(std::size_t bytes);
  void upload(Buffer& to, std::size_t offset, std::span<const std::byte> from);
  void download(const Buffer& from, std::size_t offset, std::span<std::byte> to);
  /// Repacks a linear for this device.
  PreparedPtr prepare(const LinearWeights& weights);
  /// Repacks a token embedding or output head [vocab, hidden] (dense); embed() and logits() share one when
  /// tied.
  PreparedPtr prepare_embedding(const LinearWeights& weights);

  /// outs[i] = x · weights[i]ᵀ. Ternary weights: x's rows are quantised once (absmax int8, half to even) for
  /// all of them; the integer products are exact. All weights of a call are of one kind.
  void linear(std::span<const PreparedWeights* const> weights, Matrix x, std::span<const Matrix> outs);
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
  /// Returns when everything issued is done; reports errors of asynchronous work.
  void sync();

 private:
  virtual BufferPtr do_allocate(std::size_t bytes) = 0;
  virtual void do_upload(Buffer& to, std::size_t offset, std::span<const std::byte> from) = 0;
  virtual void do_download(const Buffer& from, std::size_t offset, std::span<std::byte> to) = 0;
  virtual PreparedPtr do_prepare(const LinearWeights& weights) = 0;
  virtual PreparedPtr do_prepare_embedding(const LinearWeights& weights) = 0;
  virtual void do_linear(std::span<const PreparedWeights* const> weights, Matrix x,
                         std::span<const Matrix> outs) = 0;
  virtual void do_embed(const PreparedWeights& table, std::span<const std::int32_t> ids, Matrix out) = 0;
  virtual void do_rms_norm(Matrix x, const Buffer& weight, float eps, Matrix out) = 0;
  virtual void do_rope(Matrix x, std::span<const std::int32_t> positions, const Buffer& table,
                       std::int64_t head_dim) = 0;
  virtual void do_attention(const AttentionArgs& args) = 0;
  virtual void do_gated_activation(Activation f, Matrix gate, Matrix up, Matrix out) = 0;
  virtual void do_add(Matrix x, Matrix y) = 0;
  virtual void do_logits(const PreparedWeights& head, Matrix hidden, std::span<const std::int32_t> rows,
                         Matrix out) = 0;
  virtual void do_sync() = 0;
};

}  // namespace bitnet
