#pragma once
// The model in a training checkpoint, for who wants to run or score it without the training. Thread-safe:
// functions of files alone.
#include <filesystem>

#include "bitnet/core/execution.hpp"
#include "bitnet/core/text/tokenizer.hpp"

namespace bitnet::training {

/// Whether this is a checkpoint of training, whole or not: a safetensors file that says so. False for all
/// that cannot be opened.
bool is_checkpoint(const std::filesystem::path& path) noexcept;

/// Writes the model of the checkpoint's weights as a Hugging Face directory `to`, as the run would export it
/// at that step; of f32 where it is trained in full precision. The
/// directory is new or empty. Throws Error(kNotFound | kCorruptFile), Error(kUnsupported) for an adapter's
/// checkpoint and where model_files() knows no file, Error(kInvalidArgument) for a vocabulary of another
/// size, Error(kIo).
void export_checkpoint(const ExecutionContext& context, const std::filesystem::path& checkpoint,
                       const std::filesystem::path& to, const Tokenizer& tokenizer);

}  // namespace bitnet::training
