// See linear_types.hpp.
#include "bitnet/quant/linear_types.hpp"

#include <fmt/format.h>

#include <utility>

#include "bitnet/core/error.hpp"

namespace bitnet::quant {
namespace {

struct Found {
  TensorId id;
  std::string why;
};

/// Float linears that become trits at load have one scale each, whatever their values.
TensorRows kind_of(const ModelReader& model, TensorId id) {
  if (model.extended_linears() || !model.float_linears()) return model.rows(id);
  TensorRows kind;
  kind.id = id;
  kind.shape = tensor_shape(id, model.config());
  kind.ternary = !model.float_type(id);
  if (kind.ternary) kind.scales = {1.0f};
  kind.rows_per_scale = kind.shape[0];
  return kind;
}

std::optional<Found> first_not_held(const ModelReader& model, LinearType type, ScaleValues values) {
  for (const TensorId id : model.tensors()) {
    if (!is_linear(id.role)) continue;
    if (std::string why = why_not_held(kind_of(model, id), type, values); !why.empty())
      return Found{id, std::move(why)};
  }
  return std::nullopt;
}

}  // namespace

std::string_view to_string(LinearType type) noexcept {
  switch (type) {
    case LinearType::kHf:
      return "hf";
    case LinearType::kI2_S:
      return "i2_s";
    case LinearType::kTQ1_0:
      return "tq1_0";
    case LinearType::kTQ2_0:
      return "tq2_0";
    case LinearType::kDense:
      return "dense";
    case LinearType::kExtended:
      return "extended";
  }
  return "?";
}

std::optional<TernaryLayout> layout_of(LinearType type) noexcept {
  switch (type) {
    case LinearType::kHf:
      return TernaryLayout::kHfUint8;
    case LinearType::kI2_S:
      return TernaryLayout::kI2_S;
    case LinearType::kTQ1_0:
      return TernaryLayout::kTQ1_0;
    case LinearType::kTQ2_0:
      return TernaryLayout::kTQ2_0;
    default:
      return std::nullopt;
  }
}

std::string why_not_held(const TensorRows& linear, LinearType type, ScaleValues values) {
  if (type == LinearType::kExtended) return "";
  const bool floats = !linear.ternary && linear.planes.empty() && !linear.int8;
  if (type == LinearType::kDense)
    return floats ? "" : "dense holds floats, and trits and integers are not written as such";
  const auto alone = [&](const char* what) { return fmt::format("{} holds no {}", to_string(type), what); };
  if (floats) return alone("linears of floats, which quantising makes ternary");
  if (!linear.planes.empty()) return alone("two ternary planes");
  if (linear.int8) return alone("int8 linears");
  if (linear.activations != ActivationForm::kInt8) return alone("activations of 4 bits");
  const TernaryLayout layout = *layout_of(type);
  TernaryWeights w;
  w.out = linear.shape[0];
  w.in = linear.shape[1];
  w.scales = linear.scales;
  w.rows_per_scale = linear.rows_per_scale;
  w.cols_per_scale = linear.cols_per_scale;
  if (std::string why; !layout_holds(layout, w, &why)) return why;
  const bool one = layout == TernaryLayout::kHfUint8 || layout == TernaryLayout::kI2_S;
  if (one && values == ScaleValues::kChange && w.scales.size() > 1)
    return fmt::format("{} holds one scale a matrix, got {}", to_string(type), w.scales.size());
  return "";
}

bool holds_linears(const ModelReader& model, LinearType type, ScaleValues values) {
  return !first_not_held(model, type, values);
}

void check_linears(const ModelReader& model, LinearType type, ScaleValues values) {
  const auto found = first_not_held(model, type, values);
  if (!found) return;
  std::string others;
  for (const LinearType other : kQuantisedTypes)
    if (holds_linears(model, other, values))
      others += (others.empty() ? "" : ", ") + std::string(to_string(other));
  throw Error(ErrorCode::kUnsupported, fmt::format("tensor '{}': {}; types that would do: {}",
                                                   gguf_name(found->id), found->why, others));
}

}  // namespace bitnet::quant
