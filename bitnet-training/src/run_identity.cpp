// The identity of a run as exact text.
#include "run_identity.hpp"

#include <charconv>
#include <cstdint>
#include <cstdio>
#include <span>
#include <string_view>

#include "bitnet/core/error.hpp"
#include "bitnet/core/hash64.hpp"

namespace bitnet::training {
namespace {

std::string exact(double v) {
  char text[64];
  return {text, std::to_chars(text, text + sizeof text, v).ptr};
}

std::string hex(std::uint64_t v) {
  char text[17];
  std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(v));
  return text;
}

std::string describe(const QuantizerOptions& o) {
  std::string text = "scales by " + std::string(to_string(o.granularity)) + " (" +
                     std::string(to_string(o.statistic)) + "), straight through " +
                     std::string(to_string(o.gradient));
  if (o.gradient != StraightThrough::kIdentity) text += " up to " + exact(o.clip);
  return text + ", " + std::to_string(o.activation_bits) + " bits" + (o.hadamard ? ", hadamard" : "");
}

std::string describe(const TrainingText& text) {
  const std::span<const TokenId> tokens = text.documents.tokens;
  std::uint64_t hash = 14695981039346656037u;  // FNV-1a
  for (const TokenId t : tokens)
    for (int shift = 0; shift < 32; shift += 8)
      hash = (hash ^ (static_cast<std::uint32_t>(t) >> shift & 0xFF)) * 1099511628211u;
  return std::to_string(tokens.size()) + " tokens with hash " + hex(hash);
}

}  // namespace

std::string vocabulary_hash(const Tokenizer& tokenizer) {
  Hash64 hash;
  for (TokenId id = 0; id < tokenizer.vocab_size(); ++id)
    hash.add(std::string_view(tokenizer.token_bytes(id, true)));
  return hex(hash.value());
}

std::map<std::string, std::string> identity_of(const TrainConfig& c, const Tokenizer& tokenizer,
                                               const TrainingText& text) {
  std::string data = describe(text);
  // Where a separator in plain text does not say it all. Runs of such texts keep the words of older
  // checkpoints.
  if (text.packs && (c.document_separator.empty() || !text.documents.learned.empty()))
    data += " in " + std::to_string(text.documents.ends.size()) + " documents with hash " +
            hex(Hash64()
                    .add(std::as_bytes(text.documents.ends))
                    .add(std::as_bytes(text.documents.learned))
                    .value());
  return {{"training.seed", std::to_string(c.seed)},
          {"training.length", std::to_string(c.length)},
          {"training.batch", std::to_string(c.batch)},
          {"training.micro_batch", std::to_string(c.micro_batch)},
          {"training.compute", std::string(to_string(c.compute))},
          {"data.document_separator", c.document_separator},
          {"model's quantiser", describe(c.quantizer)},
          {kVocabulary, vocabulary_hash(tokenizer)},
          {"data.train", data}};
}

std::map<std::string, std::string> settings_of(const TrainConfig& c, const TrainingText& validation) {
  std::map<std::string, std::string> all = {
      {kValidation, describe(validation)},
      {kValidationTokens, std::to_string(c.validation_tokens)},
      {"training.quantizer_schedule", std::string(to_string(c.quantizer_schedule.kind))},
      {"training.quantizer_steps", std::to_string(c.quantizer_schedule.steps)},
      {"training.quantizer_layer_by_layer", c.quantizer_schedule.layer_by_layer ? "true" : "false"},
      {"training.steps", std::to_string(c.schedule.steps)},
      {"training.warmup", std::to_string(c.schedule.warmup)},
      {"training.schedule", std::string(to_string(c.schedule.kind))},
      {"training.learning_rate", exact(c.schedule.peak)},
      {"training.second_learning_rate", exact(c.schedule.second_peak)},
      {"training.weight_decay", exact(c.schedule.weight_decay)},
      {"training.beta1", exact(c.adamw.beta1)},
      {"training.beta2", exact(c.adamw.beta2)},
      {"training.eps", exact(c.adamw.eps)},
      {"training.momentum", exact(c.momentum)},
      {"training.clip", exact(c.clip)}};
  if (c.spike_deviations > 0) all["training.spike_deviations"] = exact(c.spike_deviations);
  if (c.patience > 0) all["training.patience"] = std::to_string(c.patience);
  if (c.distillation) {
    const DistillationRun& d = *c.distillation;
    all["distillation.teacher"] = d.teacher.string();
    all["distillation.temperature"] = exact(d.temperature);
    all["distillation.logits"] = exact(d.logits);
    all["distillation.attention"] = exact(d.attention);
    all["distillation.layer"] = std::to_string(d.layer);
    all["distillation.teacher_layer"] = std::to_string(d.teacher_layer);
    all["distillation.relation_heads"] = std::to_string(d.relation_heads);
  }
  return all;
}

QuantizerOptions described_quantizer(const std::string& description) {
  std::string_view rest = description;
  /// What comes before `end`, which is passed over; all that is left where there is no such end.
  const auto until = [&](std::string_view end) {
    const std::size_t at = rest.find(end);
    const std::string_view word = rest.substr(0, at);
    rest.remove_prefix(at == std::string_view::npos ? rest.size() : at + end.size());
    return word;
  };
  QuantizerOptions o;
  try {
    static_cast<void>(until("scales by "));
    o.granularity = scale_granularity_from_string(until(" ("));
    o.statistic = scale_statistic_from_string(until("), straight through "));
    std::string_view gradient = until(", ");
    if (const std::size_t at = gradient.find(" up to "); at != std::string_view::npos) {
      const std::string_view clip = gradient.substr(at + 7);
      double value = 0;  // exact() wrote a double
      std::from_chars(clip.data(), clip.data() + clip.size(), value);
      o.clip = static_cast<float>(value);
      gradient = gradient.substr(0, at);
    }
    o.gradient = straight_through_from_string(gradient);
    const std::string_view bits = until(" bits");
    std::from_chars(bits.data(), bits.data() + bits.size(), o.activation_bits);
    o.hadamard = rest == ", hadamard";
    o.validate();
    if (describe(o) == description) return o;
  } catch (const Error&) {
  }
  throw Error(ErrorCode::kUnsupported, "this version knows no quantiser with " + description);
}

void add_older_identity(std::map<std::string, std::string>& identity,
                        const std::map<std::string, std::string>& ours) {
  identity.try_emplace("training.compute", "f32");
  identity.try_emplace("data.document_separator", "");
  identity.try_emplace("model's quantiser", describe(QuantizerOptions()));
  if (const auto at = ours.find(kVocabulary); at != ours.end()) identity.insert(*at);
}

}  // namespace bitnet::training
