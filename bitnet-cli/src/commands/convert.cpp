// `bitnet convert`: the same model in another container or packing. Making a model ternary is `bitnet
// quantize`.
#include <ostream>

#include "commands/commands_list.hpp"
#include "common.hpp"
#include "model_writing.hpp"

namespace bitnet::cli {
namespace {

namespace fs = std::filesystem;

TensorId first_linear() { return {TensorRole::kAttnQ, 0}; }

/// Without --type: what the input has, in the container that the output's name says.
std::string default_type(const quant::ModelReader& model, const fs::path& out) {
  if (out.extension() != ".gguf") return "hf";
  const std::string stored = model.stored_type(first_linear());
  if (model.config().weights == WeightKind::kDense) {
    if (stored.starts_with("F32")) return "f32";
    return stored.starts_with("BF16") ? "bf16" : "f16";
  }
  if (stored.starts_with("TQ1_0")) return "tq1_0";
  return stored.starts_with("TQ2_0") ? "tq2_0" : "i2_s";
}

/// The element type that embeddings and head are kept in: as stored when it is a plain float.
std::string default_dense_type(const quant::ModelReader& model) {
  const std::string stored = model.stored_type({TensorRole::kTokenEmbedding, -1});
  if (stored.starts_with("F32")) return "f32";
  return stored.starts_with("BF16") ? "bf16" : "f16";
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

int convert(const Values& values, Io& io) {
  const fs::path in = values.positionals.at(0), out = values.positionals.at(1);
  const auto model = quant::ModelReader::open(in);
  const bool dense = model->config().weights == WeightKind::kDense;
  const std::string type = values.given(opt::kType) ? values.text(opt::kType) : default_type(*model, out);
  check_kind(dense, type);
  const std::string dense_type =
      values.given(opt::kDenseType) ? values.text(opt::kDenseType) : default_dense_type(*model);
  auto options = write_options(type, dense_type, dense);
  if (values.text(opt::kScaleForm) == "divide") options.scale_form = WeightScaleForm::kDivide;
  check_output_path(out, in, options);
  const auto tokenizer = model->tokenizer();
  if (tokenizer == nullptr) io.err << "note: '" << in.string() << "' carries no tokenizer\n";
  write_with_progress(
      out, model->config(), tokenizer.get(), [&](TensorId id) { return model->read(id); }, options, io);
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
        "one) is an error that names the types that can. tq1_0 and tq2_0 store scales as f16.",
    .example =
        "bitnet convert bitnet-b1.58-2B-4T/ 2b.gguf --type i2_s\nbitnet convert 2b.gguf 2b-hf/ --type hf",
    .arguments = {"IN", "OUT"},
    .options = {&opt::kType, &opt::kDenseType, &opt::kScaleForm},
    .body = convert,
};

}  // namespace bitnet::cli
