#pragma once
// The whole state of a training run in one safetensors file, so that a resumed run gives the same bits as one
// that was never stopped. Not thread-safe: model and optimiser are the caller's thread's alone meanwhile.
#include <cstdint>
#include <filesystem>
#include <map>
#include <string>

#include "bitnet/training/data.hpp"
#include "bitnet/training/optimizer.hpp"
#include "bitnet/training/text_model.hpp"

namespace bitnet::training {

/// What the losses have been of late; with it a run knows one that jumps.
struct LossLevel {
  double mean = 0, variance = 0;
  std::int64_t steps = 0, spikes = 0;  ///< judged; of these the last ones, where they were spikes
};

/// The best validation so far.
struct BestValidation {
  double nll = 0;
  std::int64_t step = 0;   ///< 0: there was none
  std::int64_t since = 0;  ///< evaluations after it
};

/// What a checkpoint holds besides weights and moments.
struct TrainState {
  std::int64_t step = 0;    ///< optimiser steps done
  std::int64_t tokens = 0;  ///< trained on
  double seconds = 0;       ///< spent training, over all resumes
  SamplerState data;
  LossLevel loss;
  BestValidation best;
  std::int64_t micro_batch = 0;                 ///< in use; 0: as configured
  std::map<std::string, std::string> identity;  ///< what must be the same for the same bits, by name
  std::map<std::string, std::string> settings;  ///< what may change on the way, by name
};

/// Writes weights ("weights/…"), the optimiser's state by its own names and the rest as metadata, with a
/// checksum of all of it, atomically: the old file stays whole until the new one is on disk. Throws
/// Error(kIo).
void save_checkpoint(const std::filesystem::path& path, TextModel& model, Optimizer& optimizer,
                     const TrainState& state);

/// Fills model and optimiser from a checkpoint. Throws Error(kNotFound | kCorruptFile), the latter also where
/// the checksum is another one, and Error(kInvalidArgument) naming the first difference when it is of another
/// architecture or quantisation; nothing is changed then. The caller refreshes the model.
TrainState load_checkpoint(const std::filesystem::path& path, TextModel& model, Optimizer& optimizer);

/// The steps done of a checkpoint. Throws as load_checkpoint().
std::int64_t checkpoint_step(const std::filesystem::path& path);

}  // namespace bitnet::training
