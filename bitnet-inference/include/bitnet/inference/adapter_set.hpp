#pragma once
// LoRA adapters beside a model's weights: y = W·x + Σ weight · scaling · B·(A·x) for every linear that one of
// them has, with the trits as they are. Reading, writing and merging adapters is bitnet-quant's adapter.hpp.
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "bitnet/inference/model.hpp"
#include "bitnet/quant/adapter.hpp"

namespace bitnet::inference {

struct AdapterWeights;

/// An adapter's directory and how strongly it acts (1: as it was trained).
struct AdapterSource {
  std::filesystem::path path;
  float weight = 1;
};

/// One or several adapters that act together, prepared for the backend of one model. The input of A is what
/// the linear is given, before its activations are quantised. Immutable and shared like the Model, which it
/// keeps alive; requests of one batch may have different sets.
class AdapterSet {
 public:
  /// Throws what quant::read_adapter throws, Error(kInvalidArgument) without a source or on a weight that is
  /// not finite, Error(kOutOfMemory).
  static std::shared_ptr<const AdapterSet> load(std::shared_ptr<const Model> model,
                                                std::span<const AdapterSource> sources);
  /// The same from adapters in memory, which are read only here.
  static std::shared_ptr<const AdapterSet> build(std::shared_ptr<const Model> model,
                                                 std::span<const quant::WeightedAdapter> adapters);
  ~AdapterSet();

  const Model& model() const noexcept { return *model_; }
  /// The largest sum of ranks that a linear has.
  std::int64_t rank() const noexcept { return rank_; }
  std::size_t bytes() const noexcept { return bytes_; }  ///< as prepared
  const AdapterWeights& weights() const noexcept { return *weights_; }

 private:
  AdapterSet() = default;
  std::shared_ptr<const Model> model_;
  std::unique_ptr<const AdapterWeights> weights_;
  std::int64_t rank_ = 0;
  std::size_t bytes_ = 0;
};

}  // namespace bitnet::inference
