#pragma once
// Names of tensors as people are told them. Private to bitnet-quant.
#include <string>
#include <string_view>

#include "bitnet/core/model/tensor_names.hpp"

namespace bitnet::quant {

/// "blk.3.ffn_down" of "blk.3.ffn_down.weight"; other names stay.
inline std::string without_weight(std::string name) {
  constexpr std::string_view kSuffix = ".weight";
  if (name.ends_with(kSuffix)) name.resize(name.size() - kSuffix.size());
  return name;
}

/// The name in GGUF files without ".weight".
inline std::string short_name(TensorId id) { return without_weight(gguf_name(id)); }

}  // namespace bitnet::quant
