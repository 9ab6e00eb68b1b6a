// Training configurations: yaml → TrainConfig, every key known, every message with file and line.
#include "bitnet/training/config.hpp"

#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "bitnet/core/error.hpp"
#include "bitnet/core/io/atomic_file.hpp"

namespace bitnet::training {
namespace {

constexpr std::uint64_t kMaxConfigBytes = 1 << 20;
constexpr std::int64_t kMaxContext = 1 << 20;
constexpr double kMaxParameters = 4e9;

/// One mapping of the file; hands out its keys and refuses those that nobody asked for.
class Section {
 public:
  Section(std::string file, std::string name, YAML::Node node)
      : file_(std::move(file)), name_(std::move(name)), node_(std::move(node)) {
    if (node_.IsDefined() && !node_.IsMap() && !node_.IsNull())
      fail(node_, "'" + name_ + "' must be a mapping");
  }

  template <class T>
  void read(const char* key, T& value, bool required = false) {
    known_[key] = true;
    const YAML::Node n = node_.IsMap() ? node_[key] : YAML::Node(YAML::NodeType::Undefined);
    if (!n.IsDefined()) {
      if (required) fail(node_, "section '" + name_ + "' needs the key '" + key + "'");
      return;
    }
    try {
      assign(n, value);
    } catch (const YAML::Exception&) {
      fail(n, "'" + name_ + "." + key + "' must be " + expectation(value));
    } catch (const Error& e) {
      fail(n, "'" + name_ + "." + key + "': " + e.what());
    }
  }

  void refuse_unknown() const {
    if (!node_.IsMap()) return;
    for (const auto& entry : node_) {
      const auto key = entry.first.as<std::string>();
      if (known_.contains(key)) continue;
      std::string all;
      for (const auto& [k, unused] : known_) all += (all.empty() ? "" : ", ") + k;
      fail(entry.first, "unknown key '" + key + "' in '" + name_ + "'; known are " + all);
    }
  }

 private:
  [[noreturn]] void fail(const YAML::Node& at, const std::string& what) const {
    const int line = at.IsDefined() && at.Mark().line >= 0 ? at.Mark().line + 1 : 1;
    throw Error(ErrorCode::kInvalidArgument, file_ + ":" + std::to_string(line) + ": " + what);
  }
  static void assign(const YAML::Node& n, std::filesystem::path& v) { v = n.as<std::string>(); }
  static void assign(const YAML::Node& n, ScheduleKind& v) { v = schedule_from_string(n.as<std::string>()); }
  static void assign(const YAML::Node& n, Quantization& v) {
    const auto s = n.as<std::string>();
    if (s == "ternary") {
      v = Quantization::kTernary;
    } else if (s == "none") {
      v = Quantization::kNone;
    } else {
      throw Error(ErrorCode::kInvalidArgument, "unknown quantization '" + s + "': expected ternary or none");
    }
  }
  template <class T>
  static void assign(const YAML::Node& n, T& v) {
    v = n.as<T>();
  }
  static std::string expectation(const std::int64_t&) { return "a whole number"; }
  static std::string expectation(const std::uint64_t&) { return "a whole number, not negative"; }
  static std::string expectation(const double&) { return "a number"; }
  static std::string expectation(const float&) { return "a number"; }
  template <class T>
  static std::string expectation(const T&) {
    return "a word";
  }

  std::string file_, name_;
  YAML::Node node_;
  std::map<std::string, bool> known_;
};

void read_model(Section s, TrainConfig& c) {
  ModelConfig& m = c.model;
  m.architecture = "bitnet-b1.58";
  s.read("vocab_size", m.vocab_size, true);
  s.read("hidden_size", m.hidden_size, true);
  s.read("intermediate_size", m.intermediate_size, true);
  s.read("layers", m.n_layers, true);
  s.read("heads", m.n_heads, true);
  m.n_kv_heads = m.n_heads;
  s.read("kv_heads", m.n_kv_heads);
  m.head_dim = m.n_heads > 0 ? m.hidden_size / m.n_heads : 0;
  s.read("head_dim", m.head_dim);
  s.read("context", m.max_position, true);
  s.read("rope_theta", m.rope_theta);
  s.read("rms_norm_eps", m.rms_norm_eps);
  s.read("quantization", c.quantization);
  s.read("init_deviation", c.init_deviation);
  m.weights = c.quantization == Quantization::kTernary ? WeightKind::kTernary : WeightKind::kDense;
  s.refuse_unknown();
}

void read_data(Section s, TrainConfig& c) {
  s.read("train", c.train, true);
  s.read("validation", c.validation, true);
  s.read("held_out", c.held_out);
  s.read("tokenizer", c.tokenizer);
  s.read("validation_tokens", c.validation_tokens);
  s.refuse_unknown();
}

void read_training(Section s, TrainConfig& c) {
  s.read("steps", c.schedule.steps, true);
  s.read("warmup", c.schedule.warmup);
  s.read("schedule", c.schedule.kind);
  s.read("learning_rate", c.schedule.peak, true);
  s.read("second_learning_rate", c.schedule.second_peak);
  s.read("weight_decay", c.schedule.weight_decay);
  s.read("beta1", c.adamw.beta1);
  s.read("beta2", c.adamw.beta2);
  s.read("eps", c.adamw.eps);
  s.read("clip", c.clip);
  c.length = c.model.max_position;
  s.read("length", c.length);
  s.read("batch", c.batch);
  s.read("micro_batch", c.micro_batch);
  s.read("seed", c.seed);
  s.refuse_unknown();
}

void read_output(Section s, TrainConfig& c) {
  s.read("directory", c.output, true);
  s.read("checkpoint_minutes", c.checkpoint_minutes);
  s.read("log_every", c.log_every);
  s.read("evaluate_every", c.evaluate_every);
  s.refuse_unknown();
}

}  // namespace

TrainConfig TrainConfig::from_yaml_file(const std::filesystem::path& path) {
  return from_yaml(read_file(path, kMaxConfigBytes, FileKind::kAny), path.string());
}

TrainConfig TrainConfig::from_yaml(std::string_view text, const std::string& name) {
  try {
    const YAML::Node root = YAML::Load(std::string(text));
    if (!root.IsMap())
      throw Error(ErrorCode::kInvalidArgument,
                  name + ":1: expected the sections model, data, training and output");
    const char* const sections[] = {"model", "data", "training", "output"};
    for (const auto& entry : root) {
      const auto key = entry.first.as<std::string>();
      if (std::find(std::begin(sections), std::end(sections), key) == std::end(sections))
        throw Error(ErrorCode::kInvalidArgument, name + ":" + std::to_string(entry.first.Mark().line + 1) +
                                                     ": unknown section '" + key +
                                                     "'; known are model, data, training, output");
    }
    TrainConfig c;
    read_model(Section(name, "model", root["model"]), c);
    read_data(Section(name, "data", root["data"]), c);
    read_training(Section(name, "training", root["training"]), c);
    read_output(Section(name, "output", root["output"]), c);
    with_context(name, [&] { c.validate(); });
    return c;
  } catch (const YAML::Exception& e) {
    throw Error(ErrorCode::kInvalidArgument,
                name + ":" + std::to_string(std::max(e.mark.line, 0) + 1) + ": " + std::string(e.msg));
  }
}

void TrainConfig::validate() const {
  const auto require = [](bool holds, const std::string& rule) {
    if (!holds) throw Error(ErrorCode::kInvalidArgument, rule);
  };
  const auto positive = [&](std::int64_t v, const std::string& key) {
    require(v > 0, key + " must be positive, got " + std::to_string(v));
  };
  with_context("model", [&] { model.validate(); });
  // I2_S, in which the ternary model is written at the end, holds rows of whole 128s: say so before the work.
  if (quantization == Quantization::kTernary)
    require(model.hidden_size % 128 == 0 && model.q_dim() % 128 == 0 && model.intermediate_size % 128 == 0,
            "model.hidden_size, heads * head_dim and model.intermediate_size must be multiples of 128");
  require(model.max_position <= kMaxContext,
          "model.context must not be above " + std::to_string(kMaxContext) + " for training");
  double parameters = static_cast<double>(model.vocab_size) * static_cast<double>(model.hidden_size);
  parameters += static_cast<double>(model.n_layers) * static_cast<double>(model.hidden_size) *
                static_cast<double>(2 * model.q_dim() + 2 * model.kv_dim() + 3 * model.intermediate_size);
  require(parameters <= kMaxParameters,
          "the model would have more than 4e9 parameters, which this trainer, with 20 "
          "bytes for each in memory, does not take");
  positive(schedule.steps, "training.steps");
  require(schedule.warmup >= 0 && schedule.warmup < schedule.steps,
          "training.warmup must be below training.steps");
  const auto fraction = [&](double v, const std::string& key) {
    require(v >= 0 && v < 1, key + " must be at least 0 and below 1");
  };
  require(std::isfinite(schedule.peak) && schedule.peak > 0, "training.learning_rate must be positive");
  require(std::isfinite(schedule.second_peak) && schedule.second_peak >= 0,
          "training.second_learning_rate must not be negative");
  require(schedule.peak * schedule.weight_decay < 1 && schedule.weight_decay >= 0,
          "training.weight_decay must not be negative, nor 1 / learning_rate");
  fraction(adamw.beta1, "training.beta1");
  fraction(adamw.beta2, "training.beta2");
  require(adamw.eps > 0, "training.eps must be positive");
  require(std::isfinite(clip) && clip >= 0, "training.clip must not be negative");
  require(std::isfinite(init_deviation) && init_deviation > 0, "model.init_deviation must be positive");
  positive(length, "training.length");
  require(length <= model.max_position, "training.length must not be above model.context");
  positive(batch, "training.batch");
  positive(micro_batch, "training.micro_batch");
  require(batch % micro_batch == 0, "training.micro_batch must divide training.batch");
  require(micro_batch <= (std::int64_t{1} << 24) / length,
          "training.micro_batch is too large for this length");
  positive(validation_tokens, "data.validation_tokens");
  require(checkpoint_minutes > 0, "output.checkpoint_minutes must be positive");
  positive(log_every, "output.log_every");
  positive(evaluate_every, "output.evaluate_every");
  require(!output.empty(), "output.directory must not be empty");
}

}  // namespace bitnet::training
