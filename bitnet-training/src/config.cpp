// Training configurations: yaml → TrainConfig, every key known, every message with file and line. How a
// section's values are read is config_section.hpp.
#include "bitnet/training/config.hpp"

#include <yaml-cpp/depthguard.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "bitnet/core/error.hpp"
#include "bitnet/core/io/atomic_file.hpp"
#include "bitnet/training/export.hpp"
#include "bitnet/training/sub_norms.hpp"
#include "bitnet/yaml/documents.hpp"
#include "config_section.hpp"

namespace bitnet::training {
namespace {

constexpr std::uint64_t kMaxConfigBytes = 1 << 20;
constexpr std::int64_t kMaxContext = 1 << 20;
constexpr double kMostRate = 1e38;
/// Of numbers that are multiplied with floats: far beyond what is of use, and what they are multiplied with
/// stays a float.
constexpr double kMostFactor = 1e6, kLeastTemperature = 1e-3;
/// Steps whose tokens can be counted, and files that a folder can hold.
constexpr std::int64_t kMostSteps = std::int64_t{1} << 40, kMostCheckpoints = 1'000'000;
constexpr std::int64_t kMostTokens = 1 << 28;  // of a step: their ids and targets take 2 GiB
constexpr double kMaxParameters = 4e9;

/// The sizes of a model that begins with random weights.
void read_sizes(Section& s, ModelConfig& m) {
  m.architecture = "bitnet-b1.58";
  s.read("vocab_size", m.vocab_size, true);
  s.read("hidden_size", m.hidden_size, true);
  s.read("intermediate_size", m.intermediate_size, true);
  s.read("layers", m.n_layers, true);
  s.read("heads", m.n_heads, true);
  m.n_kv_heads = m.n_heads;
  s.read("kv_heads", m.n_kv_heads);
  m.head_dim = 0;
  s.read("head_dim", m.head_dim);
  if (!s.has("head_dim") && m.n_heads > 0) {
    if (m.hidden_size % m.n_heads != 0)
      s.refuse("heads", "must divide model.hidden_size where model.head_dim is not given");
    m.head_dim = m.hidden_size / m.n_heads;
  }
  s.read("context", m.max_position, true);
  s.read("rope_theta", m.rope_theta);
  m.rope_theta = static_cast<float>(m.rope_theta);  // what the files of the trained model hold
  s.read("rms_norm_eps", m.rms_norm_eps);
}

/// Returns whether ternary weights are to come from others, so that quantisation had better grow.
bool read_model(Section s, TrainConfig& c) {
  ModelConfig& m = c.model;
  s.read("base", c.base);
  s.read("original", c.original);
  if (!c.original.empty() && c.base.empty())
    s.refuse("original", "needs model.base, the quantised model that was made of it");
  if (c.base.empty()) read_sizes(s, m);
  s.read("quantization", c.quantization);
  const bool ternary = c.quantization == Quantization::kTernary;
  if (!c.original.empty() && !ternary)
    s.refuse("original", "has no effect without model.quantization: ternary");
  s.read("scales", c.quantizer.granularity);
  bool rounds = !c.original.empty();
  if (!c.base.empty())
    s.with_file("base", [&] {
      const auto base = quant::ModelReader::open(c.base, quant::FloatLinears::kKeep);
      m = with_sub_norms(base->config());
      if (!ternary) return;
      const BaseLinears linears = base_linears(*base);
      if (!s.has("scales")) c.quantizer.granularity = linears.scales;
      c.quantizer.activation_bits = linears.activation_bits();
      rounds = rounds || base_linears(*base, c.quantizer.granularity).rounds();
    });
  s.read("scale_statistic", c.quantizer.statistic);
  s.read("straight_through", c.quantizer.gradient);
  s.read("straight_through_clip", c.quantizer.clip);
  s.read("activation_bits", c.quantizer.activation_bits);
  s.read("hadamard", c.quantizer.hadamard);
  s.read("init_deviation", c.init_deviation);
  m.weights = c.quantization == Quantization::kTernary ? WeightKind::kTernary : WeightKind::kDense;
  s.refuse_unknown();
  return rounds && ternary;
}

void read_lora(Section s, TrainConfig& c) {
  LoraRun& l = c.lora.emplace();
  s.read("base", l.base, true);
  s.read("rank", l.options.rank);
  s.read("alpha", l.options.alpha);
  s.read("dropout", l.options.dropout);
  s.read("rslora", l.options.rslora);
  s.read_targets("targets", l.options.targets);
  s.refuse_unknown();
  s.with_file("base", [&] { c.model = quant::ModelReader::open(l.base)->config(); });
  c.quantization = c.model.weights == WeightKind::kTernary ? Quantization::kTernary : Quantization::kNone;
}

void read_distillation(Section s, TrainConfig& c) {
  DistillationRun& d = c.distillation.emplace();
  s.read("teacher", d.teacher, true);
  s.read("temperature", d.temperature);
  s.read("logits", d.logits);
  s.read("attention", d.attention);
  s.read("layer", d.layer);
  s.read("teacher_layer", d.teacher_layer);
  s.read("relation_heads", d.relation_heads);
  s.refuse_unknown();
}

void read_data(Section s, TrainConfig& c) {
  s.read("train", c.train, true);
  s.read("validation", c.validation, true);
  s.read("held_out", c.held_out);
  s.read("format", c.format);
  s.read("document_separator", c.document_separator);
  s.read("chat_template", c.chat_template);
  s.read("long_records", c.long_records);
  s.read("ignore_unknown_keys", c.ignore_unknown_keys);
  s.read("shards", c.shards);
  s.read("tokenizer", c.tokenizer);
  s.read("validation_tokens", c.validation_tokens);
  s.refuse_unknown();
}

void read_training(Section s, TrainConfig& c, bool from_full_precision) {
  s.read("steps", c.schedule.steps, true);
  if (from_full_precision && !s.has("quantizer_schedule")) {
    c.quantizer_schedule.kind = QuantizerScheduleKind::kLinear;
    c.quantizer_schedule.steps =
        std::clamp<std::int64_t>(c.schedule.steps / 4, 1, c.quantizer_schedule.steps);
  }
  s.read("warmup", c.schedule.warmup);
  s.read("schedule", c.schedule.kind);
  s.read("learning_rate", c.schedule.peak, true);
  s.read("second_learning_rate", c.schedule.second_peak);
  s.read("weight_decay", c.schedule.weight_decay);
  s.read("quantizer_schedule", c.quantizer_schedule.kind);
  s.read("quantizer_steps", c.quantizer_schedule.steps);
  s.read("quantizer_layer_by_layer", c.quantizer_schedule.layer_by_layer);
  s.read("optimizer", c.optimizer);
  s.read("momentum", c.momentum);
  s.read("beta1", c.adamw.beta1);
  s.read("beta2", c.adamw.beta2);
  s.read("eps", c.adamw.eps);
  s.read("clip", c.clip);
  s.read("spike_deviations", c.spike_deviations);
  s.read("patience", c.patience);
  c.length =
      c.lora || !c.base.empty() ? std::min<std::int64_t>(c.model.max_position, 512) : c.model.max_position;
  s.read("length", c.length);
  s.read("batch", c.batch);
  s.read("micro_batch", c.micro_batch);
  s.read("gradient_parts", c.gradient_parts);
  s.read("seed", c.seed);
  s.read("compute", c.compute);
  s.read("activation_checkpointing", c.activation_checkpointing);
  s.refuse_unknown();
}

void read_output(Section s, TrainConfig& c) {
  s.read("directory", c.output, true);
  s.read("checkpoint_minutes", c.checkpoint_minutes);
  s.read("log_every", c.log_every);
  s.read("evaluate_every", c.evaluate_every);
  s.read("keep_best", c.keep_best);
  s.read("keep_checkpoints", c.keep_checkpoints);
  s.read("sample_every", c.sample_every);
  s.read("sample_prompt", c.sample_prompt);
  s.read("sample_tokens", c.sample_tokens);
  s.refuse_unknown();
}

/// Called with a rule that the value of a key must follow, and whether it does; throws if not.
using Require = std::function<void(bool holds, const std::string& key, const std::string& rule)>;

void check_model(const TrainConfig& c, const Require& require) {
  const ModelConfig& model = c.model;
  try {
    model.validate();
  } catch (const Error& e) {
    const std::string message = e.what();  // begins with the field, which some keys name differently
    std::string key = message.substr(0, message.find(' '));
    const std::pair<const char*, const char*> names[] = {{"n_layers", "layers"},
                                                         {"n_heads", "heads"},
                                                         {"n_kv_heads", "kv_heads"},
                                                         {"max_position", "context"}};
    for (const auto& [field, name] : names)
      if (key == field) key = name;
    require(false, "model." + key, "cannot be used: " + message);
  }
  if (c.lora) return;  // the base is there already, and stays as it is
  require(model.max_position <= kMaxContext, "model.context",
          "must not be above " + std::to_string(kMaxContext) + " for training");
  double parameters = static_cast<double>(model.vocab_size) * static_cast<double>(model.hidden_size);
  parameters += static_cast<double>(model.n_layers) * static_cast<double>(model.hidden_size) *
                static_cast<double>(2 * model.q_dim() + 2 * model.kv_dim() + 3 * model.intermediate_size);
  require(parameters <= kMaxParameters, "model",
          "would have more than 4e9 parameters, which this trainer, with 20 bytes for each in memory, does "
          "not take");
  require(c.init_deviation > 0 && c.init_deviation <= kMostFactor, "model.init_deviation",
          "must be positive and at most 1e6");
}

void check_data(const TrainConfig& c, const Require& require) {
  require(c.document_separator.empty() || c.format != TextFormat::kJsonl, "data.document_separator",
          "cannot be used with data.format jsonl: each line is a document");
  try {
    if (!c.chat_template.empty()) static_cast<void>(ChatTemplate::by_name(c.chat_template));
  } catch (const Error& e) {
    require(false, "data.chat_template", "cannot be used: " + std::string(e.what()));
  }
  require(c.validation_tokens > 0, "data.validation_tokens",
          "must be positive, got " + std::to_string(c.validation_tokens));
}

void check_lora(const TrainConfig& c, const Require& require) {
  if (!c.lora) return;
  require(c.quantizer_schedule.kind == QuantizerScheduleKind::kAbrupt, "training.quantizer_schedule",
          "must be abrupt with lora: the base is quantised already, or not at all");
  require(c.optimizer != OptimizerKind::kMuon, "training.optimizer",
          "muon is for the linears' whole weights; with lora adamw, adamw8 and sgd are possible");
  try {
    c.lora->options.validate();
  } catch (const Error& e) {
    const std::string message = e.what();  // begins with the option
    require(false, "lora." + message.substr(0, message.find(':')), "cannot be used: " + message);
  }
  require(c.lora->options.alpha <= kMostFactor, "lora.alpha", "must be at most 1e6");
}

void check_distillation(const TrainConfig& c, const Require& require) {
  if (!c.distillation) return;
  const DistillationRun& d = *c.distillation;
  const auto weight = [&](double v, const char* key) {
    require(v >= 0 && v <= kMostFactor, key, "must not be negative, and at most 1e6");
  };
  require(d.temperature >= kLeastTemperature && d.temperature <= kMostFactor, "distillation.temperature",
          "must be from 1e-3 to 1e6");
  weight(d.logits, "distillation.logits");
  weight(d.attention, "distillation.attention");
  require(d.logits > 0 || d.attention > 0, "distillation.logits",
          "and distillation.attention must not both be 0: the teacher would teach nothing");
  require(d.layer >= -1 && d.layer < c.model.n_layers, "distillation.layer",
          "must be a layer of the model, counted from 0");
  require(d.teacher_layer >= -1, "distillation.teacher_layer", "must be a layer of the teacher");
  require(d.relation_heads >= 0, "distillation.relation_heads", "must not be negative");
  const std::int64_t heads = d.relation_heads > 0 ? d.relation_heads : c.model.n_kv_heads;
  require(c.model.kv_dim() % heads == 0 && c.model.q_dim() % heads == 0, "distillation.relation_heads",
          "must divide the widths of the model's queries and keys");
}

void check_output(const TrainConfig& c, const Require& require) {
  const auto positive = [&](std::int64_t v, const char* key) {
    require(v > 0, key, "must be positive, got " + std::to_string(v));
  };
  require(std::isfinite(c.checkpoint_minutes) && c.checkpoint_minutes >= 0, "output.checkpoint_minutes",
          "must not be negative");
  positive(c.keep_checkpoints, "output.keep_checkpoints");
  require(c.keep_checkpoints <= kMostCheckpoints, "output.keep_checkpoints", "must be at most a million");
  positive(c.log_every, "output.log_every");
  positive(c.evaluate_every, "output.evaluate_every");
  require(!c.output.empty(), "output.directory", "must not be empty");
  require(c.sample_every >= 0, "output.sample_every", "must not be negative");
  require(c.sample_every == 0 || c.lora || c.exports(), "output.sample_every",
          "must be 0 where no file can hold the model: " +
              model_files(c.model, c.quantization, c.quantizer).reason);
  positive(c.sample_tokens, "output.sample_tokens");
  require(c.sample_every == 0 || c.sample_tokens < c.model.max_position, "output.sample_tokens",
          "must be below model.context");
}

/// What another setting makes idle is a mistake that is found after the run.
void check_effect(const TrainConfig& c, const Require& require) {
  const QuantizerOptions& q = c.quantizer;
  const QuantizerOptions plain;
  const bool ternary = c.quantization == Quantization::kTernary && !c.lora;
  const auto needs = [&](bool idle, const char* key, const char* what) {
    require(!idle, key, "has no effect without " + std::string(what));
  };
  const char* const trained = "model.quantization: ternary";
  needs(!ternary && q.granularity != plain.granularity, "model.scales", trained);
  needs(!ternary && q.statistic != plain.statistic, "model.scale_statistic", trained);
  needs(!ternary && q.gradient != plain.gradient, "model.straight_through", trained);
  needs(!ternary && q.activation_bits != plain.activation_bits, "model.activation_bits", trained);
  needs(!ternary && q.hadamard, "model.hadamard", trained);
  const QuantizerSchedule& s = c.quantizer_schedule;
  const bool abrupt = s.kind == QuantizerScheduleKind::kAbrupt;
  needs(!ternary && !abrupt, "training.quantizer_schedule", "model.quantization: ternary, trained in whole");
  const char* const grows = "training.quantizer_schedule: linear, exponential or sigmoid";
  needs(abrupt && s.layer_by_layer, "training.quantizer_layer_by_layer", grows);
  needs(abrupt && s.steps != QuantizerSchedule().steps, "training.quantizer_steps", grows);
  needs(q.gradient == StraightThrough::kIdentity && q.clip != plain.clip, "model.straight_through_clip",
        "model.straight_through: clipped or learned_scale");
  const AdamWOptions adamw;
  const char* const moments = "training.optimizer: adamw, adamw8 or muon";
  const bool has_moments = c.optimizer != OptimizerKind::kSgd;
  needs(!has_moments && c.adamw.beta1 != adamw.beta1, "training.beta1", moments);
  needs(!has_moments && c.adamw.beta2 != adamw.beta2, "training.beta2", moments);
  needs(!has_moments && c.adamw.eps != adamw.eps, "training.eps", moments);
  const bool has_momentum = c.optimizer == OptimizerKind::kSgd || c.optimizer == OptimizerKind::kMuon;
  needs(!has_momentum && c.momentum != TrainConfig().momentum, "training.momentum",
        "training.optimizer: sgd or muon");
  needs(c.schedule.kind != ScheduleKind::kTwoStage && c.schedule.second_peak != 0,
        "training.second_learning_rate", "training.schedule: two_stage");
}

void check(const TrainConfig& c, const Require& require) {
  const auto positive = [&](std::int64_t v, const char* key) {
    require(v > 0, key, "must be positive, got " + std::to_string(v));
  };
  const auto fraction = [&](double v, const char* key) {
    require(v >= 0 && v < 1, key, "must be at least 0 and below 1");
  };
  check_model(c, require);
  check_lora(c, require);
  check_distillation(c, require);
  try {
    c.quantizer.validate();
  } catch (const Error& e) {
    require(false,
            c.quantizer.activation_bits == 8 || c.quantizer.activation_bits == 4
                ? "model.straight_through_clip"
                : "model.activation_bits",
            "cannot be used: " + std::string(e.what()));
  }
  check_effect(c, require);
  const Schedule& schedule = c.schedule;
  positive(schedule.steps, "training.steps");
  require(schedule.steps <= kMostSteps, "training.steps", "must be at most 2^40");
  if (c.quantizer_schedule.kind != QuantizerScheduleKind::kAbrupt) {
    positive(c.quantizer_schedule.steps, "training.quantizer_steps");
    require(c.quantizer_schedule.steps <= schedule.steps, "training.quantizer_steps",
            "must not be above training.steps: the model would end half quantised");
  }
  require(schedule.warmup >= 0 && schedule.warmup < schedule.steps, "training.warmup",
          "must be below training.steps");
  require(schedule.peak > 0 && schedule.peak <= kMostRate, "training.learning_rate",
          "must be positive and at most 1e38, what a float holds");
  require(schedule.second_peak >= 0 && schedule.second_peak <= kMostRate, "training.second_learning_rate",
          "must not be negative, and at most 1e38, what a float holds");
  require(schedule.peak * schedule.weight_decay < 1 && schedule.weight_decay >= 0, "training.weight_decay",
          "must not be negative, nor 1 / learning_rate");
  fraction(c.adamw.beta1, "training.beta1");
  fraction(c.adamw.beta2, "training.beta2");
  fraction(c.momentum, "training.momentum");
  require(c.adamw.eps > 0 && c.adamw.eps <= 1, "training.eps", "must be positive and at most 1");
  require(std::isfinite(c.clip) && c.clip >= 0, "training.clip", "must not be negative");
  require(std::isfinite(c.spike_deviations) && c.spike_deviations >= 0, "training.spike_deviations",
          "must not be negative");
  require(c.patience >= 0, "training.patience", "must not be negative");
  positive(c.length, "training.length");
  require(c.length <= c.model.max_position, "training.length", "must not be above model.context");
  positive(c.batch, "training.batch");
  require(c.batch <= kMostTokens / c.length, "training.batch",
          "must not be more than " + std::to_string(kMostTokens / c.length) + " sequences of this length");
  positive(c.micro_batch, "training.micro_batch");
  require(c.batch % c.micro_batch == 0, "training.micro_batch", "must divide training.batch");
  require(c.gradient_parts == 0 || (c.gradient_parts > 0 && c.batch % c.gradient_parts == 0),
          "training.gradient_parts", "must divide training.batch");
  require(c.micro_batch <= (std::int64_t{1} << 24) / c.length, "training.micro_batch",
          "is too large for this length");
  try {
    c.precision().validate(Workload::kTraining);
  } catch (const Error& e) {
    require(false, "training.compute", "cannot be " + std::string(to_string(c.compute)) + ": " + e.what());
  }
  check_data(c, require);
  check_output(c, require);
}

}  // namespace

std::string_view to_string(OptimizerKind kind) noexcept {
  switch (kind) {
    case OptimizerKind::kAdamW:
      return "adamw";
    case OptimizerKind::kAdamW8:
      return "adamw8";
    case OptimizerKind::kSgd:
      return "sgd";
    case OptimizerKind::kMuon:
      return "muon";
  }
  return "unknown";
}

OptimizerKind optimizer_from_string(std::string_view name) {
  for (const auto k :
       {OptimizerKind::kAdamW, OptimizerKind::kAdamW8, OptimizerKind::kSgd, OptimizerKind::kMuon})
    if (to_string(k) == name) return k;
  throw Error(ErrorCode::kInvalidArgument,
              "unknown optimizer '" + std::string(name) + "': expected adamw, adamw8, sgd or muon");
}

bool TrainConfig::exports() const { return !lora && model_files(model, quantization, quantizer).directory; }

TextOptions TrainConfig::text_options() const {
  return {format, document_separator, chat_template, long_records, ignore_unknown_keys, length, shards};
}

TrainConfig TrainConfig::from_yaml_file(const std::filesystem::path& path) {
  return from_yaml(read_file(path, kMaxConfigBytes, FileKind::kAny), path.string());
}

TrainConfig TrainConfig::from_yaml(std::string_view text, const std::string& name) {
  try {
    const std::vector<YAML::Node> documents = yaml::load_all(std::string(text));
    if (documents.size() > 1) fail_at(name, line_of(documents[1]), "a second document; expected one");
    if (documents.empty() || !documents[0].IsMap())
      fail_at(name, 1, "expected the sections model, data, training and output");
    const YAML::Node& root = documents[0];
    Lines lines;
    add_keys(name, root, "", lines);
    const char* const sections[] = {"model", "lora", "distillation", "data", "training", "output"};
    for (const auto& entry : root) {
      const auto key = entry.first.as<std::string>();
      if (std::find(std::begin(sections), std::end(sections), key) == std::end(sections))
        fail_at(name, line_of(entry.first),
                "unknown section '" + key + "'; known are model, lora, distillation, data, training, output");
    }
    TrainConfig c;
    bool from_full_precision = false;
    if (root["lora"].IsDefined()) {
      if (root["model"].IsDefined())
        fail_at(name, lines.at("model"),
                "'model' and 'lora' exclude each other: an adapter's model is its base");
      read_lora(Section(name, "lora", root, lines), c);
    } else {
      from_full_precision = read_model(Section(name, "model", root, lines), c);
    }
    if (root["distillation"].IsDefined()) read_distillation(Section(name, "distillation", root, lines), c);
    read_data(Section(name, "data", root, lines), c);
    read_training(Section(name, "training", root, lines), c, from_full_precision);
    read_output(Section(name, "output", root, lines), c);
    check(c, [&](bool holds, const std::string& key, const std::string& rule) {
      if (holds) return;
      auto line = lines.find(key);
      if (line == lines.end()) line = lines.find(key.substr(0, key.find('.')));
      // The model's section is not there where its base's files say what it is.
      fail_at(name, line == lines.end() ? 1 : line->second, key + " " + rule);
    });
    return c;
  } catch (const YAML::DeepRecursion& e) {
    fail_at(name, std::max(e.mark.line, 0) + 1, "lists or mappings within each other, too deep to be read");
  } catch (const YAML::Exception& e) {
    fail_at(name, std::max(e.mark.line, 0) + 1, e.msg);
  }
}

void TrainConfig::validate() const {
  check(*this, [](bool holds, const std::string& key, const std::string& rule) {
    if (!holds) throw Error(ErrorCode::kInvalidArgument, key + " " + rule);
  });
}

}  // namespace bitnet::training
