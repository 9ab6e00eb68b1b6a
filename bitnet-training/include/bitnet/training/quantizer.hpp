#pragma once
// How weights and activations are quantised while training, as options, and how strongly over the steps. The
// operations that do it are fake_quant.hpp. Plain values and pure functions: thread-safe.
#include <cstdint>
#include <string_view>

namespace bitnet::training {

/// How many weights share a scale.
enum class ScaleGranularity : std::uint8_t {
  kTensor,  ///< all (b1.58)
  kRow,     ///< those of one output
  kGroup,   ///< kScaleGroup consecutive inputs of one output; the last group of a row may be shorter
};
inline constexpr std::int64_t kScaleGroup = 128;

/// What of |w| the scale is.
enum class ScaleStatistic : std::uint8_t { kMean, kMedian };

/// What the gradient of a quantised weight is, q = s · clamp(round(w / s), −1, 1) and d the gradient of q.
enum class StraightThrough : std::uint8_t {
  kIdentity,      ///< dw = d (b1.58)
  kClipped,       ///< dw = d where |w| ≤ clip · s, else 0 (Hubara et al. 2016)
  kLearnedScale,  ///< as clipped, and s is a parameter: ds = Σ d · (|w| ≤ clip · s ? q/s − w/s : q/s) /
                  ///< sqrt(weights a scale) (LSQ, Esser et al. 2020; ParetoQ, arXiv:2502.02631)
};

struct QuantizerOptions {
  ScaleGranularity granularity = ScaleGranularity::kTensor;
  ScaleStatistic statistic = ScaleStatistic::kMean;
  StraightThrough gradient = StraightThrough::kIdentity;
  float clip = 1.5f;  ///< where rounding to −1 … 1 ends to be rounding
  int activation_bits = 8;
  bool hadamard = false;  ///< transforms a layer's input before it is quantised

  /// Throws Error(kInvalidArgument) naming the option and what it may be.
  void validate() const;
};

std::string_view to_string(ScaleGranularity granularity) noexcept;  ///< "tensor", "row", "group"
std::string_view to_string(ScaleStatistic statistic) noexcept;      ///< "mean", "median"
std::string_view to_string(StraightThrough gradient) noexcept;  ///< "identity", "clipped", "learned_scale"
/// The reverse; Error(kInvalidArgument) lists the names.
ScaleGranularity scale_granularity_from_string(std::string_view name);
ScaleStatistic scale_statistic_from_string(std::string_view name);
StraightThrough straight_through_from_string(std::string_view name);

enum class QuantizerScheduleKind : std::uint8_t {
  kAbrupt,       ///< λ = 1 from the first step
  kLinear,       ///< λ = t
  kExponential,  ///< λ = (1 − e^(−5t)) / (1 − e^(−5)): fast first
  kSigmoid,      ///< λ = (σ(10t − 5) − σ(−5)) / (σ(5) − σ(−5)): slow, fast, slow
};
std::string_view to_string(QuantizerScheduleKind kind) noexcept;  ///< "abrupt", "linear", …
QuantizerScheduleKind quantizer_schedule_from_string(std::string_view name);

/// λ of x + λ · (Q(x) − x), for models that come from full precision: 0 at step 0, 1 from `steps` on.
struct QuantizerSchedule {
  QuantizerScheduleKind kind = QuantizerScheduleKind::kAbrupt;
  std::int64_t steps = 1000;
  /// One layer after the other, each within steps / layers, the first one first.
  bool layer_by_layer = false;

  /// 0 ≤ layer < layers; t = min(step / steps, 1), or the layer's own share of it.
  float lambda(std::int64_t step, std::int64_t layer = 0, std::int64_t layers = 1) const noexcept;
};

}  // namespace bitnet::training
