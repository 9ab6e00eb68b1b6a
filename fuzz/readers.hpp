#pragma once
// What the fuzzers and the tests with damaged files do with a file: read all of it that a caller could. Only
// bitnet::Error may escape; it is caught here.
#include <filesystem>

#include "bitnet/core/error.hpp"
#include "bitnet/core/io/gguf.hpp"
#include "bitnet/core/io/npy.hpp"
#include "bitnet/core/io/safetensors.hpp"
#include "bitnet/core/model/model_config.hpp"
#include "bitnet/core/model/tensor_names.hpp"

namespace bitnet::fuzzing {

/// Sum of the bytes, so that every one is read.
inline std::uint64_t sum(std::span<const std::byte> bytes) {
  std::uint64_t total = 0;
  for (const std::byte b : bytes) total += static_cast<std::uint64_t>(b);
  return total;
}

/// True if the file was accepted.
inline bool read_gguf(const std::filesystem::path& path) {
  try {
    const auto file = GgufFile::open(path);
    volatile std::uint64_t sink = 0;
    for (const GgufTensorInfo& t : file->tensors()) {
      sink = sink + sum(file->data(t));
      if (file->find(t.name) != &t) __builtin_trap();
      (void)tensor_from_gguf_name(t.name);
    }
    for (const auto& [key, value] : file->metadata().entries())
      if (file->metadata().find(key) != &value) __builtin_trap();
    try {
      const ModelConfig config = ModelConfig::from_gguf(file->metadata());
      for (const TensorId id : model_tensors(config)) (void)tensor_shape(id, config);
    } catch (const Error&) {
    }
    return true;
  } catch (const Error&) {
    return false;
  }
}

inline bool read_safetensors(const std::filesystem::path& path) {
  try {
    const auto file = SafeTensors::open(path);
    volatile std::uint64_t sink = 0;
    for (const SafeTensorInfo& t : file->tensors()) {
      sink = sink + sum(file->data(t));
      (void)tensor_from_hf_name(t.name);
    }
    return true;
  } catch (const Error&) {
    return false;
  }
}

inline bool read_model_config(const std::filesystem::path& path) {
  try {
    const ModelConfig config = ModelConfig::from_json_file(path);
    for (const TensorId id : model_tensors(config)) (void)tensor_shape(id, config);
    (void)config.to_json(config.scale_form);
    return true;
  } catch (const Error&) {
    return false;
  }
}

/// From memory, as it is and narrowed. What is read has the strides that its shape says.
inline bool read_npy(std::span<const std::byte> bytes) {
  bool accepted = false;
  for (const NpyWide wide : {NpyWide::kRefuse, NpyWide::kNarrow}) {
    try {
      const Tensor t = parse_npy(bytes, "fuzz", wide).contiguous();
      volatile std::uint64_t sink = sum(t.bytes());
      (void)sink;
      accepted = true;
    } catch (const Error&) {
    }
  }
  return accepted;
}

}  // namespace bitnet::fuzzing
