// Names, rules and schedules of quantisers: pure functions.
#include "bitnet/training/quantizer.hpp"

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <string>

#include "bitnet/core/error.hpp"

namespace bitnet::training {
namespace {

template <class Enum>
Enum from_string(const char* what, std::string_view name, std::initializer_list<Enum> all) {
  std::string names;
  for (const Enum e : all) {
    if (to_string(e) == name) return e;
    names += (names.empty() ? "" : ", ") + std::string(to_string(e));
  }
  throw Error(ErrorCode::kInvalidArgument,
              "unknown " + std::string(what) + " '" + std::string(name) + "': expected one of " + names);
}

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

}  // namespace

void QuantizerOptions::validate() const {
  if (activation_bits != 8 && activation_bits != 4)
    throw Error(ErrorCode::kInvalidArgument,
                "activations of " + std::to_string(activation_bits) + " bits: expected 8 or 4");
  if (!(clip >= 0.5f && std::isfinite(clip)))
    throw Error(ErrorCode::kInvalidArgument,
                "a clip of " + std::to_string(clip) + ": expected at least 0.5, where trits begin");
}

std::string_view to_string(ScaleGranularity granularity) noexcept {
  switch (granularity) {
    case ScaleGranularity::kTensor:
      return "tensor";
    case ScaleGranularity::kRow:
      return "row";
    case ScaleGranularity::kGroup:
      return "group";
  }
  return "unknown";
}

std::string_view to_string(ScaleStatistic statistic) noexcept {
  return statistic == ScaleStatistic::kMean ? "mean" : "median";
}

std::string_view to_string(StraightThrough gradient) noexcept {
  switch (gradient) {
    case StraightThrough::kIdentity:
      return "identity";
    case StraightThrough::kClipped:
      return "clipped";
    case StraightThrough::kLearnedScale:
      return "learned_scale";
  }
  return "unknown";
}

std::string_view to_string(QuantizerScheduleKind kind) noexcept {
  switch (kind) {
    case QuantizerScheduleKind::kAbrupt:
      return "abrupt";
    case QuantizerScheduleKind::kLinear:
      return "linear";
    case QuantizerScheduleKind::kExponential:
      return "exponential";
    case QuantizerScheduleKind::kSigmoid:
      return "sigmoid";
  }
  return "unknown";
}

ScaleGranularity scale_granularity_from_string(std::string_view name) {
  return from_string("scale granularity", name,
                     {ScaleGranularity::kTensor, ScaleGranularity::kRow, ScaleGranularity::kGroup});
}
ScaleStatistic scale_statistic_from_string(std::string_view name) {
  return from_string("scale statistic", name, {ScaleStatistic::kMean, ScaleStatistic::kMedian});
}
StraightThrough straight_through_from_string(std::string_view name) {
  return from_string("straight-through gradient", name,
                     {StraightThrough::kIdentity, StraightThrough::kClipped, StraightThrough::kLearnedScale});
}
QuantizerScheduleKind quantizer_schedule_from_string(std::string_view name) {
  using Kind = QuantizerScheduleKind;
  return from_string("quantiser schedule", name,
                     {Kind::kAbrupt, Kind::kLinear, Kind::kExponential, Kind::kSigmoid});
}

float QuantizerSchedule::lambda(std::int64_t step, std::int64_t layer, std::int64_t layers) const noexcept {
  if (kind == QuantizerScheduleKind::kAbrupt || steps <= 0) return 1;
  double t = static_cast<double>(step) / static_cast<double>(steps);
  if (layer_by_layer) t = t * static_cast<double>(layers) - static_cast<double>(layer);
  t = std::clamp(t, 0.0, 1.0);
  if (t == 0 || t == 1) return static_cast<float>(t);
  switch (kind) {
    case QuantizerScheduleKind::kAbrupt:
      return 1;
    case QuantizerScheduleKind::kLinear:
      return static_cast<float>(t);
    case QuantizerScheduleKind::kExponential:
      return static_cast<float>((1 - std::exp(-5 * t)) / (1 - std::exp(-5.0)));
    case QuantizerScheduleKind::kSigmoid:
      return static_cast<float>((sigmoid(10 * t - 5) - sigmoid(-5)) / (sigmoid(5) - sigmoid(-5)));
  }
  return 1;
}

}  // namespace bitnet::training
