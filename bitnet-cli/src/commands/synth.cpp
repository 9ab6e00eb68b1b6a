// `bitnet synth`: a random model of any shape, to measure speed and memory with.
#include <ostream>

#include "commands/commands_list.hpp"
#include "common.hpp"
#include "model_writing.hpp"
#include "synth_model.hpp"

namespace bitnet::cli {
namespace {

int synth(const Values& values, Io& io) {
  const std::filesystem::path out = require(values, opt::kSynthOutput);
  ModelConfig config = ModelConfig::from_json_file(require(values, opt::kSynthConfig));
  if (const auto layers = values.integer(opt::kSynthLayers); layers > 0) config.n_layers = layers;
  const std::string type = values.text(opt::kSynthType);
  const bool dense = type == "f16" || type == "bf16" || type == "f32";
  const auto options = write_options(type, "f16", dense);
  // Random float linears of a BitNet are latent ones, as readers take them unless a file says otherwise.
  config.weights = dense && !config.sub_norms ? WeightKind::kDense : WeightKind::kTernary;
  check_output_path(out, {}, options);
  check_replaces_no_input(values, out, "'" + out.string() + "': the model");

  check_cancelled(io);
  const auto tokenizer = byte_tokenizer(config.vocab_size);
  if (tokenizer == nullptr) {
    io.err
        << "note: a vocabulary of " << config.vocab_size
        << " cannot be that of a tokenizer, which holds 256 bytes, 5 special tokens and at most 16,777,216 "
           "tokens: the model has none\n";
  } else {
    config.bos_id = tokenizer->bos().value_or(-1);
    config.eos_ids.assign(tokenizer->eos().begin(), tokenizer->eos().end());
  }
  config.validate();
  const auto context = make_context(values);
  const auto seed = static_cast<std::uint64_t>(values.integer(opt::kSynthSeed));
  write_with_progress(
      out, config, tokenizer.get(),
      [&](TensorId id) { return random_tensor(*context, id, config, dense, options.dense_type, seed); },
      options, io);
  return kOk;
}

}  // namespace

const Command kSynthCommand{
    .name = "synth",
    .summary = "write a random model of any shape, for measuring",
    .usage = "--config FILE --type TYPE -o OUT [options]",
    .description =
        "FILE is a config.json; configs/synth/ has those of bitnet-2b-4t, 1bitllm-large, llama3-8b-1.58 and "
        "falcon3-1b. The same seed gives the same file. The model carries a byte-level tokenizer, so that "
        "`bitnet run` "
        "works with it, but what it writes is noise.",
    .example =
        "bitnet synth --config configs/synth/bitnet-2b-4t.json --type i2_s -o 2b-random.gguf\n"
        "bitnet run -m 2b-random.gguf -p \"Hello\" -n 32",
    .arguments = {},
    .options = {&opt::kSynthConfig, &opt::kSynthLayers, &opt::kSynthSeed, &opt::kSynthType,
                &opt::kSynthOutput, &opt::kThreads, &opt::kIsa},
    .body = synth,
};

}  // namespace bitnet::cli
