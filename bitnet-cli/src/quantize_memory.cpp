// See quantize_memory.hpp.
#include "quantize_memory.hpp"

#include <algorithm>
#include <map>
#include <optional>
#include <string>

#include "bitnet/core/error.hpp"
#include "common.hpp"

namespace bitnet::cli {
namespace {

/// Of a model as it runs: tensors in the type that they are stored in, norms as f32.
std::uint64_t bytes_of_model(const quant::ModelReader& model) {
  std::uint64_t bytes = 0;
  for (const TensorId id : model.tensors()) {
    const auto cells = static_cast<std::uint64_t>(tensor_shape(id, model.config()).numel());
    const auto type = model.float_type(id);
    bytes += is_norm(id.role) ? 4 * cells : type ? cells * bits_of(*type) / 8 : (cells + 3) / 4;
  }
  return bytes;
}

/// Of linears that ran as they were quantised (--through-quantised): a byte a trit or an int8, four a float.
std::uint64_t bytes_replaced(const std::vector<quant::PlannedLinear>& plans, const ModelConfig& model) {
  std::uint64_t bytes = 0;
  for (const quant::PlannedLinear& l : plans) {
    const auto cells = static_cast<std::uint64_t>(tensor_shape(l.id, model).numel());
    bytes += cells * (l.plan.method == quant::WeightMethod::kKeep       ? 4
                      : l.plan.method == quant::WeightMethod::kTwoPlane ? 2
                                                                        : 1);
  }
  return bytes;
}

/// Second moments: 8 · in² bytes an input.
struct Moments {
  std::uint64_t one = 0, layer = 0;  ///< the largest input, and the largest layer
  std::uint64_t all = 0;             ///< that a pass would collect if it could
  std::uint64_t adding = 0;          ///< while rows are added: a strip of products (Hessian::add)
};

Moments moments_of(const ModelConfig& model, bool layer_a_pass) {
  Moments m;
  std::map<std::int64_t, std::uint64_t> layers;
  for (const TensorId input : quant::linear_inputs(model)) {
    const auto in = static_cast<std::uint64_t>(quant::input_width(input, model));
    const std::uint64_t bytes = 8 * in * in + 4 * in;
    m.one = std::max(m.one, bytes);
    m.layer = std::max(m.layer, layers[input.layer] += bytes);
    m.all += bytes;
    m.adding = std::max(m.adding, 1024 * in);
  }
  if (layer_a_pass) m.all = m.layer;
  return m;
}

/// With as many as fit `limit` at a time, while a layer may still hold those of the pass before.
std::uint64_t at_once(const Moments& m, std::uint64_t limit) {
  return m.adding + (m.all <= limit ? m.all : std::min(m.all, std::max(m.one, limit) + m.layer));
}

}  // namespace

std::uint64_t QuantizeMemory::all() const { return std::max(model + moments + linears, trials); }

QuantizeMemory plan_memory(const Values& values, const quant::ModelReader& model,
                           const std::vector<quant::PlannedLinear>& plans, std::size_t threads) {
  const ModelConfig& config = model.config();
  const bool runs = values.has(opt::kCalibrate), saved = values.has(opt::kCalibration);
  const bool through = values.flag(opt::kThroughQuantised);
  QuantizeMemory m;
  m.stream_limit = quant::StreamOptions{}.memory;
  m.quantizer_limit = quant::QuantizerOptions{}.memory;
  if (runs) m.model = bytes_of_model(model) + (through ? bytes_replaced(plans, config) : 0);
  if (values.has(opt::kEvaluate)) m.trials = 2 * bytes_of_model(model);
  const Moments moments = moments_of(config, through);
  const auto linears = [&](std::uint64_t limit) {
    return quant::working_bytes(plans, config, limit, runs || saved, threads);
  };
  const auto fill = [&] {
    m.linears = linears(m.quantizer_limit);
    m.moments = runs ? at_once(moments, m.stream_limit) : saved ? moments.layer : 0;
  };
  fill();
  if (!values.has(opt::kMemoryLimit)) return m;
  const std::uint64_t limit = pool_options(values).limit;
  if (m.all() <= limit) return m;
  QuantizeMemory least = m;
  least.linears = linears(0);
  least.moments = runs ? at_once(moments, 0) : m.moments;
  if (least.all() > limit)
    throw Error(ErrorCode::kOutOfMemory,
                "quantising needs at least " + human_bytes(least.all()) + " (" + human_bytes(least.model) +
                    " for the model that reads the text, " + human_bytes(least.moments) +
                    " for second moments, " + human_bytes(least.linears) +
                    " for one linear at a time), more than the limit " + std::to_string(limit) +
                    " bytes of --memory-limit");
  // What is left is divided: working_bytes() grows by no more than its limit.
  const std::uint64_t left = limit - (least.model + least.moments + least.linears);
  m.quantizer_limit = std::min(m.quantizer_limit, left / 2);
  m.linears = linears(m.quantizer_limit);
  const std::uint64_t for_moments = limit - m.model - m.linears - moments.adding;
  m.stream_limit =
      std::min(m.stream_limit, moments.all <= for_moments ? moments.all : for_moments - moments.layer);
  fill();
  return m;
}

void say_need(const QuantizeMemory& m, std::ostream& to) {
  to << "needs up to " << human_bytes(m.all()) << ": ";
  if (m.model > 0) to << human_bytes(m.model) << " for the model that reads the text, ";
  to << human_bytes(m.moments) << " for second moments, " << human_bytes(m.linears)
     << " for the linears that are worked on at a time";
  if (m.trials > 0) to << "; then " << human_bytes(m.trials) << " for the models that --evaluate runs";
  to << '\n';
}

}  // namespace bitnet::cli
