#pragma once
// What all readers of checkpoints share: fields as numbers, the check of a file as a whole. What the fields
// mean is checkpoint.cpp and checkpoint_model.cpp.
#include <charconv>
#include <map>
#include <string>

#include "bitnet/core/error.hpp"
#include "bitnet/core/io/safetensors.hpp"

namespace bitnet::training {

inline constexpr const char* kCheckpointFormat = "bitnet-checkpoint";
inline constexpr int kCheckpointVersion = 3;   ///< 1 did not say which run it is of
inline constexpr int kUnsummedCheckpoint = 2;  ///< the same without checksum and marks

/// A field as a number. Throws Error(kCorruptFile) when it is missing or none.
template <class T>
T checkpoint_field(const std::map<std::string, std::string>& fields, const std::string& key) {
  const auto it = fields.find(key);
  if (it == fields.end())
    throw Error(ErrorCode::kCorruptFile, "the checkpoint lacks the field '" + key + "'");
  T value{};
  const char* end = it->second.data() + it->second.size();
  const auto r = std::from_chars(it->second.data(), end, value);
  if (r.ec != std::errc{} || r.ptr != end)
    throw Error(ErrorCode::kCorruptFile, "field '" + key + "' holds '" + it->second + "', expected a number");
  return value;
}

/// The version of a checkpoint that is whole. Throws Error(kCorruptFile) for another file and where the
/// checksum is another one, Error(kUnsupported) for a version that cannot be read.
int check_checkpoint(const SafeTensors& file);

}  // namespace bitnet::training
