// The argument checks of every backend, and the zones of a profiler around its ops, in one place. What a
// device does is behind the do_… virtuals.
#include "bitnet/core/device/backend.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "bitnet/core/error.hpp"
#include "bitnet/core/profiler.hpp"

namespace bitnet {
namespace {

/// What has to hold, behind the format of the two sides that do not agree; and the line that asks for it.
struct Rule {
  Rule(const char* rule, SourceLocation line = SourceLocation::current()) : text(rule), where(line) {}
  std::string_view text;
  SourceLocation where;
};

/// The message is put together only where the rule is broken: checks allocate nothing.
template <class... Args>
void require(bool holds, const char* op, const Rule& rule, const Args&... args) {
  if (!holds)
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("{}: {}", op, fmt::vformat(rule.text, fmt::make_format_args(args...))),
                rule.where);
}

/// Of numbers ≥ 0; the largest there is where the result would be larger.
std::int64_t sum(std::int64_t a, std::int64_t b) {
  std::int64_t c = 0;
  return __builtin_add_overflow(a, b, &c) ? std::numeric_limits<std::int64_t>::max() : c;
}
std::int64_t product(std::int64_t a, std::int64_t b) {
  std::int64_t c = 0;
  return __builtin_mul_overflow(a, b, &c) ? std::numeric_limits<std::int64_t>::max() : c;
}

/// A matrix must lie inside its buffer; offsets are multiples of 4 bytes.
void check(const Matrix& m, const char* op, const char* name) {
  const bool sane = m.buffer != nullptr && m.rows >= 0 && m.cols >= 0 && m.offset % sizeof(float) == 0;
  std::int64_t cells = 0, bytes = 0;
  if (!sane || __builtin_mul_overflow(m.rows, m.cols, &cells) ||
      __builtin_mul_overflow(cells, std::int64_t{sizeof(float)}, &bytes) || m.offset > m.buffer->bytes() ||
      static_cast<std::size_t>(bytes) > m.buffer->bytes() - m.offset) {
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("{}: matrix '{}' [{}, {}] at byte {} does not fit its buffer of {} bytes", op,
                            name, m.rows, m.cols, m.offset, m.buffer != nullptr ? m.buffer->bytes() : 0));
  }
}

const char* kind(const PreparedWeights& w) { return w.ternary() ? "ternary" : "dense"; }

void check_ids(std::span<const std::int32_t> ids, std::int64_t below, const char* op, const char* name,
               SourceLocation where = SourceLocation::current()) {
  for (std::size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] < 0 || ids[i] >= below) {
      throw Error(ErrorCode::kInvalidArgument,
                  fmt::format("{}: {}[{}] = {} is outside 0 … {}", op, name, i, ids[i], below - 1), where);
    }
  }
}

void check(const LinearWeights& w, const char* op) {
  require(w.out > 0 && w.in > 0, op, "weights of {} × {}: out and in must be positive", w.out, w.in);
  std::int64_t cells = 0;
  require(!__builtin_mul_overflow(w.out, w.in, &cells), op, "weights of {} × {}: out × in overflows", w.out,
          w.in);
  require(int{!w.trits.empty()} + int{w.trit_rows != nullptr} + int{!w.dense.empty()} +
                  int{w.dense_rows != nullptr} <=
              1,
          op, "one of trits ({}), trit_rows ({}), dense ({} bytes) and dense_rows ({}), not several",
          w.trits.size(), w.trit_rows != nullptr, w.dense.size(), w.dense_rows != nullptr);
  if (w.ternary()) {
    require(w.trits.empty() || static_cast<std::int64_t>(w.trits.size()) == cells, op,
            "{} trits for {} × {}: trits must have out × in elements", w.trits.size(), w.out, w.in);
    require(w.rows_per_scale > 0, op, "rows_per_scale is {}, must be positive", w.rows_per_scale);
    if (w.cols_per_scale != 0) {
      require(w.cols_per_scale > 0 && w.in % w.cols_per_scale == 0 && w.rows_per_scale == 1, op,
              "scales of {} rows × {} columns for {} × {}: expected one row, and columns that divide `in`",
              w.rows_per_scale, w.cols_per_scale, w.out, w.in);
      require(static_cast<std::int64_t>(w.scales.size()) == w.out * (w.in / w.cols_per_scale), op,
              "{} scales for {} × {}: one scale for every {} columns of a row", w.scales.size(), w.out, w.in,
              w.cols_per_scale);
    } else {
      require(static_cast<std::int64_t>(w.scales.size()) == (w.out - 1) / w.rows_per_scale + 1, op,
              "{} scales for {} rows: one scale for every group of rows_per_scale rows, {}", w.scales.size(),
              w.out, w.rows_per_scale);
    }
    if (w.second != nullptr) {
      require(w.second->ternary() && w.second->second == nullptr && w.second->out == w.out &&
                  w.second->in == w.in,
              op, "a second plane of {} × {} for {} × {}: expected ternary weights of the same shape",
              w.second->out, w.second->in, w.out, w.in);
      check(*w.second, op);
    }
    return;
  }
  require(w.dense_type == DType::kF32 || w.dense_type == DType::kF16 || w.dense_type == DType::kBF16, op,
          "weights are {}; dense weights are f32, f16 or bf16", to_string(w.dense_type));
  const std::size_t size = bits_of(w.dense_type) / 8;
  std::int64_t bytes = 0;
  require(!__builtin_mul_overflow(cells, static_cast<std::int64_t>(size), &bytes), op,
          "weights of {} × {}: out × in overflows", w.out, w.in);
  require(w.dense_rows != nullptr || static_cast<std::int64_t>(w.dense.size()) == bytes, op,
          "{} bytes for {} × {} of {}: dense weights must have out × in elements", w.dense.size(), w.out,
          w.in, to_string(w.dense_type));
}

void check_same(const Matrix& a, const char* a_name, const Matrix& b, const char* b_name, const char* op,
                SourceLocation where = SourceLocation::current()) {
  require(a.rows == b.rows && a.cols == b.cols, op,
          {"{} is [{}, {}], {} [{}, {}]: they must have the same shape", where}, a_name, a.rows, a.cols,
          b_name, b.rows, b.cols);
}

void check_linear(std::span<const PreparedWeights* const> weights, const Matrix& x,
                  std::span<const Matrix> outs, const char* op) {
  require(!weights.empty() && weights.size() == outs.size(), op,
          "{} weights, {} outputs: one output for every weight", weights.size(), outs.size());
  check(x, op, "x");
  for (std::size_t i = 0; i < weights.size(); ++i) {
    check(outs[i], op, "out");
    require(weights[i] != nullptr, op, "weight {} is null", i);
    const PreparedWeights& w = *weights[i];
    require(w.in() == x.cols, op, "x is [{}, {}], weight {} [{}, {}]: x must have `in` columns", x.rows,
            x.cols, i, w.out(), w.in());
    require(outs[i].rows == x.rows && outs[i].cols == w.out(), op,
            "out {} is [{}, {}], x [{}, {}], weight {} [{}, {}]: out must be [rows of x, out]", i,
            outs[i].rows, outs[i].cols, x.rows, x.cols, i, w.out(), w.in());
    require(w.ternary() == weights[0]->ternary(), op,
            "weight 0 is {}, weight {} {}: weights of one call must be of one kind", kind(*weights[0]), i,
            kind(w));
  }
}

void check_norm(const Matrix& x, const Buffer& weight, const Matrix& out, const char* op) {
  check(out, op, "out");
  check_same(x, "x", out, "out", op);
  require(weight.bytes() / sizeof(float) >= static_cast<std::size_t>(x.cols), op,
          "weight has {} bytes, x is [{}, {}]: weight must have a value a column", weight.bytes(), x.rows,
          x.cols);
}

/// Sequences cover rows 0 … n_rows in order, and their pages are inside the cache.
void check_sequences(const AttentionArgs& a) {
  constexpr const char* kOp = "attention";
  std::int64_t row = 0;
  for (const SequenceSlice& s : a.sequences) {
    require(
        s.first_row == row && s.n_rows > 0 && s.past >= 0, kOp,
        "a sequence of {} rows at row {}, {} in the cache, where row {} is next: sequences must cover the "
        "rows in order",
        s.n_rows, s.first_row, s.past, row);
    row = sum(row, s.n_rows);
    const std::int64_t tokens = sum(s.past, s.n_rows);
    const std::int64_t pages = (tokens - 1) / a.cache.page_size + 1;
    require(static_cast<std::int64_t>(s.pages.size()) >= pages, kOp,
            "a sequence has too few pages: {} of {} for {} tokens", s.pages.size(), pages, tokens);
    check_ids(s.pages, a.cache.n_pages, kOp, "pages");
  }
  require(row == a.k.rows, kOp, "sequences have {} rows, k is [{}, {}]: sequences must cover every row", row,
          a.k.rows, a.k.cols);
}

/// The queries cover the rows of q in order, and each lies in one of the (checked) sequences.
void check_queries(const AttentionArgs& a) {
  constexpr const char* kOp = "attention";
  std::int64_t row = 0;
  auto s = a.sequences.begin();
  for (const SequenceSlice& q : a.queried()) {
    require(q.first_row == row && q.n_rows > 0, kOp,
            "a query of {} rows at row {}, where row {} is next: queries must cover the rows of q in order",
            q.n_rows, q.first_row, row);
    row = sum(row, q.n_rows);
    const auto contains = [&](const SequenceSlice& of) {
      return of.pages.data() == q.pages.data() && of.pages.size() == q.pages.size() && q.past >= of.past &&
             sum(q.past, q.n_rows) <= of.past + of.n_rows;
    };
    while (s != a.sequences.end() && !contains(*s)) ++s;
    require(s != a.sequences.end(), kOp,
            "the query at row {}, tokens {} … {}, lies in none of the {} sequences: queries must be rows of "
            "the sequences, in their order",
            q.first_row, q.past, sum(q.past, q.n_rows - 1), a.sequences.size());
  }
  require(row == a.q.rows, kOp, "queries have {} rows, q is [{}, {}]: queries must cover every row of q", row,
          a.q.rows, a.q.cols);
}

void check_range(const Buffer& buffer, std::size_t offset, std::size_t bytes, const char* op,
                 SourceLocation where = SourceLocation::current()) {
  require(offset <= buffer.bytes() && bytes <= buffer.bytes() - offset, op,
          {"{} bytes at byte {} of {}: the range is outside the buffer", where}, bytes, offset,
          buffer.bytes());
}

/// Shapes of attention(), and that its cache is as large as it says.
void check_shapes(const AttentionArgs& a) {
  constexpr const char* kOp = "attention";
  check(a.q, kOp, "q");
  check(a.k, kOp, "k");
  check(a.v, kOp, "v");
  check(a.out, kOp, "out");
  require(a.n_heads > 0 && a.n_kv_heads > 0 && a.n_heads % a.n_kv_heads == 0, kOp,
          "n_heads is {}, n_kv_heads {}: n_kv_heads must divide n_heads", a.n_heads, a.n_kv_heads);
  require(a.head_dim > 0 && a.q.cols == product(a.n_heads, a.head_dim) &&
              a.k.cols == product(a.n_kv_heads, a.head_dim),
          kOp, "q is [{}, {}], k [{}, {}], {} and {} heads × {}: columns must be heads × head_dim", a.q.rows,
          a.q.cols, a.k.rows, a.k.cols, a.n_heads, a.n_kv_heads, a.head_dim);
  check_same(a.q, "q", a.out, "out", kOp);
  check_same(a.k, "k", a.v, "v", kOp);
  require(a.q.rows <= a.k.rows, kOp, "q is [{}, {}], k [{}, {}]: q must not have more rows than k", a.q.rows,
          a.q.cols, a.k.rows, a.k.cols);
  const KvLayer& cache = a.cache;
  require(cache.page_size > 0 && cache.n_pages >= 0 && cache.keys != nullptr && cache.values != nullptr, kOp,
          "the cache needs pages; it has {} of {} tokens", cache.n_pages, cache.page_size);
  const std::size_t page = kv_page_bytes(cache.type, cache.page_size, a.n_kv_heads, a.head_dim);
  const auto pages = static_cast<std::size_t>(cache.n_pages);
  require(cache.keys->bytes() / page >= pages && cache.values->bytes() / page >= pages, kOp,
          "the cache's buffers are too small: {} bytes of keys, {} of values for {} pages of {} bytes",
          cache.keys->bytes(), cache.values->bytes(), pages, page);
}

/// body(), whose failures say which device it was, unless a backend that this one is made of has said so.
template <class Body>
decltype(auto) named(const Backend& device, Body&& body) {
  try {
    return body();
  } catch (Error& e) {
    if (e.code() == ErrorCode::kDevice && e.context().empty()) e.add_context(device.name());
    throw;
  }
}

/// Bytes of a matrix that is read or written once.
std::uint64_t bytes_of(const Matrix& m) {
  return static_cast<std::uint64_t>(m.rows * m.cols) * sizeof(float);
}

std::uint64_t bytes_of(std::span<const PreparedWeights* const> weights, const Matrix& x,
                       std::span<const Matrix> outs) {
  std::uint64_t bytes = bytes_of(x);
  for (const PreparedWeights* w : weights) bytes += w->bytes();
  for (const Matrix& out : outs) bytes += bytes_of(out);
  return bytes;
}

/// q, k, v and out, the keys and values that are stored, and those up to the last token of each query.
std::uint64_t bytes_of(const AttentionArgs& a) {
  std::uint64_t tokens = 0;
  for (const SequenceSlice& s : a.queried()) tokens += static_cast<std::uint64_t>(s.past + s.n_rows);
  tokens += static_cast<std::uint64_t>(a.k.rows);
  const std::size_t page = kv_page_bytes(a.cache.type, a.cache.page_size, a.n_kv_heads, a.head_dim);
  return bytes_of(a.q) + bytes_of(a.k) + bytes_of(a.v) + bytes_of(a.out) +
         2 * tokens * page / static_cast<std::uint64_t>(a.cache.page_size);
}

}  // namespace

/// The body, and with a profiler a zone around it that ends when the device is done.
template <class Bytes, class Body>
void Backend::zone(const char* op, std::int64_t rows, Bytes&& bytes, Body&& body) {
  if (profiler_ == nullptr) return named(*this, body);
  const ProfileZone measured(of_ops_, op, of_ops_ != nullptr ? bytes() : 0, rows);
  named(*this, [&] {
    body();
    do_sync();
  });
}

std::string_view to_string(BackendOp op) noexcept {
  switch (op) {
    case BackendOp::kLinear:
      return "linear";
    case BackendOp::kEmbed:
      return "embed";
    case BackendOp::kRmsNorm:
      return "rms_norm";
    case BackendOp::kRope:
      return "rope";
    case BackendOp::kAttention:
      return "attention";
    case BackendOp::kGatedActivation:
      return "gated_activation";
    case BackendOp::kAdd:
      return "add";
    case BackendOp::kLogits:
      return "logits";
  }
  return "?";
}

const std::int8_t* LinearWeights::trits_of(std::int64_t begin, std::int64_t end,
                                           std::vector<std::int8_t>& scratch) const {
  if (trit_rows == nullptr) return trits.data() + begin * in;
  scratch.resize(static_cast<std::size_t>((end - begin) * in));
  trit_rows(begin, end, scratch.data());
  return scratch.data();
}

const std::byte* LinearWeights::dense_of(std::int64_t begin, std::int64_t end,
                                         std::vector<std::byte>& scratch) const {
  const std::size_t row = dense_row_bytes();
  if (dense_rows == nullptr) return dense.data() + static_cast<std::size_t>(begin) * row;
  scratch.resize(static_cast<std::size_t>(end - begin) * row);
  dense_rows(begin, end, scratch.data());
  return scratch.data();
}

std::size_t kv_page_bytes(DType type, std::int64_t page_size, std::int64_t n_kv_heads,
                          std::int64_t head_dim) {
  if (type != DType::kF32 && type != DType::kF16 && type != DType::kI8) {
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("a KV cache of type {}: expected one of f16, i8, f32", to_string(type)));
  }
  std::int64_t rows = 0, bytes = 0;
  const std::int64_t dim = std::min(head_dim, std::int64_t{1} << 33);  // refused below, but no overflow here
  // int8 rows are rounded up so that the scales of every head and page are aligned floats.
  const std::int64_t row = type == DType::kI8 ? (dim + 3) / 4 * 4 + std::int64_t{sizeof(float)}
                                              : dim * static_cast<std::int64_t>(bits_of(type) / 8);
  if (page_size <= 0 || n_kv_heads <= 0 || head_dim <= 0 || head_dim > (std::int64_t{1} << 32) ||
      __builtin_mul_overflow(page_size, n_kv_heads, &rows) || __builtin_mul_overflow(rows, row, &bytes)) {
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("KV pages of {} tokens × {} heads × {}", page_size, n_kv_heads, head_dim));
  }
  return static_cast<std::size_t>(bytes);
}

std::size_t Backend::discard(Buffer& buffer, std::size_t offset, std::size_t bytes) {
  check_range(buffer, offset, bytes, "discard");
  return bytes == 0 ? 0 : named(*this, [&] { return do_discard(buffer, offset, bytes); });
}

std::optional<double> Backend::measure_bandwidth() { return do_measure_bandwidth(); }

BufferPtr Backend::allocate(std::size_t bytes, MemoryTag tag) {
  return named(*this, [&] { return do_allocate(bytes, tag); });
}

void Backend::upload(Buffer& to, std::size_t offset, std::span<const std::byte> from) {
  check_range(to, offset, from.size(), "upload");
  if (from.empty()) return;
  zone(
      "upload", 0, [&] { return from.size(); }, [&] { do_upload(to, offset, from); });
}

void Backend::download(const Buffer& from, std::size_t offset, std::span<std::byte> to) {
  check_range(from, offset, to.size(), "download");
  if (to.empty()) return;
  zone(
      "download", 0, [&] { return to.size(); }, [&] { do_download(from, offset, to); });
}

PreparedPtr Backend::prepare(const LinearWeights& weights) {
  check(weights, "prepare");
  if (weights.extended() && !supports_extended_linears())
    throw Error(
        ErrorCode::kUnsupported,
        fmt::format("prepare: {} runs linears in one ternary plane with scales of whole rows, or dense ones; "
                    "not two planes, groups of columns, int8 or activations of 4 bits: expected the CPU, or "
                    "a device that falls "
                    "back to it",
                    name()));
  const ProfileZone measured(of_ops_, "prepare", 0, weights.out);
  return named(*this, [&] { return do_prepare(weights); });
}

PreparedPtr Backend::prepare_embedding(const LinearWeights& weights) {
  check(weights, "prepare_embedding");
  require(!weights.ternary(), "prepare_embedding", "the weights of {} × {} are ternary; embeddings are dense",
          weights.out, weights.in);
  const ProfileZone measured(of_ops_, "prepare_embedding", 0, weights.out);
  return named(*this, [&] { return do_prepare_embedding(weights); });
}

void Backend::prepare_steps(const ModelConfig& config, DType kv_type, std::int64_t page_size) {
  constexpr const char* kOp = "prepare_steps";
  kv_page_bytes(kv_type, page_size, config.n_kv_heads, config.head_dim);
  require(config.n_heads > 0 && config.n_heads % config.n_kv_heads == 0, kOp,
          "n_heads is {}, n_kv_heads {}: n_kv_heads must divide n_heads", config.n_heads, config.n_kv_heads);
  const ProfileZone measured(of_ops_, kOp);
  named(*this, [&] { do_prepare_steps(config, kv_type, page_size); });
}

void Backend::linear(std::span<const PreparedWeights* const> weights, Matrix x,
                     std::span<const Matrix> outs) {
  check_linear(weights, x, outs, "linear");
  if (x.rows == 0) return;
  zone(
      "linear", x.rows, [&] { return bytes_of(weights, x, outs); }, [&] { do_linear(weights, x, outs); });
}

void Backend::norm_linear(std::span<const PreparedWeights* const> weights, Matrix x, const Buffer& norm,
                          float eps, Matrix normed, std::span<const Matrix> outs) {
  check_linear(weights, x, outs, "norm_linear");
  check_norm(x, norm, normed, "norm_linear");
  if (x.rows == 0) return;
  zone(
      "norm_linear", x.rows, [&] { return bytes_of(weights, x, outs) + norm.bytes(); },
      [&] { do_norm_linear(weights, x, norm, eps, normed, outs); });
}

void Backend::gated_linear(Activation f, Matrix gate, Matrix up, const Buffer* norm, float eps,
                           const PreparedWeights& weights, Matrix out) {
  constexpr const char* kOp = "gated_linear";
  const PreparedWeights* const one = &weights;
  check_linear({&one, 1}, gate, {&out, 1}, kOp);
  check(up, kOp, "up");
  check_same(gate, "gate", up, "up", kOp);
  if (norm != nullptr) check_norm(gate, *norm, gate, kOp);
  if (gate.rows == 0) return;
  zone(
      "gated_linear", gate.rows,
      [&] {
        return bytes_of({&one, 1}, gate, {&out, 1}) + bytes_of(up);
      },
      [&] { do_gated_linear(f, gate, up, norm, eps, weights, out); });
}

void Backend::norm_then_linear(std::span<const PreparedWeights* const> weights, Matrix x, const Buffer& norm,
                               float eps, Matrix normed, std::span<const Matrix> outs) {
  do_rms_norm(x, norm, eps, normed);
  do_linear(weights, normed, outs);
}

void Backend::gate_then_linear(Activation f, Matrix gate, Matrix up, const Buffer* norm, float eps,
                               const PreparedWeights& weights, Matrix out) {
  do_gated_activation(f, gate, up, gate);
  if (norm != nullptr) do_rms_norm(gate, *norm, eps, gate);
  const PreparedWeights* const one = &weights;
  do_linear({&one, 1}, gate, {&out, 1});
}

void Backend::do_norm_linear(std::span<const PreparedWeights* const> weights, Matrix x, const Buffer& norm,
                             float eps, Matrix normed, std::span<const Matrix> outs) {
  norm_then_linear(weights, x, norm, eps, normed, outs);
}

void Backend::do_gated_linear(Activation f, Matrix gate, Matrix up, const Buffer* norm, float eps,
                              const PreparedWeights& weights, Matrix out) {
  gate_then_linear(f, gate, up, norm, eps, weights, out);
}

void Backend::embed(const PreparedWeights& table, std::span<const std::int32_t> ids, Matrix out) {
  check(out, "embed", "out");
  require(out.rows == static_cast<std::int64_t>(ids.size()) && out.cols == table.in(), "embed",
          "out is [{}, {}] for {} ids of a table [{}, {}]: out must be [ids, hidden]", out.rows, out.cols,
          ids.size(), table.out(), table.in());
  check_ids(ids, table.out(), "embed", "ids");
  if (ids.empty()) return;
  const auto row_bytes = table.bytes() / static_cast<std::size_t>(std::max<std::int64_t>(table.out(), 1));
  zone(
      "embed", out.rows, [&] { return ids.size() * row_bytes + bytes_of(out); },
      [&] { do_embed(table, ids, out); });
}

void Backend::rms_norm(Matrix x, const Buffer& weight, float eps, Matrix out) {
  check(x, "rms_norm", "x");
  check_norm(x, weight, out, "rms_norm");
  if (x.rows == 0) return;
  zone(
      "rms_norm", x.rows, [&] { return 2 * bytes_of(x) + weight.bytes(); },
      [&] { do_rms_norm(x, weight, eps, out); });
}

void Backend::rope(Matrix x, std::span<const std::int32_t> positions, const Buffer& table,
                   std::int64_t head_dim) {
  check(x, "rope", "x");
  require(head_dim > 0 && head_dim % 2 == 0 && head_dim <= x.cols && x.cols % head_dim == 0, "rope",
          "head_dim is {}, x [{}, {}]: head_dim must be even and divide the columns", head_dim, x.rows,
          x.cols);
  require(static_cast<std::int64_t>(positions.size()) == x.rows, "rope",
          "{} positions, x is [{}, {}]: one position a row", positions.size(), x.rows, x.cols);
  const std::size_t n_positions = table.bytes() / (sizeof(float) * static_cast<std::size_t>(head_dim));
  check_ids(positions, static_cast<std::int64_t>(n_positions), "rope", "positions");
  if (x.rows == 0) return;
  zone(
      "rope", x.rows, [&] { return 2 * bytes_of(x); }, [&] { do_rope(x, positions, table, head_dim); });
}

void Backend::attention(const AttentionArgs& a) {
  check_shapes(a);
  check_sequences(a);
  check_queries(a);
  if (a.k.rows == 0) return;
  zone(
      "attention", a.k.rows, [&] { return bytes_of(a); }, [&] { do_attention(a); });
}

void Backend::gated_activation(Activation f, Matrix gate, Matrix up, Matrix out) {
  check(gate, "gated_activation", "gate");
  check(up, "gated_activation", "up");
  check(out, "gated_activation", "out");
  check_same(gate, "gate", up, "up", "gated_activation");
  check_same(gate, "gate", out, "out", "gated_activation");
  if (gate.rows == 0) return;
  zone(
      "gated_activation", gate.rows, [&] { return 3 * bytes_of(gate); },
      [&] { do_gated_activation(f, gate, up, out); });
}

void Backend::add(Matrix x, Matrix y) {
  check(x, "add", "x");
  check(y, "add", "y");
  check_same(x, "x", y, "y", "add");
  if (x.rows == 0) return;
  zone(
      "add", x.rows, [&] { return 3 * bytes_of(x); }, [&] { do_add(x, y); });
}

void Backend::logits(const PreparedWeights& head, Matrix hidden, std::span<const std::int32_t> rows,
                     Matrix out) {
  check(hidden, "logits", "hidden");
  check(out, "logits", "out");
  require(hidden.cols == head.in(), "logits",
          "hidden is [{}, {}], head [{}, {}]: hidden must have `in` columns", hidden.rows, hidden.cols,
          head.out(), head.in());
  require(out.rows == static_cast<std::int64_t>(rows.size()) && out.cols == head.out(), "logits",
          "out is [{}, {}] for {} rows of a head [{}, {}]: out must be [rows, vocab]", out.rows, out.cols,
          rows.size(), head.out(), head.in());
  check_ids(rows, hidden.rows, "logits", "rows");
  if (rows.empty()) return;
  zone(
      "logits", out.rows, [&] { return head.bytes() + bytes_of(out) + out.rows * head.in() * sizeof(float); },
      [&] { do_logits(head, hidden, rows, out); });
}

void Backend::top(Matrix x, std::int64_t k, std::span<TopValue> out) {
  check(x, "top", "x");
  require(k >= 1 && k <= x.cols && static_cast<std::int64_t>(out.size()) == product(x.rows, k), "top",
          "{} of x [{}, {}] into {} places: k must be 1 … columns, and out [rows, k]", k, x.rows, x.cols,
          out.size());
  if (x.rows == 0) return;
  zone(
      "top", x.rows, [&] { return bytes_of(x); }, [&] { do_top(x, k, out); });
}

// Whole rows are brought here: right for every device, and for the host itself the quickest.
void Backend::top_of_download(Matrix x, std::int64_t k, std::span<TopValue> out) {
  const auto cols = static_cast<std::size_t>(x.cols), most = static_cast<std::size_t>(k);
  std::vector<float> row(cols);
  std::vector<std::int32_t> order(cols);
  const auto larger = [&](std::int32_t a, std::int32_t b) {
    const float p = row[static_cast<std::size_t>(a)], q = row[static_cast<std::size_t>(b)];
    if (std::isnan(p) != std::isnan(q)) return std::isnan(p);
    return p == q || std::isnan(p) ? a < b : p > q;
  };
  for (std::size_t r = 0; r < static_cast<std::size_t>(x.rows); ++r) {
    do_download(*x.buffer, x.offset + r * cols * sizeof(float), std::as_writable_bytes(std::span(row)));
    std::iota(order.begin(), order.end(), 0);
    std::partial_sort(order.begin(), order.begin() + k, order.end(), larger);
    for (std::size_t i = 0; i < most; ++i)
      out[r * most + i] = {order[i], row[static_cast<std::size_t>(order[i])]};
  }
}

void Backend::sync() {
  named(*this, [&] { do_sync(); });
}

}  // namespace bitnet
