#pragma once
// The commands, one a file of this directory; commands.cpp puts them into the table.
#include "commands.hpp"

namespace bitnet::cli {
extern const Command kRunCommand, kChatCommand, kBatchCommand, kPerplexityCommand, kTokenizeCommand,
    kInspectCommand, kConvertCommand, kQuantizeCommand, kTrainCommand, kDevicesCommand, kSynthCommand,
    kBenchCommand, kProfileCommand, kMergeCommand, kPlanCommand, kCompareCommand, kTuneCommand,
    kTuneScalesCommand;
}  // namespace bitnet::cli
