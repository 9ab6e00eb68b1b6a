#pragma once
// What `bitnet batch` writes: one record an item, as .jsonl, .json or .csv, and the journal that survives a
// crash. Reading the items is batch_items.hpp; running them is commands/batch.cpp.
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "batch_items.hpp"

namespace bitnet::cli {

struct BatchRecord {
  ItemId id;
  std::string prompt;
  std::vector<ChatMessage> messages;  ///< of a chat item
  std::string text;
  std::string finish_reason;  ///< "stop", "length", "cancelled" or "error"
  std::int64_t prompt_tokens = 0;
  std::int64_t completion_tokens = 0;
  double milliseconds = 0;  ///< from admission to the last token
  std::optional<std::int64_t> seed;
  std::string error;    ///< with finish_reason "error"
  std::string options;  ///< the item's own options, as options_text() gives them

  bool is_complete() const { return finish_reason == "stop" || finish_reason == "length"; }
};

/// The item's own options as a JSON object with sorted keys; empty when it has none.
std::string options_text(const BatchItem& item);

/// What --resume compares: equal for records of the same id, prompt, messages and own options.
std::string input_key(const BatchRecord& record);

enum class RecordFormat : std::uint8_t { kJsonl, kJson, kCsv };

/// By the file's suffix; "-" is jsonl. Throws Error(kInvalidArgument) on another one.
RecordFormat record_format(const std::filesystem::path& path);

/// The whole file.
std::string format_records(const std::vector<BatchRecord>& records, RecordFormat format);
/// One line of jsonl, with its line end.
std::string format_jsonl(const BatchRecord& record);

/// Records of a file that format_records() made. `lenient`: a last line that is cut off is left out (a
/// journal of a run that was killed). Throws Error(kCorruptFile) naming the line.
std::vector<BatchRecord> parse_records(std::string_view text, RecordFormat format, bool lenient = false);

/// Finished records as they come, beside the output file, so that a kill loses none.
class BatchJournal {
 public:
  static std::filesystem::path path_for(const std::filesystem::path& output);
  /// Appends to what is there. Throws Error(kIo).
  explicit BatchJournal(const std::filesystem::path& output);
  ~BatchJournal();
  BatchJournal(const BatchJournal&) = delete;
  BatchJournal& operator=(const BatchJournal&) = delete;
  /// Throws Error(kIo), when the disk is full say; it may be called again then, which begins the line anew.
  void add(const BatchRecord& record);
  /// Removes the file, if there is one: its records are in the output.
  static void remove(const std::filesystem::path& output);

 private:
  [[noreturn]] void fail() const;

  std::filesystem::path path_;
  int fd_ = -1;
  std::uint64_t size_ = 0;  // of whole lines
};

}  // namespace bitnet::cli
