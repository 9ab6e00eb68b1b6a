// Counts what layers take and divides them. The numbers are upper bounds of what the OpenCL backend packs.
#include "bitnet/inference/layer_split.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>
#include <optional>

#include "bitnet/core/error.hpp"
#include "bitnet/inference/kv_cache.hpp"
#include "bitnet/inference/session.hpp"

namespace bitnet::inference {
namespace {

using Wide = unsigned __int128;

constexpr std::int64_t kTile = 16;    // what packed rows and columns are padded to
constexpr Wide kQuantisedRows = 256;  // that a device quantises at once
constexpr Wide kWhileItGrows = 2;     // a buffer that is replaced by a larger one is there twice
constexpr Wide kAlignment = 4 * 256;  // a tensor is four buffers at most, each of a multiple of 256 bytes
constexpr Wide kSmallBuffers = 256 << 10;  // positions, page tables, scales of rows

Wide padded(std::int64_t n) { return static_cast<Wide>((n + kTile - 1) / kTile) * kTile; }

/// Of columns that share a scale in a row.
std::int64_t n_groups(const LinearWeights& w) { return w.cols_per_scale == 0 ? 1 : w.in / w.cols_per_scale; }

/// Of trits: 2 bits each, the columns that share a scale in words of their own; and their scales.
Wide plane_bytes(const LinearWeights& w) {
  const std::int64_t groups = n_groups(w);
  return padded(w.out) * static_cast<Wide>(groups) * (padded(w.in / groups) / 4 + sizeof(float));
}

Wide int8_bytes(const Shape& shape) { return padded(shape[0]) * (padded(shape[1]) + sizeof(float)); }

/// What the files say of their linears beyond one plane with scales of rows and floats.
class ExtendedLinears {
 public:
  explicit ExtendedLinears(const ModelFiles& files)
      : reader_(files.reader->extended_linears() ? files.reader.get() : nullptr) {}

  /// Of a linear as a device keeps it; none where it is an ordinary one.
  std::optional<Wide> bytes(TensorId id) {
    if (reader_ == nullptr || !is_linear(id.role)) return {};
    const quant::TensorRows rows = reader_->rows(id);
    if (rows.int8) return int8_bytes(rows.shape);
    const LinearWeights w = rows.weights();
    if (!w.ternary()) return {};
    Wide bytes = 0;
    for (const LinearWeights* plane = &w; plane != nullptr; plane = plane->second.get()) {
      bytes += plane_bytes(*plane);
      most_groups_ = std::max(most_groups_, n_groups(*plane));
    }
    return bytes;
  }
  /// Of the linears that were asked for.
  std::int64_t most_groups() const noexcept { return most_groups_; }

 private:
  const quant::ModelReader* reader_;
  std::int64_t most_groups_ = 1;
};

/// Of a matrix as a device keeps it, scales included.
Wide matrix_bytes(const ModelFiles& files, TensorId id, ExtendedLinears& extended) {
  const Shape shape = tensor_shape(id, files.reader->config());
  if (is_norm(id.role)) return static_cast<Wide>(shape.numel()) * sizeof(float);
  if (const auto bytes = extended.bytes(id)) return *bytes;
  const Wide elements = padded(shape[0]) * padded(shape[1]), scales = padded(shape[0]) * sizeof(float);
  const auto type = files.reader->float_type(id);
  if (is_linear(id.role) && !type) return elements / 4 + scales;
  const bool embedding = id.role == TensorRole::kTokenEmbedding;
  if (!is_linear(id.role)) {
    const Precision& as = files.precision.at(embedding ? OpClass::kEmbedding : OpClass::kHead);
    if (as.storage) return *as.storage == DType::kI8 ? int8_bytes(shape) : elements * 2;
  }
  return elements * bits_of(type.value_or(DType::kF32)) / 8;
}

/// What pools of devices round up to where there is room.
Wide rounded_up(Wide bytes) { return bytes + bytes / 8; }

std::size_t checked(Wide bytes) {
  if (bytes > std::numeric_limits<std::size_t>::max() / 4)
    throw Error(ErrorCode::kInvalidArgument, "the sizes of the model's layers overflow");
  return static_cast<std::size_t>(bytes);
}

/// The first layer of each device and the end of the last one.
std::vector<std::int64_t> boundaries(std::span<const std::size_t> free, std::int64_t n_layers,
                                     std::int64_t on_devices) {
  Wide total = 0, so_far = 0;
  for (const std::size_t bytes : free) total += bytes;
  std::vector<std::int64_t> at{n_layers - on_devices};
  for (std::size_t d = 0; d < free.size(); ++d) {
    so_far += free[d];
    const Wide share = total == 0 ? static_cast<Wide>(on_devices) * (d + 1) / free.size()
                                  : (static_cast<Wide>(on_devices) * so_far + total / 2) / total;
    at.push_back(n_layers - on_devices + static_cast<std::int64_t>(share));
  }
  at.back() = n_layers;
  return at;
}

LayerSplit with(std::span<const std::int64_t> at) {
  LayerSplit split{at[0], {}};
  for (std::size_t d = 0; d + 1 < at.size(); ++d) split.on_device.push_back(at[d + 1] - at[d]);
  return split;
}

bool fits(const LayerCosts& costs, std::span<const std::size_t> free, std::span<const std::int64_t> at) {
  std::size_t last = free.size() - 1;
  while (last > 0 && at[last] == at[last + 1]) --last;
  for (std::size_t d = 0; d <= last; ++d) {
    if (at[d] == at[d + 1]) continue;  // a device without layers is not used
    Wide bytes = costs.workspace;
    for (std::int64_t i = at[d]; i < at[d + 1]; ++i) bytes += costs.layers[static_cast<std::size_t>(i)];
    if (at[d] == 0) bytes += costs.embedding;
    if (d == last) bytes += costs.head;
    if (bytes > free[d]) return false;
  }
  return true;
}

}  // namespace

std::int64_t LayerSplit::n_layers() const noexcept {
  return std::accumulate(on_device.begin(), on_device.end(), on_cpu);
}

LayerCosts layer_costs(const ModelFiles& files, const SplitNeeds& needs) {
  const ModelConfig& c = files.reader->config();
  const Wide pages =
      static_cast<Wide>((needs.n_ctx + KvPool::kDefaultPageSize - 1) / KvPool::kDefaultPageSize);
  const Wide cache =
      2 * 2 * pages * kv_page_bytes(needs.kv_type, KvPool::kDefaultPageSize, c.n_kv_heads, c.head_dim);
  std::vector<Wide> layers(static_cast<std::size_t>(c.n_layers), rounded_up(cache));
  Wide embedding = 0, head = 0;
  ExtendedLinears extended(files);
  for (const TensorId id : model_tensors(c)) {
    const Wide bytes = matrix_bytes(files, id, extended) + kAlignment;
    if (id.layer >= 0) {
      layers[static_cast<std::size_t>(id.layer)] += bytes;
    } else if (id.role == TensorRole::kTokenEmbedding) {
      embedding += bytes;
      if (c.tied_embeddings) head += bytes;
    } else {
      head += bytes;
    }
  }
  const auto rows = static_cast<Wide>(std::min(needs.chunk_rows, needs.n_ctx));
  const auto row =
      static_cast<Wide>(2 * c.hidden_size + 2 * c.q_dim() + 2 * c.kv_dim() + 3 * c.intermediate_size);
  const Wide floats = rows * row + static_cast<Wide>(Session::kMaxLogits) * static_cast<Wide>(c.vocab_size) +
                      static_cast<Wide>(needs.n_ctx) * static_cast<Wide>(c.head_dim);
  LayerCosts costs;
  for (const Wide bytes : layers) costs.layers.push_back(checked(bytes));
  costs.embedding = checked(embedding);
  costs.head = checked(head);
  const Wide widest = padded(std::max({c.hidden_size, c.q_dim(), c.intermediate_size}));
  // Of the rows: their bytes, and the sum of each group of columns.
  const Wide quantised = widest + static_cast<Wide>(extended.most_groups()) * sizeof(std::int32_t);
  costs.workspace = checked(
      rounded_up(floats * sizeof(float) + quantised * kQuantisedRows * kWhileItGrows + kSmallBuffers));
  return costs;
}

LayerSplit split_layers(const LayerCosts& costs, std::span<const std::size_t> free, std::int64_t asked) {
  const auto n = static_cast<std::int64_t>(costs.layers.size());
  if (free.empty() || (asked < 0 && asked != kAutoLayers))
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("{} layers on {} devices: expected 0 … on one at least", asked, free.size()));
  if (asked != kAutoLayers) return with(boundaries(free, n, std::min(asked, n)));
  std::int64_t most = n;
  while (most > 0 && !fits(costs, free, boundaries(free, n, most))) --most;
  return with(boundaries(free, n, most));
}

std::string describe(std::span<const StagePlace> stages) {
  std::string text;
  for (std::size_t i = 0; i < stages.size(); ++i) {
    const StagePlace& s = stages[i];
    std::string what = i == 0 ? "embedding" : "";
    if (s.n_layers > 0) {
      if (!what.empty()) what += i + 1 < stages.size() ? " and " : ", ";
      what += s.n_layers == 1 ? fmt::format("layer {}", s.first)
                              : fmt::format("layers {} … {}", s.first, s.first + s.n_layers - 1);
    }
    if (i + 1 == stages.size()) what += what.empty() ? "head" : " and head";
    if (what.empty()) what = "nothing";
    text += fmt::format("{}{} on {}", i == 0 ? "" : "; ", what, s.device);
  }
  return text;
}

}  // namespace bitnet::inference
