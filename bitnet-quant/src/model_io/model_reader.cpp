// ModelReader::open and what both readers share; LogicalTensor's widening.
#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "bitnet/core/error.hpp"
#include "bitnet/quant/post_training.hpp"
#include "model_io/reader_base.hpp"

namespace bitnet::quant {

std::vector<float> LogicalTensor::to_f32() const {
  using model_io::Encoding;
  if (ternary) return dequantise(weights);
  if (planes) {
    std::vector<float> out = dequantise(planes->first);
    const std::vector<float> more = dequantise(planes->second);
    for (std::size_t i = 0; i < out.size(); ++i) out[i] += more[i];
    return out;
  }
  if (int8) {
    std::vector<float> out(int8->values.size());
    const std::size_t in = out.size() / std::max<std::size_t>(1, int8->scales.size());
    for (std::size_t i = 0; i < out.size(); ++i)
      out[i] = static_cast<float>(int8->values[i]) * int8->scales[i / in];
    return out;
  }
  const Encoding e = dtype == DType::kF16    ? Encoding::kF16
                     : dtype == DType::kBF16 ? Encoding::kBF16
                                             : Encoding::kF32;
  return model_io::decode_floats(e, dense, dense.size() * 8 / bits_of(dtype));
}

LinearWeights TensorRows::weights() const {
  if (planes.size() == 2) {
    LinearWeights w = planes[0].weights();
    w.activations = activations;
    w.second = std::make_shared<const LinearWeights>(planes[1].weights());
    return w;
  }
  LinearWeights w;
  w.out = shape[0];
  w.in = shape[1];
  w.scales = scales;
  w.rows_per_scale = rows_per_scale;
  w.cols_per_scale = cols_per_scale;
  if (int8) w.dense_form = DenseForm::kInt8;
  w.dense_type = dtype;
  w.trit_rows = trits;
  w.dense_rows = dense;
  w.activations = activations;
  return w;
}

std::unique_ptr<ModelReader> ModelReader::open(const std::filesystem::path& path, FloatLinears floats) {
  namespace fs = std::filesystem;
  std::error_code problem, ignored;
  if (!fs::exists(path, problem) && !problem)
    throw Error(ErrorCode::kNotFound, fmt::format("there is no file or directory '{}'", path.string()));
  if (fs::is_directory(path, ignored)) {
    if (!fs::exists(path / "config.json", problem) && !problem)
      throw Error(ErrorCode::kNotFound, fmt::format("directory '{}' has no config.json", path.string()));
    return model_io::open_hf(path, floats);
  }
  if (path.extension() == ".safetensors" || path.filename() == "config.json")
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("'{}': expected the model's directory or a GGUF file", path.string()));
  return model_io::open_gguf(path, floats);
}

namespace model_io {

TensorRows ReaderBase::rows(TensorId id) const {
  TensorRows t = with_context(place_, [&] { return open_rows(stored(id), id, tensor_shape(id, config_)); });
  t.activations = stored(id).activations;
  const auto named = [&]<class T>(RowSource<T>& rows) {
    if (rows == nullptr) return;
    rows = [this, inner = std::move(rows)](std::int64_t begin, std::int64_t end, T* to) {
      with_context(place_, [&] { inner(begin, end, to); });
    };
  };
  named(t.trits);
  named(t.dense);
  for (TensorRows& plane : t.planes) named(plane.trits);
  return t;
}

LogicalTensor ReaderBase::read(TensorId id) const {
  TensorRows rows = this->rows(id);
  const std::int64_t n = rows.shape.rank() == 2 ? rows.shape[0] : 1;
  const auto cells = static_cast<std::size_t>(rows.shape.numel());
  LogicalTensor t;
  t.id = id;
  t.shape = rows.shape;
  t.ternary = rows.ternary;
  t.dtype = rows.ternary ? DType::kF32 : rows.dtype;
  t.activations = rows.activations;
  with_context(place_, [&] {
    if (rows.ternary) {
      t.weights = {.out = n,
                   .in = rows.shape[1],
                   .trits = std::vector<std::int8_t>(cells),
                   .scales = std::move(rows.scales),
                   .rows_per_scale = rows.rows_per_scale,
                   .cols_per_scale = rows.cols_per_scale};
    } else {
      t.dense.resize(cells * bits_of(rows.dtype) / 8);
    }
  });
  if (t.ternary)
    rows.trits(0, n, t.weights.trits.data());
  else
    rows.dense(0, n, t.dense.data());
  if (rows.planes.size() == 2) {
    const auto plane = [&](const TensorRows& from) {
      TernaryWeights w{.out = n,
                       .in = rows.shape[1],
                       .trits = std::vector<std::int8_t>(cells),
                       .scales = from.scales,
                       .rows_per_scale = from.rows_per_scale,
                       .cols_per_scale = from.cols_per_scale};
      from.trits(0, n, w.trits.data());
      return w;
    };
    t.planes = TwoPlanes{plane(rows.planes[0]), plane(rows.planes[1])};
  }
  if (rows.int8) {
    const StoredTensor& from = stored(id);
    t.int8 = Int8Rows{std::vector<std::int8_t>(cells), from.scales};
    std::memcpy(t.int8->values.data(), from.bytes.data(), cells);
  }
  return t;
}

std::string ReaderBase::stored_type(TensorId id) const {
  const StoredTensor& t = stored(id);
  return t.ternarise ? t.type + " → ternary" : t.type;
}

std::optional<DType> ReaderBase::float_type(TensorId id) const {
  const StoredTensor& t = stored(id);
  if (t.ternarise || is_packed(t.encoding)) return std::nullopt;
  return dense_type(t);
}

std::uint64_t ReaderBase::stored_bytes(TensorId id) const {
  const StoredTensor& t = stored(id);
  return t.bytes.size() + t.scale_bytes +
         (t.second != nullptr ? t.second->bytes.size() + t.second->scale_bytes : 0);
}

const StoredTensor& ReaderBase::stored(TensorId id) const {
  const auto at = stored_.find({id.role, id.layer});
  if (at == stored_.end())
    throw Error(ErrorCode::kNotFound, fmt::format("{}: no tensor '{}'", place_, gguf_name(id)));
  return at->second;
}

void ReaderBase::add(TensorId id, StoredTensor tensor) {
  if (tensor.scale && (is_packed(tensor.encoding)))
    if (std::string note = implausible_scale(tensor.name, *tensor.scale);
        !note.empty() && notes_.size() < 100)
      notes_.push_back(std::move(note));
  if (is_linear(id.role) && (tensor.second != nullptr || tensor.cols_per_scale != 0 ||
                             tensor.encoding == Encoding::kI8 || tensor.activations != ActivationForm::kInt8))
    extended_linears_ = true;
  stored_.insert_or_assign({id.role, id.layer}, std::move(tensor));
}

void ReaderBase::decide_floats(FloatLinears floats) {
  const bool bitnet = config_.weights == WeightKind::kTernary;
  const bool ternarise =
      floats == FloatLinears::kTernarise || (floats == FloatLinears::kAsConfigured && bitnet);
  for (auto& [key, t] : stored_) {
    if (!is_linear(key.first) || is_packed(t.encoding) || t.encoding == Encoding::kI8) continue;
    ++float_linears_;
    t.ternarise = ternarise;
  }
  const std::size_t n = float_linears_;
  if (n == 0) return;
  if (ternarise) {
    notes_.push_back(fmt::format(
        "{} float linears are ternarised at load (absmean; trits times one scale are taken as they are)", n));
    if (!bitnet)
      notes_.push_back(
          "the configuration names no BitNet: rounding a model that was not trained for it destroys it");
    config_.weights = WeightKind::kTernary;
  } else if (bitnet) {
    notes_.push_back(fmt::format("{} float linears of a BitNet model are left dense (latent weights)", n));
  }
}

}  // namespace model_io
}  // namespace bitnet::quant
