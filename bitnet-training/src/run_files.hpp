#pragma once
// The files in a run's folder as a whole: which checkpoints there are, which are kept, what was left behind.
// What is in a checkpoint is checkpoint.cpp, in a log run_log.cpp.
#include <cstdint>
#include <filesystem>
#include <optional>
#include <vector>

#include "bitnet/training/trainer.hpp"

namespace bitnet::training {

/// "checkpoint.safetensors", "checkpoint-STEP.safetensors", "best.safetensors" in `folder`.
std::filesystem::path newest_checkpoint(const std::filesystem::path& folder);
std::filesystem::path older_checkpoint(const std::filesystem::path& folder, std::int64_t step);
std::filesystem::path best_checkpoint(const std::filesystem::path& folder);

/// Every checkpoint that a run could go on from: the newest, then the others from the last step to the first.
/// None is opened but the best, for its step; damaged ones are among them.
std::vector<std::filesystem::path> checkpoints_in(const std::filesystem::path& folder);

/// Whether there is one to go on from. Throws Error(kInvalidArgument) where there is one that nobody wants to
/// resume, Error(kIo) where the output is no folder.
bool has_checkpoint(const TrainConfig& config, const TrainCallbacks& callbacks, bool resume);

/// Gives the newest checkpoint, of step `step`, a name of its own; the next one then replaces the other name.
/// At no instant is there no whole checkpoint.
void keep_as_older(const std::filesystem::path& folder, std::int64_t step);

/// Removes all but the `count` newest of the older checkpoints, and those that are not older than `step`: of
/// them the run has gone another way since.
void remove_older(const std::filesystem::path& folder, std::int64_t count, std::int64_t step);

/// Puts the newest of the older checkpoints in the place of the newest one, which is lost; its step, or
/// nothing where there is none.
std::optional<std::int64_t> take_back_older(const std::filesystem::path& folder);

/// While it lives no other run writes into `folder`, which is there: a lock of its file ".lock", which ends
/// with the process, however that ends. Throws Error(kInvalidArgument) where another has it. File systems
/// without locks are taken as they are.
class OutputLock {
 public:
  explicit OutputLock(const std::filesystem::path& folder);
  ~OutputLock();
  OutputLock(const OutputLock&) = delete;
  OutputLock& operator=(const OutputLock&) = delete;

 private:
  int file_;
};

/// Removes what a writer that was killed left unfinished; under the folder's lock.
void remove_unfinished(const std::filesystem::path& folder);

/// Gives a log that is about to be started anew another name, so that nobody's figures are lost.
void keep_aside(const std::filesystem::path& log, const TrainCallbacks& callbacks);

/// The output's folder, or the nearest above it that is there. Throws Error(kIo) where it cannot be written
/// to.
std::filesystem::path writable_place(const std::filesystem::path& output);

}  // namespace bitnet::training
