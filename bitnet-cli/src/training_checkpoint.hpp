#pragma once
// A training checkpoint where a model is expected: made a model file first. What is in it is
// bitnet-training's checkpoint_model.hpp.
#include <filesystem>

#include "loading.hpp"

namespace bitnet::cli {

/// The model of a checkpoint in a folder of its own among the temporary files, for as long as this lives.
class CheckpointAsModel {
 public:
  /// The vocabulary is the tokenizer.json beside the checkpoint. Throws what training::export_checkpoint()
  /// throws, Error(kNotFound) without a vocabulary.
  CheckpointAsModel(const std::filesystem::path& checkpoint, const ExecutionContext& context);
  ~CheckpointAsModel();
  CheckpointAsModel(const CheckpointAsModel&) = delete;
  CheckpointAsModel& operator=(const CheckpointAsModel&) = delete;

  const ModelFile& file() const noexcept { return file_; }

 private:
  std::filesystem::path folder_;
  ModelFile file_;
};

}  // namespace bitnet::cli
