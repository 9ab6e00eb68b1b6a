#pragma once
// Which types of files hold which linears, asked before anything is written. What a plan will make of a model
// is quant_config.hpp's check_target(). Pure functions, thread-safe.
#include <array>
#include <optional>
#include <string>
#include <string_view>

#include "bitnet/quant/model_io.hpp"

namespace bitnet::quant {

/// The types that hold linears which are no floats.
inline constexpr std::array kQuantisedTypes{LinearType::kHf, LinearType::kI2_S, LinearType::kTQ1_0,
                                            LinearType::kTQ2_0, LinearType::kExtended};

/// "hf", "i2_s", "tq1_0", "tq2_0", "dense", "extended"
std::string_view to_string(LinearType type) noexcept;

/// How trits lie in files of a type; none in those of kDense and kExtended.
std::optional<TernaryLayout> layout_of(LinearType type) noexcept;

/// Whether what happens to a model's linears before they are written may make scales differ that are equal.
enum class ScaleValues : std::uint8_t { kStay, kChange };

/// Why files of `type` cannot hold a linear of this kind; empty where they can.
std::string why_not_held(const TensorRows& linear, LinearType type, ScaleValues values = ScaleValues::kStay);

/// Whether files of `type` hold each of a model's linears. Reads the scales of packed ones. Throws what
/// ModelReader::rows() does.
bool holds_linears(const ModelReader& model, LinearType type, ScaleValues values = ScaleValues::kStay);

/// Throws Error(kUnsupported), naming the first linear that they cannot hold, why, and the types that hold
/// all of them.
void check_linears(const ModelReader& model, LinearType type, ScaleValues values = ScaleValues::kStay);

}  // namespace bitnet::quant
