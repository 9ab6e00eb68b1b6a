// Which files a run's end has.
#include "run_export.hpp"

#include "bitnet/core/error.hpp"
#include "bitnet/quant/adapter.hpp"
#include "bitnet/training/export.hpp"

namespace bitnet::training {

void export_run(const TrainConfig& c, const RunModel& model, const Tokenizer& tokenizer,
                const std::function<void(const std::string&)>& say) {
  if (model.adapter) {
    say("writing " + (c.output / "adapter").string());
    quant::write_adapter(c.output / "adapter", model.adapter->adapter(c.lora->base.string()),
                         model->config());
    return;
  }
  if (!c.exports()) {
    // Readers ternarise float linears of this architecture, which would destroy a model in full precision.
    const std::string what = c.quantization == Quantization::kNone
                                 ? "trained in full precision"
                                 : "no file format here knows this quantiser";
    say(what + ": no model file is written, the checkpoint holds the weights");
    return;
  }
  quant::WriteOptions hf;
  hf.gguf = false;
  hf.type = quant::LinearType::kHf;
  say("writing " + (c.output / "model").string() + " and " + (c.output / "model.gguf").string());
  export_model(c.output / "model", *model.whole, &tokenizer, hf);
  export_model(c.output / "model.gguf", *model.whole, &tokenizer, {});
}

void write_snapshot(const std::filesystem::path& path, const TrainConfig& c, const RunModel& model,
                    const Tokenizer& tokenizer) {
  if (model.adapter) {
    quant::write_adapter(path, model.adapter->adapter(c.lora->base.string()), model->config());
    return;
  }
  quant::WriteOptions options;
  if (c.quantization == Quantization::kNone) {
    options.type = quant::LinearType::kDense;
    options.dense_type = DType::kF32;
  }
  export_model(path, *model.whole, &tokenizer, options);
}

void check_sample_prompt(const TrainConfig& c, const Tokenizer& tokenizer) {
  if (c.sample_every == 0) return;
  const auto tokens = static_cast<std::int64_t>(
      with_context("output.sample_prompt", [&] { return tokenizer.encode(c.sample_prompt); }).size());
  if (tokens == 0 && !tokenizer.bos())
    throw Error(ErrorCode::kInvalidArgument,
                "output.sample_prompt must not be empty: the tokenizer has no begin-of-text token");
  if (tokens + c.sample_tokens > c.model.max_position)
    throw Error(ErrorCode::kInvalidArgument, "output.sample_prompt has " + std::to_string(tokens) +
                                                 " tokens, which with " + std::to_string(c.sample_tokens) +
                                                 " of output.sample_tokens is more than the model's " +
                                                 std::to_string(c.model.max_position));
}

}  // namespace bitnet::training
