// `bitnet convert`: the same model in another container or packing. Making a model ternary is `bitnet
// quantize`.
#include <optional>
#include <ostream>

#include "bitnet/quant/linear_types.hpp"
#include "commands/commands_list.hpp"
#include "common.hpp"
#include "model_writing.hpp"

namespace bitnet::cli {
namespace {

namespace fs = std::filesystem;

/// Calls f(id, type) for the tensors that the file written has in its one dense type; norms are f32.
template <class F>
void for_each_dense(const quant::ModelReader& model, F&& f) {
  for (const TensorId id : model.tensors())
    if (const auto type = model.float_type(id);
        type && !is_norm(id.role) && !model.stored_type(id).starts_with("I8"))
      f(id, *type);
}

/// Says what a type that was asked for rounds, and what grows where none was.
void note_dense_type(const quant::ModelReader& model, DType written, Io& io) {
  std::size_t rounded = 0, blocks = 0;
  for_each_dense(model, [&](TensorId id, DType type) {
    rounded += written != DType::kF32 && written != type;
    blocks += written == DType::kF32 && model.stored_type(id).starts_with("Q");
  });
  if (rounded > 0)
    io.err << "note: " << to_string(written) << " rounds the values of " << rounded
           << " tensors that are stored in another type\n";
  if (blocks > 0)
    io.err
        << "note: " << blocks
        << " quantised tensors become f32, which keeps their values; f16 would round them to half the size\n";
}

void check_kind(bool dense, const std::string& type) {
  const bool dense_type = type == "f16" || type == "bf16" || type == "f32";
  if (dense && !dense_type && type != "hf")
    throw Error(
        ErrorCode::kUnsupported,
        "this model's linear weights are float, which type " + type +
            " cannot hold; types that can: hf, f16, bf16, f32 (`bitnet quantize` makes a model ternary)");
  if (!dense && dense_type)
    throw Error(ErrorCode::kUnsupported, "this model's linear weights are ternary; type " + type +
                                             " is for float models; types for it: hf, i2_s, tq1_0, tq2_0");
}

/// The configuration to write: that of a ternary model where an extended one is no more. Throws
/// Error(kUnsupported) for linears that no other type holds.
ModelConfig config_of(const quant::ModelReader& model) {
  ModelConfig config = model.config();
  if (config.weights == WeightKind::kTernary) return config;
  std::size_t linears = 0, ternary = 0, floats = 0;
  std::string odd;
  for (const TensorId id : model.tensors()) {
    if (!is_linear(id.role)) continue;
    const std::string stored = model.stored_type(id);
    const bool packed = stored == "U8 packed";
    ++linears;
    ternary += packed;
    floats += !packed && model.float_type(id) && stored != "I8";
    if (!packed && odd.empty()) odd = "tensor '" + gguf_name(id) + "' is " + stored;
  }
  if (floats == linears) return config;
  if (ternary != linears)
    throw Error(ErrorCode::kUnsupported, "this model's linears are of several kinds (" + odd +
                                             "), which its own type alone holds (docs/formats/extended.md)");
  config.weights = WeightKind::kTernary;
  return config;
}

int convert(const Values& values, Io& io) {
  const fs::path in = values.positionals.at(0), out = values.positionals.at(1);
  const auto model = quant::ModelReader::open(in);
  const DType widest = default_dense_type(*model);
  const std::string type =
      values.given(opt::kConvertType) ? values.text(opt::kConvertType) : default_type(*model, widest, out);
  const bool any = type == "extended";  // holds linears of every kind
  const ModelConfig config = any ? model->config() : config_of(*model);
  const bool dense = !any && config.weights == WeightKind::kDense;
  if (!any) check_kind(dense, type);
  const std::string dense_type = values.given(opt::kConvertDenseType) ? values.text(opt::kConvertDenseType)
                                                                      : std::string(to_string(widest));
  auto options = write_options(type, dense_type, dense);
  if (values.text(opt::kScaleForm) == "divide") options.scale_form = WeightScaleForm::kDivide;
  set_shard_size(values, options);
  check_output_path(out, in, options);
  const auto tokenizer = model->tokenizer();
  quant::check_linears(*model, options.type);
  quant::check_write(out, config, tokenizer.get(), options);
  if (tokenizer == nullptr) io.err << "note: '" << in.string() << "' carries no tokenizer\n";
  write_with_progress(
      out, config, tokenizer.get(), [&](TensorId id) { return model->read(id); }, options, io);
  note_dense_type(*model, options.dense_type, io);
  for (const std::string& note : model->notes()) io.err << "note: " << note << '\n';
  return kOk;
}

}  // namespace

const Command kConvertCommand{
    .name = "convert",
    .summary = "write a model in another format or packing",
    .usage = "IN OUT [--type TYPE]",
    .description =
        "IN and OUT are GGUF files or Hugging Face directories; the tokenizer goes along. The weights keep "
        "their "
        "values: a type that cannot hold them (columns that are no multiple of its block, several scales "
        "where it has "
        "one) is an error that names the types that can. tq1_0 and tq2_0 store scales as f16. Floats are "
        "rounded only "
        "by a --type or --dense-type that was asked for, with a note.",
    .example =
        "bitnet convert bitnet-b1.58-2B-4T/ 2b.gguf --type i2_s\nbitnet convert 2b.gguf 2b-hf/ --type hf",
    .arguments = {"IN", "OUT"},
    .options = {&opt::kConvertType, &opt::kConvertDenseType, &opt::kScaleForm, &opt::kShardSize},
    .body = convert,
};

}  // namespace bitnet::cli
