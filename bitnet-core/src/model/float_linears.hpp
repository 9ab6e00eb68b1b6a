#pragma once
// What files of a BitNet architecture say where their float linears are used as they are, not taken for
// latent weights: a key of config.json, and of GGUF below `{arch}.`. Private to bitnet-core.
#include <optional>
#include <string>

#include "bitnet/core/error.hpp"
#include "bitnet/core/model/model_config.hpp"

namespace bitnet {

inline constexpr const char* kFloatLinears = "float_linears";
inline constexpr const char* kFullPrecision = "full_precision";

/// Whether a file that `config` is of has to say so: readers take it for a ternary model otherwise.
inline bool says_full_precision(const ModelConfig& config) {
  return config.sub_norms && config.weights == WeightKind::kDense;
}

/// Takes the key's value, if there is one. Throws Error(kUnsupported) for another one than it can have.
inline void read_float_linears(const std::optional<std::string>& value, const std::string& key,
                               ModelConfig& config) {
  if (!value) return;
  if (*value != kFullPrecision)
    throw Error(ErrorCode::kUnsupported,
                "key '" + key + "': expected " + kFullPrecision + ", got '" + *value + "'");
  config.weights = WeightKind::kDense;
}

}  // namespace bitnet
