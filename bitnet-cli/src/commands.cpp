// The table of commands; see commands.hpp.
#include "commands.hpp"

#include "commands/commands_list.hpp"

namespace bitnet::cli {

std::span<const Command> commands() {
  static const std::vector<Command> table = {
      kRunCommand,        kChatCommand,    kBatchCommand,   kPerplexityCommand, kBenchCommand,
      kTokenizeCommand,   kInspectCommand, kConvertCommand, kQuantizeCommand,   kPlanCommand,
      kTuneScalesCommand, kCompareCommand, kMergeCommand,   kTrainCommand,      kDevicesCommand,
      kTuneCommand,       kSynthCommand,   kProfileCommand};
  return table;
}

const Command* find_command(std::string_view name) {
  for (const Command& command : commands())
    if (command.name == name) return &command;
  return nullptr;
}

}  // namespace bitnet::cli
