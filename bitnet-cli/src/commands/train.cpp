// `bitnet train`: placeholder until bitnet-training lands
#include <ostream>

#include "commands/commands_list.hpp"
#include "common.hpp"

namespace bitnet::cli {
namespace {
int train(const Values&, Io&) { throw Error(ErrorCode::kUnsupported, "this build has no training (BITNET_BUILD_TRAINING)"); }
}  // namespace

const Command kTrainCommand{
    .name = "train",
    .summary = "train a model as a yaml file says",
    .usage = "CONFIG [--resume]",
    .description =
        "CONFIG names the data, the model's shape and the schedule; configs/train/ has examples. A line on standard "
        "error shows loss, learning rate, tokens/s, time to go, zero fraction and flip rate; the same goes to a JSONL "
        "log. Ctrl-C writes a checkpoint; --resume continues from the newest.",
    .example = "bitnet train configs/train/demo.yaml\nbitnet train configs/train/demo.yaml --resume",
    .arguments = {"CONFIG"},
    .options = {&opt::kTrainResume, &opt::kThreads, &opt::kIsa},
    .body = train,
};

}  // namespace bitnet::cli
