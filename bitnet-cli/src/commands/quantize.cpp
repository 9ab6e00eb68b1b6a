// `bitnet quantize`: float linear weights → ternary ones. Changing only the packing is `bitnet convert`.
#include <algorithm>
#include <ostream>

#include "bitnet/core/io/atomic_file.hpp"
#include "bitnet/quant/model_check.hpp"
#include "bitnet/quant/model_fingerprint.hpp"
#include "bitnet/quant/quant_report.hpp"
#include "commands/commands_list.hpp"
#include "common.hpp"
#include "model_writing.hpp"
#include "quantize_inputs.hpp"
#include "quantize_memory.hpp"
#include "quantize_progress.hpp"
#ifdef BITNET_WITH_TRAINING
#include "scale_tuning.hpp"
#endif

namespace bitnet::cli {
namespace {

namespace fs = std::filesystem;

std::string line_of(const quant::LinearReport& r) {
  std::string out =
      gguf_name(r.id) + ": " +
      (r.kept ? "kept"
              : std::string(to_string(r.plan.method)) + ", " + std::string(to_string(r.plan.scales))) +
      ", relative error " + significant(r.metrics.relative_error(), 4);
  if (r.metrics.output_signal > 0) out += ", of the output " + significant(r.metrics.output_error(), 4);
  return out;
}

void say_warnings(const quant::QuantReport& report, bool verbose, Io& io) {
  LinearWarnings all;
  for (const quant::LinearReport& r : report.linears)
    for (const std::string& text : r.warnings)
      if (verbose || !r.kept || text != quant::kAlreadyTernary) all.add(r.id, text);
  all.say(io);
}

void say(const quant::QuantReport& report, bool verbose, Io& io) {
  std::int64_t kept = 0, four = 0;
  for (const quant::LinearReport& r : report.linears) {
    kept += r.kept ? 1 : 0;
    four += r.plan.activation_bits == 4 && r.plan.method != quant::WeightMethod::kKeep ? 1 : 0;
    if (verbose) io.err << line_of(r) << '\n';
  }
  if (verbose && !report.inputs.empty()) io.err << quant::describe_inputs(report.inputs);
  say_warnings(report, verbose, io);
  if (kept > 0)
    io.err << "note: " << kept << " of " << report.linears.size()
           << " linears are as they were (already ternary, or kept in full precision)\n";
  if (four > 0)
    io.err << "activations of 4 bits for " << four << " of " << report.linears.size() << " linears\n";
  const quant::WeightMetrics total = report.total();
  io.err << fixed(report.bits_per_weight(), 2) << " bits a weight, relative error of the weights "
         << significant(total.relative_error(), 4);
  if (total.output_signal > 0)
    io.err << ", squared error of the outputs " << significant(total.output_error(), 4);
  io.err << '\n';
  if (report.logits)
    io.err << "perplexity " << fixed(report.logits->perplexity_original(), 4) << " → "
           << fixed(report.logits->perplexity_other(), 4) << ", KL divergence "
           << significant(report.logits->mean_kl(), 4) << ", the same first choice for "
           << fixed(100 * report.logits->top1_agreement(), 1) << " % of " << grouped(report.logits->positions)
           << " tokens\n";
  for (const std::string& hint : quant::mitigation_hints(report)) io.err << "hint: " << hint << '\n';
}

/// Files of --report: the JSON, and the page if that was asked for. Refuses to write over the input or the
/// output.
struct ReportFiles {
  fs::path json, html;
};

ReportFiles report_files(const Values& values, const fs::path& in, const fs::path& out) {
  ReportFiles files;
  if (!values.has(opt::kQuantReport)) return files;
  files.json = report_path(values, opt::kQuantReport, "report");
  if (files.json.extension() == ".html" || files.json.extension() == ".htm") {
    files.html = files.json;
    files.json.replace_extension(".json");
  }
  for (const fs::path& file : {files.json, files.html}) {
    if (file.empty()) continue;
    check_replaces_no_input(values, file, "--report '" + file.string() + "': the report");
    check_directory_of(file, "--report");
    if (would_replace(file, in)) throw UsageError("--report: '" + file.string() + "' is a file of the input");
    if (would_replace(file, out) || same_file(file, out))
      throw UsageError("--report: '" + file.string() + "' is the output, or a file of it");
  }
  return files;
}

void write_report(const ReportFiles& files, const quant::QuantReport& report) {
  if (!files.json.empty()) write_file(files.json, quant::to_json(report));
  if (!files.html.empty()) write_file(files.html, quant::to_html(report));
}

/// What the layers that --work keeps depend on beside the plan.
std::string identity_of(const Values& values, const fs::path& in, const quant::ModelReader& model) {
  std::string out = state_of(in) + " " + quant::model_fingerprint(model);
  for (const Option* o : {&opt::kCalibrate, &opt::kCalibration})
    out += values.has(*o) ? "\n" + std::string(o->name) + " " + state_of(values.text(*o)) : "";
  return out + "\n" + std::to_string(values.integer(opt::kCalibrationTokens)) +
         (values.flag(opt::kThroughQuantised) ? " through" : "");
}

/// Whether `path` is `directory` or lies in it; neither need be there.
bool is_inside(const fs::path& path, const fs::path& directory) {
  std::error_code ignored;
  const fs::path part =
      fs::weakly_canonical(path, ignored).lexically_relative(fs::weakly_canonical(directory, ignored));
  return !part.empty() && *part.begin() != "..";
}

/// What --calibrate, --tune-text, --evaluate, --save-calibration and --work cannot be together, and where
/// files cannot go. Throws before anything is done.
void check_files(const Values& values, const fs::path& in, const fs::path& out, const ReportFiles& reports) {
  int streams = 0;
  for (const Option* o : {&opt::kCalibrate, &opt::kTuningText, &opt::kEvaluate})
    streams += values.text(*o) == "-" ? 1 : 0;
  if (streams > 1)
    throw UsageError(
        "of --calibrate, --tune-text and --evaluate one can be standard input, which is read once");
  if (values.has(opt::kSaveCalibration)) {
    const fs::path to = report_path(values, opt::kSaveCalibration, "calibration");
    if (would_replace(to, in))
      throw UsageError("--save-calibration: '" + to.string() + "' is a file of the input");
    if (to.extension() == ".json")
      throw UsageError("--save-calibration: '" + to.string() +
                       "': it is a safetensors file, and one that ends in .json would be read as an index of "
                       "several");
    if (would_replace(to, out) || is_inside(to, out))
      throw UsageError("--save-calibration: '" + to.string() + "' is the output, or a file of it");
    for (const fs::path& report : {reports.json, reports.html})
      if (!report.empty() && same_file(to, report))
        throw UsageError("--save-calibration: '" + to.string() + "' is a file of --report");
    check_directory_of(to, "--save-calibration");
  }
  if (!values.has(opt::kWork)) return;
  const fs::path work = values.text(opt::kWork);
  if (would_replace(work, in) || is_inside(work, in))
    throw UsageError("--work: '" + work.string() + "' is the input, or a file of it");
  if (is_inside(work, out))
    throw UsageError("--work: '" + work.string() + "' is the output, or in it: layers are kept beside it");
  if (values.text(opt::kCalibrate) == "-")
    throw UsageError(
        "--work: --calibrate needs a file: the same text must come again when the call is made again");
}

/// Whether, and on which text, the result is tuned. Throws before anything is done.
const Option* tuning_text(const Values& values) {
  if (values.integer(opt::kTuningAfter) == 0) {
    if (values.has(opt::kTuningText)) throw UsageError("--tune-text needs --tune-steps");
    return nullptr;
  }
#ifndef BITNET_WITH_TRAINING
  throw Error(ErrorCode::kUnsupported,
              "--tune-steps: this build has no training (it was configured with BITNET_BUILD_TRAINING=OFF)");
#endif
  const Option* const text = values.has(opt::kTuningText) ? &opt::kTuningText : &opt::kCalibrate;
  if (!values.has(*text)) throw UsageError("--tune-steps needs a text: that of --calibrate, or --tune-text");
  if (text == &opt::kCalibrate && values.text(*text) == "-")
    throw UsageError("--tune-steps: standard input can be read once: --tune-text names a file");
  return text;
}

/// Of a text whose tokens are fewer than the columns of inputs that methods fit something to.
void warn_of_few_tokens(std::int64_t tokens, const std::vector<quant::PlannedLinear>& plans,
                        const quant::ModelFindings& found, const ModelConfig& model, Io& io) {
  const quant::PlannedLinear* widest = nullptr;
  const auto columns = [&](const quant::PlannedLinear& l) { return tensor_shape(l.id, model)[1]; };
  for (const quant::PlannedLinear& l : plans)
    if (needs_calibration(l.plan.method) && !found.is_ternary(l.id) &&
        (widest == nullptr || columns(l) > columns(*widest)))
      widest = &l;
  if (tokens == 0 || widest == nullptr ||
      tokens >= quant::rows_needed(quant::CalibrationUse::kSecondMoments, columns(*widest)))
    return;
  io.err << "warning: --calibrate has " << grouped(tokens) << " tokens: " << to_string(widest->plan.method)
         << " needs at least " << grouped(columns(*widest)) << " for this model, better "
         << grouped(4 * columns(*widest)) << '\n';
}

/// Before the work: what cannot be quantised, and what will hardly be worth anything. `tokens`: of the text
/// of --calibrate, or 0.
void check_tensors(const quant::QuantConfig& config, const std::vector<quant::PlannedLinear>& plans,
                   const quant::ModelReader& model, std::int64_t tokens, Io& io) {
  const quant::ModelFindings found = quant::check_model(model, plans, io.cancelled);
  for (const std::string& warning : found.warnings) io.err << "warning: " << warning << '\n';
  const auto destroyed = [&](const quant::PlannedLinear& l) {
    return l.plan.method == quant::WeightMethod::kAbsmean && !found.is_ternary(l.id);
  };
  if (model.config().weights == WeightKind::kTernary && config.protect) return;
  warn_of_few_tokens(tokens, plans, found, model.config(), io);
  if (std::any_of(plans.begin(), plans.end(), destroyed))
    io.err << "warning: this model was not trained for ternary weights: rounding it destroys it. It will "
              "run, but "
              "expect nonsense unless it is trained further; --method gptq loses less\n";
}

int quantize(const Values& values, Io& io) {
  const fs::path in = values.positionals.at(0), out = values.positionals.at(1);
  auto options = write_options(values.text(opt::kQuantizeType), values.text(opt::kDenseType), false);
  if (values.text(opt::kScaleForm) == "divide") options.scale_form = WeightScaleForm::kDivide;
  set_shard_size(values, options);
  check_output_path(out, in, options);
  const ReportFiles files = report_files(values, in, out);
  check_replaces_no_input(values, out, "'" + out.string() + "': the model");
  check_files(values, in, out, files);
  [[maybe_unused]] const Option* const tuned_on = tuning_text(values);
  quant::QuantReport report;
  report.model = in.string();
  report.config = plan_of(values, opt::kMethod, opt::kScales);
  const auto model = quant::ModelReader::open(in, quant::FloatLinears::kKeep);
  if (!model->float_linears())
    throw Error(ErrorCode::kInvalidArgument, "'" + in.string() +
                                                 "': the linear weights are ternary already (" +
                                                 model->stored_type({TensorRole::kAttnQ, 0}) +
                                                 "); `bitnet convert` changes how they are packed");
  const auto plans = quant::plan_linears(report.config, model->config());
  quant::check_target(plans, model->config(), options.type);
  const auto tokenizer = model->tokenizer();
  quant::check_write(out, model->config(), tokenizer.get(), options);
  const auto context = make_context(values);
  const QuantizeMemory memory = plan_memory(values, *model, plans, context->threads());
  std::vector<std::vector<TokenId>> evaluated;
  if (values.has(opt::kEvaluate)) evaluated = windows_of(values, opt::kEvaluate, *model, io);
#ifdef BITNET_WITH_TRAINING
  training::TuningOptions tuning;
  tuning.steps = values.integer(opt::kTuningAfter);
  std::vector<std::vector<TokenId>> tuning_windows;
  if (tuned_on != nullptr) {
    tuning_windows = windows_of(values, *tuned_on, *model, io);
    check_enough(tuning_windows, tuning);
  }
#endif
  Calibration calibration = calibration_of(values, in, *model, context, memory.stream_limit, io);
  if (calibration.source != nullptr) {
    check_tensors(report.config, plans, *model, calibration.tokens, io);
    say_need(memory, io.err);
  }
  quant::QuantizerOptions how;
  how.output = options;
  how.memory = memory.quantizer_limit;
  how.cancelled = io.cancelled;
  if (calibration.through_quantised) how.activations = calibration.activations.get();
  if (values.has(opt::kWork)) {
    how.work = values.text(opt::kWork);
    how.identity = identity_of(values, in, *model);
  }
  use_calibration(values, *model, calibration, io);
  how.calibration = calibration.seen.get();
  QuantizeProgress progress(io, plans, model->config());
  const quant::Quantizer* running = nullptr;
  how.on_linear = [&](const quant::LinearReport& r) { progress.done(r, running->resumed_layers()); };
  quant::Quantizer quantizer(*context, *model, report.config, how);
  running = &quantizer;
  if (calibration.source == nullptr) check_tensors(report.config, plans, *model, 0, io);
  ModelConfig config = model->config();
  config.weights = WeightKind::kTernary;
  const auto floats = report.config.protect ? quant::FloatLinears::kAsConfigured : quant::FloatLinears::kKeep;
  std::function<quant::LogicalTensor(TensorId)> source = [&](TensorId id) { return quantizer.read(id); };
#ifdef BITNET_WITH_TRAINING
  Tuned tuned;
  if (tuned_on != nullptr) {
    tuned = tune_model(*context, {config, source, in, floats, std::move(tuning_windows)}, tuning, {}, io);
    report.tuning = tuned.figures;
    source = [&](TensorId id) { return tuned.model->tensor(id); };
  }
#endif
  write_with_progress(out, config, tokenizer.get(), source, options, io, false);
  progress.clear();
  report.linears = quantizer.reports();
  report.inputs = calibration.inputs();
  if (quantizer.resumed_layers() > 0)
    io.err << "note: " << quantizer.resumed_layers() << " layers were done before (--work)\n";
  if (values.has(opt::kEvaluate)) {
    write_report(files, report);  // should the evaluation fail
    calibration.source.reset();   // the memory of two models is enough
    calibration.activations.reset();
    ModelLogits before(in, floats, context, evaluated),
        after(out, quant::FloatLinears::kAsConfigured, context, evaluated);
    report.logits = quant::compare_logits(before, after);
  }
  say(report, values.flag(opt::kVerbose), io);
  io.err << "peak memory " << human_bytes(peak_memory_bytes()) << '\n';
  write_report(files, report);
  return kOk;
}

}  // namespace

const Command kQuantizeCommand{
    .name = "quantize",
    .summary = "make the linear weights of a float model ternary",
    .usage = "IN OUT [--method METHOD | --plan FILE] [--calibrate TEXT] [--type TYPE]",
    .description =
        "absmean (scale = mean |W|, trit = round(W / scale) within -1 … 1) is right for models that were "
        "trained with it, such as BitNet checkpoints with float master weights, and destroys any other; ls, "
        "ls+refit "
        "and gptq lose less. ls+refit and gptq need to see what the linears are given: --calibrate names a "
        "text that "
        "the model reads first, the more tokens the better. --tune-steps then trains the scales and norms "
        "towards IN's predictions. What is ternary already is kept as it is. "
        "Embeddings, "
        "head and norms stay float. docs/guides/quantization.md explains the methods and the yaml of --plan.",
    .example =
        "bitnet quantize bitnet_b1_58-large/ large.gguf --method absmean --type i2_s\n"
        "bitnet quantize float-model/ small.gguf --method gptq --calibrate book.txt --report lost.html",
    .arguments = {"IN", "OUT"},
    .options = {&opt::kMethod,
                &opt::kScales,
                &opt::kPlan,
                &opt::kCalibrate,
                &opt::kCalibrationTokens,
                &opt::kThroughQuantised,
                &opt::kSaveCalibration,
                &opt::kCalibration,
                &opt::kForeignCalibration,
                &opt::kEvaluate,
                &opt::kTuningAfter,
                &opt::kTuningText,
                &opt::kWork,
                &opt::kQuantReport,
                &opt::kQuantizeType,
                &opt::kDenseType,
                &opt::kScaleForm,
                &opt::kShardSize,
                &opt::kThreads,
                &opt::kIsa,
                &opt::kMemoryLimit,
                &opt::kVerbose},
    .body = quantize,
};

}  // namespace bitnet::cli
