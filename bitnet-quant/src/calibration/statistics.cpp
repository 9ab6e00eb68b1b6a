// InputStatistics: ranges, histogram, and what integers of 8 and 4 bits would lose.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "bitnet/core/error.hpp"
#include "bitnet/quant/calibration.hpp"

namespace bitnet::quant {
namespace {

constexpr std::size_t kStep = 256;  // rows at a time

/// Σ (x − q / a)² with q = clamp(round_half_even(x · a), low, high).
double noise_of(std::span<const float> x, float a, float low, float high) {
  double sum = 0;
  const double back = 1.0 / static_cast<double>(a);
  for (const float v : x) {
    const float q = std::clamp(std::nearbyint(v * a), low, high);
    const double e = static_cast<double>(v) - static_cast<double>(q) * back;
    sum += e * e;
  }
  return sum;
}

/// Half octaves of |x| above 2^−20.
std::size_t bin_of(float size) {
  if (!(size > 0)) return 0;
  const int bin = static_cast<int>(std::floor(2 * (std::log2(size) + 20)));
  return static_cast<std::size_t>(std::clamp(bin, 0, static_cast<int>(InputStatistics::kBins) - 1));
}

struct Row {
  double least, most, sum = 0, sum_abs = 0, squares = 0, peak = 0;
  std::array<double, 3> noise{};
  std::array<std::int64_t, InputStatistics::kBins> histogram{};
};

Row look_at(std::span<const float> x) {
  Row r;
  r.least = r.most = static_cast<double>(x[0]);
  for (const float v : x) {
    const auto d = static_cast<double>(v);
    r.least = std::min(r.least, d);
    r.most = std::max(r.most, d);
    r.sum += d;
    r.sum_abs += std::abs(d);
    r.squares += d * d;
    ++r.histogram[bin_of(std::fabs(v))];
  }
  r.peak = std::max(std::abs(r.least), std::abs(r.most));
  constexpr float kSmallest = 1e-5f;
  const float peak = std::max(static_cast<float>(r.peak), kSmallest);
  const float mean = std::max(static_cast<float>(r.sum_abs / static_cast<double>(x.size())), kSmallest);
  const auto noise = [&](ActivationForm form) -> double& { return r.noise[static_cast<std::size_t>(form)]; };
  noise(ActivationForm::kInt8) = noise_of(x, 127.0f / peak, -128, 127);
  noise(ActivationForm::kInt4Absmax) = noise_of(x, 7.0f / peak, -8, 7);
  noise(ActivationForm::kInt4Absmean) = noise_of(x, std::sqrt(7.0f) / mean, -8, 7);
  return r;
}

}  // namespace

void InputStatistics::add(const ExecutionContext& context, std::span<const float> x, std::int64_t in) {
  if (in < 1 || x.size() % static_cast<std::size_t>(in) != 0 ||
      (!channel_peaks.empty() && channel_peaks.size() != static_cast<std::size_t>(in)))
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("statistics: {} activations for {} inputs", x.size(), in));
  const auto width = static_cast<std::size_t>(in);
  channel_peaks.resize(width);
  std::vector<Row> parts(std::min(kStep, x.size() / width));
  for (std::size_t first = 0; first < x.size() / width; first += kStep) {
    const std::size_t n = std::min(kStep, x.size() / width - first);
    context.parallel_for(n, 4, [&](std::size_t begin, std::size_t end) {
      for (std::size_t r = begin; r < end; ++r) parts[r] = look_at(x.subspan((first + r) * width, width));
    });
    context.parallel_for(width, 64, [&](std::size_t begin, std::size_t end) {
      for (std::size_t r = first; r < first + n; ++r)
        for (std::size_t c = begin; c < end; ++c)
          channel_peaks[c] = std::max(channel_peaks[c], std::fabs(x[r * width + c]));
    });
    for (std::size_t r = 0; r < n; ++r) {
      const Row& p = parts[r];
      least = rows == 0 ? p.least : std::min(least, p.least);
      most = rows == 0 ? p.most : std::max(most, p.most);
      ++rows;
      sum += p.sum;
      sum_abs += p.sum_abs;
      squares += p.squares;
      peaks += p.peak;
      const double row_rms = std::sqrt(p.squares / static_cast<double>(in));
      if (row_rms > 0) most_peak = std::max(most_peak, p.peak / row_rms);
      for (std::size_t i = 0; i < noise.size(); ++i) noise[i] += p.noise[i];
      for (std::size_t i = 0; i < histogram.size(); ++i) histogram[i] += p.histogram[i];
    }
  }
}

double InputStatistics::mean() const noexcept {
  const auto n = static_cast<double>(rows) * static_cast<double>(channel_peaks.size());
  return n > 0 ? sum / n : 0;
}

double InputStatistics::rms() const noexcept {
  const auto n = static_cast<double>(rows) * static_cast<double>(channel_peaks.size());
  return n > 0 ? std::sqrt(squares / n) : 0;
}

double InputStatistics::relative_noise(ActivationForm form) const noexcept {
  return squares > 0 ? noise[static_cast<std::size_t>(form)] / squares : 0;
}

std::int64_t rows_needed(CalibrationUse use, std::int64_t in) noexcept {
  // Of ranges: the mean over rows is then known within a twentieth where rows differ by their own size
  // (1/√512), and what one row in a hundred has is missed with a probability of 0.6 %.
  return use == CalibrationUse::kSecondMoments ? in : 512;
}

std::string too_few_rows(CalibrationUse use, std::int64_t rows, std::int64_t in, std::string_view purpose) {
  const std::int64_t needed = rows_needed(use, in);
  if (rows >= needed) return {};
  const std::string why = use == CalibrationUse::kSecondMoments
                              ? fmt::format(" for {} inputs, whose second moments they do not determine", in)
                              : std::string();
  return fmt::format("calibrated on {} tokens{}: at least {} are needed for {}, better {}", rows, why, needed,
                     purpose, 4 * needed);
}

}  // namespace bitnet::quant
