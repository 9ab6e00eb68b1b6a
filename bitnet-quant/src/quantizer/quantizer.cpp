// Quantizer: which linears are worked on together, what they share, and which are left as they are. One
// linear by one method is quantize_linear.cpp.
#include "bitnet/quant/quantizer.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>
#include <optional>
#include <utility>

#include "bitnet/core/error.hpp"
#include "quantizer/layer_store.hpp"
#include "quantizer/memory_need.hpp"
#include "quantizer/stored_form.hpp"
#include "quantizer/weight_checks.hpp"

namespace bitnet::quant {
namespace {

std::pair<TensorRole, std::int64_t> key(TensorId id) { return {id.role, id.layer}; }

/// The bits and the rule for activations that look like this.
void adapt(const InputStatistics& seen, double tolerance, LinearPlan& plan) {
  const double absmax = seen.relative_noise(ActivationForm::kInt4Absmax),
               absmean = seen.relative_noise(ActivationForm::kInt4Absmean);
  const bool four = std::min(absmax, absmean) <= tolerance;
  plan.activation_bits = four ? 4 : 8;
  plan.activation_rule = four && absmean < absmax ? ActivationRule::kAbsmean : ActivationRule::kAbsmax;
}

/// What the output makes of the linears beside the plan: layers that were done for one output do for another
/// that rounds alike.
std::string rounding_of(const std::optional<WriteOptions>& output, const std::vector<PlannedLinear>& plans) {
  if (!output) return "";
  const bool blocks = output->type == LinearType::kTQ1_0 || output->type == LinearType::kTQ2_0;
  const bool floats = std::any_of(plans.begin(), plans.end(), [](const PlannedLinear& l) {
    return l.plan.method == WeightMethod::kKeep;
  });
  return fmt::format("{}{}", blocks ? " f16 scales" : "",
                     floats ? fmt::format(" {} floats", to_string(output->dense_type)) : "");
}

}  // namespace

/// Linears with one input.
struct Quantizer::Group {
  TensorId input;
  std::vector<PlannedLinear> linears;
  std::vector<std::uint64_t> linear_bytes;  ///< that each takes while it is worked on
  bool calibrated = false;                  ///< one of them needs it
  bool factored = false;                    ///< one of them is gptq's
  std::int64_t in = 0;
  std::shared_ptr<const InputCalibration> calibration;
  std::optional<GptqFactor> factor;
  std::vector<QuantizedLinear> results;

  std::uint64_t shared_bytes() const { return factored ? factor_bytes(in) : 0; }
  std::uint64_t making_bytes() const { return factored ? making_factor_bytes(in) : 0; }
  /// With all linears at the same time.
  std::uint64_t bytes() const {
    return std::max(making_bytes(),
                    std::accumulate(linear_bytes.begin(), linear_bytes.end(), shared_bytes()));
  }
  /// With one at a time.
  std::uint64_t least_bytes() const {
    return std::max(making_bytes(),
                    shared_bytes() + *std::max_element(linear_bytes.begin(), linear_bytes.end()));
  }

  /// Those of a layer, in the order of their first linears.
  static std::vector<Group> of_layer(std::int64_t layer, const std::vector<PlannedLinear>& plans,
                                     const ModelConfig& model, bool calibrated, std::size_t threads) {
    std::vector<Group> groups;
    for (const PlannedLinear& l : plans) {
      if (l.id.layer != layer) continue;
      const TensorId input{input_role(l.id.role), layer};
      auto at = std::find_if(groups.begin(), groups.end(), [&](const Group& g) { return g.input == input; });
      if (at == groups.end()) {
        groups.emplace_back();
        at = groups.end() - 1;
        at->input = input;
      }
      const Shape shape = tensor_shape(l.id, model);
      at->in = shape[1];
      at->linear_bytes.push_back(need_of(l.plan, shape[0], shape[1], calibrated, threads).peak);
      at->calibrated = at->calibrated || needs_calibration(l.plan.method);
      at->factored = at->factored || l.plan.method == WeightMethod::kGptq;
      at->linears.push_back(l);
    }
    return groups;
  }
};

std::uint64_t working_bytes(const std::vector<PlannedLinear>& plans, const ModelConfig& model,
                            std::uint64_t memory, bool calibrated, std::size_t threads) {
  std::uint64_t most = 0;
  for (std::int64_t layer = 0; layer < model.n_layers; ++layer) {
    // Groups at the same time as far as `memory` goes; one with as many of its linears, one at least.
    std::uint64_t all = 0, least = 0, results = 0;
    for (const auto& g : Quantizer::Group::of_layer(layer, plans, model, calibrated, threads)) {
      all += g.bytes();
      least = std::max(least, g.least_bytes());
    }
    for (const PlannedLinear& l : plans)
      if (l.id.layer == layer) {
        const Shape shape = tensor_shape(l.id, model);
        results += need_of(l.plan, shape[0], shape[1], calibrated, threads).result;
      }
    most = std::max(most, results + std::max(least, std::min(all, memory)));
  }
  return most;
}

Quantizer::Quantizer(const ExecutionContext& context, const ModelReader& reader, QuantConfig config,
                     QuantizerOptions options)
    : context_(context),
      reader_(reader),
      config_(std::move(config)),
      options_(std::move(options)),
      plans_(plan_linears(config_, reader.config())) {
  if (options_.output) check_target(plans_, reader.config(), options_.output->type);
  if (!options_.work.empty()) {
    const ModelConfig& m = reader.config();
    store_ = std::make_unique<LayerStore>(
        options_.work, fmt::format("{}\n{} {} {} {} {}{}\n{}", config_.to_yaml(), m.n_layers, m.hidden_size,
                                   m.intermediate_size, m.q_dim(), m.kv_dim(),
                                   rounding_of(options_.output, plans_), options_.identity));
  }
  if (options_.calibration != nullptr) return;
  for (const PlannedLinear& l : plans_)
    if (l.adaptive)
      throw Error(
          ErrorCode::kInvalidArgument,
          fmt::format("{}: {} needs calibration data to choose its activation bits", gguf_name(l.id),
                      config_.scheme == QuantScheme::kAdaptive ? "the scheme adaptive" : "'bits: auto'"));
  for (const PlannedLinear& l : plans_)
    if (needs_calibration(l.plan.method) && reader.float_type(l.id) &&
        (reader.config().weights == WeightKind::kDense || !config_.protect))
      throw Error(
          ErrorCode::kInvalidArgument,
          fmt::format("{}: the method {} needs calibration data; absmean, ls, two-plane and int8 need none",
                      gguf_name(l.id), to_string(l.plan.method)));
}

Quantizer::~Quantizer() = default;

LogicalTensor Quantizer::read(TensorId id) {
  if (!is_linear(id.role)) {
    LogicalTensor t = reader_.read(id);
    require_finite(t);
    return t;
  }
  auto at = done_.find(key(id));
  if (at == done_.end()) {
    const bool again = std::any_of(reports_.begin(), reports_.end(),
                                   [&](const LinearReport& r) { return r.id.layer == id.layer; });
    if (again || id.layer < 0 || id.layer >= reader_.config().n_layers)
      throw Error(ErrorCode::kInvalidArgument,
                  fmt::format("quantizer: '{}' was given out, or is not in the model", gguf_name(id)));
    do_layer(id.layer);
    at = done_.find(key(id));
  }
  LogicalTensor t = std::move(at->second);
  done_.erase(at);
  return t;
}

void Quantizer::do_layer(std::int64_t layer) {
  std::vector<TensorId> ids;
  for (const PlannedLinear& l : plans_)
    if (l.id.layer == layer) ids.push_back(l.id);
  std::optional<std::vector<QuantizedLinear>> linears;
  if (store_ != nullptr) linears = store_->load(layer, ids, reader_.config());
  if (linears) {
    ++resumed_;
  } else {
    linears = quantize_layer(layer);
    if (store_ != nullptr) store_->save(layer, *linears);
  }
  for (QuantizedLinear& q : *linears) {
    if (options_.activations != nullptr) options_.activations->replace(q.tensor);
    q.report.master_weights = config_.protect && reader_.config().weights == WeightKind::kTernary &&
                              !q.report.kept && q.report.plan.method == WeightMethod::kAbsmean;
    q.report.bytes = stored_bytes(q.tensor, output());
    reports_.push_back(std::move(q.report));
    done_[key(reports_.back().id)] = std::move(q.tensor);
    if (options_.on_linear) options_.on_linear(reports_.back());
  }
}

/// In file order.
std::vector<QuantizedLinear> Quantizer::quantize_layer(std::int64_t layer) {
  std::vector<Group> groups =
      Group::of_layer(layer, plans_, reader_.config(), options_.calibration != nullptr, context_.threads());
  std::vector<Group> now;
  std::vector<QuantizedLinear> results;
  const auto finish = [&] {
    run(now);
    for (Group& g : now)
      for (QuantizedLinear& q : g.results) results.push_back(std::move(q));
    now.clear();
  };
  std::uint64_t bytes = 0;
  for (Group& g : groups) {
    if (!now.empty() && bytes + g.bytes() > options_.memory) {
      finish();
      bytes = 0;
    }
    bytes += g.bytes();
    now.push_back(std::move(g));
  }
  finish();
  std::vector<QuantizedLinear> in_order;
  for (const PlannedLinear& l : plans_)
    for (QuantizedLinear& q : results)
      if (q.report.id == l.id) in_order.push_back(std::move(q));
  return in_order;
}

void Quantizer::run(std::vector<Group>& groups) {
  for (Group& g : groups)  // on this thread: a source need not bear several
    if (options_.calibration != nullptr) g.calibration = options_.calibration->find(g.input);
  context_.parallel_for(groups.size(), 1, [&](std::size_t begin, std::size_t end) {
    for (std::size_t i = begin; i < end; ++i) {
      Group& g = groups[i];
      if (g.factored && g.calibration != nullptr)
        with_context(fmt::format("input of '{}'", gguf_name(g.input)), [&] {
          g.factor.emplace(g.calibration->hessian, config_.gptq.damping, config_.gptq.activation_order,
                           options_.cancelled);
        });
      g.results.resize(g.linears.size());
      for (std::size_t from = 0, until; from < g.linears.size(); from = until) {
        // As many at a time as fit; one whatever it takes.
        std::uint64_t bytes = g.shared_bytes() + g.linear_bytes[from];
        for (until = from + 1; until < g.linears.size(); ++until)
          if ((bytes += g.linear_bytes[until]) > options_.memory) break;
        context_.parallel_for(until - from, 1, [&](std::size_t first, std::size_t last) {
          for (std::size_t j = from + first; j < from + last; ++j)
            g.results[j] = with_context(fmt::format("tensor '{}'", gguf_name(g.linears[j].id)),
                                        [&] { return quantize(g.linears[j], g); });
        });
      }
      g.factor.reset();
      g.calibration.reset();
    }
  });
}

QuantizedLinear Quantizer::quantize(const PlannedLinear& planned, const Group& group) const {
  throw_if_cancelled(options_.cancelled);
  PlannedLinear linear = planned;
  std::vector<std::string> warnings;
  if (linear.adaptive) {
    const InputStatistics& seen = group.calibration->statistics;
    adapt(seen, config_.activation_tolerance, linear.plan);
    std::string few =
        too_few_rows(CalibrationUse::kRanges, seen.rows, group.calibration->hessian.in(), "activation bits");
    if (!few.empty() && linear.plan.method != WeightMethod::kKeep) warnings.push_back(std::move(few));
  }
  LogicalTensor t = reader_.read(linear.id);
  const std::int64_t out = t.shape[0], in = t.shape[1];
  const Hessian* const hessian = group.calibration != nullptr ? &group.calibration->hessian : nullptr;
  const DType type = t.dtype;
  const auto keep = [&](LogicalTensor as, std::span<const float> w, std::string why) {
    QuantizedLinear q;
    q.tensor = std::move(as);
    q.report.id = linear.id;
    q.report.out = out;
    q.report.in = in;
    q.report.plan = linear.plan;
    q.report.kept = true;
    if (q.tensor.ternary) q.tensor.activations = activation_form(linear.plan);
    q.report.warnings = warnings;
    warn_of_weights(w, q.report.warnings);
    if (!why.empty()) q.report.warnings.push_back(std::move(why));
    finish_linear(context_, w, hessian, output(), options_.cancelled, q);
    return q;
  };
  const std::vector<float> w = t.to_f32();
  require_finite(w, in);
  if (t.ternary) return keep(std::move(t), w, std::string(kAlreadyTernary));
  if (linear.plan.method == WeightMethod::kKeep) return keep(std::move(t), w, "");
  t.dense = std::vector<std::byte>();  // its memory, too
  LinearPlan plan = linear.plan;
  std::string note;
  if (auto exact = find_trits(w, out, in, type); exact && is_ternary(plan.method)) {
    require_same_scales(exact->unit, plan);
    LogicalTensor as;
    as.id = linear.id;
    as.shape = t.shape;
    as.ternary = true;
    as.weights = std::move(exact->weights);
    return keep(std::move(as), w, std::string(kAlreadyTernary));
  }
  if (config_.protect && reader_.config().weights == WeightKind::kTernary && is_ternary(plan.method) &&
      plan.method != WeightMethod::kAbsmean) {
    warnings.push_back(fmt::format(
        "float master weights of a BitNet model: absmean, which it was trained with, in place of {} "
        "(protect: false if it was not)",
        to_string(plan.method)));
    plan.method = WeightMethod::kAbsmean;
    plan.scales = ScaleUnit::kTensor;
  }
  QuantizedLinear q = quantize_linear(context_, linear.id, w, out, in, plan, config_, group.calibration.get(),
                                      group.factor ? &*group.factor : nullptr, output(), options_.cancelled);
  if (!note.empty()) q.report.warnings.push_back(std::move(note));
  q.report.warnings.insert(q.report.warnings.end(), warnings.begin(), warnings.end());
  return q;
}

}  // namespace bitnet::quant
