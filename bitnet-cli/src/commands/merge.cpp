// `bitnet merge`: LoRA adapters into a model's weights. Running them beside the weights is --lora of the
// other commands.
#include <nlohmann/json.hpp>
#include <ostream>

#include "adapters.hpp"
#include "bitnet/quant/adapter.hpp"
#include "bitnet/quant/linear_types.hpp"
#include "commands/commands_list.hpp"
#include "common.hpp"
#include "model_writing.hpp"

namespace bitnet::cli {
namespace {

namespace fs = std::filesystem;
using quant::MergeReport;

std::string percent(double share) { return fixed(100 * share, 2) + " %"; }

void write_json(const std::vector<MergeReport>& reports, Io& io) {
  auto list = nlohmann::ordered_json::array();
  for (const MergeReport& r : reports)
    list.push_back({{"tensor", gguf_name(r.id)},
                    {"update", r.update},
                    {"kept", r.kept},
                    {"error", r.error},
                    {"trits", r.trits},
                    {"flips", r.flips},
                    {"weights", r.weights}});
  io.out << nlohmann::ordered_json{{"linears", list}}.dump(2) << '\n';
}

void write_table(const std::vector<MergeReport>& reports, Io& io) {
  std::int64_t flips = 0, trits = 0;
  double kept = 0, update = 0;
  for (const MergeReport& r : reports) {
    flips += r.flips;
    trits += r.trits;
    kept += r.kept;
    update += r.update;
    io.out << gguf_name(r.id) << ": update " << percent(r.update) << " of the weights' norm, kept "
           << percent(r.kept) << ", error " << percent(r.error);
    if (r.trits > 0) io.out << ", " << grouped(r.flips) << " of " << grouped(r.trits) << " trits changed";
    io.out << '\n';
  }
  const auto n = static_cast<double>(reports.size());
  io.err << reports.size() << " linears merged: update " << percent(update / n)
         << " of the weights' norm on average, kept " << percent(kept / n);
  if (trits > 0) io.err << ", " << grouped(flips) << " of " << grouped(trits) << " trits changed";
  io.err << '\n';
  if (trits > 0)
    io.err << "note: ternary weights keep only what moves them past half of their scale. Where that is too "
              "little, run the adapter beside the weights (--lora)\n";
}

int merge(const Values& values, Io& io) {
  const fs::path in = values.positionals.at(0), out = values.positionals.at(1);
  require(values, opt::kLora);
  const auto model = quant::ModelReader::open(in);
  const DType widest = default_dense_type(*model);
  const std::string type =
      values.given(opt::kConvertType) ? values.text(opt::kConvertType) : default_type(*model, widest, out);
  const std::string dense_type = values.given(opt::kConvertDenseType) ? values.text(opt::kConvertDenseType)
                                                                      : std::string(to_string(widest));
  const bool quantised = has_quantised_linears(*model);
  const bool dense = model->config().weights == WeightKind::kDense && !quantised;
  const auto options = write_options(type, dense_type, dense);
  const auto tokenizer = model->tokenizer();
  check_output_path(out, in, options);
  quant::check_write(out, model->config(), tokenizer.get(), options);
  quant::check_linears(*model, options.type, quant::ScaleValues::kChange);
  check_replaces_no_input(values, out, "'" + out.string() + "': the merged model");
  std::vector<quant::LoraAdapter> adapters;
  const std::vector<inference::AdapterSource> sources = adapter_sources(values);
  for (const auto& source : sources) adapters.push_back(quant::read_adapter(source.path, model->config()));
  std::vector<quant::WeightedAdapter> weighted;
  for (std::size_t i = 0; i < adapters.size(); ++i) weighted.push_back({&adapters[i], sources[i].weight});

  std::vector<MergeReport> reports;
  write_with_progress(
      out, model->config(), tokenizer.get(),
      [&](TensorId id) { return quant::merge(model->read(id), weighted, reports); }, options, io);
  if (values.flag(opt::kJson)) {
    write_json(reports, io);
  } else {
    write_table(reports, io);
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
        "Linears of two planes and of int8 stay what they are and keep more. "
        "The adapter "
        "unchanged, beside the weights, is --lora of run, chat, batch and perplexity.",
    .example = "bitnet merge llama-f16.gguf merged.gguf --lora my-adapter/",
    .arguments = {"IN", "OUT"},
    .options = {&opt::kLora, &opt::kConvertType, &opt::kConvertDenseType, &opt::kJson},
    .body = merge,
};

}  // namespace bitnet::cli
