// Every linear in every way, one at a time, and what that does to the model. What is made of the figures is
// budget.cpp, their file sensitivity_file.cpp.
#include "bitnet/quant/sensitivity.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <utility>

#include "bitnet/core/error.hpp"
#include "model_io/writer_base.hpp"

namespace bitnet::quant {
namespace {

/// The original's logits, kept from the first run on where there is room.
class OriginalLogits {
 public:
  OriginalLogits(TrialSource& trials, std::uint64_t memory) : trials_(trials) {
    const std::unique_ptr<LogitSource> source = trials.run({});
    vocab_ = source->vocab_size();
    Batch b;
    std::uint64_t bytes = 0;
    while (source->next(b.rows, b.targets)) {
      bytes += b.rows.size() * sizeof(float) + b.targets.size() * sizeof(std::int32_t);
      if (bytes > memory) {
        batches_.clear();
        return;
      }
      batches_.push_back(b);
    }
    kept_ = true;
  }

  std::unique_ptr<LogitSource> open() {
    if (kept_) return std::make_unique<Replay>(*this);
    return trials_.run({});
  }

 private:
  struct Batch {
    std::vector<float> rows;
    std::vector<std::int32_t> targets;
  };
  class Replay final : public LogitSource {
   public:
    explicit Replay(const OriginalLogits& from) : from_(from) {}
    std::int64_t vocab_size() const override { return from_.vocab_; }
    bool next(std::vector<float>& rows, std::vector<std::int32_t>& targets) override {
      rows.clear();
      targets.clear();
      if (at_ == from_.batches_.size()) return false;
      rows = from_.batches_[at_].rows;
      targets = from_.batches_[at_++].targets;
      return true;
    }

   private:
    const OriginalLogits& from_;
    std::size_t at_ = 0;
  };

  TrialSource& trials_;
  std::int64_t vocab_ = 0;
  bool kept_ = false;
  std::vector<Batch> batches_;
};

/// The configuration with every linear that it does not keep in this way.
QuantConfig in_way(const QuantConfig& config, const CandidateWay& way) {
  QuantConfig c = as_mixed(config);
  c.layers.push_back({{"*"}, way.method, way.scales, {}, {}});
  return c;
}

bool known_whole(const std::vector<LinearSensitivity>& known, std::int64_t layer,
                 const std::vector<PlannedLinear>& plans) {
  return std::all_of(plans.begin(), plans.end(), [&](const PlannedLinear& l) {
    return l.id.layer != layer ||
           std::any_of(known.begin(), known.end(), [&](const LinearSensitivity& k) { return k.id == l.id; });
  });
}

/// Linears that stay in full precision because the configuration says so of them, by name.
std::vector<TensorId> kept_by_name(const QuantConfig& config, const ModelConfig& model) {
  QuantConfig otherwise = as_mixed(config);
  if (otherwise.linears.method == WeightMethod::kKeep) otherwise.linears.method = WeightMethod::kInt8;
  std::vector<TensorId> kept;
  for (const PlannedLinear& l : plan_linears(otherwise, model))
    if (l.plan.method == WeightMethod::kKeep) kept.push_back(l.id);
  return kept;
}

/// A source that remembers from how many rows each input is.
class CountedRows final : public CalibrationSource {
 public:
  explicit CountedRows(CalibrationSource& source) : source_(source) {}
  std::shared_ptr<const InputCalibration> find(TensorId input) override {
    auto found = source_.find(input);
    rows_[{input.role, input.layer}] = found->hessian.n_rows();
    return found;
  }
  /// Of an input that was asked for before.
  std::int64_t rows(TensorId input) const { return rows_.at({input.role, input.layer}); }

 private:
  CalibrationSource& source_;
  std::map<std::pair<TensorRole, std::int64_t>, std::int64_t> rows_;
};

/// Quantisers of one model by all ways, and what judges them.
class Trials {
 public:
  Trials(const ExecutionContext& context, const ModelReader& reader, const QuantConfig& config,
         const SensitivityOptions& options)
      : options_(options), kept_(kept_by_name(config, reader.config())) {
    QuantizerOptions how;
    if (options.calibration != nullptr) how.calibration = &rows_.emplace(*options.calibration);
    quantizers_.push_back(std::make_unique<Quantizer>(context, reader, as_mixed(config), how));
    for (const CandidateWay& way : options.ways)
      quantizers_.push_back(std::make_unique<Quantizer>(context, reader, in_way(config, way), how));
  }

  const std::vector<PlannedLinear>& plans() const { return quantizers_.front()->plans(); }

  LinearSensitivity measure(TensorId id) {
    LinearSensitivity s{id, {}};
    bool fixed = std::find(kept_.begin(), kept_.end(), id) != kept_.end();  // whatever the way
    for (const auto& q : quantizers_) {
      const LogicalTensor tensor = q->read(id);  // of all, or their next layers would begin without it
      const LinearReport& report = *std::find_if(q->reports().begin(), q->reports().end(),
                                                 [&](const LinearReport& r) { return r.id == id; });
      const auto same = [&](const Candidate& c) { return c.plan == report.plan; };
      if (std::any_of(s.candidates.begin(), s.candidates.end(), same) || (fixed && !s.candidates.empty()))
        continue;
      // Ternary already. A plan or a candidate may be to keep it, which leaves it the other ways.
      if (q == quantizers_.front() && report.kept && report.plan.method != WeightMethod::kKeep) fixed = true;
      if (tensor.ternary && report.kept) fixed = true;
      s.candidates.push_back(judge(tensor, report));
      add_warnings(report, s.warnings);
    }
    return s;
  }

 private:
  void add_warnings(const LinearReport& report, std::vector<std::string>& warnings) const {
    std::vector<std::string> more = report.kept ? std::vector<std::string>() : report.warnings;
    if (options_.trials == nullptr)
      more.push_back(too_few_rows(CalibrationUse::kSecondMoments,
                                  rows_->rows({input_role(report.id.role), report.id.layer}), report.in,
                                  "estimates of output errors"));
    for (std::string& text : more)
      if (!text.empty() && std::find(warnings.begin(), warnings.end(), text) == warnings.end())
        warnings.push_back(std::move(text));
  }

  Candidate judge(const LogicalTensor& tensor, const LinearReport& report) {
    Candidate c;
    c.plan = report.plan;
    c.bytes = model_io::linear_bytes(tensor, LinearType::kExtended, options_.float_type);
    if (report.metrics.output_signal > 0) c.output_error = report.metrics.output_error();
    if (options_.trials != nullptr && !report.kept) {
      if (!original_) original_.emplace(*options_.trials, options_.logit_memory);
      const auto before = original_->open();
      const auto after = options_.trials->run(
          [&](TensorId id) { return id == report.id ? std::optional(tensor) : std::nullopt; });
      const LogitMetrics m = compare_logits(*before, *after);
      c.kl = m.mean_kl();
      if (m.positions > 0) c.loss_change = (m.nll_other - m.nll_original) / static_cast<double>(m.positions);
    }
    c.cost = options_.trials != nullptr ? c.kl : c.output_error;
    return c;
  }

  const SensitivityOptions& options_;
  std::vector<TensorId> kept_;
  std::optional<CountedRows> rows_;                     // of the calibration, where there is one
  std::vector<std::unique_ptr<Quantizer>> quantizers_;  // the configuration's own first
  std::optional<OriginalLogits> original_;
};

}  // namespace

CandidateWay candidate_way_from_string(std::string_view text) {
  CandidateWay way;
  const std::size_t colon = text.find(':');
  way.method = weight_method_from_string(text.substr(0, colon));
  if (colon != std::string_view::npos) way.scales = scale_unit_from_string(text.substr(colon + 1));
  return way;
}

std::vector<LinearSensitivity> measure_sensitivity(const ExecutionContext& context, const ModelReader& reader,
                                                   const QuantConfig& config,
                                                   const SensitivityOptions& options) {
  if (options.trials == nullptr && options.calibration == nullptr)
    throw Error(ErrorCode::kInvalidArgument,
                "sensitivity needs a model that runs, or calibration data for the estimate");
  Trials trials(context, reader, config, options);
  std::vector<LinearSensitivity> all;
  for (std::int64_t layer = 0; layer < reader.config().n_layers; ++layer) {
    if (known_whole(options.known, layer, trials.plans())) {
      for (const LinearSensitivity& k : options.known)
        if (k.id.layer == layer) all.push_back(k);
      continue;
    }
    for (const PlannedLinear& l : trials.plans())
      if (l.id.layer == layer)
        all.push_back(with_context(fmt::format("sensitivity of '{}'", gguf_name(l.id)),
                                   [&] { return trials.measure(l.id); }));
    if (options.on_layer) options.on_layer(all, trials.plans().size());
  }
  return all;
}

LogitMetrics measure_config(const ExecutionContext& context, const ModelReader& reader,
                            const QuantConfig& config, CalibrationSource* calibration, TrialSource& trials) {
  QuantizerOptions how;
  how.calibration = calibration;
  Quantizer quantizer(context, reader, config, how);
  const auto before = trials.run({});
  const auto after = trials.run([&](TensorId id) { return std::optional(quantizer.read(id)); });
  return compare_logits(*before, *after);
}

}  // namespace bitnet::quant
