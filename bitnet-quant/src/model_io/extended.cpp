// Linears of any kind in safetensors; see extended.hpp.
#include "model_io/extended.hpp"

#include <fmt/format.h>

#include <cstring>
#include <nlohmann/json.hpp>
#include <utility>

#include "bitnet/core/error.hpp"
#include "model_io/stored_tensor.hpp"

namespace bitnet::quant::model_io {
namespace {

namespace fs = std::filesystem;

template <class T>
NamedBytes named(std::string name, SafeDType dtype, std::vector<std::int64_t> shape,
                 const std::vector<T>& values) {
  NamedBytes n;
  n.info.name = std::move(name);
  n.info.dtype = dtype;
  n.info.shape = std::move(shape);
  n.bytes.resize(values.size() * sizeof(T));
  if (!n.bytes.empty()) std::memcpy(n.bytes.data(), values.data(), n.bytes.size());
  return n;
}

/// Scales as they are stored: one, or one a row, or one a group of columns of a row.
NamedBytes scales_of(const TernaryWeights& w, std::string name) {
  if (w.cols_per_scale != 0)
    return named(std::move(name), SafeDType::kF32, {w.out, w.in / w.cols_per_scale}, w.scales);
  if (w.rows_per_scale >= w.out) return named(std::move(name), SafeDType::kF32, {1, 1}, w.scales);
  std::vector<float> rows;
  for (std::int64_t r = 0; r < w.out; ++r)
    rows.push_back(w.scales[static_cast<std::size_t>(r / w.rows_per_scale)]);
  return named(std::move(name), SafeDType::kF32, {w.out, 1}, rows);
}

void add_plane(const TernaryWeights& w, const std::string& name, std::vector<NamedBytes>& to) {
  TernaryWeights trits = w;  // the layout has no scale inside
  trits.scales = {1.0f};
  trits.rows_per_scale = w.out;
  trits.cols_per_scale = 0;
  to.push_back(named(name, SafeDType::kU8, {(w.out + 3) / 4, w.in}, pack(TernaryLayout::kHfUint8, trits)));
  to.push_back(scales_of(w, name + "_scale"));
}

SafeDType safe_dtype(DType dtype) {
  return dtype == DType::kF32 ? SafeDType::kF32 : dtype == DType::kF16 ? SafeDType::kF16 : SafeDType::kBF16;
}

}  // namespace

std::vector<NamedBytes> encode_extended(LogicalTensor t, const std::string& name, DType dtype) {
  std::vector<NamedBytes> out;
  if (t.ternary) {
    add_plane(t.weights, name, out);
  } else if (t.planes) {
    add_plane(t.planes->first, name, out);
    add_plane(t.planes->second, name + "_plane2", out);
  } else if (t.int8) {
    const std::int64_t rows = t.shape[0], cols = t.shape[1];
    if (t.int8->values.size() != static_cast<std::size_t>(rows * cols) ||
        t.int8->scales.size() != static_cast<std::size_t>(rows))
      throw Error(ErrorCode::kInvalidArgument,
                  fmt::format("tensor '{}': {} int8 and {} scales for [{}, {}]", name, t.int8->values.size(),
                              t.int8->scales.size(), rows, cols));
    out.push_back(named(name, SafeDType::kI8, {rows, cols}, t.int8->values));
    out.push_back(named(name + "_scale", SafeDType::kF32, {rows, 1}, t.int8->scales));
  } else {
    if (t.activations != ActivationForm::kInt8)
      throw Error(ErrorCode::kInvalidArgument,
                  fmt::format("tensor '{}': activations of 4 bits for a linear of floats", name));
    const auto dims = t.shape.dims();
    NamedBytes n;
    n.info.name = name;
    n.info.dtype = safe_dtype(dtype);
    n.info.shape.assign(dims.begin(), dims.end());
    n.bytes = as_dtype(std::move(t), dtype);
    out.push_back(std::move(n));
  }
  if (t.activations != ActivationForm::kInt8)
    out.push_back(named(name + "_activation", SafeDType::kU8, {1},
                        std::vector<std::uint8_t>{static_cast<std::uint8_t>(t.activations)}));
  return out;
}

namespace {

/// A tensor of one of `types` whose bytes are as many as its shape says (SafeTensors checks that).
const SafeTensorInfo& require_tensor(const SafeTensors& tensors, const std::string& name) {
  const SafeTensorInfo* const info = tensors.find(name);
  if (info == nullptr) throw Error(ErrorCode::kCorruptFile, fmt::format("expected a tensor '{}'", name));
  return *info;
}

[[noreturn]] void wrong_shape(const SafeTensorInfo& info) {
  throw Error(ErrorCode::kCorruptFile,
              fmt::format("tensor '{}' has another type or shape than expected", info.name));
}

std::vector<float> floats_of(const SafeTensors& tensors, const SafeTensorInfo& info) {
  if (info.dtype != SafeDType::kF32 || info.shape.size() != 2) wrong_shape(info);
  const auto bytes = tensors.data(info);
  return decode_floats(Encoding::kF32, bytes, bytes.size() / sizeof(float));
}

TernaryWeights decode_plane(const SafeTensors& tensors, const std::string& name, std::int64_t out,
                            std::int64_t in) {
  const SafeTensorInfo &info = require_tensor(tensors, name),
                       &scale = require_tensor(tensors, name + "_scale");
  if (info.dtype != SafeDType::kU8) wrong_shape(info);
  TernaryWeights w = unpack(TernaryLayout::kHfUint8, tensors.data(info), out, in);
  w.scales = floats_of(tensors, scale);
  const std::int64_t rows = scale.shape[0], across = scale.shape[1];
  if ((rows != 1 && rows != out) || across < 1 || in % across != 0 || (across > 1 && rows != out))
    wrong_shape(scale);
  w.rows_per_scale = rows == out ? 1 : out;
  w.cols_per_scale = across == 1 ? 0 : in / across;
  return w;
}

}  // namespace

ActivationForm decode_activation(const SafeTensorInfo& info, std::span<const std::byte> bytes) {
  const bool fits = info.dtype == SafeDType::kU8 && bytes.size() == 1;
  const int value = fits ? std::to_integer<int>(bytes[0]) : 0;
  if (value != 1 && value != 2)
    throw Error(
        ErrorCode::kCorruptFile,
        fmt::format("tensor '{}': expected one U8, 1 (4 bits, absmax) or 2 (4 bits, absmean)", info.name));
  return static_cast<ActivationForm>(value);
}

LogicalTensor decode_extended(const SafeTensors& tensors, const std::string& name, TensorId id,
                              const Shape& shape) {
  const SafeTensorInfo& info = require_tensor(tensors, name);
  const std::int64_t out = shape[0], in = shape[1];
  LogicalTensor t;
  t.id = id;
  t.shape = shape;
  if (const SafeTensorInfo* const activation = tensors.find(name + "_activation"))
    t.activations = decode_activation(*activation, tensors.data(*activation));
  if (info.dtype == SafeDType::kU8) {
    TernaryWeights first = decode_plane(tensors, name, out, in);
    t.ternary = tensors.find(name + "_plane2") == nullptr;
    if (t.ternary) {
      t.weights = std::move(first);
    } else {
      t.planes = TwoPlanes{std::move(first), decode_plane(tensors, name + "_plane2", out, in)};
    }
    return t;
  }
  if (info.shape != std::vector<std::int64_t>{out, in}) wrong_shape(info);
  const auto bytes = tensors.data(info);
  if (info.dtype == SafeDType::kI8) {
    const SafeTensorInfo& scale = require_tensor(tensors, name + "_scale");
    if (scale.shape != std::vector<std::int64_t>{out, 1}) wrong_shape(scale);
    t.int8 = Int8Rows{std::vector<std::int8_t>(bytes.size()), floats_of(tensors, scale)};
    std::memcpy(t.int8->values.data(), bytes.data(), bytes.size());
    return t;
  }
  const auto encoding = float_encoding(info.dtype);
  if (!encoding) wrong_shape(info);
  t.dtype = dtype_of(*encoding);
  t.dense.assign(bytes.begin(), bytes.end());
  return t;
}

void write_named(const fs::path& path, const std::vector<NamedBytes>& tensors,
                 const std::map<std::string, std::string>& metadata) {
  std::vector<SafeTensorInfo> infos;
  for (const NamedBytes& n : tensors) infos.push_back(n.info);
  SafeTensorsWriter writer(path, std::move(infos), metadata);
  for (const NamedBytes& n : tensors) writer.write(n.info.name, n.bytes);
  writer.finish();
}

int write_extended(const fs::path& directory, const ModelConfig& config, const Source& source,
                   const WriteOptions& options) {
  const std::vector<TensorId> ids = model_tensors(config);
  const std::int64_t n_files = config.n_layers + 2;
  nlohmann::ordered_json index;
  std::uint64_t total = 0;
  std::size_t next = 0;
  int version = 1;
  for (std::int64_t file = 0; file < n_files; ++file) {
    std::vector<NamedBytes> tensors;
    const std::string name = fmt::format("model-{:05}-of-{:05}.safetensors", file + 1, n_files);
    // Those before the layers, of one layer, behind the layers.
    while (next < ids.size() && (file + 1 == n_files || ids[next].layer == file - 1)) {
      const TensorId id = ids[next++];
      const std::string tensor = hf_name(id, config.family);
      LogicalTensor t = source(id);  // which names the tensor itself
      with_context(fmt::format("tensor '{}'", tensor), [&] {
        const Shape shape = tensor_shape(id, config);
        if (!(t.shape == shape))
          throw Error(ErrorCode::kInvalidArgument,
                      fmt::format("expected shape {}, got {}", shape.to_string(), t.shape.to_string()));
        if (!is_linear(id.role) && (t.ternary || t.planes || t.int8))
          throw Error(ErrorCode::kInvalidArgument, "expected dense values: only linears are quantised");
        if (t.activations != ActivationForm::kInt8) version = 2;
        for (NamedBytes& n : encode_extended(std::move(t), tensor, dense_dtype(id, options))) {
          total += n.bytes.size();
          index["weight_map"][n.info.name] = name;
          tensors.push_back(std::move(n));
        }
      });
    }
    write_named(directory / name, tensors, {{"format", "pt"}});
  }
  index["metadata"]["total_size"] = total;
  write_file(directory / "model.safetensors.index.json", index.dump(2) + "\n");
  return version;
}

std::string declare_extended(const std::string& config_json, int version) {
  auto root = nlohmann::ordered_json::parse(config_json);
  root.erase("float_linears");  // the tensors say which linear is what
  root["quantization_config"] = {{"quant_method", "bitnet_extended"}, {"format_version", version}};
  return root.dump(2) + "\n";
}

}  // namespace bitnet::quant::model_io
