#pragma once
// From option values to a loaded model and to the settings of a generation; what run, chat, batch and
// perplexity share.
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "bitnet/cli/app.hpp"
#include "bitnet/core/text/chat_template.hpp"
#include "bitnet/inference/engine.hpp"
#include "options.hpp"

namespace bitnet::cli {

/// The devices of this build. Graphics drivers are only woken when `with_gpu`; then devices that can be
/// divided into `sub_devices` parts, if that is 2 or more, are followed by them. `device_memory`: bytes that
/// each may take of its memory; 0: all.
BackendRegistry make_registry(bool with_gpu, std::int64_t sub_devices = 0, std::size_t device_memory = 0);

/// Of --device-memory-limit, 0 without it.
std::size_t device_memory_limit(const Values& values);

/// Into how many parts devices are to be divided: --sub-devices, or 2 where `device` names a part; else 0.
std::int64_t sub_devices(const Values& values, std::string_view device);
/// Throws UsageError for --sub-devices where --device names no part.
void check_sub_devices(const Values& values);

/// The element type that --kv-type names.
DType kv_type(const Values& values);

/// A file that is loaded instead of --model, and how its float linears are read.
struct ModelFile {
  std::filesystem::path path;
  quant::FloatLinears floats = quant::FloatLinears::kAsConfigured;
};

/// Loads the model of --model on --device with --threads, --isa, --memory-limit, --device-memory-limit,
/// --ctx-size, --kv-type, --quantize and --device-only. Says on io.err which operations run on the CPU
/// instead of the device and, with --verbose, what is used and why.
std::unique_ptr<inference::InferenceEngine> load_engine(const Values& values, Io& io);
/// The same on a machine of the caller's, with a profiler (may be null) that outlives the engine, of another
/// file where one is given, with the device's times in its statistics.
std::unique_ptr<inference::InferenceEngine> load_engine(const Values& values, Io& io,
                                                        std::shared_ptr<const ExecutionContext> context,
                                                        Profiler* profiler = nullptr,
                                                        const ModelFile* instead = nullptr,
                                                        bool device_times = false);

/// Sampling, stop strings, --special and cancellation. The seed is that of --seed, or 0 when there is none.
inference::GenerationOptions generation_options(const Values& values, Io& io);

/// Sets one option of an item over `to`. `text` was checked against the table.
void apply_override(const Option& option, const std::string& text, inference::GenerationOptions& to);

/// --seed, or a random one (below 2^53, so that every JSON reader keeps it).
std::int64_t random_seed();
std::int64_t choose_seed(const Values& values);

/// --chat-template's format ("auto": the model's own), or with no such option the model's own. Throws as
/// ChatTemplate::by_name and for_model.
std::shared_ptr<const ChatTemplate> chat_template(const Values& values, const inference::Model& model);

/// Before a model is loaded: a name that no format has. Throws as ChatTemplate::by_name, or UsageError.
void check_chat_template(const Values& values);

/// "87 of 123 drafted tokens accepted", of --draft.
std::string draft_text(std::int64_t drafted, std::int64_t accepted);

/// "load 0.52 s, prompt 12 tokens at 340.1 tokens/s, …" of one generation.
std::string speed_line(const inference::GenerationResult& result);

/// tokens / seconds as text, "–" when no time was measured.
std::string rate(double tokens, double seconds);

/// Options that load_engine reads.
const std::vector<const Option*>& engine_options();
/// One list of several, for the commands' tables.
std::vector<const Option*> concat(std::vector<std::vector<const Option*>> parts);

}  // namespace bitnet::cli
