#pragma once
// The model in a training checkpoint, for who wants to run or score it without the training. Thread-safe:
// pure functions of files.
#include <filesystem>

#include "bitnet/core/text/tokenizer.hpp"

namespace bitnet::training {

/// Whether this is a checkpoint of training, whole or not: a safetensors file that says so. False for all
/// that cannot be opened.
bool is_checkpoint(const std::filesystem::path& path) noexcept;

/// Writes the model of the checkpoint's weights to `to`, as the run would export it at that step: a GGUF file
/// of I2_S, or of f32 where it is trained in full precision (read that with FloatLinears::kKeep). Throws
/// Error(kNotFound | kCorruptFile), Error(kUnsupported) for an adapter's checkpoint and for a quantiser that
/// no file knows, Error(kInvalidArgument) for a vocabulary of another size, Error(kIo).
void export_checkpoint(const std::filesystem::path& checkpoint, const std::filesystem::path& to,
                       const Tokenizer& tokenizer);

}  // namespace bitnet::training
