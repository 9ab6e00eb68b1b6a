// JSONL lines. Numbers are written so that they read back to the same double, but for the scales of layers.
#include "run_log.hpp"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <nlohmann/json.hpp>

#include "bitnet/core/error.hpp"

namespace bitnet::training {

using Json = nlohmann::ordered_json;

namespace {

/// Six digits of each: curves need no more.
std::vector<double> rounded(std::vector<double> values) {
  for (double& v : values) {
    char text[32];
    std::snprintf(text, sizeof text, "%.6g", v);
    v = std::strtod(text, nullptr);
  }
  return values;
}

}  // namespace

RunLog::RunLog(std::filesystem::path path, bool append)
    : path_(std::move(path)), out_(path_, append ? std::ios::app : std::ios::trunc) {
  if (!out_) throw Error(ErrorCode::kIo, "cannot write '" + path_.string() + "'");
  std::ifstream in(path_, std::ios::binary | std::ios::ate);
  if (in && in.tellg() > 0 && in.seekg(-1, std::ios::end) && in.get() != '\n') out_ << '\n';
}

void RunLog::line(const std::string& json) {
  if (path_.empty()) return;
  out_ << json << '\n' << std::flush;
  if (!out_) throw Error(ErrorCode::kIo, "cannot write '" + path_.string() + "': is the disk full?");
}

void RunLog::start(const TrainConfig& c, std::int64_t step, std::int64_t parameters,
                   const TextFigures& text) {
  const LengthStatistics& l = text.corpus.lengths;
  line(Json{{"type", "start"},
            {"step", step},
            {"steps", c.schedule.steps},
            {"parameters", parameters},
            {"quantization", c.quantization == Quantization::kTernary ? "ternary" : "none"},
            {"quantizer_schedule", std::string(to_string(c.quantizer_schedule.kind))},
            {"learning_rate", c.schedule.peak},
            {"schedule", std::string(to_string(c.schedule.kind))},
            {"batch", c.batch},
            {"length", c.length},
            {"seed", c.seed},
            {"text",
             {{"tokens", l.total},
              {"learned_tokens", text.learned},
              {"documents", l.count},
              {"shortest", l.shortest},
              {"median", l.median},
              {"p99", l.p99},
              {"longest", l.longest},
              {"distinct_tokens", text.corpus.distinct_tokens},
              {"entropy_bits", text.corpus.entropy_bits}}}}
           .dump());
}

void RunLog::write(const Progress& p) {
  line(Json{{"type", "train"},
            {"step", p.step},
            {"tokens", p.tokens},
            {"loss", p.loss},
            {"learning_rate", p.learning_rate},
            {"gradient_norm", p.gradient_norm},
            {"tokens_per_second", p.tokens_per_second},
            {"seconds", p.seconds},
            {"zero_fraction", p.zero_fraction},
            {"flip_rate", p.flip_rate},
            {"layer_scales", rounded(p.layer_scales)},
            {"epoch", p.epoch}}
           .dump());
}

void RunLog::skipped(std::int64_t step, double loss, const LossLevel& level) {
  line(Json{{"type", "skipped"},
            {"step", step},
            {"loss", loss},
            {"mean", level.mean},
            {"deviation", std::sqrt(level.variance)}}
           .dump());
}

void RunLog::write(const char* type, std::int64_t step, const Evaluation& e) {
  line(Json{{"type", type},
            {"step", step},
            {"tokens", e.tokens},
            {"nll", e.nll},
            {"perplexity", e.perplexity},
            {"bits_per_byte", e.bits_per_byte}}
           .dump());
}

void RunLog::write_sample(std::int64_t step, const std::string& prompt, const std::string& text) {
  const Json record{{"type", "sample"}, {"step", step}, {"prompt", prompt}, {"text", text}};
  line(record.dump(-1, ' ', false, Json::error_handler_t::replace));
}

}  // namespace bitnet::training
