// Which files a run's end has.
#include "run_export.hpp"

#include <unistd.h>

#include <string_view>

#include "bitnet/core/error.hpp"
#include "bitnet/quant/adapter.hpp"

namespace bitnet::training {
namespace {

namespace fs = std::filesystem;

ModelFiles files_of(const TrainConfig& c) { return model_files(c.model, c.quantization, c.quantizer); }

bool is_model_file(const fs::path& name) {
  return name.extension() == ".safetensors" || name.extension() == ".json" || name == "tokenizer.model";
}

/// A name for what is on its way, which remove_unfinished() knows.
fs::path unfinished(const fs::path& beside, std::string_view what) {
  return beside.parent_path() / ("." + std::string(what) + "-" + beside.filename().string() + "." +
                                 std::to_string(::getpid()) + ".0.partial");
}

/// Writes a model's directory; where one of several files is, or would be, in the way (a run that goes on
/// after its end), the new one takes its place when it is whole, and other files than a model's stay.
void write_directory(const fs::path& path, const std::function<void(const fs::path&)>& write,
                     const quant::WriteOptions& options) {
  if (!fs::exists(path) ||
      (options.type != quant::LinearType::kExtended && !fs::exists(path / "model.safetensors.index.json"))) {
    write(path);
    return;
  }
  const fs::path fresh = unfinished(path, "new"), old = unfinished(path, "old");
  fs::remove_all(fresh);
  fs::remove_all(old);
  write(fresh);
  for (const auto& entry : fs::directory_iterator(path)) {
    if (is_model_file(entry.path().filename())) continue;
    const fs::path there = fresh / entry.path().filename();  // in both, whenever the process is killed
    std::error_code no_links;
    fs::copy(entry.path(), there, fs::copy_options::recursive | fs::copy_options::create_hard_links,
             no_links);
    if (no_links)
      fs::copy(entry.path(), there, fs::copy_options::recursive | fs::copy_options::overwrite_existing);
  }
  fs::rename(path, old);
  fs::rename(fresh, path);
  fs::remove_all(old);
}

}  // namespace

quant::WriteOptions directory_options(const ModelFiles& files) {
  quant::WriteOptions options;
  options.gguf = false;
  options.type = files.type;
  if (files.type == quant::LinearType::kDense) options.dense_type = DType::kF32;
  return options;
}

std::string describe_export(const TrainConfig& c) {
  if (c.lora) return "adapter/";
  const ModelFiles files = files_of(c);
  if (!files.directory) return "no model file (" + files.reason + "): the checkpoint holds the weights";
  return files.gguf ? "model/ and model.gguf" : "model/, and no model.gguf (" + files.reason + ")";
}

void export_run(const TrainConfig& c, const RunModel& model, const Tokenizer& tokenizer,
                const std::function<void(const std::string&)>& say) {
  if (model.adapter) {
    say("writing " + (c.output / "adapter").string());
    quant::write_adapter(c.output / "adapter", model.adapter->adapter(c.lora->base.string()),
                         model->config());
    return;
  }
  const ModelFiles files = files_of(c);
  if (!files.directory) {
    say(files.reason + ": no model file is written, the checkpoint holds the weights");
    return;
  }
  const fs::path directory = c.output / "model", gguf = c.output / "model.gguf";
  say("writing " + directory.string() + (files.gguf ? " and " + gguf.string() : ""));
  const quant::WriteOptions options = directory_options(files);
  write_directory(
      directory, [&](const fs::path& path) { export_model(path, *model.whole, &tokenizer, options); },
      options);
  if (!files.gguf) return;
  quant::WriteOptions one_file = options;
  one_file.gguf = true;
  if (files.type != quant::LinearType::kDense) one_file.type = quant::LinearType::kI2_S;
  export_model(gguf, *model.whole, &tokenizer, one_file);
}

void write_snapshot(const fs::path& path, const TrainConfig& c, const RunModel& model,
                    const Tokenizer& tokenizer) {
  if (model.adapter) {
    quant::write_adapter(path, model.adapter->adapter(c.lora->base.string()), model->config());
    return;
  }
  export_model(path, *model.whole, &tokenizer, directory_options(files_of(c)));
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
