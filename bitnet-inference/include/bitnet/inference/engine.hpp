#pragma once
// The facade: a model by its path, on a device by its name, and generate().
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "bitnet/core/device/registry.hpp"
#include "bitnet/core/execution.hpp"
#include "bitnet/inference/adapter_set.hpp"
#include "bitnet/inference/batch_scheduler.hpp"
#include "bitnet/inference/generation.hpp"
#include "bitnet/inference/layer_split.hpp"
#include "bitnet/inference/model.hpp"
#include "bitnet/inference/perplexity.hpp"
#include "bitnet/inference/session.hpp"

namespace bitnet::inference {

struct EngineOptions {
  std::filesystem::path model;  ///< a GGUF file or a Hugging Face directory
  /// A name of the registry, or "auto": then devices without room for the ternary linears are passed over,
  /// and one that fails while the model is loaded is followed by the next one, unless device_only.
  /// Several names with commas between them, none of them "cpu" or "auto": the layers are divided among them.
  std::string device = "cpu";
  /// How many of the model's layers, the last ones, go to the device or devices, the others to the CPU: all,
  /// a number, or kAutoLayers, as many as there is memory for. Of the CPU alone: kAllLayers; where `auto`
  /// takes the CPU, no number but 0.
  std::int64_t device_layers = kAllLayers;
  DevicePolicy device_policy = DevicePolicy::kLatency;  ///< what "auto" looks for
  bool device_only = false;  ///< ops that the device lacks are an error, not the CPU's
  std::shared_ptr<const ExecutionContext> context = {};  ///< null: a default one
  std::int64_t n_ctx = 0;                                ///< 0: the model's own, at most 4096
  std::int64_t chunk_rows = 256;                         ///< rows of one forward pass
  std::optional<DType> kv_type = {};                     ///< of KV caches; none: what the policy says (f16)
  std::size_t kv_memory_bytes = 0;                       ///< of schedulers; 0: from memory headroom
  std::int64_t max_sequences = 0;                        ///< of schedulers; 0: from memory headroom
  quant::FloatLinears floats = quant::FloatLinears::kAsConfigured;
  std::optional<PrecisionPolicy> precision = {};  ///< see LoadOptions
  HeadType head = HeadType::kAuto;                ///< of the embedding and the output head
  std::vector<AdapterSource> adapters = {};       ///< LoRA adapters that act together from the start
  std::function<void(std::int64_t done, std::int64_t total)> load_progress = {};
  Profiler* profiler = nullptr;  ///< of loading and of all that runs on the model; must outlive the engine
  bool device_times = false;     ///< times of the same for Backend::statistics(), without a profiler's waits
};

/// A loaded model with one session. Not thread-safe. Example:
///   InferenceEngine engine({.model = "model.gguf"});
///   auto result = engine.generate("Once upon a time", {}, [](std::string_view text) { std::cout << text; });
///   if (result.error) throw *result.error;
class InferenceEngine {
 public:
  /// The CPU only.
  explicit InferenceEngine(const EngineOptions& options);
  /// Devices of `registry`; ops that the device lacks run on the CPU (see fallback_ops()) unless device_only.
  /// Throws what Model::load throws, Error(kNotFound) for an unknown device, Error(kInvalidArgument) for a
  /// list of devices with "cpu" or "auto" in it and for device_layers of the CPU or, with device_only, other
  /// than all, Error(kUnsupported), also for a policy or a kv_type that inference lacks, before the model is
  /// read. The model's files are opened and checked before any device is.
  InferenceEngine(const EngineOptions& options, const BackendRegistry& registry);
  ~InferenceEngine();

  const std::shared_ptr<const Model>& model() const noexcept { return model_; }
  const Selection& selection() const noexcept { return selection_; }
  /// Ops that the chosen device lacks and the CPU runs, also where the device was asked for by name: it is
  /// not exchanged for another, but completed, unless device_only.
  const std::vector<BackendOp>& fallback_ops() const noexcept { return fallback_ops_; }
  /// Weights that the device refused though it has the op: the CPU has them.
  std::int64_t fallback_weights() const noexcept { return fallback_weights_; }
  /// Where the layers are; one stage where they are all in one place.
  const std::vector<StagePlace>& stages() const noexcept { return stages_; }
  std::int64_t n_ctx() const noexcept;
  /// Makes n_ctx() at most `n` ≥ 1, so that the session takes memory for no more. Without effect on a session
  /// that exists (see session()). Throws Error(kInvalidArgument).
  void limit_context(std::int64_t n);

  /// Encodes `prompt` (see EncodeOptions) and generates. Throws Error(kInvalidArgument) before anything runs:
  /// a prompt that does not fit the context (both numbers named), invalid UTF-8, bad options;
  /// Error(kNotFound) when the model has no tokenizer. Errors while running are in the
  /// result's `error`, together with the text until then. An empty
  /// prompt is BOS alone; without a BOS it is an Error(kInvalidArgument).
  [[nodiscard]] GenerationResult generate(std::string_view prompt, const GenerationOptions& options = {},
                                          const TextCallback& on_text = {}, const EncodeOptions& encode = {});
  /// From ids. Reuses the cache of the longest prefix shared with the previous call (a chat's history);
  /// results are bit-equal with and without.
  [[nodiscard]] GenerationResult generate(std::span<const TokenId> prompt,
                                          const GenerationOptions& options = {},
                                          const TextCallback& on_text = {});

  /// LoRA adapters of every generation from now on that names none itself, and of schedulers made from now
  /// on; null: the weights alone. Throws Error(kInvalidArgument) for a set of another model.
  void set_adapters(std::shared_ptr<const AdapterSet> adapters);
  const std::shared_ptr<const AdapterSet>& adapters() const noexcept { return adapters_; }

  /// What schedulers made from now on heed (SchedulerOptions::pressure).
  void set_pressure(std::shared_ptr<const PressureMonitor> monitor) noexcept {
    pressure_ = std::move(monitor);
  }
  /// A scheduler for many sequences on this model, with this engine's limits; `max_sequences` > 0 is another
  /// limit than the options'.
  std::unique_ptr<BatchScheduler> make_scheduler(std::int64_t max_sequences = 0) const;
  /// The engine's session, made at the first use.
  Session& session();

 private:
  void load(const BackendRegistry& registry);
  using Backends = std::vector<std::unique_ptr<Backend>>;
  void load_on(Backends devices, const ModelFiles& files, std::span<const quant::LoraAdapter> adapters);
  std::unique_ptr<Backend> divide(Backends devices, const ModelFiles& files);
  EngineOptions options_;
  Selection selection_;
  std::shared_ptr<const PressureMonitor> pressure_;
  std::vector<BackendOp> fallback_ops_;
  std::int64_t fallback_weights_ = 0;
  std::vector<StagePlace> stages_;
  std::shared_ptr<const Model> model_;
  std::shared_ptr<const AdapterSet> adapters_;
  std::unique_ptr<Session> session_;
};

}  // namespace bitnet::inference
