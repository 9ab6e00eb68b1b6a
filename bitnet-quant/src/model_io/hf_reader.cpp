// Hugging Face directories: config.json, safetensors and the tokenizer's files. Facts:
// docs/formats/huggingface.md.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "bitnet/core/error.hpp"
#include "bitnet/core/io/safetensors.hpp"
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
  std::map<Key, const SafeTensorInfo*> weights_, scales_;
  std::size_t extra_ = 0;
  std::string extra_names_;
};

}  // namespace

std::unique_ptr<ModelReader> open_hf(const fs::path& directory, FloatLinears floats) {
  return std::make_unique<HfReader>(directory, floats);
}

}  // namespace bitnet::quant::model_io
