// The facade: loads a model, keeps one session for generate() and makes schedulers. No algorithm is here.
#include "bitnet/inference/engine.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <new>
#include <utility>

#include "bitnet/core/error.hpp"
#include "bitnet/core/log.hpp"
#include "bitnet/inference/device_names.hpp"
#include "bitnet/inference/fallback_backend.hpp"
#include "bitnet/inference/layered_backend.hpp"
#include "bitnet/inference/register.hpp"
#include "generator.hpp"
#include "scarce_memory.hpp"

namespace bitnet::inference {
namespace {

BackendRegistry cpu_only() {
  BackendRegistry registry;
  register_cpu_backend(registry);
  return registry;
}

/// Refuses what no model can run in, before one is read for nothing.
void check_precision(const EngineOptions& options) {
  PrecisionPolicy policy = options.precision.value_or(PrecisionPolicy::inference());
  if (options.kv_type) policy.set_kv_type(*options.kv_type);
  policy.validate(Workload::kInference);
}

/// EngineOptions::device as a list, checked with what depends on it.
std::vector<std::string> names_of(const EngineOptions& options) {
  std::vector<std::string> names = split_device_names(options.device);
  for (const std::string& name : names)
    if (names.size() > 1 && (name.empty() || name == "cpu" || name == "auto"))
      throw Error(ErrorCode::kInvalidArgument,
                  fmt::format("the devices '{}': a list has names of devices other than 'cpu', not '{}'",
                              options.device, name));
  if (options.device_layers == kAllLayers) return names;
  if (options.device_layers < 0 && options.device_layers != kAutoLayers)
    throw Error(ErrorCode::kInvalidArgument, fmt::format("{} layers on a device", options.device_layers));
  if (options.device == "cpu")
    throw Error(ErrorCode::kInvalidArgument,
                "layers are to be divided between the CPU and a device, and the device is 'cpu'");
  if (options.device_only && options.device_layers != kAutoLayers)
    throw Error(
        ErrorCode::kInvalidArgument,
        fmt::format("{} layers on the device, and only the device is allowed: the others have no place",
                    options.device_layers));
  return names;
}

LoadOptions load_options_of(const EngineOptions& options) {
  LoadOptions load_options;
  load_options.floats = options.floats;
  load_options.precision = options.precision;
  load_options.head = options.head;
  load_options.progress = options.load_progress;
  return load_options;
}

/// One pass over the tokens that the session has not seen, with drafts behind them while they fit into
/// `chunk` rows. `ids`: reserved for both, where drafts can be.
void decode(Generator& generator, Session& s, std::vector<TokenId>& ids, std::int64_t chunk) {
  const auto rest = generator.tokens().subspan(s.tokens().size());
  const auto drafts = generator.draft(chunk - static_cast<std::int64_t>(rest.size()));
  if (drafts.empty()) {
    generator.advance(s.evaluate(rest, 1, generator.needed_logits()));
    return;
  }
  ids.assign(rest.begin(), rest.end());
  ids.insert(ids.end(), drafts.begin(), drafts.end());
  const auto n_logits = static_cast<std::int64_t>(drafts.size()) + 1;
  const auto seen = static_cast<std::int64_t>(generator.tokens().size());
  const std::span<const float> logits = s.evaluate(ids, n_logits, generator.needed_logits());
  s.truncate(seen + generator.advance(logits));
}

}  // namespace

InferenceEngine::InferenceEngine(const EngineOptions& options) : InferenceEngine(options, cpu_only()) {}

InferenceEngine::InferenceEngine(const EngineOptions& options, const BackendRegistry& registry)
    : options_(options) {
  if (options_.context == nullptr) options_.context = std::make_shared<const ExecutionContext>();
  load(registry);
}

InferenceEngine::~InferenceEngine() = default;

void InferenceEngine::load(const BackendRegistry& registry) {
  check_precision(options_);
  const std::vector<std::string> names = names_of(options_);
  // Before a device is opened: a model that cannot be loaded is no fault of one.
  const ModelFiles files = ModelFiles::open(options_.model, load_options_of(options_));
  const DeviceRequest request{.name = options_.device,
                              .policy = options_.device_policy,
                              .needed_bytes = files.least_bytes(),
                              .fall_back = !options_.device_only};
  std::vector<quant::LoraAdapter> adapters;
  for (const AdapterSource& source : options_.adapters)
    adapters.push_back(quant::read_adapter(source.path, files.reader->config()));
  if (names.size() == 1) {
    registry.open(request, options_.context, [&](OpenedDevice& opened) {
      selection_ = opened.selection;
      if (selection_.device.name == "cpu" && options_.device_layers > 0 &&
          options_.device_layers < kAllLayers)
        throw Error(ErrorCode::kInvalidArgument,
                    fmt::format("{} layers are to be on a device, and '{}' is the CPU ({})",
                                options_.device_layers, options_.device, selection_.reason));
      Backends one;
      one.push_back(std::move(opened.backend));
      load_on(std::move(one), files, adapters);
    });
    return;
  }
  selection_ = registry.select(names.front());
  selection_.device.name = options_.device;
  selection_.reason = fmt::format("{}: asked for, the layers divided among them", options_.device);
  Backends devices;
  for (const std::string& name : names) devices.push_back(registry.create(name, options_.context));
  load_on(std::move(devices), files, adapters);
}

/// The model's layers on `devices`, and on the CPU what is not for them. Sets stages_.
std::unique_ptr<Backend> InferenceEngine::divide(Backends devices, const ModelFiles& files) {
  const ModelConfig& config = files.reader->config();
  stages_ = {{std::string(devices.front()->name()), 0, config.n_layers}};
  const bool whole = devices.size() == 1 && options_.device_layers == kAllLayers;
  if (whole || selection_.device.name == "cpu") return std::move(devices.front());
  const DType stored = files.precision.at(OpClass::kAttention).storage.value_or(DType::kF16);
  const LayerCosts costs = layer_costs(files, {.n_ctx = resolve_context(config, options_.n_ctx),
                                               .chunk_rows = options_.chunk_rows,
                                               .kv_type = options_.kv_type.value_or(stored)});
  std::vector<std::string> names;
  for (const auto& device : devices) names.emplace_back(device->name());
  std::vector<std::size_t> free = sharers(names);
  for (std::size_t d = 0; d < devices.size(); ++d) free[d] = devices[d]->available_memory() / free[d];
  const LayerSplit split = split_layers(costs, free, options_.device_layers);
  if (options_.device_only && split.on_cpu > 0)
    throw Error(ErrorCode::kOutOfMemory,
                fmt::format("{} of {} layers fit into the memory of '{}', and only the device is allowed",
                            config.n_layers - split.on_cpu, config.n_layers, selection_.device.name));
  std::vector<Stage> stages;
  std::int64_t first = 0;
  stages_.clear();
  const auto add = [&](std::unique_ptr<Backend> backend, std::int64_t n) {
    if (n == 0) return;
    stages_.push_back({std::string(backend->name()), first, n});
    first += n;
    stages.push_back({std::move(backend), n});
  };
  add(make_cpu_backend(options_.context), split.on_cpu);
  for (std::size_t d = 0; d < devices.size(); ++d) add(std::move(devices[d]), split.on_device[d]);
  return stages.size() == 1 ? std::move(stages.front().backend)
                            : with_layers_split(std::move(stages), config);
}

void InferenceEngine::load_on(Backends devices, const ModelFiles& files,
                              std::span<const quant::LoraAdapter> adapters) {
  fallback_ops_.clear();
  for (std::unique_ptr<Backend>& device : devices) {
    for (const BackendOp op : missing_ops(*device))
      if (std::find(fallback_ops_.begin(), fallback_ops_.end(), op) == fallback_ops_.end())
        fallback_ops_.push_back(op);
    const bool lacks_some = !device->supports_extended_linears() && files.reader->extended_linears();
    device = with_cpu_fallback(std::move(device), make_cpu_backend(options_.context), options_.device_only,
                               lacks_some);
  }
  std::unique_ptr<Backend> backend = divide(std::move(devices), files);
  backend->set_profiler(options_.profiler);
  backend->take_device_times(options_.device_times);
  model_ = Model::load(files, std::move(backend));
  std::vector<quant::WeightedAdapter> weighted;
  for (std::size_t i = 0; i < adapters.size(); ++i)
    weighted.push_back({&adapters[i], options_.adapters[i].weight});
  adapters_ = weighted.empty() ? nullptr : AdapterSet::build(model_, weighted);
  fallback_weights_ = refused_weights(model_->backend());
  options_.n_ctx = resolve_context(model_->config(), options_.n_ctx);
  if (options_.n_ctx > model_->config().max_position) {
    log(LogLevel::kWarning, fmt::format("a context of {} tokens: the model was trained for {}",
                                        options_.n_ctx, model_->config().max_position));
  }
}

std::int64_t InferenceEngine::n_ctx() const noexcept { return options_.n_ctx; }

void InferenceEngine::limit_context(std::int64_t n) {
  if (n < 1) throw Error(ErrorCode::kInvalidArgument, fmt::format("a context of {} tokens: expected 1 …", n));
  if (session_ == nullptr) options_.n_ctx = std::min(options_.n_ctx, n);
}

Session& InferenceEngine::session() {
  if (session_ == nullptr) {
    SessionOptions options;
    options.n_ctx = options_.n_ctx;
    options.chunk_rows = options_.chunk_rows;
    options.kv_type = options_.kv_type;
    session_ = std::make_unique<Session>(model_, options);
  }
  return *session_;
}

void InferenceEngine::set_adapters(std::shared_ptr<const AdapterSet> adapters) {
  if (adapters != nullptr && &adapters->model() != model_.get())
    throw Error(ErrorCode::kInvalidArgument, "an engine with the adapters of another model");
  adapters_ = std::move(adapters);
}

GenerationResult InferenceEngine::generate(std::string_view prompt, const GenerationOptions& options,
                                           const TextCallback& on_text, const EncodeOptions& encode) {
  const Tokenizer& tokenizer = model_->require_tokenizer();
  std::vector<TokenId> ids = with_context("prompt", [&] { return tokenizer.encode(prompt, encode); });
  if (ids.empty() && tokenizer.bos()) ids.push_back(*tokenizer.bos());
  return generate(ids, options, on_text);
}

GenerationResult InferenceEngine::generate(std::span<const TokenId> prompt, const GenerationOptions& options,
                                           const TextCallback& on_text) {
  Generator generator(*model_, prompt, options, on_text, options_.n_ctx);
  Session& s = session();
  s.set_adapters(options.adapters != nullptr ? options.adapters : adapters_);
  generator.start();
  generator.result().reused_tokens = s.keep_prefix(prompt);
  try {
    std::vector<TokenId> ids;
    if (options.draft > 0)
      ids.reserve(static_cast<std::size_t>(options_.chunk_rows + GenerationOptions::kMaxDraft));
    // max_tokens = 0 leaves nothing to do; otherwise the prompt goes in chunks, so that a cancellation is
    // noticed.
    bool more = !generator.finished() && generator.max_length() > generator.result().prompt_tokens;
    if (!more) generator.finish(FinishReason::kLength);
    while (more) {
      if (generator.cancelled()) {
        generator.finish(FinishReason::kCancelled);
        break;
      }
      const auto rest = generator.tokens().subspan(s.tokens().size());
      const auto chunk = static_cast<std::size_t>(options_.chunk_rows);
      if (rest.size() > chunk) {
        s.evaluate(rest.first(chunk));
      } else {
        decode(generator, s, ids, options_.chunk_rows);
        more = !generator.finished();
      }
    }
  } catch (const Error& e) {
    generator.fail(copy_of(e), true);
  } catch (const std::bad_alloc&) {
    generator.fail(
        error_or_short([] { return Error(ErrorCode::kOutOfMemory, "a forward pass: out of memory"); }), true);
  }
  return std::move(generator.result());
}

std::unique_ptr<BatchScheduler> InferenceEngine::make_scheduler(std::int64_t max_sequences) const {
  SchedulerOptions options;
  options.n_ctx = options_.n_ctx;
  options.max_sequences = max_sequences > 0 ? max_sequences : options_.max_sequences;
  options.kv_memory_bytes = options_.kv_memory_bytes;
  options.step_rows = options_.chunk_rows;
  options.kv_type = options_.kv_type;
  options.pressure = pressure_;
  options.adapters = adapters_;
  return std::make_unique<BatchScheduler>(model_, options);
}

}  // namespace bitnet::inference
