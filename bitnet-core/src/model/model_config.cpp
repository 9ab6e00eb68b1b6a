// ModelConfig's rules. Reading and writing config.json is model_config_json.cpp, GGUF keys are
// model_config_gguf.cpp.
#include "bitnet/core/model/model_config.hpp"

#include <fmt/format.h>

#include <cmath>

#include "bitnet/core/error.hpp"

namespace bitnet {
namespace {

template <class T>
[[noreturn]] void broken(const char* field, T value, const char* rule,
                         SourceLocation where = SourceLocation::current()) {
  throw Error(ErrorCode::kInvalidArgument, fmt::format("{} = {}: expected {}", field, value, rule), where);
}

void check_range(const char* field, std::int64_t value, std::int64_t low, std::int64_t high,
                 SourceLocation where = SourceLocation::current()) {
  if (value < low || value > high)
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("{} = {}: expected {} to {}", field, value, low, high), where);
}

}  // namespace

void ModelConfig::validate() const {
  // The bounds keep every product of two dimensions below 2^55 and the tensor list small.
  check_range("vocab_size", vocab_size, 1, (std::int64_t{1} << 31) - 1);
  check_range("hidden_size", hidden_size, 1, 1 << 24);
  check_range("intermediate_size", intermediate_size, 1, 1 << 24);
  check_range("n_layers", n_layers, 1, 4096);
  check_range("n_heads", n_heads, 1, 1 << 16);
  check_range("n_kv_heads", n_kv_heads, 1, n_heads);
  if (n_heads % n_kv_heads != 0) broken("n_kv_heads", n_kv_heads, "a divisor of n_heads");
  check_range("head_dim", head_dim, 2, 1 << 16);
  if (head_dim % 2 != 0) broken("head_dim", head_dim, "an even number");
  check_range("n_heads * head_dim", q_dim(), 2, 1 << 24);
  check_range("max_position", max_position, 1, (std::int64_t{1} << 31) - 1);
  if (!(rms_norm_eps > 0) || !(rms_norm_eps <= 1)) broken("rms_norm_eps", rms_norm_eps, "a number in (0, 1]");
  if (!(rope_theta >= 1) || !std::isfinite(rope_theta))
    broken("rope_theta", rope_theta, "a finite number of at least 1");
  check_range("bos_id", bos_id, -1, vocab_size - 1);
  for (const std::int64_t id : eos_ids) check_range("eos_ids", id, 0, vocab_size - 1);
}

std::string_view to_string(Activation a) noexcept {
  switch (a) {
    case Activation::kRelu2:
      return "relu2";
    case Activation::kSilu:
      return "silu";
  }
  return "?";
}

std::string_view to_string(WeightKind k) noexcept {
  switch (k) {
    case WeightKind::kDense:
      return "dense";
    case WeightKind::kTernary:
      return "ternary";
  }
  return "?";
}

}  // namespace bitnet
