// `bitnet merge`: LoRA adapters into a model's weights. Running them beside the weights is --lora of the
// other commands.
#include <nlohmann/json.hpp>
#include <ostream>

#include "adapters.hpp"
#include "bitnet/quant/adapter.hpp"
#include "commands/commands_list.hpp"
#include "common.hpp"
#include "model_writing.hpp"

namespace bitnet::cli {
namespace {

namespace fs = std::filesystem;
using quant::MergeReport;

std::string percent(double share) { return fixed(100 * share, 2) + " %"; }

/// The container and packing of the input, where --type does not say another.
std::string type_of(const Values& values, const quant::ModelReader& model, const fs::path& out) {
  if (values.given(opt::kType)) return values.text(opt::kType);
  if (out.extension() != ".gguf") return "hf";
  return model.config().weights == WeightKind::kDense ? values.text(opt::kDenseType) : "i2_s";
}

void write_json(const std::vector<MergeReport>& reports, Io& io) {
  auto list = nlohmann::ordered_json::array();
  for (const MergeReport& r : reports)
    list.push_back({{"tensor", gguf_name(r.id)},
                    {"update", r.update},
                    {"kept", r.kept},
                    {"error", r.error},
                    {"flips", r.flips},
                    {"weights", r.weights}});
  io.out << nlohmann::ordered_json{{"linears", list}}.dump(2) << '\n';
}

void write_table(const std::vector<MergeReport>& reports, bool ternary, Io& io) {
  std::int64_t flips = 0, weights = 0;
  double kept = 0, update = 0;
  for (const MergeReport& r : reports) {
    flips += r.flips;
    weights += r.weights;
    kept += r.kept;
    update += r.update;
    io.out << gguf_name(r.id) << ": update " << percent(r.update) << " of the weights' norm, kept "
           << percent(r.kept) << ", error " << percent(r.error);
    if (ternary) io.out << ", " << grouped(r.flips) << " of " << grouped(r.weights) << " trits changed";
    io.out << '\n';
  }
  const auto n = static_cast<double>(reports.size());
  io.err << reports.size() << " linears merged: update " << percent(update / n)
         << " of the weights' norm on average, kept " << percent(kept / n);
  if (ternary) io.err << ", " << grouped(flips) << " of " << grouped(weights) << " trits changed";
  io.err << '\n';
  if (ternary)
    io.err << "note: ternary weights keep only what moves them past half of their scale. Where that is too "
              "little, run the adapter beside the weights (--lora)\n";
}

int merge(const Values& values, Io& io) {
  const fs::path in = values.positionals.at(0), out = values.positionals.at(1);
  require(values, opt::kLora);
  const auto model = quant::ModelReader::open(in);
  const bool dense = model->config().weights == WeightKind::kDense;
  const std::string type = type_of(values, *model, out);
  auto options = write_options(type, values.text(opt::kDenseType), dense);
  check_output_path(out, in, options);
  check_replaces_no_input(values, out, "'" + out.string() + "': the merged model");
  std::vector<quant::LoraAdapter> adapters;
  const std::vector<inference::AdapterSource> sources = adapter_sources(values);
  for (const auto& source : sources) adapters.push_back(quant::read_adapter(source.path, model->config()));
  std::vector<quant::WeightedAdapter> weighted;
  for (std::size_t i = 0; i < adapters.size(); ++i) weighted.push_back({&adapters[i], sources[i].weight});

  std::vector<MergeReport> reports;
  const auto tokenizer = model->tokenizer();
  write_with_progress(
      out, model->config(), tokenizer.get(),
      [&](TensorId id) { return quant::merge(model->read(id), weighted, reports); }, options, io);
  if (values.flag(opt::kJson)) {
    write_json(reports, io);
  } else {
    write_table(reports, !dense, io);
  }
  return kOk;
}

}  // namespace

const Command kMergeCommand{
    .name = "merge",
    .summary = "put LoRA adapters into a model's weights",
    .usage = "IN OUT --lora ADAPTER[:WEIGHT] … [--type TYPE]",
    .description =
        "Adds weight · scaling · B·A of each adapter to the linear weights and writes the model. Float "
        "weights become "
        "the sum. Ternary weights are made ternary again by the scale that they have, which loses most of a "
        "small "
        "update: for each linear it says how much was kept (100 %: all of it) and how many trits changed. "
        "The adapter "
        "unchanged, beside the weights, is --lora of run, chat, batch and perplexity.",
    .example = "bitnet merge llama-f16.gguf merged.gguf --lora my-adapter/",
    .arguments = {"IN", "OUT"},
    .options = {&opt::kLora, &opt::kType, &opt::kDenseType, &opt::kJson},
    .body = merge,
};

}  // namespace bitnet::cli
