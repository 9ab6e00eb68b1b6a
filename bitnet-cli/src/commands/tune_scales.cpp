// `bitnet tune-scales`: scales and norms of a quantised model trained towards the model that it was made of,
// trits as they are. `bitnet quantize --tune-steps` does it in the same call; trits move in `bitnet train`.
#include <ostream>

#include "bitnet/quant/linear_types.hpp"
#include "bitnet/quant/model_check.hpp"
#include "commands/commands_list.hpp"
#include "common.hpp"
#include "model_writing.hpp"
#include "quantize_inputs.hpp"
#ifdef BITNET_WITH_TRAINING
#include "bitnet/training/distillation.hpp"
#include "scale_tuning.hpp"
#endif

namespace bitnet::cli {
namespace {

#ifdef BITNET_WITH_TRAINING

namespace fs = std::filesystem;

training::TunedParts parts_of(const std::string& word) {
  return {word != "norms", word != "scales", word == "all"};
}

training::TuningOptions options_of(const Values& values) {
  training::TuningOptions o;
  o.steps = values.integer(opt::kTuningSteps);
  o.learning_rate = values.real(opt::kTuningRate);
  o.batch = values.integer(opt::kTuningBatch);
  o.temperature = values.real(opt::kTuningTemperature);
  o.text = values.real(opt::kCrossEntropy);
  o.seed = static_cast<std::uint64_t>(values.integer(opt::kTuningSeed));
  return o;
}

int tune(const Values& values, Io& io) {
  const fs::path in = values.positionals.at(0), out = values.positionals.at(1);
  const fs::path original = require(values, opt::kOriginal);
  static_cast<void>(require(values, opt::kTuningFile));
  const auto model = quant::ModelReader::open(in);
  const DType widest = default_dense_type(*model);
  const std::string type =
      values.given(opt::kTuningType) ? values.text(opt::kTuningType) : default_type(*model, widest, out);
  const std::string dense_type = values.given(opt::kConvertDenseType) ? values.text(opt::kConvertDenseType)
                                                                      : std::string(to_string(widest));
  auto options = write_options(type, dense_type, false);
  if (values.text(opt::kScaleForm) == "divide") options.scale_form = WeightScaleForm::kDivide;
  set_shard_size(values, options);
  check_output_path(out, in, options);
  check_output_path(out, original, options);
  check_replaces_no_input(values, out, "'" + out.string() + "': the model");
  const auto tokenizer = model->tokenizer();
  if (has_quantised_linears(*model) || !model->float_linears())
    quant::check_linears(*model, options.type, quant::ScaleValues::kChange);
  quant::check_write(out, model->config(), tokenizer.get(), options);
  if (tokenizer) training::check_vocabulary("the original", original, *tokenizer, true);
  const auto context = make_context(values);
  TuneInputs inputs{model->config(), [&](TensorId id) { return model->read(id); }, original,
                    quant::FloatLinears::kAsConfigured,
                    windows_of(values, opt::kTuningFile, opt::kTuningTokens, *model, io)};
  const training::TuningOptions tuning = options_of(values);
  check_enough(inputs.windows, tuning);
  with_context("'" + in.string() + "'", [&] { quant::check_model(*model, {}, io.cancelled); });
  with_context("'" + original.string() + "'", [&] {
    quant::check_model(*quant::ModelReader::open(original, inputs.floats), {}, io.cancelled);
  });
  const Tuned tuned = tune_model(*context, inputs, tuning, parts_of(values.text(opt::kTuningParts)), io);
  ModelConfig config = model->config();
  config.weights = WeightKind::kTernary;
  write_with_progress(
      out, config, tokenizer.get(), [&](TensorId id) { return tuned.model->tensor(id); }, options, io);
  io.err << "peak memory " << human_bytes(peak_memory_bytes()) << '\n';
  return kOk;
}

#else

int tune(const Values&, Io&) {
  throw Error(ErrorCode::kUnsupported,
              "this build has no training (it was configured with BITNET_BUILD_TRAINING=OFF)");
}

#endif

}  // namespace

const Command kTuneScalesCommand{
    .name = "tune-scales",
    .summary = "train a quantised model's scales and norms, trits as they are",
    .usage = "IN OUT --original MODEL -f TEXT [--steps N]",
    .description =
        "IN is a model whose linears are ternary, of two planes or int8. Its scales and the weights of its "
        "norms are "
        "trained for some steps, so that what it predicts on the text comes near to what the original "
        "predicts (KL "
        "divergence); the text's own words count with --cross-entropy. The trits stay, and so do size, "
        "format and "
        "speed. A few hundred steps are enough. Both models are in memory, the original with four bytes a "
        "weight. "
        "Where the loss on the text does not fall, the model is written as it was, with a warning.",
    .example =
        "bitnet tune-scales small.gguf tuned.gguf --original float-model/ -f book.txt\n"
        "bitnet tune-scales small/ tuned/ --original float-model/ -f book.txt --steps 300 --rate 0.005",
    .arguments = {"IN", "OUT"},
    .options = {&opt::kOriginal, &opt::kTuningFile, &opt::kTuningTokens, &opt::kTuningSteps,
                &opt::kTuningRate, &opt::kTuningBatch, &opt::kTuningTemperature, &opt::kCrossEntropy,
                &opt::kTuningSeed, &opt::kTuningParts, &opt::kTuningType, &opt::kConvertDenseType,
                &opt::kScaleForm, &opt::kShardSize, &opt::kThreads, &opt::kIsa, &opt::kMemoryLimit},
    .body = tune,
};

}  // namespace bitnet::cli
