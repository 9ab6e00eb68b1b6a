// See model_check.hpp.
#include "bitnet/quant/model_check.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <optional>

#include "bitnet/core/error.hpp"
#include "quantizer/weight_checks.hpp"

namespace bitnet::quant {
namespace {

/// The value that all of a table have. It is widened in pieces: an embedding in f32 may be gigabytes, and the
/// first piece nearly always tells.
std::optional<float> only_value(const LogicalTensor& t) {
  constexpr std::size_t kPiece = 1024;  // values
  const std::size_t bytes = kPiece * bits_of(t.dtype) / 8, all = t.dense.size();
  std::optional<float> first;
  for (std::size_t at = 0; at < all; at += bytes) {
    LogicalTensor piece;
    piece.dtype = t.dtype;
    piece.dense.assign(t.dense.begin() + static_cast<std::ptrdiff_t>(at),
                       t.dense.begin() + static_cast<std::ptrdiff_t>(std::min(at + bytes, all)));
    const std::vector<float> w = piece.to_f32();
    if (!first) first = w.at(0);
    if (!std::all_of(w.begin(), w.end(), [&](float v) { return v == *first; })) return std::nullopt;
  }
  return first;
}

/// A norm of ones changes nothing, which is how one may be made on purpose.
void warn_of_table(const LogicalTensor& t, ModelFindings& to) {
  if (t.shape.numel() < 2) return;
  const std::optional<float> value = only_value(t);
  if (!value) return;
  const std::string name = fmt::format("tensor '{}'", gguf_name(t.id));
  if (*value == 0)
    to.warnings.push_back(name + ": every value is 0: nothing comes through it");
  else if (!is_norm(t.id.role) || *value != 1)
    to.warnings.push_back(fmt::format("{}: every value is {}: it cannot have been trained", name, *value));
}

void check_linear(const LogicalTensor& t, std::span<const PlannedLinear> plans, ModelFindings& to) {
  if (t.ternary) {
    to.ternary.push_back(t.id);
    return;
  }
  if (t.planes || t.int8) return;
  const std::vector<float> w = t.to_f32();
  require_finite(w, t.shape[1]);
  const auto exact = find_trits(w, t.shape[0], t.shape[1], t.dtype);
  const auto plan = std::find_if(plans.begin(), plans.end(), [&](const auto& l) { return l.id == t.id; });
  if (!exact) return;
  to.ternary.push_back(t.id);
  if (plan != plans.end()) require_same_scales(exact->unit, plan->plan);
}

}  // namespace

bool ModelFindings::is_ternary(TensorId linear) const {
  return std::find(ternary.begin(), ternary.end(), linear) != ternary.end();
}

ModelFindings check_model(const ModelReader& reader, std::span<const PlannedLinear> plans,
                          CancelFlag cancelled) {
  ModelFindings found;
  for (const TensorId id : reader.tensors()) {
    throw_if_cancelled(cancelled);
    const LogicalTensor t = reader.read(id);
    if (is_linear(id.role)) {
      with_context(fmt::format("tensor '{}'", gguf_name(id)), [&] { check_linear(t, plans, found); });
    } else {
      require_finite(t);
      warn_of_table(t, found);
    }
  }
  return found;
}

}  // namespace bitnet::quant
