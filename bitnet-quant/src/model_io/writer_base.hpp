#pragma once
// What the writers of both formats share. Private to bitnet-quant.
#include <filesystem>
#include <functional>

#include "bitnet/quant/model_io.hpp"

namespace bitnet::quant::model_io {

using Source = std::function<LogicalTensor(TensorId)>;

/// source(id), checked: the shape is tensor_shape()'s, the sizes agree, and a linear is ternary if and only
/// if `ternary`. Throws Error(kInvalidArgument | kUnsupported).
LogicalTensor take(const Source& source, TensorId id, const ModelConfig& config, bool ternary);

/// The dense values as bytes of `dtype`, which the tensor gives away: a matrix of gigabytes is never there
/// twice. Throws Error(kUnsupported) on a value that `dtype` cannot hold; callers name the tensor.
std::vector<std::byte> as_dtype(LogicalTensor&& t, DType dtype);

/// The dtype in which a tensor that is not packed is written.
DType dense_dtype(TensorId id, const WriteOptions& options);

/// Bytes of a linear in files of `type`, scales included, floats as `floats`. Throws Error(kInvalidArgument)
/// on columns that the type cannot hold.
std::uint64_t linear_bytes(const LogicalTensor& t, LinearType type, DType floats);

/// Refuses a place for a directory's files where another model's are, or no directory. Throws
/// Error(kInvalidArgument | kIo).
void check_hf_place(const std::filesystem::path& directory, const ModelConfig& config,
                    const WriteOptions& options);

/// The place was checked.
void write_hf(const std::filesystem::path& directory, const ModelConfig& config, const Tokenizer* tokenizer,
              const Source& source, const WriteOptions& options);
void write_gguf(const std::filesystem::path& path, const ModelConfig& config, const Tokenizer* tokenizer,
                const Source& source, const WriteOptions& options);

}  // namespace bitnet::quant::model_io
