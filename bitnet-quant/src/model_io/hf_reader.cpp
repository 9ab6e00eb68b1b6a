// Hugging Face directories: config.json, safetensors and the tokenizer's files. Facts:
// docs/formats/huggingface.md.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "bitnet/core/error.hpp"
#include "bitnet/core/io/safetensors.hpp"
#include "model_io/extended.hpp"
#include "model_io/json_file.hpp"
#include "model_io/reader_base.hpp"

namespace bitnet::quant::model_io {
namespace {

namespace fs = std::filesystem;
using Shape64 = std::vector<std::int64_t>;

[[noreturn]] void corrupt(std::string message, SourceLocation where = SourceLocation::current()) {
  throw Error(ErrorCode::kCorruptFile, std::move(message), where);
}
[[noreturn]] void unsupported(std::string message, SourceLocation where = SourceLocation::current()) {
  throw Error(ErrorCode::kUnsupported, std::move(message), where);
}

std::string shown(const Shape64& shape) { return Shape(shape).to_string(); }

class HfReader final : public ReaderBase {
 public:
  HfReader(const fs::path& directory, FloatLinears floats)
      : ReaderBase(fmt::format("model directory '{}'", directory.string())), directory_(directory) {
    config_ = ModelConfig::from_json_file(directory / "config.json");
    if (config_.input_norms)
      unsupported("config.json: use_rms_norm (a norm before each linear) is not supported");
    read_generation_config();
    extended_ = extended_version();
    files_ = SafeTensors::open(directory);
    for (const SafeTensorInfo& info : files_->tensors()) sort_in(info);
    for (const TensorId id : model_tensors(config_)) place(id);
    decide_floats(floats);
    if (extra_ > 0)
      notes_.push_back(fmt::format("{} tensors that the architecture does not have are ignored: {}", extra_,
                                   extra_names_));
  }

  ModelFormat format() const noexcept override { return ModelFormat::kHf; }

  std::shared_ptr<const Tokenizer> tokenizer() const override {
    std::error_code ignored;
    for (const char* name : {"tokenizer.json", "tokenizer.model"})
      if (fs::exists(directory_ / name, ignored)) return Tokenizer::load(directory_);
    return nullptr;
  }

  std::uint64_t file_bytes() const override {
    std::uint64_t total = 0;
    for (const auto& file : files_->files()) {
      std::error_code ignored;
      const auto n = fs::file_size(file, ignored);
      if (!ignored) total += n;
    }
    return total;
  }

 private:
  /// Which version of the extension config.json declares (ModelConfig checked it); 0: none.
  int extended_version() const {
    const nlohmann::json root = read_json(directory_ / "config.json", 1 << 24);
    const auto q = root.find("quantization_config");
    if (q == root.end() || !q->is_object() || q->value("quant_method", "") != "bitnet_extended") return 0;
    return q->value("format_version", 1);
  }

  /// generation_config.json lists more tokens that end a text than config.json does (2B-4T: end of turn).
  void read_generation_config() {
    const fs::path path = directory_ / "generation_config.json";
    std::error_code ignored;
    if (!fs::exists(path, ignored)) return;
    with_context(fmt::format("reading '{}'", path.string()), [&] {
      const nlohmann::json root = read_json(path, 1 << 20);
      if (!root.is_object() || !root.contains("eos_token_id")) return;
      const nlohmann::json& eos = root["eos_token_id"];
      for (const nlohmann::json& id : eos.is_array() ? eos : nlohmann::json::array({eos})) {
        if (id.is_null()) continue;
        if (!id.is_number_unsigned() ||
            id.get<std::uint64_t>() >= static_cast<std::uint64_t>(config_.vocab_size))
          corrupt(fmt::format("key 'eos_token_id': expected ids below vocab_size = {}, got {}",
                              config_.vocab_size, eos.dump().substr(0, 60)));
        const auto value = id.get<std::int64_t>();
        if (std::find(config_.eos_ids.begin(), config_.eos_ids.end(), value) == config_.eos_ids.end())
          config_.eos_ids.push_back(value);
      }
    });
  }

  /// Finds out what a tensor of the file is for.
  void sort_in(const SafeTensorInfo& info) {
    constexpr std::string_view kScale = "_scale";
    std::string_view name = info.name;
    if (extended_ > 0 && (name.ends_with(".weight_plane2") || name.ends_with(".weight_plane2_scale"))) {
      planes_[info.name] = &info;
      return;
    }
    if (extended_ > 0 && name.ends_with(".weight_activation")) {
      if (extended_ < 2)
        corrupt(fmt::format("{}: tensor '{}' needs format_version 2, config.json says 1", place_, info.name));
      activations_[info.name] = &info;
      return;
    }
    const bool scale = name.ends_with(".weight_scale");
    if (scale) name.remove_suffix(kScale.size());
    const auto id = tensor_from_hf_name(name);
    const bool head_of_tied = id && id->role == TensorRole::kOutputHead && config_.tied_embeddings;
    if (id && id->layer < config_.n_layers && !head_of_tied && (!scale || is_linear(id->role))) {
      auto& slot = (scale ? scales_ : weights_)[{id->role, id->layer}];
      if (slot)
        corrupt(fmt::format("{}: tensors '{}' and '{}' are the same one", place_, slot->name, info.name));
      slot = &info;
      return;
    }
    const auto ends = [&](std::string_view s) { return info.name.ends_with(s); };
    if (ends("_proj.bias"))
      unsupported(fmt::format("{}: tensor '{}': biases are not supported", place_, info.name));
    if (ends("_proj.rms_norm.weight") || ends("_proj.norm.weight"))
      unsupported(fmt::format("{}: tensor '{}': a norm before a linear is not supported", place_, info.name));
    if (ends("q_norm.weight") || ends("k_norm.weight"))
      unsupported(fmt::format("{}: tensor '{}': QK-norm is not supported", place_, info.name));
    if (++extra_ <= 4) extra_names_ += (extra_ == 1 ? "" : ", ") + info.name;
    if (extra_ == 5) extra_names_ += ", …";
  }

  void place(TensorId id) {
    const std::string expected = hf_name(id, config_.family);
    const auto at = weights_.find({id.role, id.layer});
    if (at == weights_.end()) corrupt(fmt::format("{}: expected the tensor '{}'", place_, expected));
    const SafeTensorInfo& info = *at->second;
    with_context(fmt::format("{}: tensor '{}'", place_, info.name), [&] { add(id, describe(id, info)); });
  }

  StoredTensor describe(TensorId id, const SafeTensorInfo& info) const {
    StoredTensor t;
    t.name = info.name;
    t.type = std::string(to_string(info.dtype));
    t.bytes = files_->data(info);
    t.file = &files_->file(info);
    const Shape shape = tensor_shape(id, config_);
    Shape64 expected(shape.dims().begin(), shape.dims().end());
    const auto scale = scales_.find({id.role, id.layer});
    const auto activation = activations_.find(info.name + "_activation");
    if (activation != activations_.end()) {
      if (info.dtype != SafeDType::kU8 && info.dtype != SafeDType::kI8)
        corrupt(fmt::format("tensor '{}' beside a linear of floats", activation->first));
      t.activations = decode_activation(*activation->second, files_->data(*activation->second));
    }
    if (extended_ > 0 && is_linear(id.role) &&
        (info.dtype == SafeDType::kU8 || info.dtype == SafeDType::kI8)) {
      if (scale == scales_.end()) corrupt(fmt::format("expected a tensor '{}_scale' beside it", info.name));
      describe_extended(info, *scale->second, shape, t);
      const auto plane = planes_.find(info.name + "_plane2"),
                 its_scale = planes_.find(info.name + "_plane2_scale");
      if ((plane == planes_.end()) != (its_scale == planes_.end()))
        corrupt(fmt::format("expected both '{0}_plane2' and '{0}_plane2_scale', or neither", info.name));
      if (t.activations != ActivationForm::kInt8) t.type += ", 4-bit activations";
      if (plane == planes_.end()) return t;
      if (t.encoding != Encoding::kHfUint8 || plane->second->dtype != SafeDType::kU8)
        corrupt("expected two planes of packed trits (U8)");
      auto second = std::make_shared<StoredTensor>();
      second->name = plane->second->name;
      second->bytes = files_->data(*plane->second);
      second->file = &files_->file(*plane->second);
      describe_extended(*plane->second, *its_scale->second, shape, *second);
      t.second = std::move(second);
      t.type += ", two planes";
      return t;
    }
    if (is_linear(id.role) && info.dtype == SafeDType::kU8) {
      expected[0] = (expected[0] + 3) / 4;
      if (config_.weights != WeightKind::kTernary)
        corrupt("packed weights, but config.json has no quantization_config with quant_method bitnet");
      if (scale == scales_.end()) corrupt(fmt::format("expected a tensor '{}_scale' beside it", info.name));
      t.encoding = Encoding::kHfUint8;
      t.type += " packed";
      t.scale = read_scale(*scale->second);
      t.scale_bytes = scale->second->end - scale->second->begin;
    } else {
      const auto encoding = float_encoding(info.dtype);
      if (!encoding)
        unsupported(fmt::format("expected dtype F32, F16, BF16{}, got {}",
                                is_linear(id.role) ? " or U8 (packed)" : "", to_string(info.dtype)));
      if (scale != scales_.end()) unsupported("float weights with a weight_scale are not supported");
      t.encoding = *encoding;
    }
    if (info.shape != expected)
      corrupt(fmt::format("expected shape {}, got {}", shown(expected), shown_any(info.shape)));
    return t;
  }

  /// Packed trits with scales [1 or out, 1 or in / group], or int8 with [out, 1].
  void describe_extended(const SafeTensorInfo& info, const SafeTensorInfo& scale, const Shape& shape,
                         StoredTensor& t) const {
    const std::int64_t out = shape[0], in = shape[1];
    const bool packed = info.dtype == SafeDType::kU8;
    t.encoding = packed ? Encoding::kHfUint8 : Encoding::kI8;
    t.type = packed ? "U8 packed" : "I8";
    const Shape64 expected{packed ? (out + 3) / 4 : out, in};
    if (info.shape != expected)
      corrupt(fmt::format("expected shape {}, got {}", shown(expected), shown_any(info.shape)));
    const bool fits = scale.dtype == SafeDType::kF32 && scale.shape.size() == 2 &&
                      (scale.shape[0] == out || (packed && scale.shape[0] == 1 && scale.shape[1] == 1)) &&
                      scale.shape[1] > 0 && (packed ? in % scale.shape[1] == 0 : scale.shape[1] == 1);
    if (!fits)
      corrupt(fmt::format("tensor '{}': expected F32 [{}, {}], got {} {}", scale.name,
                          packed ? "1 or rows" : "rows", packed ? "1 or groups of columns" : "1",
                          to_string(scale.dtype), shown_any(scale.shape)));
    t.scales.resize(static_cast<std::size_t>(scale.shape[0] * scale.shape[1]));
    decode_floats(Encoding::kF32, files_->data(scale).data(), t.scales.size(), t.scales.data());
    for (const float s : t.scales)
      if (!(s >= 0) || !std::isfinite(s))
        corrupt(fmt::format("tensor '{}': expected finite scales of at least 0, got {}", scale.name, s));
    t.scale_bytes = scale.end - scale.begin;
    t.rows_per_scale = scale.shape[0] == out ? 1 : out;
    t.cols_per_scale = scale.shape[1] == 1 ? 0 : in / scale.shape[1];
  }

  static std::string shown_any(const Shape64& shape) {
    return shape.size() <= Shape::kMaxRank ? shown(shape) : fmt::format("{} dimensions", shape.size());
  }

  float read_scale(const SafeTensorInfo& info) const {
    return with_context(fmt::format("tensor '{}'", info.name), [&] {
      const auto encoding = float_encoding(info.dtype);
      if (!encoding)
        unsupported(fmt::format("expected dtype F32, F16 or BF16, got {}", to_string(info.dtype)));
      std::int64_t n = 1;
      for (const std::int64_t dim : info.shape) n = dim == 1 ? n : 0;
      if (n != 1) unsupported(fmt::format("expected one scale, got shape {}", shown_any(info.shape)));
      float s = 0;
      decode_floats(*encoding, files_->data(info).data(), 1, &s);
      if (!(s > 0) || !std::isfinite(s)) corrupt(fmt::format("expected a scale above 0, got {}", s));
      const float scale = config_.scale_form == WeightScaleForm::kDivide ? 1.0f / s : s;
      if (!std::isfinite(scale)) corrupt(fmt::format("the inverse of the scale {} is not finite", s));
      return scale;
    });
  }

  using Key = std::pair<TensorRole, std::int64_t>;
  fs::path directory_;
  std::shared_ptr<const SafeTensors> files_;
  int extended_ = 0;  // its format_version
  std::map<Key, const SafeTensorInfo*> weights_, scales_;
  std::map<std::string, const SafeTensorInfo*> activations_;  // by name
  std::map<std::string, const SafeTensorInfo*> planes_;       // second planes and their scales, by name
  std::size_t extra_ = 0;
  std::string extra_names_;
};

}  // namespace

std::unique_ptr<ModelReader> open_hf(const fs::path& directory, FloatLinears floats) {
  return std::make_unique<HfReader>(directory, floats);
}

}  // namespace bitnet::quant::model_io
