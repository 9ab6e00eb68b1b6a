#pragma once
// What the ops of a Backend take: memory, matrices in it, weights before and after prepare(), and the ragged
// batch over the paged KV cache. The ops themselves are in backend.hpp.
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "bitnet/core/dtype.hpp"

namespace bitnet {

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

/// One of the largest values of a row.
struct TopValue {
  std::int32_t column = 0;
  float value = 0;
};

/// What a device has done so far. Seconds and kernels: of what was issued while times were taken alone
/// (Backend::take_device_times(), Backend::set_profiler()).
struct DeviceStatistics {
  struct KernelTime {
    std::string name;
    std::uint64_t launches = 0;
    double seconds = 0;
  };
  std::uint64_t launches = 0, waits = 0;             ///< waits: times that the host waited for the device
  std::uint64_t replays = 0, replayed_launches = 0;  ///< recorded lists enqueued whole, and launches in them
  std::uint64_t uploads = 0, upload_bytes = 0, downloads = 0, download_bytes = 0;
  double upload_seconds = 0, download_seconds = 0;
  std::uint64_t timed_upload_bytes = 0, timed_download_bytes = 0;  ///< that those seconds are of
  std::uint64_t buffers = 0, reused_buffers = 0;      ///< asked of its pool, and those that had been there
  std::uint64_t programs = 0, compiled_programs = 0;  ///< built, and those from source
  std::vector<KernelTime> kernels;                    ///< the longest first
};

/// In which form a backend keeps dense weights.
enum class DenseForm : std::uint8_t {
  kAsGiven,  ///< in their own type
  kInt8,     ///< rounded to int8 with a scale a row (docs/numerics.md), where the backend can
  kF16,      ///< rounded to f16 half to even; Error(kUnsupported) on a finite weight that f16 cannot hold
};

/// How the rows that a quantised linear multiplies become integers first (docs/numerics.md).
enum class ActivationForm : std::uint8_t {
  kInt8,         ///< 8 bits, absmax
  kInt4Absmax,   ///< 4 bits, −8 … 7, absmax
  kInt4Absmean,  ///< 4 bits, −8 … 7, √7 times the mean of |x| being one
};

/// Writes rows [begin, end) of a matrix, one after the other, to `to`. Called by several threads at once, for
/// any ranges, a row perhaps more than once (cheapest: ascending). Throws Error naming the tensor.
template <class T>
using RowSource = std::function<void(std::int64_t begin, std::int64_t end, T* to)>;

/// What a linear or a head is made from, in host memory or made on demand; only read during prepare(). out ×
/// in, row-major; exactly one of trits, trit_rows, dense and dense_rows is given.
struct LinearWeights {
  std::int64_t out = 0, in = 0;
  /// Ternary: trits in {−1, 0, 1} and `scales` with one f32 a group of rows_per_scale rows (multiply form).
  std::span<const std::int8_t> trits;  // [out, in] or empty
  std::span<const float> scales;       // [ceil(out / rows_per_scale)]
  std::int64_t rows_per_scale = 0;     ///< `out` for one scale per tensor
  /// Columns that share a scale, 0: all of them. Else it divides `in`, rows_per_scale is 1 and `scales` [out,
  /// in / cols_per_scale].
  std::int64_t cols_per_scale = 0;
  /// A second ternary plane of the same shape, whose product is added; or null.
  std::shared_ptr<const LinearWeights> second = {};
  std::span<const std::byte> dense;            // [out, in] of dense_type, or empty
  DType dense_type = DType::kF32;              ///< kF32, kF16 or kBF16
  DenseForm dense_form = DenseForm::kAsGiven;  ///< of linears: kAsGiven or kInt8
  /// A row source in place of a whole matrix, so that none need exist: trits, or bytes of dense_type.
  RowSource<std::int8_t> trit_rows = {};
  RowSource<std::byte> dense_rows = {};
  /// Of what a ternary or int8 linear is multiplied by; that of a second plane does not count.
  ActivationForm activations = ActivationForm::kInt8;

  bool ternary() const noexcept { return !trits.empty() || trit_rows != nullptr; }
  /// Whether a linear is more than a dense matrix, or one plane of trits with scales of whole rows on int8.
  bool extended() const noexcept {
    return cols_per_scale != 0 || second != nullptr || (!ternary() && dense_form != DenseForm::kAsGiven) ||
           activations != ActivationForm::kInt8;
  }
  std::size_t dense_row_bytes() const noexcept {
    return static_cast<std::size_t>(in) * bits_of(dense_type) / 8;
  }
  /// Rows [begin, end) from whichever form is there: a view of the matrix, or written to `scratch`.
  const std::int8_t* trits_of(std::int64_t begin, std::int64_t end, std::vector<std::int8_t>& scratch) const;
  const std::byte* dense_of(std::int64_t begin, std::int64_t end, std::vector<std::byte>& scratch) const;
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

/// One layer's paged cache: n_pages · kv_page_bytes() each for keys and for values. What lies where in a page
/// is the backend's business: only attention() reads and writes it.
struct KvLayer {
  Buffer* keys = nullptr;
  Buffer* values = nullptr;
  std::int64_t n_pages = 0;
  std::int64_t page_size = 0;  ///< tokens
  DType type = DType::kF32;    ///< kF32, kF16, or kI8 with an f32 scale per head and token
};

/// Bytes of the keys, or of the values, of one page in one layer. Throws Error(kInvalidArgument) on another
/// type than f32, f16 and i8, on sizes ≤ 0, and on overflow.
std::size_t kv_page_bytes(DType type, std::int64_t page_size, std::int64_t n_kv_heads, std::int64_t head_dim);

/// Arguments of attention(): stores the new rows' keys and values in their pages, then
/// out[r, h] = softmax(q[r, h] · Kᵀ / sqrt(head_dim), causal) · V over that row's own sequence.
struct AttentionArgs {
  Matrix q;     // [n_queries, n_heads · head_dim], RoPE applied
  Matrix k, v;  // [n_rows, n_kv_heads · head_dim], RoPE applied to k
  Matrix out;   // [n_queries, n_heads · head_dim]
  KvLayer cache;
  std::span<const SequenceSlice> sequences;  // cover all rows of k and v, ascending
  std::int64_t n_heads = 0, n_kv_heads = 0, head_dim = 0;
  /// Where fewer rows are queried than are stored (n_queries < n_rows, perhaps 0): which, as parts of the
  /// sequences in their order, with the same pages; first_row counts rows of q and out, and covers them.
  std::span<const SequenceSlice> queries = {};

  /// The slices of the rows of q and out.
  std::span<const SequenceSlice> queried() const noexcept { return q.rows == k.rows ? sequences : queries; }
};

}  // namespace bitnet
