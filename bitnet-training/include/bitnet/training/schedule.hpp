#pragma once
// Learning rate and weight decay as functions of the step. Plain values and pure functions: thread-safe.
#include <cstdint>
#include <string_view>

namespace bitnet::training {

enum class ScheduleKind : std::uint8_t {
  kTwoStage,  ///< linear towards 0; half-way the peak drops to `second_peak` and weight decay to 0 (b1.58)
  kLinear,    ///< linear to 0
  kCosine,    ///< half a cosine to 0
};
std::string_view to_string(ScheduleKind kind) noexcept;
/// Throws Error(kInvalidArgument) listing the kinds.
ScheduleKind schedule_from_string(std::string_view name);

struct Schedule {
  ScheduleKind kind = ScheduleKind::kTwoStage;
  std::int64_t steps = 0;
  std::int64_t warmup = 0;  ///< steps of linear growth from 0 to the schedule's value
  double peak = 1e-3;
  double second_peak = 0;  ///< kTwoStage; 0: two thirds of peak
  double weight_decay = 0.1;

  /// Step counts from 0; both are ≥ 0 and the rate of step ≥ steps is 0.
  double learning_rate(std::int64_t step) const noexcept;
  double decay(std::int64_t step) const noexcept;
};

}  // namespace bitnet::training
