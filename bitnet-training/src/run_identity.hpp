#pragma once
// What a checkpoint says of the run that it is of, by name.
#include <map>
#include <span>
#include <string>

#include "bitnet/core/text/tokenizer.hpp"
#include "bitnet/training/config.hpp"

namespace bitnet::training {

/// Without these a resumed run would not be the run that was stopped.
std::map<std::string, std::string> identity_of(const TrainConfig& c, std::span<const TokenId> tokens);
/// What somebody may want to change in the middle of a run.
std::map<std::string, std::string> settings_of(const TrainConfig& c);
/// What checkpoints lack that are older than a part of the identity: the only value that it then had.
void add_older_identity(std::map<std::string, std::string>& identity);

}  // namespace bitnet::training
