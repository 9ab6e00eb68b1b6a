#pragma once
// What `bitnet batch` reads: items with a prompt or messages and overrides of the sampling options, from
// .txt, .json, .jsonl and .csv files. What it writes is batch_records.hpp.
#include <cstddef>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "bitnet/core/text/chat_template.hpp"
#include "options.hpp"

namespace bitnet::cli {

/// The id of an item as its file gave it: text, or a whole number (then `text` is its digits).
struct ItemId {
  std::string text;
  bool numeric = false;
  friend bool operator==(const ItemId&, const ItemId&) = default;
};

/// One prompt. With `error` the item could not be read and is only reported.
struct BatchItem {
  ItemId id;                          ///< the item's number, from 1, when the file gives none
  std::size_t line = 0;               ///< where it is in the file, from 1; 0 where the format has no lines
  std::string prompt;                 ///< the text, or the last message's
  std::vector<ChatMessage> messages;  ///< empty: `prompt` is the whole input
  std::vector<std::pair<const Option*, std::string>> overrides;  ///< checked against the option table
  std::string error;
};

struct BatchItems {
  std::vector<BatchItem> items;
  std::vector<std::string> notes;  ///< remarks for people, e.g. keys that are not used
};

/// Throws Error(kInvalidArgument) for a name without one of the suffixes .txt, .json, .jsonl and .csv.
void check_input_name(const std::filesystem::path& path);

/// Reads a whole file by its suffix. A bad item becomes an item with `error`. Throws
/// Error(kNotFound | kIo | kInvalidArgument) when the file as a whole cannot be read: unknown suffix, .json
/// that is no array, .csv without a `prompt` column.
BatchItems read_batch_items(const std::filesystem::path& path);

}  // namespace bitnet::cli
