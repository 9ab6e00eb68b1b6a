#pragma once
// Finished layers of a quantisation in files, so that one that was stopped goes on where it was. Private to
// bitnet-quant.
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "bitnet/quant/quantizer.hpp"

namespace bitnet::quant {

/// One safetensors file a layer, as docs/formats/extended.md has it, with reports and the identity of the run
/// in its metadata. Written whole or not at all.
class LayerStore {
 public:
  /// Makes the directory. `identity`: of everything that the results depend on. Throws Error(kIo).
  LayerStore(std::filesystem::path directory, std::string identity);

  void save(std::int64_t layer, const std::vector<QuantizedLinear>& linears) const;
  /// Those of a layer in the order of `ids`; none where there is no file, where it is another run's, or
  /// damaged.
  std::optional<std::vector<QuantizedLinear>> load(std::int64_t layer, const std::vector<TensorId>& ids,
                                                   const ModelConfig& model) const;

 private:
  std::filesystem::path file(std::int64_t layer) const;
  std::filesystem::path directory_;
  std::string identity_;
};

}  // namespace bitnet::quant
