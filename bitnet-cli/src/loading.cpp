// See loading.hpp.
#include "loading.hpp"

#include <algorithm>
#include <ostream>
#include <random>
#include <utility>

#include "adapters.hpp"
#include "bitnet/inference/fallback_backend.hpp"
#include "bitnet/inference/register.hpp"
#include "common.hpp"
#ifdef BITNET_WITH_GPU
#include "bitnet/gpu/register.hpp"
#endif

namespace bitnet::cli {
namespace {

using inference::InferenceEngine;

void warn_about_rounding(const Values& values, Io& io) {
  if (values.has(opt::kQuantize))
    io.err
        << "warning: --quantize rounds the weights to −1, 0 and 1; a model that was not trained for that is "
           "destroyed by it\n";
}

void say_fallbacks(const InferenceEngine& engine, Io& io) {
  if (!engine.fallback_ops().empty())
    io.err << "note: '" << engine.selection().device.name
           << "' lacks these operations, which run on the CPU: " << inference::list_ops(engine.fallback_ops())
           << '\n';
  if (engine.fallback_weights() > 0)
    io.err << "note: '" << engine.selection().device.name << "' refused "
           << grouped(engine.fallback_weights()) << " weights, which run on the CPU\n";
}

std::string_view describe(inference::HeadType type) {
  return type == inference::HeadType::kInt8  ? "int8, a scale a row"
         : type == inference::HeadType::kF16 ? "f16"
                                             : "as stored";
}

void say_details(const InferenceEngine& engine, const ExecutionContext& context, bool device_given, Io& io) {
  const inference::Model& model = *engine.model();
  const std::string reason =
      device_given ? engine.selection().reason : engine.selection().device.name + ": the default";
  io.err << "device: " << reason << "; " << model.backend().description() << '\n'
         << "instruction set: " << to_string(context.isa()) << ", threads: " << context.threads() << '\n'
         << "model: " << model.config().architecture << ", " << grouped(model.n_parameters())
         << " parameters, " << (model.ternary() ? "ternary" : "dense") << " linear weights, "
         << human_bytes(model.weight_bytes()) << " prepared\n"
         << "embedding and head: " << describe(model.head_type()) << " (--head-type)\n"
         << "context: " << grouped(engine.n_ctx()) << " tokens";
  if (engine.n_ctx() < model.config().max_position)
    io.err << " of the " << grouped(model.config().max_position)
           << " that the model was trained for (--ctx-size)";
  io.err << '\n';
  if (const auto& adapters = engine.adapters())
    io.err << "adapters: rank " << adapters->rank() << " in all, " << human_bytes(adapters->bytes())
           << " (--lora)\n";
  for (const std::string& note : model.notes()) io.err << "note: " << note << '\n';
}

inference::HeadType head_type(const Values& values) {
  const std::string text = values.text(opt::kHeadType);
  for (const auto type :
       {inference::HeadType::kInt8, inference::HeadType::kF16, inference::HeadType::kStored})
    if (text == to_string(type)) return type;
  return inference::HeadType::kAuto;
}

std::int64_t gpu_layers(const Values& values) {
  const std::string text = values.text(opt::kGpuLayers);
  if (text == "all" || !values.has(opt::kGpuLayers)) return inference::kAllLayers;
  const auto n = parse_integer(text);
  if (text != "auto" && (!n || *n < 0))
    throw UsageError("--gpu-layers " + text + ": expected a number of layers from 0 on, auto or all");
  if (values.text(opt::kDevice) == "cpu")
    throw UsageError(
        "--gpu-layers " + text +
        ": the layers are to be divided between the CPU and a device: expected --device with the name of "
        "one (`bitnet devices` lists them), got cpu");
  return n ? *n : inference::kAutoLayers;
}

/// Where the layers are, when they are not all where --device says.
void say_stages(const InferenceEngine& engine, Io& io) {
  const bool divided = engine.stages().size() > 1;
  const bool elsewhere = engine.stages().front().device == "cpu" && engine.selection().device.name != "cpu";
  if (divided || elsewhere) io.err << "note: " << inference::describe(engine.stages()) << '\n';
}

}  // namespace

BackendRegistry make_registry(bool with_gpu, [[maybe_unused]] std::int64_t sub_devices,
                              [[maybe_unused]] std::size_t device_memory) {
  BackendRegistry registry;
  inference::register_cpu_backend(registry);
#ifdef BITNET_WITH_GPU
  gpu::Options options;
  options.sub_devices = sub_devices;
  options.memory_limit = device_memory;
  if (with_gpu) gpu::register_backends(registry, options);
#else
  if (with_gpu) registry.add_note("this build has no GPU support (BITNET_BUILD_GPU)");
#endif
  return registry;
}

std::size_t device_memory_limit(const Values& values) {
  return values.has(opt::kDeviceMemoryLimit) ? checked(values, opt::kDeviceMemoryLimit, parse_limit) : 0;
}

std::int64_t sub_devices(const Values& values, std::string_view device) {
  if (values.has(opt::kSubDevices)) return values.integer(opt::kSubDevices);
  return device.find('/') == std::string_view::npos ? 0 : 2;
}

void check_sub_devices(const Values& values) {
  const std::string device = values.text(opt::kDevice);
  if (values.has(opt::kSubDevices) && device.find('/') == std::string::npos)
    throw UsageError("--sub-devices divides the device whose part --device names, as in opencl:0:0/1; got '" +
                     device + "'");
}

DType kv_type(const Values& values) {
  const std::string name = values.text(opt::kKvType);
  return name == "i8" ? DType::kI8 : name == "f32" ? DType::kF32 : DType::kF16;
}

std::unique_ptr<InferenceEngine> load_engine(const Values& values, Io& io) {
  require(values, opt::kModel);
  return load_engine(values, io, make_context(values));
}

std::unique_ptr<InferenceEngine> load_engine(const Values& values, Io& io,
                                             std::shared_ptr<const ExecutionContext> context,
                                             Profiler* profiler, const ModelFile* instead,
                                             bool device_times) {
  inference::EngineOptions options;
  options.profiler = profiler;
  options.device_times = device_times;
  options.model = instead != nullptr ? instead->path : std::filesystem::path(require(values, opt::kModel));
  if (instead != nullptr) options.floats = instead->floats;
  options.device = values.text(opt::kDevice);
  options.device_policy = device_policy_from_name(values.text(opt::kDevicePolicy));
  options.device_only = values.flag(opt::kDeviceOnly);
  options.device_layers = gpu_layers(values);
  options.context = std::move(context);
  if (values.has(opt::kQuantize)) options.floats = quant::FloatLinears::kTernarise;
  options.head = head_type(values);
  options.adapters = adapter_sources(values);
  options.n_ctx = values.has(opt::kCtxSize) ? values.integer(opt::kCtxSize) : 0;
  if (values.has(opt::kKvType)) options.kv_type = kv_type(values);
  if (values.has(opt::kBatchSize)) options.max_sequences = values.integer(opt::kBatchSize);
  if (!values.flag(opt::kReplicas)) check_sub_devices(values);  // there, of all of them together
  const std::size_t device_memory = device_memory_limit(values);
  warn_about_rounding(values, io);
  std::unique_ptr<InferenceEngine> engine;
  {
    ProgressBar bar(io, "tensors");
    options.load_progress = [&](std::int64_t done, std::int64_t total) {
      check_cancelled(io);
      if (done == total) return bar.clear();  // warnings about the whole model follow
      bar.update(static_cast<double>(done), static_cast<double>(total), "loading");
    };
    engine = io.devices != nullptr
                 ? std::make_unique<InferenceEngine>(options, *io.devices)
                 : std::make_unique<InferenceEngine>(
                       options, make_registry(options.device != "cpu", sub_devices(values, options.device),
                                              device_memory));
  }
  say_fallbacks(*engine, io);
  say_stages(*engine, io);
  if (device_memory != 0 && engine->stages().size() == 1 && engine->stages().front().device == "cpu")
    io.err << "note: --device-memory-limit bounds nothing: the model is on the CPU (--memory-limit)\n";
  if (values.flag(opt::kVerbose)) say_details(*engine, *options.context, values.given(opt::kDevice), io);
  return engine;
}

void apply_override(const Option& option, const std::string& text, inference::GenerationOptions& to) {
  inference::SamplerOptions& s = to.sampling;
  const auto integer = [&] { return parse_integer(text).value(); };
  const auto real = [&] { return static_cast<float>(parse_real(text).value()); };
  if (&option == &opt::kMaxTokens) to.max_tokens = integer();
  if (&option == &opt::kTemperature) s.temperature = real();
  if (&option == &opt::kTopK) s.top_k = static_cast<std::int32_t>(integer());
  if (&option == &opt::kTopP) s.top_p = real();
  if (&option == &opt::kMinP) s.min_p = real();
  if (&option == &opt::kRepeatPenalty) s.repeat_penalty = real();
  if (&option == &opt::kRepeatLastN) s.repeat_last_n = static_cast<std::int32_t>(integer());
  if (&option == &opt::kSeed) s.seed = static_cast<std::uint64_t>(integer());
  if (&option == &opt::kStop) to.stop.push_back(text);
}

inference::GenerationOptions generation_options(const Values& values, Io& io) {
  inference::GenerationOptions options;
  for (const Option* o : sampling_options()) {
    if (o == &opt::kStop) {
      for (const std::string& text : values.list(*o)) apply_override(*o, text, options);
    } else if (values.has(*o)) {
      apply_override(*o, values.text(*o), options);
    }
  }
  if (values.has(opt::kDraft)) options.draft = values.integer(opt::kDraft);
  if (values.has(opt::kDraftNgram)) options.draft_ngram = values.integer(opt::kDraftNgram);
  options.special = values.flag(opt::kSpecial);
  if (io.cancelled != nullptr) options.cancellation = inference::CancellationToken(*io.cancelled);
  return options;
}

std::int64_t random_seed() {
  std::random_device device;
  const std::uint64_t bits = (std::uint64_t{device()} << 32) | device();
  return static_cast<std::int64_t>(bits >> 11);
}

std::int64_t choose_seed(const Values& values) {
  return values.has(opt::kSeed) ? values.integer(opt::kSeed) : random_seed();
}

std::shared_ptr<const ChatTemplate> chat_template(const Values& values, const inference::Model& model) {
  const std::string name = values.text(opt::kChatTemplate);
  if (!name.empty() && name != "auto") return ChatTemplate::by_name(name);
  return ChatTemplate::for_model(model.require_tokenizer(), model.config().architecture);
}

void check_chat_template(const Values& values) {
  const std::string name = values.text(opt::kChatTemplate);
  if (!name.empty() && name != "auto") checked(values, opt::kChatTemplate, ChatTemplate::by_name);
}

std::string rate(double tokens, double seconds) {
  return seconds > 0 && tokens > 0 ? fixed(tokens / seconds, 1) : "–";
}

std::string draft_text(std::int64_t drafted, std::int64_t accepted) {
  return grouped(accepted) + " of " + grouped(drafted) + " drafted tokens accepted";
}

std::string speed_line(const inference::GenerationResult& r) {
  // The first token comes out of the prompt's last pass, so generation is timed over the others.
  const std::int64_t fresh = r.prompt_tokens - r.reused_tokens;
  const auto decoded = static_cast<double>(std::max<std::int64_t>(r.completion_tokens - 1, 0));
  std::string text = "prompt " + grouped(r.prompt_tokens) + " tokens";
  if (r.reused_tokens > 0) text += " (" + grouped(r.reused_tokens) + " from the cache)";
  const bool ran = r.completion_tokens > 0 || r.finish_reason != inference::FinishReason::kLength;
  if (!ran) return text + ", generation 0 tokens";  // -n 0: the prompt was not evaluated
  text += " at " + rate(static_cast<double>(fresh), r.timings.prompt_seconds) + " tokens/s, generation " +
          grouped(r.completion_tokens) + " tokens at " + rate(decoded, r.timings.decode_seconds) +
          " tokens/s";
  if (r.drafted_tokens > 0) text += ", " + draft_text(r.drafted_tokens, r.accepted_tokens);
  return text;
}

std::vector<const Option*> concat(std::vector<std::vector<const Option*>> parts) {
  std::vector<const Option*> all;
  for (const auto& part : parts) all.insert(all.end(), part.begin(), part.end());
  return all;
}

const std::vector<const Option*>& engine_options() {
  static const std::vector<const Option*> list{
      &opt::kModel,      &opt::kDevice,    &opt::kSubDevices,  &opt::kDevicePolicy,
      &opt::kDeviceOnly, &opt::kGpuLayers, &opt::kThreads,     &opt::kIsa,
      &opt::kQuantize,   &opt::kHeadType,  &opt::kMemoryLimit, &opt::kDeviceMemoryLimit,
      &opt::kLora};
  return list;
}

}  // namespace bitnet::cli
