// `bitnet plan`: which linears of a model deserve more bits, as a yaml file for `bitnet quantize --plan`.
#include <algorithm>
#include <map>
#include <ostream>

#include "bitnet/core/hash64.hpp"
#include "bitnet/core/io/atomic_file.hpp"
#include "bitnet/quant/model_check.hpp"
#include "bitnet/quant/model_fingerprint.hpp"
#include "bitnet/quant/sensitivity.hpp"
#include "commands/commands_list.hpp"
#include "common.hpp"
#include "model_writing.hpp"
#include "quantize_inputs.hpp"

namespace bitnet::cli {
namespace {

namespace fs = std::filesystem;

std::vector<quant::CandidateWay> ways_of(const Values& values) {
  return checked(values, opt::kCandidates, [](const std::string& text) {
    std::vector<quant::CandidateWay> ways;
    for (std::size_t begin = 0; begin <= text.size();) {
      const std::size_t end = std::min(text.find(',', begin), text.size());
      ways.push_back(quant::candidate_way_from_string(text.substr(begin, end - begin)));
      begin = end + 1;
    }
    return ways;
  });
}

void check_options(const Values& values) {
  if (values.has(opt::kBudgetSize) == values.has(opt::kBudgetPerplexity))
    throw UsageError("expected either --budget-size or --budget-perplexity");
  if (!values.has(opt::kCalibrate) && !values.has(opt::kCalibration))
    throw UsageError("expected a text: --calibrate, or what --save-calibration kept of one in --calibration");
  const bool runs = !values.flag(opt::kEstimate) || values.has(opt::kBudgetPerplexity);
  if (runs && !values.has(opt::kCalibrate) && !values.has(opt::kEvaluate))
    throw UsageError("expected a text to run the model on: --evaluate beside --calibration");
  for (const Option* o : {&opt::kCalibrate, &opt::kEvaluate})
    if (values.text(*o) == "-")
      throw UsageError("--" + std::string(o->name) + ": expected a file, which can be read more than once");
}

/// What the figures of a file of --sensitivity depend on.
std::string identity_of(const Values& values, const fs::path& in, const quant::ModelReader& model,
                        const quant::QuantConfig& config) {
  std::string all = state_of(in) + " " + quant::model_fingerprint(model) + "\n" + config.to_yaml();
  for (const Option* o : {&opt::kCalibrate, &opt::kCalibration, &opt::kEvaluate})
    all += values.has(*o) ? "\n" + std::string(o->name) + " " + state_of(values.text(*o)) : "";
  for (const Option* o : {&opt::kCandidates, &opt::kCalibrationTokens, &opt::kEstimate, &opt::kDenseType})
    all += "\n" + values.text(*o);
  const std::uint64_t hash = Hash64().add(all).value();
  std::string text(16, '0');
  for (int i = 0; i < 16; ++i)
    text[static_cast<std::size_t>(i)] = "0123456789abcdef"[hash >> (60 - 4 * i) & 15];
  return text;
}

/// The work of one call, and what its steps share.
class Planner {
 public:
  Planner(const Values& values, Io& io)
      : values_(values),
        io_(io),
        in_(values.positionals.at(0)),
        config_(quant::as_mixed(plan_of(values, opt::kPlanMethod, opt::kPlanScales))),
        options_(write_options("extended", values.text(opt::kDenseType), false)),
        model_(quant::ModelReader::open(in_, quant::FloatLinears::kKeep)),
        context_(make_context(values)) {
    if (!model_->float_linears())
      throw Error(ErrorCode::kInvalidArgument,
                  "'" + in_.string() + "': the linear weights are ternary already: there is nothing to plan");
    quant::plan_linears(config_, model_->config());  // before anything runs
  }

  void run(const fs::path& out) {
    beside_ = quant::bytes_beside_linears(model_->config(), options_);
    const std::uint64_t budget = linear_budget();
    if (can_run()) trial_windows_ = windows_of(values_, trial_text(), *model_, io_);  // before the work
    calibration_ = calibration_of(values_, in_, *model_, context_, quant::StreamOptions{}.memory, io_);
    found_ = quant::check_model(*model_, quant::plan_linears(config_, model_->config()), io_.cancelled);
    for (const std::string& warning : found_.warnings) io_.err << "warning: " << warning << '\n';
    use_calibration(values_, *model_, calibration_, io_);
    linears_ = sensitivity();
    quant::BitAssignment assignment;
    std::optional<quant::LogitMetrics> measured;
    if (values_.has(opt::kBudgetSize)) {
      assignment = with_context("--budget-size, of which " + grouped(static_cast<std::int64_t>(beside_)) +
                                    " bytes go to tensors that are no linears",
                                [&] { return quant::assign_within_bytes(linears_, budget); });
      if (can_run()) measured = measure(assignment);
    } else {
      auto found = quant::assign_within_perplexity(linears_, values_.real(opt::kBudgetPerplexity),
                                                   [&](const quant::BitAssignment& a) { return measure(a); });
      assignment = std::move(found.assignment);
      measured = found.measured;
    }
    const quant::QuantConfig config = quant::assigned_config(config_, model_->config(), linears_, assignment);
    write_file(out, summary(assignment, measured, "# ") + config.to_yaml());
    if (values_.flag(opt::kVerbose)) {
      say_linears(assignment);
      io_.err << quant::describe_inputs(calibration_.inputs());
    }
    io_.err << summary(assignment, measured, "") << "wrote '" << out.string() << "', for `bitnet quantize "
            << in_.string() << " OUT --type extended --plan " << out.string() << "`\n";
  }

 private:
  bool can_run() const { return values_.has(opt::kCalibrate) || values_.has(opt::kEvaluate); }

  const Option& trial_text() const { return values_.has(opt::kEvaluate) ? opt::kEvaluate : opt::kCalibrate; }

  /// Bytes of --budget-size that are left for linears; 0 without it.
  std::uint64_t linear_budget() const {
    if (!values_.has(opt::kBudgetSize)) return 0;
    const std::uint64_t all = checked(values_, opt::kBudgetSize, parse_bytes);
    if (all <= beside_)
      throw UsageError("--budget-size: tensors that are no linears take " +
                       grouped(static_cast<std::int64_t>(beside_)) + " bytes (--dense-type), got " +
                       grouped(static_cast<std::int64_t>(all)));
    return all - beside_;
  }

  ModelTrials& trials() {
    if (!trials_) {
      const auto floats = config_.protect ? quant::FloatLinears::kAsConfigured : quant::FloatLinears::kKeep;
      trials_.emplace(in_, floats, context_, trial_windows_, io_);
    }
    return *trials_;
  }

  std::vector<quant::LinearSensitivity> sensitivity() {
    quant::SensitivityOptions options;
    options.ways = ways_of(values_);
    options.calibration = calibration_.seen.get();
    if (!values_.flag(opt::kEstimate)) options.trials = &trials();
    options.float_type = options_.dense_type;
    const std::string identity = identity_of(values_, in_, *model_, config_);
    const fs::path kept = values_.text(opt::kSensitivity);
    std::error_code ignored;
    if (!kept.empty() && fs::exists(kept, ignored)) {
      options.known = with_context("--sensitivity '" + kept.string() + "'", [&] {
        return quant::sensitivity_from_json(read_file(kept), identity, model_->config());
      });
      io_.err << "note: " << options.known.size() << " linears were measured before (--sensitivity)\n";
    }
    ProgressBar bar(io_, "linears");
    options.on_layer = [&](const std::vector<quant::LinearSensitivity>& done, std::size_t linears) {
      check_cancelled(io_);
      bar.update(static_cast<double>(done.size()), static_cast<double>(linears));
      if (!kept.empty()) write_file(kept, quant::to_json(done, identity));
    };
    auto linears = quant::measure_sensitivity(*context_, *model_, config_, options);
    bar.clear();
    LinearWarnings warnings;
    for (const quant::LinearSensitivity& l : linears)
      for (const std::string& text : l.warnings) warnings.add(l.id, text);
    warnings.say(io_);
    return linears;
  }

  quant::LogitMetrics measure(const quant::BitAssignment& a) {
    check_cancelled(io_);
    const auto m = quant::measure_config(*context_, *model_,
                                         quant::assigned_config(config_, model_->config(), linears_, a),
                                         calibration_.seen.get(), trials());
    if (values_.flag(opt::kVerbose))
      io_.err << human_bytes(a.bytes + beside_) << ": perplexity " << fixed(m.perplexity_other(), 4) << ", "
              << fixed(m.perplexity_other() / m.perplexity_original(), 4) << " times the original's\n";
    return m;
  }

  std::string summary(const quant::BitAssignment& a, const std::optional<quant::LogitMetrics>& m,
                      const std::string& begin) const {
    std::map<std::string, int> ways;
    for (std::size_t i = 0; i < linears_.size(); ++i) {
      const quant::LinearPlan& p = linears_[i].candidates[a.chosen[i]].plan;
      if (found_.is_ternary(linears_[i].id)) {
        ++ways["ternary already"];
        continue;
      }
      const bool scaled = quant::is_ternary(p.method);
      ++ways[std::string(to_string(p.method)) + (scaled ? " " + std::string(to_string(p.scales)) : "")];
    }
    std::string out = begin;
    for (const auto& [name, n] : ways) out += (out == begin ? "" : ", ") + std::to_string(n) + " " + name;
    out += ": " + grouped(static_cast<std::int64_t>(a.bytes + beside_)) + " bytes of tensors, summed " +
           (values_.flag(opt::kEstimate) ? "error " + significant(a.cost, 4)
                                         : "cost " + significant(a.cost, 4) + " nats a token") +
           (a.exact ? "" : " (the search was cut: something better may exist)") + "\n";
    if (m)
      out += begin + "perplexity " + fixed(m->perplexity_original(), 4) + " → " +
             fixed(m->perplexity_other(), 4) + ", KL divergence " + significant(m->mean_kl(), 4) +
             ", all together\n";
    return out;
  }

  void say_linears(const quant::BitAssignment& a) const {
    for (std::size_t i = 0; i < linears_.size(); ++i) {
      io_.err << gguf_name(linears_[i].id) << ':';
      for (const quant::Candidate& c : linears_[i].candidates) {
        const bool taken = &c == &linears_[i].candidates[a.chosen[i]];
        io_.err << (&c == linears_[i].candidates.data() ? " " : ", ") << (taken ? "[" : "")
                << (found_.is_ternary(linears_[i].id) ? "ternary already" : to_string(c.plan.method)) << ' '
                << significant(c.cost, 5) << (taken ? "]" : "");
      }
      io_.err << '\n';
    }
  }

  const Values& values_;
  Io& io_;
  fs::path in_;
  quant::QuantConfig config_;
  quant::WriteOptions options_;
  std::unique_ptr<quant::ModelReader> model_;
  std::shared_ptr<const ExecutionContext> context_;
  std::uint64_t beside_ = 0;  // bytes of tensors that are no linears
  quant::ModelFindings found_;
  Calibration calibration_;
  std::vector<std::vector<TokenId>> trial_windows_;
  std::optional<ModelTrials> trials_;
  std::vector<quant::LinearSensitivity> linears_;
};

int plan(const Values& values, Io& io) {
  const fs::path out = values.positionals.at(1);
  check_options(values);
  for (const fs::path& to : {out, fs::path(values.text(opt::kSensitivity))})
    for (const fs::path& from : {fs::path(values.positionals.at(0)), fs::path(values.text(opt::kPlan))})
      if (!to.empty() && !from.empty() && would_replace(to, from))
        throw UsageError("'" + to.string() + "' is a file of the input");
  check_replaces_no_input(values, out, "'" + out.string() + "': the plan");
  check_directory_of(out, "OUT.yaml");
  if (const fs::path kept = values.text(opt::kSensitivity); !kept.empty()) {
    check_replaces_no_input(values, kept, "--sensitivity '" + kept.string() + "': what was measured");
    check_directory_of(kept, "--sensitivity");
    if (same_file(kept, out)) throw UsageError("--sensitivity: '" + kept.string() + "' is the output");
  }
  Planner(values, io).run(out);
  return kOk;
}

}  // namespace

const Command kPlanCommand{
    .name = "plan",
    .summary = "find which linears deserve more bits, for `quantize --plan`",
    .usage = "IN OUT.yaml (--budget-size SIZE | --budget-perplexity X) --calibrate TEXT",
    .description =
        "Each linear of a float model is made each of the candidates, alone, and the model reads a text with "
        "it: the KL divergence of its predictions says what the candidate costs. The best choice for all "
        "linears together within a size, or the smallest model within a perplexity, goes to OUT.yaml, which "
        "`bitnet quantize --type extended --plan` takes. --estimate runs nothing and takes the error of each "
        "linear's own output: for models that are too large to be run so often. --sensitivity keeps what was "
        "measured for other budgets. docs/guides/quantization.md has more.",
    .example =
        "bitnet plan float-model/ mixed.yaml --calibrate book.txt --budget-size 40MiB\n"
        "bitnet plan float-model/ mixed.yaml --calibrate book.txt --budget-perplexity 1.1 --sensitivity "
        "s.json",
    .arguments = {"IN", "OUT.yaml"},
    .options = {&opt::kBudgetSize, &opt::kBudgetPerplexity, &opt::kPlanMethod, &opt::kPlanScales, &opt::kPlan,
                &opt::kCandidates, &opt::kEstimate, &opt::kSensitivity, &opt::kCalibrate,
                &opt::kCalibrationTokens, &opt::kCalibration, &opt::kForeignCalibration, &opt::kEvaluate,
                &opt::kDenseType, &opt::kThreads, &opt::kIsa, &opt::kMemoryLimit, &opt::kVerbose},
    .body = plan,
};

}  // namespace bitnet::cli
