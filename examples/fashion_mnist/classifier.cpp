// Stages as layers, the training loop, and export.
#include "classifier.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "bitnet/core/error.hpp"
#include "bitnet/core/io/safetensors.hpp"
#include "bitnet/quant/packing.hpp"
#include "bitnet/training/image_ops.hpp"
#include "bitnet/training/losses.hpp"
#include "bitnet/training/optimizer.hpp"
#include "bitnet/training/schedule.hpp"

namespace fashion {

using namespace bitnet;
using namespace bitnet::training;

Classifier::Classifier(const ExecutionContext& context, std::string network_name, Extent image, bool ternary,
                       std::uint64_t seed)
    : name_(std::move(network_name)), ternary_(ternary) {
  constexpr ImageWindow kWindow{3, 3, 1, 1};
  BitLinearOptions quantised;
  quantised.bias = true;
  Rng rng(seed);
  for (const Stage& s : network(name_, image, kClasses)) {
    Layer& layer = layers_.emplace_back(Layer{s, {}, {}, {}});
    if (!s.has_weights()) continue;
    if (s.norm) {
      layer.norm = std::make_unique<RmsNorm>(context, s.name + ".norm", s.norm_size(), kNormEps);
      layer.norm->parameters(parameters_);
    }
    const std::int64_t out = s.out.channels;
    if (s.kind == StageKind::kConvolution) {
      if (ternary && s.ternary)
        layer.convolution =
            std::make_unique<BitConv2d>(context, s.name, out, s.in.channels, kWindow, quantised);
      else
        layer.convolution = std::make_unique<Conv2d>(context, s.name, out, s.in.channels, kWindow);
    } else if (ternary && s.ternary) {
      layer.dense = std::make_unique<BitLinear>(context, s.name, out, s.fan_in(), quantised);
    } else {
      layer.dense = std::make_unique<Linear>(context, s.name, out, s.fan_in(), true);
    }
    // He et al. 2015 (arXiv:1502.01852): what ReLU halves.
    layer.linear().initialize(rng, std::sqrt(2.0f / static_cast<float>(s.fan_in())));
    layer.linear().parameters(parameters_);
  }
  refresh(context);
}

Variable Classifier::logits(Tape& tape, Variable x) {
  const std::int64_t n = x.rows() / image().pixels();
  for (Layer& layer : layers_) {
    const Stage& s = layer.stage;
    const ImageShape shape{s.in.height, s.in.width};
    if (s.kind == StageKind::kMaxPool) {
      x = max_pool(tape, x, shape, {2, 2, 2, 0});
      continue;
    }
    if (layer.dense && x.rows() != n) x = tape.make_view(x, n, s.in.values());
    if (layer.norm) x = layer.norm->forward(tape, x);
    x = layer.dense ? (*layer.dense)(tape, x) : layer.convolution->forward(tape, x, shape);
    if (s.relu) x = relu(tape, x);
  }
  return x;
}

void Classifier::refresh(const ExecutionContext& context) {
  for (Layer& layer : layers_)
    if (layer.stage.has_weights()) layer.linear().refresh(context);
}

std::int64_t Classifier::ternary_weights() const noexcept {
  std::int64_t count = 0;
  for (const Layer& layer : layers_)
    if (ternary_ && layer.stage.ternary) count += layer.stage.fan_in() * layer.stage.out.channels;
  return count;
}

void Classifier::save(const std::filesystem::path& path) {
  std::vector<SafeTensorInfo> infos;
  std::vector<std::vector<std::byte>> bytes;
  const auto add = [&](std::string name, SafeDType dtype, std::vector<std::int64_t> shape,
                       std::span<const std::byte> values) {
    infos.push_back({std::move(name), dtype, std::move(shape)});
    bytes.emplace_back(values.begin(), values.end());
  };
  for (const Layer& layer : layers_) {
    const Stage& s = layer.stage;
    if (!s.has_weights()) continue;
    std::vector<Parameter*> all;
    if (layer.norm) layer.norm->parameters(all);
    layer.linear().parameters(all);
    for (Parameter* p : all) {
      const bool is_weight = p == &layer.linear().weight();
      const std::string name = is_weight ? s.name + ".weight" : p->name();
      if (!is_weight || !layer.linear().ternary()) {
        add(name, SafeDType::kF32, {p->rows(), p->cols()}, std::as_bytes(p->value()));
        continue;
      }
      const quant::TernaryWeights w = layer.linear().ternary()->weights();
      add(name, SafeDType::kU8, {(w.out + 3) / 4, w.in}, quant::pack(quant::TernaryLayout::kHfUint8, w));
      add(s.name + ".scale", SafeDType::kF32, {1, static_cast<std::int64_t>(w.scales.size())},
          std::as_bytes(std::span(w.scales)));
    }
  }
  SafeTensorsWriter writer(path, infos,
                           {{"format", "bitnet-fashion-mnist"},
                            {"network", name_},
                            {"height", std::to_string(image().height)},
                            {"width", std::to_string(image().width)}});
  for (std::size_t i = 0; i < infos.size(); ++i) writer.write(infos[i].name, bytes[i]);
  writer.finish();
}

namespace {

void check_size(const Classifier& classifier, const Dataset& data) {
  const Extent image = classifier.image();
  if (data.height == image.height && data.width == image.width) return;
  throw Error(ErrorCode::kInvalidArgument,
              "images of " + std::to_string(data.height) + " x " + std::to_string(data.width) +
                  " for a network of " + std::to_string(image.height) + " x " + std::to_string(image.width));
}

}  // namespace

void train(const ExecutionContext& context, Classifier& classifier, const Dataset& data,
           const TrainingOptions& options, const std::function<void(std::int64_t, double)>& report) {
  check_size(classifier, data);
  const std::int64_t batch = options.batch, steps = batch > 0 ? data.count() / batch : 0;
  if (steps < 1 || options.epochs < 1)
    throw Error(ErrorCode::kInvalidArgument, "batches of " + std::to_string(batch) + " of " +
                                                 std::to_string(data.count()) + " images in " +
                                                 std::to_string(options.epochs) + " epochs");
  const Schedule schedule{.kind = ScheduleKind::kCosine,
                          .steps = options.epochs * steps,
                          .warmup = std::min<std::int64_t>(200, options.epochs * steps / 10),
                          .peak = options.rate,
                          .weight_decay = options.weight_decay};
  AdamW optimizer(context, classifier.parameters(), {.beta2 = 0.99f});
  Tape tape(context);
  Rng rng(options.seed);
  std::vector<std::int64_t> order(static_cast<std::size_t>(data.count()));
  std::iota(order.begin(), order.end(), 0);
  std::vector<std::int32_t> labels(static_cast<std::size_t>(batch));
  const float scale = 1.0f / static_cast<float>(batch);
  for (std::int64_t epoch = 0; epoch < options.epochs; ++epoch) {
    for (std::size_t i = order.size() - 1; i > 0; --i) std::swap(order[i], order[rng.below(i + 1)]);
    double loss_sum = 0;
    for (std::int64_t k = 0; k < steps; ++k, tape.reset()) {
      const std::int64_t step = epoch * steps + k;
      const Variable pixels = tape.make(batch * data.height * data.width, 1, false);
      fill_batch(data, std::span(order).subspan(static_cast<std::size_t>(k * batch), labels.size()),
                 pixels.value(), labels);
      const Variable loss = cross_entropy(tape, classifier.logits(tape, pixels), labels, scale);
      loss_sum += loss.value()[0];
      tape.backward(loss);
      optimizer.step(context, static_cast<float>(schedule.learning_rate(step)),
                     static_cast<float>(schedule.decay(step)), 1);
      classifier.refresh(context);
    }
    report(epoch, loss_sum / static_cast<double>(steps));
  }
}

std::vector<float> evaluate(const ExecutionContext& context, Classifier& classifier, const Dataset& data) {
  check_size(classifier, data);
  constexpr std::int64_t kBatch = 100;
  Tape tape(context, false);
  std::vector<float> logits;
  for (std::int64_t begin = 0; begin < data.count(); begin += kBatch, tape.reset()) {
    const std::vector<float> images = data.images(begin, std::min(data.count(), begin + kBatch));
    const Variable pixels = tape.make(static_cast<std::int64_t>(images.size()), 1, false);
    std::copy(images.begin(), images.end(), pixels.value().begin());
    const std::span<const float> values = classifier.logits(tape, pixels).value();
    logits.insert(logits.end(), values.begin(), values.end());
  }
  return logits;
}

std::vector<std::int32_t> answers(const std::vector<float>& logits) {
  std::vector<std::int32_t> all;
  for (auto row = logits.begin(); row != logits.end(); row += kClasses)
    all.push_back(static_cast<std::int32_t>(std::max_element(row, row + kClasses) - row));
  return all;
}

}  // namespace fashion
