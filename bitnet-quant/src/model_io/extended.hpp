#pragma once
// The safetensors extension that holds linears of any kind (docs/formats/extended.md): what tensors one
// becomes, and a model's files of them. Reading is hf_reader.cpp. Private to bitnet-quant.
#include <cstddef>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "bitnet/core/io/safetensors.hpp"
#include "model_io/writer_base.hpp"

namespace bitnet::quant::model_io {

struct NamedBytes {
  SafeTensorInfo info;  // name, dtype, shape
  std::vector<std::byte> bytes;
};

/// The tensors that hold `t` under `name` ("….weight"): trits with scales, two planes, int8, or floats of
/// `dtype`. Throws Error(kInvalidArgument) on a tensor that is none of them.
std::vector<NamedBytes> encode_extended(LogicalTensor t, const std::string& name, DType dtype);

/// The linear that encode_extended() made such tensors of. Throws Error(kCorruptFile) on tensors that are not
/// there, or of other types and sizes.
LogicalTensor decode_extended(const SafeTensors& tensors, const std::string& name, TensorId id,
                              const Shape& shape);

/// The form that a tensor "X_activation" says. Throws Error(kCorruptFile).
ActivationForm decode_activation(const SafeTensorInfo& info, std::span<const std::byte> bytes);

/// Writes them in one file.
void write_named(const std::filesystem::path& path, const std::vector<NamedBytes>& tensors,
                 const std::map<std::string, std::string>& metadata);

/// A file for the embedding, each layer, and what comes after them, and their index, into `directory`.
/// Returns the format_version that readers have to know.
int write_extended(const std::filesystem::path& directory, const ModelConfig& config, const Source& source,
                   const WriteOptions& options);

/// `config_json` of a dense model with the declaration of the extension in that version.
std::string declare_extended(const std::string& config_json, int version);

}  // namespace bitnet::quant::model_io
