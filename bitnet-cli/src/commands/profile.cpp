// `bitnet profile memory`: who holds how much of the host's memory while a model runs, and what is left when
// it has gone. What is printed is made in bitnet-core (memory_report.hpp).
#include <optional>
#include <ostream>

#include "bitnet/core/io/atomic_file.hpp"
#include "bitnet/core/memory/hybrid_memory_pool.hpp"
#include "bitnet/core/memory/memory_report.hpp"
#include "bitnet/core/text/utf8.hpp"
#include "commands/commands_list.hpp"
#include "common.hpp"
#include "loading.hpp"

namespace bitnet::cli {
namespace {

/// Runs the model; its text is written nowhere: what counts is the memory that making it takes. The report is
/// made while the model is still there.
void run_model(const Values& values, const std::string& prompt, const ExecutionContext& context,
               inference::InferenceEngine& engine, Io& io) {
  auto options = generation_options(values, io);
  options.sampling.seed = static_cast<std::uint64_t>(choose_seed(values));
  const auto result = engine.generate(prompt, options);
  if (result.error) throw *result.error;
  io.err << speed_line(result) << ", peak memory of the process " << human_bytes(peak_memory_bytes()) << ", "
         << context.threads() << (context.threads() == 1 ? " thread\n" : " threads\n");
}

int profile(const Values& values, Io& io) {
  if (const std::string& what = values.positionals.at(0); what != "memory")
    throw UsageError("'" + what + "': there is only `bitnet profile memory`");
  require(values, opt::kModel);
  const std::string prompt = text_or_file(values, opt::kPrompt, opt::kFile, io).text;
  text::require_utf8(prompt, "the prompt");
  std::optional<AtomicFile> page_file;  // opened before the run, which takes long
  if (values.has(opt::kProfileOutput)) page_file.emplace(report_path(values, opt::kProfileOutput, "page"));
  MemoryPoolOptions options = pool_options(values);
  options.tracking = parse_tracking_level(values.text(opt::kTracking));
  const auto memory = std::make_shared<HybridMemoryPool>(std::move(options));
  std::string text, page;
  {
    const auto context = make_context(values, memory);
    const auto engine = load_engine(values, io, context);
    run_model(values, prompt, *context, *engine, io);
    for (const MemoryResource* pool : engine->model()->backend().memories()) text += memory_text(*pool);
    if (page_file) page = memory_page(*memory);
  }
  io.out << text << leak_text(*memory);
  if (page_file) {
    page_file->write(page);
    page_file->commit();
  }
  return kOk;
}

}  // namespace

const Command kProfileCommand{
    .name = "profile",
    .summary = "say what takes memory while a model runs",
    .usage = "memory -m MODEL -p TEXT | -f FILE [options]",
    .description =
        "Runs the model and prints what its weights, caches and buffers take of the host's memory pool: "
        "totals, "
        "peaks, fragmentation, sizes, tags, use over time, and what is left when the model is gone. -o "
        "writes a "
        "page with charts and the live blocks with who asked for them.",
    .example =
        "bitnet profile memory -m models/bitnet-demo-i2_s.gguf -p \"It was a truth\" -n 64 -o "
        "memory.html",
    .arguments = {"memory"},
    .options = concat(
        {{&opt::kPrompt, &opt::kFile, &opt::kTracking, &opt::kProfileOutput, &opt::kCtxSize, &opt::kKvType},
         engine_options(),
         {&opt::kMaxTokens, &opt::kTemperature, &opt::kSeed, &opt::kVerbose}}),
    .body = profile,
};

}  // namespace bitnet::cli
