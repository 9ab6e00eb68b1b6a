#pragma once
// Text from a model that is being trained: its snapshot in a file, loaded and asked as `bitnet run` would.
#include <functional>
#include <memory>
#include <string>

#include "bitnet/core/execution.hpp"
#include "bitnet/training/trainer.hpp"

namespace bitnet::cli {

/// What follows the configuration's sample_prompt, greedily. `write` is the callback's; its file lies in the
/// output for that long. Throws what writing, loading and generating throw.
std::string sample_text(const training::TrainConfig& config, std::shared_ptr<const ExecutionContext> context,
                        const training::WriteSnapshot& write);

}  // namespace bitnet::cli
