// Loading an exported network, and its stages on kernels of bitnet-core and bitnet-quant.
#include "predictor.hpp"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstring>

#include "bitnet/core/error.hpp"
#include "bitnet/core/f32_kernels.hpp"
#include "bitnet/core/io/safetensors.hpp"
#include "bitnet/quant/packing.hpp"
#include "dataset.hpp"

namespace fashion {

using namespace bitnet;

namespace {

/// Bytes of the tensor of this name, type and shape.
std::span<const std::byte> bytes_of_tensor(const SafeTensors& file, const std::string& name, SafeDType dtype,
                                           const std::vector<std::int64_t>& shape) {
  const SafeTensorInfo* info = file.find(name);
  if (!info) throw Error(ErrorCode::kCorruptFile, "tensor '" + name + "' is missing");
  if (info->dtype != dtype || info->shape != shape)
    throw Error(ErrorCode::kCorruptFile, "tensor '" + name + "' has another type or shape than " +
                                             std::string(to_string(dtype)) + " [" + std::to_string(shape[0]) +
                                             ", " + std::to_string(shape[1]) + "]");
  return file.data(*info);
}

std::vector<float> floats(const SafeTensors& file, const std::string& name, std::int64_t rows,
                          std::int64_t cols) {
  const auto bytes = bytes_of_tensor(file, name, SafeDType::kF32, {rows, cols});
  std::vector<float> values(bytes.size() / sizeof(float));
  std::memcpy(values.data(), bytes.data(), bytes.size());
  if (!std::all_of(values.begin(), values.end(), [](float v) { return std::isfinite(v); }))
    throw Error(ErrorCode::kCorruptFile, "tensor '" + name + "' holds a value that is not finite");
  return values;
}

std::string metadata(const SafeTensors& file, const std::string& key) {
  const auto it = file.metadata().find(key);
  return it == file.metadata().end() ? std::string() : it->second;
}

std::int64_t size_of(const SafeTensors& file, const std::string& key) {
  constexpr std::int64_t kLargest = 1024;
  const std::string text = metadata(file, key);
  std::int64_t value = 0;
  const char* end = text.data() + text.size();
  if (std::from_chars(text.data(), end, value).ptr != end || value < 1 || value > kLargest)
    throw Error(ErrorCode::kCorruptFile, "its " + key + " is '" + text + "', expected 1 to 1024");
  return value;
}

/// y [rows, out] + bias, and ReLU where the stage has one.
void finish(const ExecutionContext& context, const Stage& stage, const std::vector<float>& bias,
            std::vector<float>& y) {
  const F32Kernels& k = tested_f32_kernels(context.isa());
  const std::size_t out = bias.size();
  context.parallel_for(y.size() / out, 64, [&](std::size_t begin, std::size_t end) {
    for (std::size_t r = begin; r < end; ++r) {
      float* row = y.data() + r * out;
      k.add(bias.data(), row, out);
      if (stage.relu)
        for (std::size_t i = 0; i < out; ++i) row[i] = row[i] > 0 ? row[i] : 0.0f;
    }
  });
}

/// RMSNorm of each row, in place.
void normalise(const ExecutionContext& context, const std::vector<float>& weight, std::vector<float>& x) {
  const F32Kernels& k = tested_f32_kernels(context.isa());
  const std::size_t size = weight.size();
  context.parallel_for(x.size() / size, 64, [&](std::size_t begin, std::size_t end) {
    for (std::size_t r = begin; r < end; ++r)
      k.rms_norm(x.data() + r * size, weight.data(), kNormEps, x.data() + r * size, size);
  });
}

/// What the 3 x 3 window sees around pixel `row` of all images: [9, channels].
void patch(const Extent& in, const float* x, std::int64_t row, float* to) {
  const std::int64_t place = row % in.pixels(), y = place / in.width, px = place % in.width;
  const float* image = x + (row - place) * in.channels;
  for (std::int64_t ty = y - 1; ty <= y + 1; ++ty)
    for (std::int64_t tx = px - 1; tx <= px + 1; ++tx, to += in.channels) {
      if (ty < 0 || ty >= in.height || tx < 0 || tx >= in.width)
        std::fill_n(to, in.channels, 0.0f);
      else
        std::copy_n(image + (ty * in.width + tx) * in.channels, in.channels, to);
    }
}

std::vector<float> max_pool(const Stage& stage, const std::vector<float>& x, std::int64_t n) {
  const Extent &in = stage.in, &out = stage.out;
  std::vector<float> y(static_cast<std::size_t>(n * out.values()));
  for (std::int64_t i = 0; i < n * out.pixels(); ++i) {
    const std::int64_t place = i % out.pixels();
    const float* corner = x.data() + i / out.pixels() * in.values() +
                          (place / out.width * 2 * in.width + place % out.width * 2) * in.channels;
    const float* below = corner + in.width * in.channels;
    for (std::int64_t c = 0; c < in.channels; ++c)
      y[static_cast<std::size_t>(i * in.channels + c)] =
          std::max({corner[c], corner[c + in.channels], below[c], below[c + in.channels]});
  }
  return y;
}

}  // namespace

Predictor Predictor::load(const ExecutionContext& context, const std::filesystem::path& path) {
  return with_context("reading '" + path.string() + "'", [&] {
    const auto file = SafeTensors::open(path);
    if (metadata(*file, "format") != "bitnet-fashion-mnist")
      throw Error(ErrorCode::kCorruptFile, "this is no network of this program");
    const std::string name = metadata(*file, "network");
    if (name != "mlp" && name != "cnn")
      throw Error(ErrorCode::kCorruptFile, "its network is '" + name + "', expected mlp or cnn");
    Predictor p;
    for (const Stage& s : network(name, {size_of(*file, "height"), size_of(*file, "width"), 1}, kClasses)) {
      Layer& layer = p.layers_.emplace_back();
      layer.stage = s;
      if (!s.has_weights()) continue;
      const std::int64_t out = s.out.channels, in = s.fan_in();
      const std::string weight = s.name + ".weight";
      layer.bias = floats(*file, s.name + ".bias", 1, out);
      if (s.norm) layer.norm = floats(*file, s.name + ".norm", 1, s.norm_size());
      if (!file->find(s.name + ".scale")) {
        layer.weight = floats(*file, weight, out, in);
        continue;
      }
      const auto packed = bytes_of_tensor(*file, weight, SafeDType::kU8, {(out + 3) / 4, in});
      quant::TernaryWeights w = with_context(
          weight, [&] { return quant::unpack(quant::TernaryLayout::kHfUint8, packed, out, in); });
      w.scales = floats(*file, s.name + ".scale", 1, 1);
      w.rows_per_scale = out;
      layer.ternary.emplace(context, w);
    }
    return p;
  });
}

/// y [rows, out] of x: what the layer's weights make of each row, or of what the window sees at each pixel.
void Predictor::multiply(const ExecutionContext& context, const Layer& layer, const std::vector<float>& x,
                         std::int64_t n, std::vector<float>& y) {
  const Stage& s = layer.stage;
  const std::int64_t rows = n * s.out.pixels(), in = s.fan_in(), out = s.out.channels;
  const auto make_row = [&](std::int64_t row, float* to) {
    if (s.kind == StageKind::kConvolution)
      patch(s.in, x.data(), row, to);
    else
      std::copy_n(x.data() + row * in, in, to);
  };
  y.resize(static_cast<std::size_t>(rows * out));
  if (layer.ternary) {
    quant::QuantizedRows quantised;
    quant::quantize_made_rows(context, rows, in, make_row, quantised);
    layer.ternary->forward(context, quantised, y);
    return;
  }
  std::vector<float> made(static_cast<std::size_t>(rows * in));
  for (std::int64_t r = 0; r < rows; ++r) make_row(r, made.data() + r * in);
  gemm(context, rows, out, in, made.data(), in, 1, layer.weight.data(), 1, in, y.data(), out, false);
}

std::vector<float> Predictor::logits(const ExecutionContext& context, std::span<const float> images) const {
  if (images.size() % static_cast<std::size_t>(image().values()) != 0)
    throw Error(ErrorCode::kInvalidArgument,
                std::to_string(images.size()) + " values are no whole number of images");
  const auto n = static_cast<std::int64_t>(images.size()) / image().values();
  std::vector<float> x(images.begin(), images.end()), y;
  for (const Layer& layer : layers_) {
    if (layer.stage.kind == StageKind::kMaxPool) {
      x = max_pool(layer.stage, x, n);
      continue;
    }
    if (layer.stage.norm) normalise(context, layer.norm, x);
    multiply(context, layer, x, n, y);
    finish(context, layer.stage, layer.bias, y);
    std::swap(x, y);
  }
  return x;
}

}  // namespace fashion
