// `bitnet inspect`: what is in a model's files.
#include <algorithm>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <ostream>

#include "bitnet/inference/model.hpp"
#include "bitnet/quant/input_report.hpp"
#include "bitnet/quant/model_io.hpp"
#include "commands/commands_list.hpp"
#include "common.hpp"
#include "model_writing.hpp"

namespace bitnet::cli {
namespace {

using Json = nlohmann::ordered_json;
using quant::ModelReader;

std::string_view family_name(ModelFamily family) {
  switch (family) {
    case ModelFamily::kBitNet25:
      return "BitNet 2B-4T (sub-norms)";
    case ModelFamily::kBitNetOld:
      return "BitNet 1bitLLM (sub-norms)";
    case ModelFamily::kLlama:
      return "Llama (no sub-norms)";
  }
  return "unknown";
}

std::int64_t parameter_count(const ModelReader& model) {
  std::int64_t count = 0;
  for (const TensorId id : model.tensors()) count += tensor_shape(id, model.config()).numel();
  return count;
}

/// What a linear of an extended model is, in words: its kind, which of its weights share a scale.
std::string kind_of(const ModelReader& model, TensorId id) {
  const quant::TensorRows rows = model.rows(id);
  if (rows.int8) return "int8 with scales by row";
  const bool two = rows.planes.size() == 2;
  if (!two && !rows.ternary) return "in full precision";
  const quant::TensorRows& plane = two ? rows.planes[0] : rows;
  const std::string scales = plane.cols_per_scale > 0
                                 ? "scales by groups of " + std::to_string(plane.cols_per_scale) + " columns"
                             : plane.scales.size() == 1 ? "one scale"
                                                        : "scales by row";
  const bool four = rows.activations != ActivationForm::kInt8;
  return (two ? "of two planes with " : "ternary with ") + scales + (four ? " and 4-bit activations" : "");
}

/// How many linears are what, the most first; empty where the configuration says what all of them are.
std::vector<std::pair<std::string, std::int64_t>> extended_kinds(const ModelReader& model) {
  if (!has_quantised_linears(model)) return {};
  std::map<std::string, std::int64_t> counts;
  for (const TensorId id : model.tensors())
    if (is_linear(id.role)) ++counts[kind_of(model, id)];
  std::vector<std::pair<std::string, std::int64_t>> kinds(counts.begin(), counts.end());
  std::stable_sort(kinds.begin(), kinds.end(),
                   [](const auto& a, const auto& b) { return a.second > b.second; });
  return kinds;
}

std::string linears_of(const ModelReader& model) {
  const auto kinds = extended_kinds(model);
  if (kinds.empty())
    return model.config().weights == WeightKind::kTernary ? "ternary (1.58 bit)"
                                                          : "dense (float, used as they are)";
  std::string text = "extended: ";
  for (std::size_t i = 0; i < kinds.size(); ++i)
    text += (i > 0 ? ", " : "") + grouped(kinds[i].second) + " " + kinds[i].first;
  return text;
}

Json config_json(const ModelConfig& c) {
  return {{"architecture", c.architecture},
          {"family", family_name(c.family)},
          {"weights", to_string(c.weights)},
          {"vocab_size", c.vocab_size},
          {"hidden_size", c.hidden_size},
          {"intermediate_size", c.intermediate_size},
          {"n_layers", c.n_layers},
          {"n_heads", c.n_heads},
          {"n_kv_heads", c.n_kv_heads},
          {"head_dim", c.head_dim},
          {"max_position", c.max_position},
          {"activation", to_string(c.activation)},
          {"sub_norms", c.sub_norms},
          {"tied_embeddings", c.tied_embeddings},
          {"rms_norm_eps", c.rms_norm_eps},
          {"rope_theta", c.rope_theta},
          {"bos_id", c.bos_id},
          {"eos_ids", c.eos_ids}};
}

std::string dump(const Json& j) { return j.dump(2, ' ', false, Json::error_handler_t::replace); }

Json to_json(const ModelReader& model, const Tokenizer* tokenizer) {
  Json j{{"format", model.format() == quant::ModelFormat::kGguf ? "gguf" : "hf"},
         {"file_bytes", model.file_bytes()},
         {"parameters", parameter_count(model)},
         {"config", config_json(model.config())}};
  if (const auto kinds = extended_kinds(model); !kinds.empty()) {
    j["config"]["weights"] = "extended";
    for (const auto& [kind, count] : kinds) j["linears"].push_back({{"kind", kind}, {"count", count}});
  }
  if (tokenizer != nullptr) {
    j["tokenizer"] = {{"vocab_size", tokenizer->vocab_size()},
                      {"adds_bos", tokenizer->adds_bos()},
                      {"chat_template", tokenizer->chat_template()}};
  } else {
    j["tokenizer"] = nullptr;
  }
  Json tensors = Json::array();
  for (const TensorId id : model.tensors())
    tensors.push_back({{"name", gguf_name(id)},
                       {"shape", tensor_shape(id, model.config()).dims()},
                       {"type", model.stored_type(id)},
                       {"bytes", model.stored_bytes(id)}});
  j["tensors"] = std::move(tensors);
  j["notes"] = model.notes();
  return j;
}

/// "embedding BF16" and so on, one line for each kind of tensor and type.
void write_types(const ModelReader& model, Io& io) {
  struct Sum {
    std::int64_t tensors = 0, parameters = 0;
    std::uint64_t bytes = 0;
  };
  std::map<std::pair<std::string, std::string>, Sum> sums;
  for (const TensorId id : model.tensors()) {
    const char* kind = is_linear(id.role) ? "linear" : is_norm(id.role) ? "norm" : "embedding and head";
    Sum& sum = sums[{kind, model.stored_type(id)}];
    ++sum.tensors;
    sum.parameters += tensor_shape(id, model.config()).numel();
    sum.bytes += model.stored_bytes(id);
  }
  io.out << "stored as:\n";
  for (const auto& [key, sum] : sums)
    io.out << "  " << key.first << ": " << sum.tensors << " × " << key.second << ", "
           << grouped(sum.parameters) << " parameters, " << human_bytes(sum.bytes) << '\n';
}

void write_text(const ModelReader& model, const Tokenizer* tokenizer, Io& io) {
  const ModelConfig& c = model.config();
  const auto line = [&](std::string_view name, const auto& value) {
    std::string padded(name);
    padded.resize(18, ' ');
    io.out << padded << value << '\n';
  };
  line("format", model.format() == quant::ModelFormat::kGguf ? "GGUF" : "Hugging Face directory");
  line("size", human_bytes(model.file_bytes()));
  line("architecture", c.architecture + ", " + std::string(family_name(c.family)));
  line("linear weights", linears_of(model));
  line("parameters", grouped(parameter_count(model)));
  line("layers", c.n_layers);
  line("hidden size", c.hidden_size);
  line("intermediate", c.intermediate_size);
  line("heads", std::to_string(c.n_heads) + " of " + std::to_string(c.head_dim) + ", " +
                    std::to_string(c.n_kv_heads) + " for keys and values");
  line("activation", to_string(c.activation));
  line("context", c.max_position);
  line("RoPE theta", fixed(c.rope_theta, 0));
  line("vocabulary",
       grouped(c.vocab_size) + (c.tied_embeddings ? ", head tied to the embedding" : ", separate head"));
  line("head when run", std::string(to_string(inference::resolve_head(inference::HeadType::kAuto,
                                                                      c.weights == WeightKind::kTernary))) +
                            " (--head-type)");
  if (tokenizer == nullptr) {
    line("tokenizer", "none");
  } else {
    line("tokenizer",
         grouped(tokenizer->vocab_size()) + " tokens" + (tokenizer->adds_bos() ? ", adds BOS" : ""));
    line("chat template", tokenizer->chat_template().empty() ? "none" : "yes");
  }
  write_types(model, io);
  for (const std::string& note : model.notes()) io.out << "note: " << note << '\n';
}

int inspect(const Values& values, Io& io) {
  if (const auto inputs = quant::inputs_of_file(values.positionals.at(0))) {
    io.out << (values.flag(opt::kJson) ? quant::inputs_to_json(*inputs) : quant::describe_inputs(*inputs));
    return kOk;
  }
  const auto model = ModelReader::open(values.positionals.at(0));
  const auto tokenizer = model->tokenizer();
  if (values.flag(opt::kJson)) {
    io.out << dump(to_json(*model, tokenizer.get())) << '\n';
  } else {
    write_text(*model, tokenizer.get(), io);
  }
  return kOk;
}

}  // namespace

const Command kInspectCommand{
    .name = "inspect",
    .summary = "say what is in a model, or in a calibration",
    .usage = "MODEL [--json]",
    .description =
        "MODEL is a GGUF file or a Hugging Face directory: architecture, sizes, types, tokenizer; --json "
        "lists "
        "every tensor. Of what `quantize --save-calibration` wrote, the inputs of the linears are listed: "
        "ranges, "
        "outliers, and what activations of 8 and 4 bits lose; --json has the histograms, too.",
    .example =
        "bitnet inspect models/bitnet-demo-i2_s.gguf\nbitnet inspect --json "
        "models/bitnet-demo-i2_s.gguf | jq .config",
    .arguments = {"MODEL"},
    .options = {&opt::kJson},
    .body = inspect,
};

}  // namespace bitnet::cli
