// Calibration in files: a safetensors container with the lower triangles of the Hessians. Facts:
// docs/formats/calibration.md.
#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <optional>

#include "bitnet/core/error.hpp"
#include "bitnet/core/hash64.hpp"
#include "bitnet/core/io/safetensors.hpp"
#include "bitnet/quant/calibration.hpp"

namespace bitnet::quant {
namespace {

constexpr const char* kVersion = "2";
constexpr const char* kVersionWithoutFingerprint = "1";
constexpr const char* kFingerprint = "fingerprint";
constexpr const char* kFormat = "bitnet-calibration";
constexpr const char* kChecksums = "checksums";
constexpr std::size_t kNumbers = 11 + InputStatistics::kBins;  // of a statistics tensor

std::string model_sizes(const ModelConfig& m) {
  return fmt::format("layers {} hidden {} intermediate {} q {} kv {} vocab {}", m.n_layers, m.hidden_size,
                     m.intermediate_size, m.q_dim(), m.kv_dim(), m.vocab_size);
}

std::size_t triangle(std::int64_t in) { return static_cast<std::size_t>(in * (in + 1) / 2); }

std::vector<double> numbers_of(const InputStatistics& s) {
  std::vector<double> v{
      static_cast<double>(s.rows), s.least, s.most, s.sum, s.sum_abs, s.squares, s.peaks, s.most_peak};
  v.insert(v.end(), s.noise.begin(), s.noise.end());
  for (const std::int64_t n : s.histogram) v.push_back(static_cast<double>(n));
  return v;
}

InputStatistics statistics_of(std::span<const double> v, std::vector<float> channel_peaks) {
  InputStatistics s;
  s.rows = static_cast<std::int64_t>(v[0]);
  s.least = v[1];
  s.most = v[2];
  s.sum = v[3];
  s.sum_abs = v[4];
  s.squares = v[5];
  s.peaks = v[6];
  s.most_peak = v[7];
  s.noise = {v[8], v[9], v[10]};
  for (std::size_t i = 0; i < InputStatistics::kBins; ++i)
    s.histogram[i] = static_cast<std::int64_t>(v[11 + i]);
  s.channel_peaks = std::move(channel_peaks);
  return s;
}

std::vector<double> lower_triangle(const Hessian& h) {
  const auto n = static_cast<std::size_t>(h.in());
  std::vector<double> out;
  out.reserve(triangle(h.in()));
  for (std::size_t i = 0; i < n; ++i)
    for (std::size_t j = 0; j <= i; ++j) out.push_back(h.values()[i * n + j]);
  return out;
}

std::vector<double> whole(std::span<const double> lower, std::int64_t in) {
  const auto n = static_cast<std::size_t>(in);
  std::vector<double> out(n * n);
  std::size_t at = 0;
  for (std::size_t i = 0; i < n; ++i)
    for (std::size_t j = 0; j <= i; ++j) out[i * n + j] = out[j * n + i] = lower[at++];
  return out;
}

/// Of what is stored of one input, and of which one it is.
std::uint64_t checksum(const std::string& name, std::span<const std::byte> hessian,
                       std::span<const std::byte> numbers, std::span<const std::byte> peaks) {
  return Hash64().add(name).add(hessian).add(numbers).add(peaks).value();
}

template <class T>
std::vector<T> copy_of(std::span<const std::byte> bytes) {
  std::vector<T> out(bytes.size() / sizeof(T));
  if (!out.empty()) std::memcpy(out.data(), bytes.data(), out.size() * sizeof(T));
  return out;
}

class CalibrationFile final : public SavedCalibration {
 public:
  CalibrationFile(const std::filesystem::path& path, const ModelConfig& model, const std::string& fingerprint)
      : path_(path), model_(model), inputs_(linear_inputs(model)), files_(SafeTensors::open(path)) {
    const auto meta = [&](const char* key) {
      const auto at = files_->metadata().find(key);
      return at == files_->metadata().end() ? std::string() : at->second;
    };
    if (meta("format") != kFormat) corrupt("expected the metadata 'format' to be 'bitnet-calibration'");
    const std::string version = meta("format_version");
    if (version != kVersion && version != kVersionWithoutFingerprint)
      throw Error(ErrorCode::kUnsupported, fmt::format("{}: version '{}', expected {} or {}", place(),
                                                       version, kVersionWithoutFingerprint, kVersion));
    if (meta("model") != model_sizes(model))
      throw Error(ErrorCode::kInvalidArgument, fmt::format("{}: made for another model ({}), this one has {}",
                                                           place(), meta("model"), model_sizes(model)));
    if (version == kVersion) {
      if (!files_->metadata().contains(kFingerprint)) corrupt("expected the metadata 'fingerprint'");
      fingerprint_ = meta(kFingerprint);
    }
    if (!fingerprint.empty() && !fingerprint_.empty() && fingerprint != fingerprint_)
      throw Error(
          ErrorCode::kInvalidArgument,
          fmt::format("{}: made with another model of the same sizes (fingerprint {}, this one's is {}), "
                      "whose inputs say little of this one's: calibrate with this model, or say that "
                      "another's will do "
                      "(--foreign-calibration)",
                      place(), fingerprint_, fingerprint));
    checksums_ =
        copy_of<std::uint64_t>(data(kChecksums, SafeDType::kI64, static_cast<std::int64_t>(inputs_.size())));
  }

  const std::string& fingerprint() const noexcept override { return fingerprint_; }

  std::shared_ptr<const InputCalibration> find(TensorId input) override {
    const auto at = std::find(inputs_.begin(), inputs_.end(), input);
    if (at == inputs_.end())
      throw Error(ErrorCode::kNotFound,
                  fmt::format("{}: '{}' stands for no input of this model", place(), gguf_name(input)));
    const std::string name = gguf_name(input);
    const std::int64_t in = input_width(input, model_);
    const auto hessian = data(name + ".hessian", SafeDType::kF64, static_cast<std::int64_t>(triangle(in)));
    const auto numbers = data(name + ".statistics", SafeDType::kF64, kNumbers);
    const auto peaks = data(name + ".channel_peaks", SafeDType::kF32, in);
    if (checksum(name, hessian, numbers, peaks) != checksums_[static_cast<std::size_t>(at - inputs_.begin())])
      corrupt(fmt::format("the input of '{}' is damaged: its checksum does not agree", name));
    const std::vector<double> values = copy_of<double>(numbers);
    if (!(values[0] >= 1) || !(values[0] < 9e15)) corrupt(fmt::format("'{}' comes from no rows", name));
    InputStatistics statistics = statistics_of(values, copy_of<float>(peaks));
    return std::make_shared<const InputCalibration>(InputCalibration{
        input, Hessian(in, statistics.rows, whole(copy_of<double>(hessian), in)), std::move(statistics)});
  }

 private:
  std::string place() const { return fmt::format("calibration '{}'", path_.string()); }
  [[noreturn]] void corrupt(const std::string& what) const {
    throw Error(ErrorCode::kCorruptFile, place() + ": " + what);
  }

  std::span<const std::byte> data(const std::string& name, SafeDType type, std::int64_t n) const {
    const SafeTensorInfo* const info = files_->find(name);
    if (info == nullptr || info->dtype != type || info->shape != std::vector<std::int64_t>{n})
      corrupt(fmt::format("expected a tensor '{}', {} [{}]", name, to_string(type), n));
    return files_->data(*info);
  }

  std::filesystem::path path_;
  ModelConfig model_;
  std::vector<TensorId> inputs_;
  std::shared_ptr<const SafeTensors> files_;
  std::string fingerprint_;
  std::vector<std::uint64_t> checksums_;
};

}  // namespace

void save_calibration(const std::filesystem::path& path, CalibrationSource& from, const ModelConfig& model,
                      const std::string& fingerprint) {
  with_context(fmt::format("writing calibration '{}'", path.string()), [&] {
    const std::vector<TensorId> inputs = linear_inputs(model);
    std::vector<SafeTensorInfo> tensors;
    for (const TensorId id : inputs) {
      const std::string name = gguf_name(id);
      const std::int64_t in = input_width(id, model);
      tensors.push_back(
          {name + ".hessian", SafeDType::kF64, {static_cast<std::int64_t>(triangle(in))}, 0, 0, 0});
      tensors.push_back({name + ".statistics", SafeDType::kF64, {kNumbers}, 0, 0, 0});
      tensors.push_back({name + ".channel_peaks", SafeDType::kF32, {in}, 0, 0, 0});
    }
    tensors.push_back({kChecksums, SafeDType::kI64, {static_cast<std::int64_t>(inputs.size())}, 0, 0, 0});
    SafeTensorsWriter writer(path, std::move(tensors),
                             {{"format", kFormat},
                              {"format_version", kVersion},
                              {"model", model_sizes(model)},
                              {kFingerprint, fingerprint}});
    std::vector<std::uint64_t> checksums;
    for (const TensorId id : inputs) {
      const std::shared_ptr<const InputCalibration> c = from.find(id);
      const std::string name = gguf_name(id);
      const std::vector<double> hessian = lower_triangle(c->hessian), numbers = numbers_of(c->statistics);
      const auto h = std::as_bytes(std::span(hessian)), n = std::as_bytes(std::span(numbers)),
                 p = std::as_bytes(std::span(c->statistics.channel_peaks));
      checksums.push_back(checksum(name, h, n, p));
      writer.write(name + ".hessian", h);
      writer.write(name + ".statistics", n);
      writer.write(name + ".channel_peaks", p);
    }
    writer.write(kChecksums, std::as_bytes(std::span(checksums)));
    writer.finish();
  });
}

std::unique_ptr<SavedCalibration> open_calibration(const std::filesystem::path& path,
                                                   const ModelConfig& model, const std::string& fingerprint) {
  return std::make_unique<CalibrationFile>(path, model, fingerprint);
}

}  // namespace bitnet::quant
