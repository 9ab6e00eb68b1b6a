#pragma once
// A model's linears made what a configuration asks for, layer by layer, each with a report of what was lost.
// Reading and writing models is model_io.hpp, where calibration comes from calibration.hpp, the methods are
// post_training.hpp. The same bits with any number of threads.
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "bitnet/core/execution.hpp"
#include "bitnet/quant/calibration.hpp"
#include "bitnet/quant/cancellation.hpp"
#include "bitnet/quant/metrics.hpp"
#include "bitnet/quant/model_io.hpp"
#include "bitnet/quant/quant_config.hpp"
#include "bitnet/quant/weight_histogram.hpp"

namespace bitnet::quant {

/// The warning of linears that are kept because they are ternary already.
inline constexpr std::string_view kAlreadyTernary = "already ternary, kept as it is";

/// What became of one linear. A plain value.
struct LinearReport {
  TensorId id;
  std::int64_t out = 0, in = 0;
  LinearPlan plan;    ///< as it was done, which may differ from what was asked for (warnings)
  bool kept = false;  ///< already ternary, kept as it is; or in full precision
  /// Floats of a BitNet model with the absmean that they were trained with: they are rounded whenever it
  /// runs, so that their error is no loss.
  bool master_weights = false;
  std::uint64_t bytes = 0;  ///< in the files, scales included (QuantizerOptions::output)
  double damping = 0;       ///< of gptq, as much as it took
  WeightMetrics metrics;    ///< of what the files hold against the weights that were there
  WeightHistogram histogram;
  std::vector<std::string> warnings;

  double bits_per_weight() const noexcept;
};

struct QuantizedLinear {
  LogicalTensor tensor;
  LinearReport report;
};

/// One linear, f32 weights [out, in] of a model that was not trained ternary. `input`: of its input, null
/// where there is none; `factor`: of that input's Hessian with the configuration's damping and order, null:
/// made here if it is needed; `output`: as QuantizerOptions::output, null for none. Throws
/// Error(kInvalidArgument) on a method that needs calibration without one, on weights that are not finite,
/// Error(kUnsupported) on floats that the output's type cannot hold, Error(kCancelled), and what the methods
/// throw.
QuantizedLinear quantize_linear(const ExecutionContext& context, TensorId id, std::span<const float> w,
                                std::int64_t out, std::int64_t in, const LinearPlan& plan,
                                const QuantConfig& config, const InputCalibration* input = nullptr,
                                const GptqFactor* factor = nullptr, const WriteOptions* output = nullptr,
                                CancelFlag cancelled = nullptr);

/// Bytes that the largest step of a Quantizer takes, results that wait for the rest of their layer with it,
/// beside the files, the model that calibration runs and its second moments. `memory`:
/// QuantizerOptions::memory, 0 for the least that there is to be had; `calibrated`: it has a calibration.
/// Derived from what the methods hold (src/quantizer/memory_need.cpp); buffers of the context's pool and
/// what the allocator wastes come on top.
std::uint64_t working_bytes(const std::vector<PlannedLinear>& plans, const ModelConfig& model,
                            std::uint64_t memory, bool calibrated, std::size_t threads);

class LayerStore;

struct QuantizerOptions {
  /// What the linears' inputs look like; null: methods that need it are an error before anything is read. Not
  /// owned.
  CalibrationSource* calibration = nullptr;
  /// Of a calibration through what was quantised already: told of each linear when its layer is done. Not
  /// owned.
  ActivationSource* activations = nullptr;
  /// How the result will be written, which reports count bytes and errors by: floats that are kept are
  /// rounded to its dense_type, scales in blocks of TQ1_0 and TQ2_0 to f16. None: kExtended with floats as
  /// they are.
  std::optional<WriteOptions> output = {};
  /// Linears are worked on at the same time as far as what they need fits this; one at least.
  std::uint64_t memory = std::uint64_t{1} << 30;
  /// Directory that keeps finished layers, so that a Quantizer of the same configuration and `identity` goes
  /// on with the next one (docs/guides/quantization.md); empty: none.
  std::filesystem::path work = {};
  /// Of model and calibration: whatever the results depend on beside the configuration.
  std::string identity = {};
  /// Looked at between the steps of a linear, some seconds apart at most for any size of it.
  CancelFlag cancelled = nullptr;
  /// Called on the caller's thread after each linear, in file order within its layer.
  std::function<void(const LinearReport&)> on_linear = {};
};

/// Quantises a model's linears when their layer is asked for. Already ternary weights are kept as they are,
/// be they packed or floats that are trits times scales; float master weights of a model whose configuration
/// says BitNet get absmean, which they were trained with, whatever the plan says. Not thread-safe.
class Quantizer {
 public:
  /// `reader`: opened with FloatLinears::kKeep; must outlive this. Throws Error(kInvalidArgument) as
  /// plan_linears() does, and for methods without the calibration that they need; Error(kUnsupported) as
  /// check_target() does for `output`.
  Quantizer(const ExecutionContext& context, const ModelReader& reader, QuantConfig config,
            QuantizerOptions options = {});
  ~Quantizer();

  const QuantConfig& config() const noexcept { return config_; }
  const std::vector<PlannedLinear>& plans() const noexcept { return plans_; }

  /// The tensor as it is to be stored, as write_model() asks: a linear of a new layer makes the whole layer
  /// be worked on, and each is given out once. Throws Error with the tensor's name, kInvalidArgument where a
  /// value of it is not finite; Error(kCancelled), and then nothing of the layer is kept.
  LogicalTensor read(TensorId id);
  /// Layers that were taken from the work directory.
  std::int64_t resumed_layers() const noexcept { return resumed_; }
  /// Of the linears done so far, in file order.
  const std::vector<LinearReport>& reports() const noexcept { return reports_; }

 private:
  struct Group;
  const WriteOptions* output() const noexcept { return options_.output ? &*options_.output : nullptr; }
  friend std::uint64_t working_bytes(const std::vector<PlannedLinear>& plans, const ModelConfig& model,
                                     std::uint64_t memory, bool calibrated, std::size_t threads);
  void do_layer(std::int64_t layer);
  std::vector<QuantizedLinear> quantize_layer(std::int64_t layer);
  void run(std::vector<Group>& groups);
  QuantizedLinear quantize(const PlannedLinear& planned, const Group& group) const;

  const ExecutionContext& context_;
  const ModelReader& reader_;
  QuantConfig config_;
  QuantizerOptions options_;
  std::vector<PlannedLinear> plans_;
  std::unique_ptr<LayerStore> store_;
  std::int64_t resumed_ = 0;
  std::map<std::pair<TensorRole, std::int64_t>, LogicalTensor> done_;
  std::vector<LinearReport> reports_;
};

}  // namespace bitnet::quant
