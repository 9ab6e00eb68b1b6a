// GGUF files as models: which tensor is which, what types can be read. Facts: docs/formats/gguf.md.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "bitnet/core/error.hpp"
#include "bitnet/core/io/gguf.hpp"
#include "model_io/reader_base.hpp"

namespace bitnet::quant::model_io {
namespace {

namespace fs = std::filesystem;

[[noreturn]] void corrupt(std::string message, SourceLocation where = SourceLocation::current()) {
  throw Error(ErrorCode::kCorruptFile, std::move(message), where);
}
[[noreturn]] void unsupported(std::string message, SourceLocation where = SourceLocation::current()) {
  throw Error(ErrorCode::kUnsupported, std::move(message), where);
}

std::optional<Encoding> encoding_of(GgmlType type) {
  switch (type) {
    case GgmlType::kF32:
      return Encoding::kF32;
    case GgmlType::kF16:
      return Encoding::kF16;
    case GgmlType::kBF16:
      return Encoding::kBF16;
    case GgmlType::kQ8_0:
      return Encoding::kQ8_0;
    case GgmlType::kQ6_K:
      return Encoding::kQ6_K;
    case GgmlType::kI2_S:
      return Encoding::kI2_S;
    case GgmlType::kTQ1_0:
      return Encoding::kTQ1_0;
    case GgmlType::kTQ2_0:
      return Encoding::kTQ2_0;
    default:
      return {};
  }
}

class GgufReader final : public ReaderBase {
 public:
  GgufReader(const fs::path& path, FloatLinears floats)
      : ReaderBase(fmt::format("GGUF model '{}'", path.string())), file_(GgufFile::open(path)) {
    with_context(place_, [&] {
      config_ = ModelConfig::from_gguf(file_->metadata());
      if (file_->tensors().empty()) corrupt("expected tensors: the file holds a vocabulary only");
      config_.tied_embeddings = output_is_embedding();
      for (const TensorId id : model_tensors(config_)) place(id);
      report_extras();
      decide_kind();
      decide_floats(floats);
    });
  }

  ModelFormat format() const noexcept override { return ModelFormat::kGguf; }

  std::shared_ptr<const Tokenizer> tokenizer() const override {
    if (!file_->metadata().contains("tokenizer.ggml.model")) return nullptr;
    return with_context(place_, [&] { return Tokenizer::from_gguf(file_->metadata()); });
  }

  std::uint64_t file_bytes() const override { return file_->file().bytes().size(); }

  /// TQ types whose blocks differ within a row. Reads the scales of all blocks where they do not.
  bool extended_linears() const noexcept override {
    try {
      const std::vector<TensorId> ids = model_tensors(config_);
      return std::any_of(ids.begin(), ids.end(), [&](TensorId id) {
        const bool blocks =
            stored(id).encoding == Encoding::kTQ1_0 || stored(id).encoding == Encoding::kTQ2_0;
        return blocks && rows(id).cols_per_scale != 0;
      });
    } catch (const std::exception&) {
      return false;  // whoever reads the tensor is told
    }
  }

 private:
  bool bitnet_architecture() const noexcept { return config_.family != ModelFamily::kLlama; }

  /// Compares parts of the file without keeping them in memory.
  bool same_bytes(std::span<const std::byte> a, std::span<const std::byte> b) const {
    constexpr std::size_t kStep = std::size_t{4} << 20;
    for (std::size_t at = 0; at < a.size(); at += kStep) {
      const std::size_t n = std::min(kStep, a.size() - at);
      if (std::memcmp(a.data() + at, b.data() + at, n) != 0) return false;
      file_->file().release(a.subspan(at, n));
      file_->file().release(b.subspan(at, n));
    }
    return true;
  }

  /// Tied: no output matrix, or (the first official 2B-4T file) a copy of the embedding.
  bool output_is_embedding() {
    const GgufTensorInfo* output = file_->find("output.weight");
    if (!output) return true;
    const GgufTensorInfo* embedding = file_->find("token_embd.weight");
    if (!embedding || output->type != embedding->type || output->bytes != embedding->bytes ||
        output->bytes == 0 || !same_bytes(file_->data(*output), file_->data(*embedding)))
      return false;
    notes_.push_back("output.weight repeats token_embd.weight and is taken as tied");
    return true;
  }

  void place(TensorId id) {
    const std::string name = gguf_name(id);
    const GgufTensorInfo* info = file_->find(name);
    if (!info) corrupt(fmt::format("expected the tensor '{}'", name));
    with_context(fmt::format("tensor '{}'", name), [&] { add(id, describe(id, *info)); });
  }

  StoredTensor describe(TensorId id, const GgufTensorInfo& info) {
    check_type(id, info.type);
    check_dims(id, info);
    StoredTensor t;
    t.name = info.name;
    t.encoding = *encoding_of(info.type);
    t.type = to_string(info.type);
    t.bytes = file_->data(info);
    t.file = &file_->file();
    const bool rotary = id.role == TensorRole::kAttnQ || id.role == TensorRole::kAttnK;
    if (rotary && !bitnet_architecture()) t.interleaved_head = config_.head_dim;
    if (is_linear(id.role)) read_scale(info.name, t);
    if (t.encoding == Encoding::kI2_S) note_i2s_scale(t);
    return t;
  }

  void check_type(TensorId id, GgmlType type) const {
    if (type == GgmlType::kTL1)
      unsupported(
          "TL1 cannot be decoded: its tile shapes are not in the file; use the I2_S file or the original");
    if (type == GgmlType::kTL2)
      unsupported(bitnet_architecture() ? "TL2 cannot be decoded: its tile shapes are not in the file; use "
                                          "the I2_S file or the original"
                                        : "MXFP4 is not supported");
    const auto encoding = encoding_of(type);
    const bool packed = encoding && is_packed(*encoding);
    if (!encoding || (packed && !is_linear(id.role)))
      unsupported(fmt::format("expected F32, F16, BF16, Q8_0{}, got {}",
                              is_linear(id.role) ? ", Q6_K, I2_S, TQ1_0 or TQ2_0" : " or Q6_K",
                              to_string(type)));
  }

  void check_dims(TensorId id, const GgufTensorInfo& info) const {
    const Shape shape = tensor_shape(id, config_);
    std::vector<std::int64_t> dims = info.dims, expected(shape.dims().rbegin(), shape.dims().rend());
    while (dims.size() > expected.size() && dims.back() == 1) dims.pop_back();
    if (dims == expected) return;
    corrupt(fmt::format("expected dimensions {} (fastest first), got {}", Shape(expected).to_string(),
                        Shape(info.dims).to_string()));
  }

  /// `blk.N.X.scale`: a factor for the product, beside `blk.N.X.weight`.
  void read_scale(std::string_view weight_name, StoredTensor& t) const {
    std::string name(weight_name.substr(0, weight_name.rfind('.')));
    name += ".scale";
    const GgufTensorInfo* info = file_->find(name);
    if (!info) return;
    if (info->type != GgmlType::kF32 || info->bytes != sizeof(float))
      unsupported(fmt::format("tensor '{}': expected one F32 value", name));
    float scale = 0;
    std::memcpy(&scale, file_->data(*info).data(), sizeof(scale));
    if (!(scale > 0) || !std::isfinite(scale))
      corrupt(fmt::format("tensor '{}': expected a scale above 0, got {}", name, scale));
    t.scale = scale;
    t.scale_bytes = info->bytes;
  }

  void note_i2s_scale(const StoredTensor& t) {
    float scale = 0;
    std::memcpy(&scale, t.bytes.data() + t.bytes.size() - 32, sizeof(scale));
    if (std::string note = implausible_scale(t.name, scale * t.scale.value_or(1.0f)); !note.empty())
      notes_.push_back(std::move(note));
  }

  void report_extras() {
    std::size_t extra = 0;
    std::string names;
    for (const GgufTensorInfo& info : file_->tensors()) {
      const std::string_view name = info.name;
      if (name == "rope_freqs.weight")
        unsupported("tensor 'rope_freqs.weight': scaled rotary embeddings are not supported");
      if (name.ends_with(".bias")) unsupported(fmt::format("tensor '{}': biases are not supported", name));
      if (name.ends_with("_q_norm.weight") || name.ends_with("_k_norm.weight"))
        unsupported(fmt::format("tensor '{}': QK-norm is not supported", name));
      auto id = tensor_from_gguf_name(name);
      if (!id && name.ends_with(".scale"))
        id = tensor_from_gguf_name(std::string(name.substr(0, name.size() - 5)) + "weight");
      const bool sub_norm =
          id && (id->role == TensorRole::kAttnSubNorm || id->role == TensorRole::kFfnSubNorm);
      if (id && id->layer < config_.n_layers && (config_.sub_norms || !sub_norm)) continue;
      if (++extra <= 4) names += (extra == 1 ? "" : ", ") + info.name;
    }
    if (extra > 0)
      notes_.push_back(fmt::format("{} tensors that the architecture does not have are ignored: {}{}", extra,
                                   names, extra > 4 ? ", …" : ""));
  }

  /// A llama file is ternary when its linears are; a mixture would need both kinds of layers at once.
  void decide_kind() {
    if (bitnet_architecture()) return;
    const StoredTensor *packed = nullptr, *dense = nullptr;
    for (const TensorId id : model_tensors(config_))
      if (is_linear(id.role)) (is_packed(stored(id).encoding) ? packed : dense) = &stored(id);
    if (packed && dense)
      unsupported(fmt::format(
          "tensor '{}' is {} and '{}' is {}: expected all linears to be ternary or all to be float",
          packed->name, packed->type, dense->name, dense->type));
    config_.weights = packed ? WeightKind::kTernary : WeightKind::kDense;
  }

  std::shared_ptr<const GgufFile> file_;
};

}  // namespace

std::unique_ptr<ModelReader> open_gguf(const fs::path& path, FloatLinears floats) {
  return std::make_unique<GgufReader>(path, floats);
}

}  // namespace bitnet::quant::model_io
