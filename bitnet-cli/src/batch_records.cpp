// Writers and readers of batch records; see batch_records.hpp.
#include "batch_records.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>

#include "csv.hpp"

namespace bitnet::cli {
namespace {

using Json = nlohmann::ordered_json;

const std::vector<std::string> kColumns{
    "id",           "prompt", "text",  "finish_reason", "prompt_tokens", "completion_tokens",
    "milliseconds", "seed",   "error", "messages",      "options"};

double rounded(double milliseconds) { return std::round(milliseconds * 1000) / 1000; }

/// Bytes that are no UTF-8 (of an item that failed for it) are written as U+FFFD.
std::string dump(const Json& j) { return j.dump(-1, ' ', false, Json::error_handler_t::replace); }

std::string to_json(const std::vector<ChatMessage>& messages) {
  std::string list = "[";
  for (const ChatMessage& m : messages) {
    if (list.size() > 1) list += ',';
    list += R"({"role":)" + dump(m.role) + R"(,"content":)" + dump(m.content) + '}';
  }
  return list + ']';
}

std::vector<ChatMessage> read_messages(const Json& list) {
  std::vector<ChatMessage> messages;
  for (const Json& m : list)
    messages.push_back({m.at("role").get<std::string>(), m.at("content").get<std::string>()});
  return messages;
}

Json option_value(const Option& option, const std::string& text) {
  if (option.kind == Kind::kInteger) return parse_integer(text).value();
  if (option.kind == Kind::kReal) return parse_real(text).value();
  return text;
}

/// Put together by hand: nlohmann's destructor of an object allocates, and ends the process where memory is
/// refused, which is when records are wanted most.
std::string to_json(const BatchRecord& r) {
  std::string j = R"({"id":)" + (r.id.numeric ? r.id.text : dump(r.id.text));
  j += R"(,"prompt":)" + dump(r.prompt);
  if (!r.messages.empty()) j += R"(,"messages":)" + to_json(r.messages);
  if (!r.options.empty()) j += R"(,"options":)" + r.options;
  j += R"(,"text":)" + dump(r.text);
  j += R"(,"finish_reason":)" + dump(r.finish_reason);
  j += R"(,"prompt_tokens":)" + std::to_string(r.prompt_tokens);
  j += R"(,"completion_tokens":)" + std::to_string(r.completion_tokens);
  j += R"(,"milliseconds":)" + dump(Json(rounded(r.milliseconds)));
  if (r.seed) j += R"(,"seed":)" + std::to_string(*r.seed);
  if (!r.error.empty()) j += R"(,"error":)" + dump(r.error);
  return j + '}';
}

/// Without what is nested deeper than a record ever is: ordered_json copies values while it parses, and
/// copies recurse. What is left of such a value is still of the wrong type. A NUL, for nlohmann the end of
/// the text, is made a byte that no JSON holds outside its strings, and none unescaped in them.
Json parse_shallow(std::string_view text) {
  std::string without_nul;
  if (text.find('\0') != std::string_view::npos) {
    without_nul = text;
    std::replace(without_nul.begin(), without_nul.end(), '\0', '\1');
    text = without_nul;
  }
  return Json::parse(text, [](int depth, Json::parse_event_t, Json&) { return depth <= 8; });
}

/// The options' text. Their values are scalars and lists of texts; anything else throws Json::exception.
std::string read_options(const Json& options) {
  for (const auto& [key, value] : options.get_ref<const Json::object_t&>()) {
    if (!value.is_structured()) continue;
    for (const Json& one : value.get_ref<const Json::array_t&>()) one.get_ref<const std::string&>();
  }
  return dump(options);
}

BatchRecord from_json(const Json& j) {
  BatchRecord r;
  const Json& id = j.at("id");
  r.id = id.is_number_integer() ? ItemId{id.dump(), true} : ItemId{id.get<std::string>(), false};
  r.prompt = j.at("prompt").get<std::string>();
  if (j.contains("messages")) r.messages = read_messages(j["messages"]);
  if (j.contains("options")) r.options = read_options(j["options"]);
  r.text = j.at("text").get<std::string>();
  r.finish_reason = j.at("finish_reason").get<std::string>();
  r.prompt_tokens = j.at("prompt_tokens").get<std::int64_t>();
  r.completion_tokens = j.at("completion_tokens").get<std::int64_t>();
  r.milliseconds = j.at("milliseconds").get<double>();
  if (j.contains("seed")) r.seed = j["seed"].get<std::int64_t>();
  r.error = j.value("error", "");
  return r;
}

std::vector<std::string> to_fields(const BatchRecord& r) {
  return {r.id.text,
          r.prompt,
          r.text,
          r.finish_reason,
          std::to_string(r.prompt_tokens),
          std::to_string(r.completion_tokens),
          Json(rounded(r.milliseconds)).dump(),
          r.seed ? std::to_string(*r.seed) : "",
          r.error,
          r.messages.empty() ? "" : to_json(r.messages),
          r.options};
}

[[noreturn]] void corrupt(std::size_t line, const std::string& message,
                          SourceLocation where = SourceLocation::current()) {
  throw Error(ErrorCode::kCorruptFile, "line " + std::to_string(line) + ": " + message, where);
}

BatchRecord from_fields(const CsvRow& row) {
  if (!row.error.empty()) corrupt(row.line, row.error);
  if (row.fields.size() != kColumns.size())
    corrupt(row.line, "expected " + std::to_string(kColumns.size()) + " fields of a batch record, got " +
                          std::to_string(row.fields.size()));
  const auto& f = row.fields;
  BatchRecord r;
  r.id = {f[0], false};
  r.prompt = f[1];
  r.text = f[2];
  r.finish_reason = f[3];
  const auto prompt_tokens = parse_integer(f[4]), completion_tokens = parse_integer(f[5]);
  const auto milliseconds = parse_real(f[6]);
  if (!prompt_tokens || !completion_tokens || !milliseconds)
    corrupt(row.line, "expected numbers in a batch record");
  r.prompt_tokens = *prompt_tokens;
  r.completion_tokens = *completion_tokens;
  r.milliseconds = *milliseconds;
  r.seed = parse_integer(f[7]);
  r.error = f[8];
  try {
    if (!f[9].empty()) r.messages = read_messages(parse_shallow(f[9]));
    if (!f[10].empty()) r.options = read_options(parse_shallow(f[10]));
  } catch (const Json::exception&) {
    corrupt(row.line, "expected JSON in the messages and options of a batch record");
  }
  return r;
}

std::vector<BatchRecord> parse_csv_records(std::string_view text) {
  std::vector<BatchRecord> records;
  const std::vector<CsvRow> rows = parse_csv(text);
  if (rows.empty() || rows.front().fields != kColumns)
    corrupt(1, "expected the column names of batch records");
  for (std::size_t i = 1; i < rows.size(); ++i) records.push_back(from_fields(rows[i]));
  return records;
}

std::vector<BatchRecord> parse_json_lines(std::string_view text, bool lenient) {
  std::vector<BatchRecord> records;
  for (std::size_t line = 1; !text.empty(); ++line) {
    const std::size_t end = text.find('\n');
    const std::string_view one = text.substr(0, end);
    const bool cut_off = end == std::string_view::npos;
    text = cut_off ? std::string_view{} : text.substr(end + 1);
    if (one.empty()) continue;
    try {
      records.push_back(from_json(parse_shallow(one)));
    } catch (const Json::exception&) {
      if (lenient && cut_off) break;
      corrupt(line, "expected a batch record");
    }
  }
  return records;
}

}  // namespace

std::string options_text(const BatchItem& item) {
  nlohmann::json options;  // sorts its keys
  for (const auto& [option, text] : item.overrides) {
    auto& value = options[std::string(option->key)];
    if (option->kind == Kind::kList) {
      value.push_back(text);
    } else {
      value = option_value(*option, text);
    }
  }
  return options.is_null() ? "" : dump(options);
}

std::string input_key(const BatchRecord& record) {
  return dump(record.id.text) + dump(record.prompt) + to_json(record.messages) + dump(record.options);
}

RecordFormat record_format(const std::filesystem::path& path) {
  const std::string suffix = path.extension().string();
  if (path == "-" || suffix == ".jsonl") return RecordFormat::kJsonl;
  if (suffix == ".json") return RecordFormat::kJson;
  if (suffix == ".csv") return RecordFormat::kCsv;
  throw Error(ErrorCode::kInvalidArgument,
              "'" + path.string() + "': expected an output file called .jsonl, .json or .csv");
}

std::string format_jsonl(const BatchRecord& record) { return to_json(record) + '\n'; }

std::string format_records(const std::vector<BatchRecord>& records, RecordFormat format) {
  std::string text;
  switch (format) {
    case RecordFormat::kJsonl:
      for (const BatchRecord& r : records) text += format_jsonl(r);
      break;
    case RecordFormat::kJson:
      text = "[";
      for (std::size_t i = 0; i < records.size(); ++i)
        text += (i == 0 ? "\n  " : ",\n  ") + to_json(records[i]);
      text += "\n]\n";
      break;
    case RecordFormat::kCsv:
      text = csv_line(kColumns);
      for (const BatchRecord& r : records) text += csv_line(to_fields(r));
      break;
  }
  return text;
}

std::vector<BatchRecord> parse_records(std::string_view text, RecordFormat format, bool lenient) {
  if (format == RecordFormat::kJsonl) return parse_json_lines(text, lenient);
  if (format == RecordFormat::kCsv) return parse_csv_records(text);
  std::vector<BatchRecord> records;
  try {
    for (const Json& j : parse_shallow(text)) records.push_back(from_json(j));
  } catch (const Json::exception&) {
    corrupt(1, "expected a list of batch records");
  }
  return records;
}

std::filesystem::path BatchJournal::path_for(const std::filesystem::path& output) {
  return output.string() + ".partial";
}

BatchJournal::BatchJournal(const std::filesystem::path& output) : path_(path_for(output)) {
  fd_ = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0666);
  if (fd_ < 0) fail();
  const off_t end = ::lseek(fd_, 0, SEEK_END);
  if (end < 0) {
    const int error = errno;
    ::close(fd_);
    errno = error;
    fail();
  }
  size_ = static_cast<std::uint64_t>(end);
}

BatchJournal::~BatchJournal() { ::close(fd_); }

void BatchJournal::fail() const {
  throw Error(ErrorCode::kIo, "cannot write '" + path_.string() + "': " + std::strerror(errno));
}

void BatchJournal::add(const BatchRecord& record) {
  const std::string line = format_jsonl(record);
  for (std::size_t done = 0; done < line.size();) {
    const ssize_t n = ::pwrite(fd_, line.data() + done, line.size() - done, static_cast<off_t>(size_ + done));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) {
      const int error = errno;
      (void)!::ftruncate(fd_, static_cast<off_t>(size_));  // half a line is left out anyway
      errno = error;
      fail();
    }
    done += static_cast<std::size_t>(n);
  }
  size_ += line.size();
}

void BatchJournal::remove(const std::filesystem::path& output) {
  std::error_code ignored;
  std::filesystem::remove(path_for(output), ignored);
}

}  // namespace bitnet::cli
