#pragma once
// A random model of any shape, for measuring: weights that depend on the seed only, made one tensor at a
// time, and a byte-level tokenizer padded to the vocabulary.
#include <cstdint>
#include <memory>

#include "bitnet/core/execution.hpp"
#include "bitnet/core/text/tokenizer.hpp"
#include "bitnet/quant/model_io.hpp"

namespace bitnet::cli {

/// The 256 bytes, <|begin_of_text|>, <|end_of_text|> and unused tokens up to `vocab_size`. Null when
/// vocab_size is below 258.
std::shared_ptr<const Tokenizer> byte_tokenizer(std::int64_t vocab_size);

/// One tensor. Linears: ternary trits, or `dense_linears` values of `dense_type`, of a size that keeps
/// activations near 1; embeddings: uniform values of `dense_type`; norms: ones in f32. The same for any
/// number of threads.
quant::LogicalTensor random_tensor(const ExecutionContext& context, TensorId id, const ModelConfig& config,
                                   bool dense_linears, DType dense_type, std::uint64_t seed);

}  // namespace bitnet::cli
