#pragma once
// What --lora says.
#include <vector>

#include "bitnet/inference/adapter_set.hpp"
#include "options.hpp"

namespace bitnet::cli {

/// The adapters of --lora, in the order given: PATH, or PATH:WEIGHT where no file has that whole name. Throws
/// UsageError for an empty path.
std::vector<inference::AdapterSource> adapter_sources(const Values& values);

}  // namespace bitnet::cli
