#pragma once
// What people are shown of the inputs of a model's linears: ranges, histograms, columns that stand out. What
// is collected of them is calibration.hpp's InputStatistics. One thread at a time uses a SeenInputs; the
// functions are thread-safe.
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "bitnet/quant/calibration.hpp"

namespace bitnet::quant {

/// One input as it was seen. A plain value.
struct InputReport {
  TensorId id;  ///< the linear that stands for all with this input (input_role())
  InputStatistics statistics;
};

/// A source that remembers the statistics of what it was asked for: what a report shows costs no pass over
/// the text of its own.
class SeenInputs final : public CalibrationSource {
 public:
  /// `from` must outlive this.
  explicit SeenInputs(CalibrationSource& from) : from_(from) {}
  /// What `from` finds, and throws.
  std::shared_ptr<const InputCalibration> find(TensorId input) override;
  /// In the order in which they were first asked for.
  const std::vector<InputReport>& inputs() const noexcept { return inputs_; }

 private:
  CalibrationSource& from_;
  std::vector<InputReport> inputs_;
};

struct ChannelPeak {
  std::int64_t column = 0;
  double peak = 0;   ///< max|x|
  double times = 0;  ///< the median of all columns' peaks
};

/// Columns whose peaks are more than `times` that of the middle one, the largest first, `most` at most; none
/// where the middle one is 0.
std::vector<ChannelPeak> outlier_columns(const InputStatistics& statistics, double times = 4,
                                         std::size_t most = 4);

/// A table in text, a line an input: ranges, how far rows' largest values stand out, what activations of 8
/// and 4 bits would lose, and the columns that stand out.
std::string describe_inputs(std::span<const InputReport> inputs);
/// An array of the same and the histograms, for --json and reports (docs/guides/quantization.md).
std::string inputs_to_json(std::span<const InputReport> inputs);

/// The inputs of a file that save_calibration() wrote, without the model that it is for; none where `path` is
/// another file, or none. Throws Error(kCorruptFile | kUnsupported) as open_calibration() does.
std::optional<std::vector<InputReport>> inputs_of_file(const std::filesystem::path& path);

}  // namespace bitnet::quant
