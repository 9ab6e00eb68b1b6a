#pragma once
// What the inputs of a model's linears look like on real text: second moments, ranges, histograms. quant
// never runs a model: rows reach it through ActivationSource, which bitnet-cli joins with bitnet-inference.
// An input is named by the linear that stands for it (input_role()): q, k and v share one, and so do gate and
// up. Not thread-safe.
#include <array>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "bitnet/core/execution.hpp"
#include "bitnet/core/model/model_config.hpp"
#include "bitnet/core/model/tensor_names.hpp"
#include "bitnet/quant/hessian.hpp"
#include "bitnet/quant/model_io.hpp"

namespace bitnet::quant {

/// Whoever runs a model and can say what its linears are given.
class ActivationSource {
 public:
  /// Rows [n, in] of an input, in the order of the text.
  using Sink = std::function<void(TensorId input, std::span<const float> rows)>;

  virtual ~ActivationSource() = default;
  /// Runs over all of the text once and hands over the inputs that `wanted` asks for. The same rows each
  /// time, but for what replace() changes.
  virtual void stream(const std::function<bool(TensorId input)>& wanted, const Sink& sink) = 0;
  /// From now on this linear runs as `weights` say, so that what comes after it is seen through what was
  /// quantised.
  virtual void replace(const LogicalTensor& weights) = 0;
};

/// Ranges of one input. Sums in double, in the order of the rows: the same bits with any number of threads.
struct InputStatistics {
  static constexpr std::size_t kBins = 64;  ///< of |x| ≥ 2^(b/2 − 20), b = 1 … 62; 0: below, zeros; 63: above
  std::int64_t rows = 0;
  double least = 0, most = 0, sum = 0, sum_abs = 0, squares = 0;
  double peaks = 0;      ///< Σ over rows of max|x|
  double most_peak = 0;  ///< largest max|x| / rms of a row: how much outliers stand out
  /// Σ (x − Q(x))² for each ActivationForm, in their order (docs/numerics.md).
  std::array<double, 3> noise{};
  std::array<std::int64_t, kBins> histogram{};
  std::vector<float> channel_peaks;  // [in], max|x| of each column

  /// Rows x [n, in]; finite ones (Hessian::add() checks).
  void add(const ExecutionContext& context, std::span<const float> x, std::int64_t in);
  double mean() const noexcept;
  double rms() const noexcept;
  /// Relative squared error that quantising the rows so makes.
  double relative_noise(ActivationForm form) const noexcept;
};

/// What is known of one input.
struct InputCalibration {
  TensorId id;
  Hessian hessian;
  InputStatistics statistics;
};

/// What calibration is to say of an input.
enum class CalibrationUse : std::uint8_t {
  kSecondMoments,  ///< what methods and estimates of output errors go by: as many rows as columns, or no rank
  kRanges,         ///< what activation bits are chosen by: means over rows, and values that stand out
};
/// Rows (tokens) of an input of `in` columns that this takes at least; four times as many are better.
std::int64_t rows_needed(CalibrationUse use, std::int64_t in) noexcept;
/// What to warn of where `rows` are fewer, naming both numbers; empty where they are not. `purpose`: "gptq".
std::string too_few_rows(CalibrationUse use, std::int64_t rows, std::int64_t in, std::string_view purpose);

/// Whoever knows what inputs look like: a model that runs, or a file.
class CalibrationSource {
 public:
  virtual ~CalibrationSource() = default;
  /// Throws Error(kNotFound) for an input that it does not know, and what running or reading throws.
  virtual std::shared_ptr<const InputCalibration> find(TensorId input) = 0;
};

/// The inputs of a model, in file order.
std::vector<TensorId> linear_inputs(const ModelConfig& model);
/// Columns of the linears that have this input.
std::int64_t input_width(TensorId input, const ModelConfig& model);

struct StreamOptions {
  /// For what one pass over the text collects: 8 · in² bytes an input and more. One input is collected
  /// whatever it takes.
  std::uint64_t memory = std::uint64_t{4} << 30;
  /// One layer a pass, so that each is seen through the quantised ones before it (ActivationSource::replace).
  bool through_quantised = false;
};

/// Inputs from a running model: as many of those from the one asked for on as fit the memory in one pass;
/// they are forgotten when the next pass begins.
class StreamedCalibration final : public CalibrationSource {
 public:
  StreamedCalibration(const ExecutionContext& context, ActivationSource& source, const ModelConfig& model,
                      const StreamOptions& options = {});
  /// Throws Error(kInvalidArgument) when the source handed over no rows, or a value that is not finite.
  std::shared_ptr<const InputCalibration> find(TensorId input) override;
  std::int64_t passes() const noexcept { return passes_; }  ///< over the text, so far

 private:
  std::vector<TensorId> next_inputs(TensorId first) const;
  const ExecutionContext& context_;
  ActivationSource& source_;
  ModelConfig model_;
  StreamOptions options_;
  std::map<std::pair<TensorRole, std::int64_t>, std::shared_ptr<InputCalibration>> now_;
  std::int64_t passes_ = 0;
};

/// Writes all inputs of a model, one at a time (docs/formats/calibration.md). `fingerprint`: of the model
/// that they are from (model_fingerprint()); empty: not known. Throws Error(kIo) and what `from` throws.
void save_calibration(const std::filesystem::path& path, CalibrationSource& from, const ModelConfig& model,
                      const std::string& fingerprint = {});

/// A file that save_calibration() wrote.
class SavedCalibration : public CalibrationSource {
 public:
  /// Of the model that it was made with; empty where the file does not say.
  virtual const std::string& fingerprint() const noexcept = 0;
};

/// Opens a file of save_calibration(); inputs are read, and their checksums compared, when they are asked
/// for. `fingerprint`: of the model that it is for; empty: that of any model of the same sizes will do.
/// Throws Error(kNotFound | kIo | kCorruptFile), Error(kUnsupported) for another version,
/// Error(kInvalidArgument) for a model of other sizes, or of another fingerprint where the file has one.
std::unique_ptr<SavedCalibration> open_calibration(const std::filesystem::path& path,
                                                   const ModelConfig& model,
                                                   const std::string& fingerprint = {});

}  // namespace bitnet::quant
