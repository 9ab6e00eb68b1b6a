// Schedules: pure functions.
#include "bitnet/training/schedule.hpp"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <string>

#include "bitnet/core/error.hpp"

namespace bitnet::training {

std::string_view to_string(ScheduleKind kind) noexcept {
  switch (kind) {
    case ScheduleKind::kTwoStage:
      return "two_stage";
    case ScheduleKind::kLinear:
      return "linear";
    case ScheduleKind::kCosine:
      return "cosine";
  }
  return "unknown";
}

ScheduleKind schedule_from_string(std::string_view name) {
  for (const ScheduleKind k : {ScheduleKind::kTwoStage, ScheduleKind::kLinear, ScheduleKind::kCosine})
    if (to_string(k) == name) return k;
  throw Error(ErrorCode::kInvalidArgument,
              "unknown schedule '" + std::string(name) + "': expected two_stage, linear or cosine");
}

double Schedule::learning_rate(std::int64_t step) const noexcept {
  if (step >= steps) return 0;
  const double done = static_cast<double>(step) / static_cast<double>(steps);
  const double grow = step < warmup ? static_cast<double>(step + 1) / static_cast<double>(warmup) : 1.0;
  double rate = 0;
  switch (kind) {
    case ScheduleKind::kTwoStage:
      rate = (2 * step < steps ? peak : (second_peak > 0 ? second_peak : peak * 2 / 3)) * (1 - done);
      break;
    case ScheduleKind::kLinear:
      rate = peak * (1 - done);
      break;
    case ScheduleKind::kCosine:
      rate = peak * 0.5 * (1 + std::cos(std::numbers::pi * done));
      break;
  }
  return grow * rate;
}

double Schedule::decay(std::int64_t step) const noexcept {
  return kind == ScheduleKind::kTwoStage && 2 * step >= steps ? 0 : weight_decay;
}

}  // namespace bitnet::training
