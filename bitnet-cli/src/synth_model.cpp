// See synth_model.hpp.
#include "synth_model.hpp"

#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>

#include "bitnet/core/rng.hpp"
#include "bitnet/core/text/bpe_trainer.hpp"

namespace bitnet::cli {
namespace {

/// A stream of its own for each row of each tensor, so that rows can be made in any order.
Rng row_stream(std::uint64_t seed, TensorId id, std::int64_t row) {
  const auto tensor =
      static_cast<std::uint64_t>(id.layer + 1) * kTensorRoleCount + static_cast<std::uint64_t>(id.role);
  Rng mix(seed ^ (tensor << 40));
  return Rng(mix.next() ^ static_cast<std::uint64_t>(row));
}

/// Equally likely −1, 0, 1: the first 20 base-3 digits of the 64-bit fraction (its bias is below 2^-32).
void fill_trits(Rng rng, std::int8_t* to, std::int64_t n) {
  for (std::int64_t i = 0; i < n;) {
    std::uint64_t fraction = rng.next() >> 2;  // 62 bits: times 3 fits into 64
    for (int digit = 0; digit < 20 && i < n; ++digit, ++i) {
      fraction *= 3;
      to[i] = static_cast<std::int8_t>(static_cast<int>(fraction >> 62) - 1);
      fraction &= (std::uint64_t{1} << 62) - 1;
    }
  }
}

void store(float value, DType type, std::byte* to) {
  if (type == DType::kF32) {
    std::memcpy(to, &value, 4);
  } else {
    const std::uint16_t half = type == DType::kF16 ? f32_to_f16(value) : f32_to_bf16(value);
    std::memcpy(to, &half, 2);
  }
}

void fill_uniform(Rng rng, float limit, DType type, std::byte* to, std::int64_t n) {
  const std::size_t size = bits_of(type) / 8;
  for (std::int64_t i = 0; i < n; ++i)
    store(limit * static_cast<float>(2 * rng.uniform() - 1), type, to + static_cast<std::size_t>(i) * size);
}

constexpr std::size_t kRowGrain = 16;
constexpr std::int64_t kMaxTokens = 1 << 24;  // a tokenizer.json with more is refused

}  // namespace

std::shared_ptr<const Tokenizer> byte_tokenizer(std::int64_t vocab_size) {
  BpeTrainerOptions options;
  // With the tokens of the Llama-3 and 2B-4T chat formats, so that `chat` can be measured, too.
  options.special_tokens = {"<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|start_header_id|>",
                            "<|end_header_id|>"};
  options.vocab_size = 256 + static_cast<std::int64_t>(options.special_tokens.size());
  if (vocab_size < options.vocab_size || vocab_size > kMaxTokens) return nullptr;
  auto json = nlohmann::json::parse(BpeTrainer(options).train());
  auto& vocab = json.at("model").at("vocab");
  for (std::int64_t id = options.vocab_size; id < vocab_size; ++id)
    vocab["<|unused_" + std::to_string(id) + "|>"] = id;
  const nlohmann::json config{{"bos_token", options.special_tokens[0]},
                              {"eos_token", options.special_tokens[1]},
                              {"add_bos_token", true}};
  return Tokenizer::from_json(json.dump(), config.dump());
}

quant::LogicalTensor random_tensor(const ExecutionContext& context, TensorId id, const ModelConfig& config,
                                   bool dense_linears, DType dense_type, std::uint64_t seed) {
  quant::LogicalTensor tensor;
  tensor.id = id;
  tensor.shape = tensor_shape(id, config);
  if (is_norm(id.role)) {
    const std::vector<float> ones(static_cast<std::size_t>(tensor.shape.numel()), 1.0f);
    tensor.dense.resize(ones.size() * sizeof(float));
    std::memcpy(tensor.dense.data(), ones.data(), tensor.dense.size());
    return tensor;
  }
  const std::int64_t out = tensor.shape[0], in = tensor.shape[1];
  // Uniform in ±limit has variance limit²/3, trits have 2/3: both give linears of unit gain.
  const float unit = 1.0f / std::sqrt(static_cast<float>(in));
  if (is_linear(id.role) && !dense_linears) {
    tensor.ternary = true;
    tensor.weights = {
        .out = out, .in = in, .trits = {}, .scales = {unit * std::sqrt(1.5f)}, .rows_per_scale = out};
    tensor.weights.trits.resize(static_cast<std::size_t>(out * in));
    context.parallel_for(static_cast<std::size_t>(out), kRowGrain, [&](std::size_t begin, std::size_t end) {
      for (std::size_t row = begin; row < end; ++row)
        fill_trits(row_stream(seed, id, static_cast<std::int64_t>(row)),
                   tensor.weights.trits.data() + row * static_cast<std::size_t>(in), in);
    });
    return tensor;
  }
  tensor.dtype = dense_type;
  const float limit = is_linear(id.role) ? unit * std::sqrt(3.0f) : 0.05f;
  const std::size_t row_bytes = static_cast<std::size_t>(in) * bits_of(dense_type) / 8;
  tensor.dense.resize(static_cast<std::size_t>(out) * row_bytes);
  context.parallel_for(static_cast<std::size_t>(out), kRowGrain, [&](std::size_t begin, std::size_t end) {
    for (std::size_t row = begin; row < end; ++row)
      fill_uniform(row_stream(seed, id, static_cast<std::int64_t>(row)), limit, dense_type,
                   tensor.dense.data() + row * row_bytes, in);
  });
  return tensor;
}

}  // namespace bitnet::cli
