// One linear by one method, with its metrics and what a person should be warned of.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>
#include <utility>

#include "bitnet/core/error.hpp"
#include "bitnet/quant/quantizer.hpp"
#include "int8_rows.hpp"
#include "quantizer/stored_form.hpp"
#include "quantizer/weight_checks.hpp"

namespace bitnet::quant {
namespace {

Int8Rows round_to_int8(std::span<const float> w, std::int64_t out, std::int64_t in) {
  Int8Rows to;
  to.values.resize(w.size());
  to.scales.resize(static_cast<std::size_t>(out));
  const auto n = static_cast<std::size_t>(in);
  for (std::size_t r = 0; r < to.scales.size(); ++r)
    to.scales[r] = round_int8_row(w.subspan(r * n, n), std::span(to.values).subspan(r * n, n));
  return to;
}

/// Fewer rows than columns, or rows that are alike: what a method then fits is decided by the damping, or by
/// nothing. Books had 0.6 of the full rank and more with a small model, a sentence that is repeated a third
/// and less.
void warn_of_calibration(const InputCalibration& input, const LinearPlan& plan,
                         std::vector<std::string>& warnings) {
  const std::int64_t rows = input.hessian.n_rows();
  std::string few =
      too_few_rows(CalibrationUse::kSecondMoments, rows, input.hessian.in(), to_string(plan.method));
  if (!few.empty()) {
    warnings.push_back(std::move(few));
    return;
  }
  const HessianRank r = rank_of(input.hessian);
  if (r.unseen == r.columns)
    warnings.push_back(fmt::format(
        "the inputs are 0 for each of the {} tokens of the calibration text: {} has nothing to go by", rows,
        to_string(plan.method)));
  else if (2 * r.rank < r.columns)
    warnings.push_back(fmt::format(
        "the inputs' second moments have rank {} of {}: the {} tokens of the calibration text are too much "
        "alike for {}; expected a text that says more than one thing",
        r.rank, r.columns, rows, to_string(plan.method)));
}

const InputCalibration& required(const InputCalibration* input, WeightMethod method) {
  if (input == nullptr)
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("the method {} needs calibration data; absmean, ls, two-plane and int8 need none",
                            to_string(method)));
  return *input;
}

void make_ternary(const ExecutionContext& context, std::span<const float> w, const QuantConfig& config,
                  const InputCalibration* input, const GptqFactor* factor, CancelFlag cancelled,
                  QuantizedLinear& to) {
  LinearReport& r = to.report;
  const ScaleGroups groups = scale_groups(r.plan.scales);
  TernaryWeights& t = to.tensor.weights;
  switch (r.plan.method) {
    case WeightMethod::kAbsmean:
      t = absmean(w, r.out, r.in);
      break;
    case WeightMethod::kLeastSquares:
      t = least_squares(context, w, r.out, r.in, groups);
      break;
    case WeightMethod::kLeastSquaresRefit:
      t = least_squares(context, w, r.out, r.in, groups);
      refit_scales(context, w, required(input, r.plan.method).hessian, t, cancelled);
      break;
    case WeightMethod::kGptq: {
      const Hessian& hessian = required(input, r.plan.method).hessian;
      GptqOptions options = config.gptq;
      options.groups = groups;
      std::optional<GptqFactor> own;
      if (factor == nullptr)
        factor = &own.emplace(hessian, options.damping, options.activation_order, cancelled);
      t = gptq(context, w, r.out, r.in, hessian, *factor, options, cancelled);
      r.damping = factor->damping();
      if (r.damping > options.damping)
        r.warnings.push_back(
            fmt::format("the inputs' second moments have no full rank: damping {} in place of {}", r.damping,
                        options.damping));
      break;
    }
    default:
      to.tensor.planes = two_planes(context, w, r.out, r.in, groups, config.two_plane_rounds, cancelled);
  }
}

}  // namespace

double LinearReport::bits_per_weight() const noexcept {
  const double n = static_cast<double>(out) * static_cast<double>(in);
  return n > 0 ? 8 * static_cast<double>(bytes) / n : 0;
}

QuantizedLinear quantize_linear(const ExecutionContext& context, TensorId id, std::span<const float> w,
                                std::int64_t out, std::int64_t in, const LinearPlan& plan,
                                const QuantConfig& config, const InputCalibration* input,
                                const GptqFactor* factor, const WriteOptions* output, CancelFlag cancelled) {
  if (out < 1 || in < 1 || w.size() != static_cast<std::size_t>(out * in))
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("{} weights for a matrix [{}, {}]", w.size(), out, in));
  throw_if_cancelled(cancelled);
  require_finite(w, in);
  QuantizedLinear to;
  to.tensor.id = to.report.id = id;
  to.tensor.shape = Shape{out, in};
  LinearReport& r = to.report;
  r.out = out;
  r.in = in;
  r.plan = plan;
  warn_of_weights(w, r.warnings);
  if (plan.method != WeightMethod::kKeep) to.tensor.activations = activation_form(plan);
  if (plan.method == WeightMethod::kKeep) {
    r.kept = true;
    to.tensor.dense.resize(w.size_bytes());
    std::memcpy(to.tensor.dense.data(), w.data(), w.size_bytes());
  } else if (plan.method == WeightMethod::kInt8) {
    to.tensor.int8 = round_to_int8(w, out, in);
  } else {
    if (needs_calibration(plan.method)) warn_of_calibration(required(input, plan.method), plan, r.warnings);
    to.tensor.ternary = plan.method != WeightMethod::kTwoPlane;
    make_ternary(context, w, config, input, factor, cancelled, to);
  }
  finish_linear(context, w, input != nullptr ? &input->hessian : nullptr, output, cancelled, to);
  return to;
}

}  // namespace bitnet::quant
