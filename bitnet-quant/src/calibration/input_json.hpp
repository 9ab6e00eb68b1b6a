#pragma once
// Inputs as JSON, for the functions that put them into a text. Private to bitnet-quant.
#include <nlohmann/json.hpp>
#include <span>

#include "bitnet/quant/input_report.hpp"

namespace bitnet::quant {

/// An array: docs/guides/quantization.md has the keys.
nlohmann::ordered_json json_of(std::span<const InputReport> inputs);

}  // namespace bitnet::quant
