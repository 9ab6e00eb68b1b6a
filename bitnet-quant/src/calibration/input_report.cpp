// Statistics of inputs for people: as text, as JSON, from files. The charts are quant_page.cpp.
#include "bitnet/quant/input_report.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <nlohmann/json.hpp>
#include <string_view>

#include "bitnet/core/error.hpp"
#include "bitnet/core/io/safetensors.hpp"
#include "calibration/input_json.hpp"
#include "short_name.hpp"

namespace bitnet::quant {
namespace {

namespace fs = std::filesystem;

/// The number behind "`name` " in the sizes that a calibration names.
std::int64_t size_in(std::string_view sizes, std::string_view name) {
  const std::size_t at = sizes.find(fmt::format("{} ", name));
  std::int64_t value = 0;
  if (at != std::string_view::npos) {
    const char* const begin = sizes.data() + at + name.size() + 1;
    std::from_chars(begin, sizes.data() + sizes.size(), value);
  }
  return value;
}

/// A model of the sizes that a calibration was made for, each at most `most`; its heads are not those of the
/// model, only their sum is.
ModelConfig config_of(const std::string& sizes, std::int64_t most, const fs::path& path) {
  ModelConfig c;
  c.head_dim = 1;
  for (const auto& [name, to] : {std::pair("layers", &c.n_layers), std::pair("hidden", &c.hidden_size),
                                 std::pair("intermediate", &c.intermediate_size), std::pair("q", &c.n_heads),
                                 std::pair("kv", &c.n_kv_heads), std::pair("vocab", &c.vocab_size)}) {
    *to = size_in(sizes, name);
    if (*to < 1 || *to > (name == std::string_view("layers") ? most : std::int64_t{1} << 30))
      throw Error(ErrorCode::kCorruptFile,
                  fmt::format("calibration '{}': the metadata 'model' is '{}': no model has these {}",
                              path.string(), sizes, name));
  }
  return c;
}

std::string columns_that_stand_out(const InputStatistics& s) {
  std::string out;
  for (const ChannelPeak& c : outlier_columns(s))
    out += fmt::format("{}{} ({:.3g}×)", out.empty() ? "" : ", ", c.column, c.times);
  return out.empty() ? "-" : out;
}

}  // namespace

std::shared_ptr<const InputCalibration> SeenInputs::find(TensorId input) {
  std::shared_ptr<const InputCalibration> found = from_.find(input);
  if (std::none_of(inputs_.begin(), inputs_.end(), [&](const InputReport& r) { return r.id == input; }))
    inputs_.push_back({input, found->statistics});
  return found;
}

std::vector<ChannelPeak> outlier_columns(const InputStatistics& statistics, double times, std::size_t most) {
  const std::vector<float>& peaks = statistics.channel_peaks;
  if (peaks.empty()) return {};
  std::vector<float> sorted = peaks;
  const auto middle = sorted.begin() + static_cast<std::ptrdiff_t>(sorted.size() / 2);
  std::nth_element(sorted.begin(), middle, sorted.end());
  const auto median = static_cast<double>(*middle);
  std::vector<ChannelPeak> out;
  if (!(median > 0)) return out;
  for (std::size_t i = 0; i < peaks.size(); ++i)
    if (const auto peak = static_cast<double>(peaks[i]); peak > times * median)
      out.push_back({static_cast<std::int64_t>(i), peak, peak / median});
  std::stable_sort(out.begin(), out.end(), [](const auto& a, const auto& b) { return a.peak > b.peak; });
  if (out.size() > most) out.resize(most);
  return out;
}

std::string describe_inputs(std::span<const InputReport> inputs) {
  std::string out = fmt::format("{:<18}{:>8}{:>8}{:>11}{:>11}{:>10}{:>10}{:>11}{:>11}{:>11}  {}\n", "input",
                                "columns", "rows", "least", "most", "rms", "peak/rms", "8 bits", "4 absmax",
                                "4 absmean", "columns that stand out");
  for (const InputReport& r : inputs) {
    const InputStatistics& s = r.statistics;
    out +=
        fmt::format("{:<18}{:>8}{:>8}{:>11.4g}{:>11.4g}{:>10.4g}{:>10.3g}{:>11.2e}{:>11.2e}{:>11.2e}  {}\n",
                    short_name(r.id), s.channel_peaks.size(), s.rows, s.least, s.most, s.rms(), s.most_peak,
                    s.relative_noise(ActivationForm::kInt8), s.relative_noise(ActivationForm::kInt4Absmax),
                    s.relative_noise(ActivationForm::kInt4Absmean), columns_that_stand_out(s));
  }
  return out;
}

nlohmann::ordered_json json_of(std::span<const InputReport> inputs) {
  nlohmann::ordered_json all = nlohmann::ordered_json::array();
  for (const InputReport& r : inputs) {
    const InputStatistics& s = r.statistics;
    nlohmann::ordered_json j{{"name", short_name(r.id)},
                             {"layer", r.id.layer},
                             {"columns", s.channel_peaks.size()},
                             {"rows", s.rows},
                             {"least", s.least},
                             {"most", s.most},
                             {"mean", s.mean()},
                             {"rms", s.rms()},
                             {"peak_to_rms", s.most_peak},
                             {"error_int8", s.relative_noise(ActivationForm::kInt8)},
                             {"error_int4_absmax", s.relative_noise(ActivationForm::kInt4Absmax)},
                             {"error_int4_absmean", s.relative_noise(ActivationForm::kInt4Absmean)},
                             {"half_octaves", s.histogram},
                             {"outlier_columns", nlohmann::ordered_json::array()}};
    for (const ChannelPeak& c : outlier_columns(s))
      j["outlier_columns"].push_back({{"column", c.column}, {"peak", c.peak}, {"times_median", c.times}});
    all.push_back(std::move(j));
  }
  return all;
}

std::string inputs_to_json(std::span<const InputReport> inputs) { return json_of(inputs).dump(2) + "\n"; }

std::optional<std::vector<InputReport>> inputs_of_file(const fs::path& path) {
  std::error_code ignored;
  if (!fs::is_regular_file(path, ignored) || path.extension() == ".json") return std::nullopt;
  std::string sizes;
  std::int64_t tensors = 0;
  try {
    const auto file = SafeTensors::open(path);
    const auto format = file->metadata().find("format");
    if (format == file->metadata().end() || format->second != "bitnet-calibration") return std::nullopt;
    if (const auto model = file->metadata().find("model"); model != file->metadata().end())
      sizes = model->second;
    tensors = static_cast<std::int64_t>(file->tensors().size());
  } catch (const Error&) {
    return std::nullopt;  // what it is, others will say
  }
  const ModelConfig config = config_of(sizes, tensors, path);
  const auto source = open_calibration(path, config);
  SeenInputs seen(*source);
  for (const TensorId input : linear_inputs(config)) static_cast<void>(seen.find(input));
  return seen.inputs();
}

}  // namespace bitnet::quant
