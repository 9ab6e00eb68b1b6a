// `bitnet quantize`: float linear weights → ternary ones. Changing only the packing is `bitnet convert`.
#include <ostream>

#include "commands/commands_list.hpp"
#include "common.hpp"
#include "model_writing.hpp"

namespace bitnet::cli {
namespace {

namespace fs = std::filesystem;

int quantize(const Values& values, Io& io) {
  const fs::path in = values.positionals.at(0), out = values.positionals.at(1);
  auto options = write_options(values.text(opt::kQuantizeType), values.text(opt::kDenseType), false);
  if (values.text(opt::kScaleForm) == "divide") options.scale_form = WeightScaleForm::kDivide;
  check_output_path(out, in, options);
  const auto as_stored = quant::ModelReader::open(in);
  const bool was_dense = as_stored->config().weights == WeightKind::kDense;
  if (!as_stored->float_linears())
    throw Error(ErrorCode::kInvalidArgument, "'" + in.string() +
                                                 "': the linear weights are ternary already (" +
                                                 as_stored->stored_type({TensorRole::kAttnQ, 0}) +
                                                 "); `bitnet convert` changes how they are packed");
  const auto model = quant::ModelReader::open(in, quant::FloatLinears::kTernarise);
  if (was_dense)
    io.err << "warning: this model was not trained for ternary weights: rounding it destroys it. It will "
              "run, but "
              "expect nonsense unless it is trained further\n";
  ModelConfig config = model->config();
  config.weights = WeightKind::kTernary;
  const auto tokenizer = model->tokenizer();
  write_with_progress(
      out, config, tokenizer.get(), [&](TensorId id) { return model->read(id); }, options, io);
  return kOk;
}

}  // namespace

const Command kQuantizeCommand{
    .name = "quantize",
    .summary = "make the linear weights of a float model ternary",
    .usage = "IN OUT [--method absmean] [--type TYPE]",
    .description =
        "absmean (scale = mean |W|, trit = round(W / scale) within -1 … 1) is right for models that were "
        "trained with "
        "it, such as BitNet checkpoints with float master weights. Rounding any other model this way "
        "destroys it; a "
        "warning says so. Embeddings, head and norms stay float.",
    .example = "bitnet quantize bitnet_b1_58-large/ large.gguf --method absmean --type i2_s",
    .arguments = {"IN", "OUT"},
    .options = {&opt::kMethod, &opt::kQuantizeType, &opt::kDenseType, &opt::kScaleForm},
    .body = quantize,
};

}  // namespace bitnet::cli
