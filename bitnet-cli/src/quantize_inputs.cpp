// See quantize_inputs.hpp.
#include "quantize_inputs.hpp"

#include <algorithm>
#include <ostream>
#include <system_error>
#include <utility>

#include "bitnet/quant/model_fingerprint.hpp"
#include "common.hpp"
#include "text_stream.hpp"

namespace bitnet::cli {
namespace {

namespace fs = std::filesystem;

constexpr std::int64_t kWindow = 512;  // tokens of a calibration text at a time

}  // namespace

quant::QuantConfig plan_of(const Values& values, const Option& method, const Option& scales) {
  if (values.has(opt::kPlan)) {
    for (const Option* o : {&method, &scales})
      if (values.given(*o))
        throw UsageError("--" + std::string(o->name) + " and --plan exclude each other: the plan says it");
    return quant::QuantConfig::from_yaml_file(values.text(opt::kPlan));
  }
  quant::QuantConfig c;
  c.linears.method = quant::weight_method_from_string(values.text(method));
  c.linears.scales = quant::scale_unit_from_string(values.text(scales));
  return c;
}

std::vector<std::vector<TokenId>> windows_of(const Values& values, const Option& file,
                                             const quant::ModelReader& model, Io& io) {
  return windows_of(values, file, opt::kCalibrationTokens, model, io);
}

std::vector<std::vector<TokenId>> windows_of(const Values& values, const Option& file, const Option& tokens,
                                             const quant::ModelReader& model, Io& io) {
  const auto tokenizer = model.tokenizer();
  if (tokenizer == nullptr)
    throw Error(ErrorCode::kNotFound, "the model's files carry no tokenizer: a text cannot be read with it");
  const std::int64_t window = std::min(kWindow, model.config().max_position);
  const std::string path = values.text(file);
  return with_context("'" + path + "'", [&] {
    TextReader reader(path, io);
    TextWindows windows(*tokenizer, window, values.integer(tokens));
    stream_tokens(tokenizer, reader, [&](std::span<const TokenId> ids) { windows.add(ids); });
    return windows.take();
  });
}

Calibration calibration_of(const Values& values, const fs::path& in, const quant::ModelReader& model,
                           const std::shared_ptr<const ExecutionContext>& context, std::uint64_t memory,
                           Io& io) {
  Calibration c;
  c.through_quantised = values.flag(opt::kThroughQuantised);
  if (values.has(opt::kCalibration) && values.has(opt::kCalibrate))
    throw UsageError("--calibrate and --calibration exclude each other: a text, or what was saved of one");
  if ((c.through_quantised || values.has(opt::kSaveCalibration)) && !values.has(opt::kCalibrate))
    throw UsageError("--through-quantised and --save-calibration need the text of --calibrate");
  if (c.through_quantised && values.has(opt::kSaveCalibration))
    throw UsageError(
        "--save-calibration saves the inputs of the model as it is: not with --through-quantised");
  if (values.has(opt::kCalibration)) {
    const std::string path = values.text(opt::kCalibration);
    const bool any = values.flag(opt::kForeignCalibration);
    auto saved = quant::open_calibration(path, model.config(), any ? "" : quant::model_fingerprint(model));
    if (saved->fingerprint().empty() && !any)
      io.err << "warning: --calibration '" << path
             << "': an older file, which does not say what model it was made with: if not with this one, it "
                "misleads\n";
    c.source = std::move(saved);
  } else if (values.has(opt::kCalibrate)) {
    std::int64_t widest = 0;
    for (const TensorId input : quant::linear_inputs(model.config()))
      widest = std::max(widest, quant::input_width(input, model.config()));
    auto windows =
        with_context("--calibrate, which takes at least " + grouped(widest) + " tokens for this model",
                     [&] { return windows_of(values, opt::kCalibrate, model, io); });
    for (const auto& w : windows) c.tokens += static_cast<std::int64_t>(w.size());
    c.activations = std::make_unique<ModelActivations>(in, context, std::move(windows), io);
    c.source = std::make_unique<quant::StreamedCalibration>(
        *context, *c.activations, model.config(),
        quant::StreamOptions{.memory = memory, .through_quantised = c.through_quantised});
  }
  return c;
}

void LinearWarnings::add(TensorId linear, const std::string& text) {
  const TensorId input{input_role(linear.role), linear.layer};
  const auto same = std::find_if(all_.begin(), all_.end(),
                                 [&](const Warning& w) { return w.input == input && w.text == text; });
  if (same == all_.end())
    all_.push_back({input, text, gguf_name(linear)});
  else
    same->names += ", " + gguf_name(linear);
}

void LinearWarnings::say(Io& io) const {
  for (const Warning& w : all_) io.err << "warning: " << w.names << ": " << w.text << '\n';
}

void use_calibration(const Values& values, const quant::ModelReader& model, Calibration& c, Io& io) {
  if (values.has(opt::kSaveCalibration)) {
    const fs::path to = values.text(opt::kSaveCalibration);
    quant::save_calibration(to, *c.source, model.config(), quant::model_fingerprint(model));
    c.source = quant::open_calibration(to, model.config());
    io.err << "wrote '" << to.string() << "'\n";
  }
  if (c.source != nullptr) c.seen = std::make_unique<quant::SeenInputs>(*c.source);
}

void check_directory_of(const fs::path& file, const std::string& name) {
  std::error_code ignored;
  const fs::path directory = file.parent_path();
  if (!directory.empty() && !fs::is_directory(directory, ignored))
    throw UsageError(name + ": '" + file.string() + "': there is no directory '" + directory.string() + "'");
  if (fs::exists(file, ignored) && !fs::is_regular_file(file, ignored))
    throw UsageError(name + ": '" + file.string() + "' is " +
                     (fs::is_directory(file, ignored) ? "a directory" : "no ordinary file") +
                     ": expected the name of a file");
}

std::string state_of(const fs::path& path) {
  std::error_code ignored;
  std::string out = fs::weakly_canonical(path, ignored).string();
  const auto add = [&](const fs::path& p) {
    out += " " + std::to_string(fs::file_size(p, ignored)) + " " +
           std::to_string(fs::last_write_time(p, ignored).time_since_epoch().count());
  };
  if (!fs::is_directory(path, ignored)) {
    add(path);
    return out;
  }
  std::vector<fs::path> files;
  for (const auto& entry : fs::directory_iterator(path, ignored)) files.push_back(entry.path());
  std::sort(files.begin(), files.end());
  for (const fs::path& p : files) add(p);
  return out;
}

}  // namespace bitnet::cli
