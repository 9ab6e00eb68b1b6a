#pragma once
// What a run writes for others to read: its model at the end, or the adapter. How tensors become trits is
// export.cpp, the files are bitnet-quant's.
#include <filesystem>
#include <functional>
#include <string>

#include "bitnet/core/text/tokenizer.hpp"
#include "bitnet/training/export.hpp"
#include "run_model.hpp"

namespace bitnet::training {

/// How such a model's directory is written: floats as f32 in full precision.
quant::WriteOptions directory_options(const ModelFiles& files);

/// What export_run() will write, and why it is not more: one line.
std::string describe_export(const TrainConfig& config);

/// model/ and model.gguf, or one of them, or adapter/, into config.output, as describe_export() says; a model
/// that no file format knows is left to the checkpoint, and said so. Throws Error(kIo).
void export_run(const TrainConfig& config, const RunModel& model, const Tokenizer& tokenizer,
                const std::function<void(const std::string&)>& say);

/// What WriteSnapshot says.
void write_snapshot(const std::filesystem::path& path, const TrainConfig& config, const RunModel& model,
                    const Tokenizer& tokenizer);

/// Throws Error(kInvalidArgument) where the prompt of samples leaves the model no room for what it is to
/// write, or cannot be encoded.
void check_sample_prompt(const TrainConfig& config, const Tokenizer& tokenizer);

}  // namespace bitnet::training
