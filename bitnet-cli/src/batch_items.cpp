// Readers of batch input files; see batch_items.hpp.
#include "batch_items.hpp"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>

#include "bitnet/core/io/atomic_file.hpp"
#include "bitnet/core/text/suggest.hpp"
#include "csv.hpp"

namespace bitnet::cli {
namespace {

using Json = nlohmann::json;

[[noreturn]] void bad(const std::string& message, SourceLocation where = SourceLocation::current()) {
  throw Error(ErrorCode::kInvalidArgument, message, where);
}

std::string key_of(const Option& o) { return std::string(o.key); }

const Option* find_override(const std::string& key) {
  for (const Option* o : sampling_options())
    if (o->key == key) return o;
  return nullptr;
}

/// Parser messages of nlohmann begin with "[json.exception.parse_error.101] ", which tells people nothing.
std::string json_message(const Json::exception& e) {
  const std::string text = e.what();
  const std::size_t end = text.find("] ");
  return end == std::string::npos ? text : text.substr(end + 2);
}

/// nlohmann takes a NUL for the end of the text and never looks at what follows.
Json parse_json(std::string_view text) {
  if (const std::size_t nul = text.find('\0'); nul != std::string_view::npos)
    bad("not JSON: byte " + std::to_string(nul + 1) + " is a NUL");
  return Json::parse(text);
}

std::string scalar_text(const Json& value, const std::string& key) {
  if (value.is_string()) return value.get<std::string>();
  if (value.is_number() || value.is_boolean()) return value.dump();
  bad("'" + key + "': expected a number or text, got " + value.type_name());
}

void add_override(const Option& option, const Json& value, BatchItem& item) {
  const std::string key = key_of(option);
  const auto add = [&](const Json& one) {
    if (option.kind == Kind::kList && !one.is_string()) bad("'" + key + "': expected text");
    const std::string text = scalar_text(one, key);
    check_value(option, text, "'" + key + "'");
    item.overrides.emplace_back(&option, text);
  };
  if (option.kind == Kind::kList && value.is_array()) {
    for (const Json& one : value) add(one);
  } else if (!value.is_null()) {
    add(value);
  }
}

std::vector<ChatMessage> read_messages(const Json& value) {
  if (!value.is_array() || value.empty()) bad("'messages': expected a list of {\"role\": …, \"content\": …}");
  std::vector<ChatMessage> messages;
  for (const Json& m : value) {
    const bool good = m.is_object() && m.contains("role") && m["role"].is_string() && m.contains("content") &&
                      m["content"].is_string();
    if (!good)
      bad("'messages', number " + std::to_string(messages.size() + 1) +
          ": expected \"role\" and \"content\" as text");
    messages.push_back({m["role"].get<std::string>(), m["content"].get<std::string>()});
  }
  return messages;
}

void read_id(const Json& value, BatchItem& item) {
  if (value.is_null()) return;
  if (value.is_string()) {
    item.id = {value.get<std::string>(), false};
  } else if (value.is_number_integer()) {
    item.id = {value.dump(), true};
  } else {
    bad("'id': expected text or a whole number");
  }
}

/// The prompt for the record, whatever else is wrong with the item.
std::string prompt_of(const Json& value) {
  if (value.contains("prompt") && value["prompt"].is_string()) return value["prompt"].get<std::string>();
  if (!value.contains("messages") || !value["messages"].is_array() || value["messages"].empty()) return "";
  const Json& last = value["messages"].back();
  if (!last.is_object() || !last.contains("content") || !last["content"].is_string()) return "";
  return last["content"].get<std::string>();
}

/// Fills `item` from an object or a plain string; throws what is wrong with it. Unused keys go to `unused`.
void read_item(const Json& value, BatchItem& item, std::set<std::string>& unused) {
  if (value.is_string()) {
    item.prompt = value.get<std::string>();
    return;
  }
  if (!value.is_object()) bad(std::string("expected text or an object, got ") + value.type_name());
  item.prompt = prompt_of(value);
  if (value.contains("id")) read_id(value["id"], item);
  const bool has_prompt = value.contains("prompt"), has_messages = value.contains("messages");
  if (has_prompt == has_messages)
    bad(has_prompt ? "has both 'prompt' and 'messages'" : "has neither 'prompt' nor 'messages'");
  if (has_prompt) {
    if (!value["prompt"].is_string())
      bad(std::string("'prompt': expected text, got ") + value["prompt"].type_name());
  } else {
    item.messages = read_messages(value["messages"]);
  }
  for (const auto& [key, v] : value.items()) {
    if (key == "id" || key == "prompt" || key == "messages") continue;
    if (const Option* option = find_override(key)) {
      add_override(*option, v, item);
    } else {
      unused.insert(key);
    }
  }
}

/// Runs `read` and keeps what it throws in the item.
template <class Read>
void guarded(BatchItem& item, Read&& read) {
  try {
    read();
  } catch (const Json::exception& e) {
    item.error = "not JSON: " + json_message(e);
  } catch (const Error& e) {
    item.error = e.what();
  }
}

BatchItem numbered_item(std::size_t number, std::size_t line) {
  BatchItem item;
  item.id = {std::to_string(number), true};
  item.line = line;
  return item;
}

/// Calls body(line number, line without its end) for each line.
template <class Body>
void for_each_line(std::string_view text, Body&& body) {
  if (text.starts_with("\xEF\xBB\xBF")) text.remove_prefix(3);
  for (std::size_t number = 1; !text.empty(); ++number) {
    const std::size_t end = std::min(text.find('\n'), text.size());
    std::string_view line = text.substr(0, end);
    if (line.ends_with('\r')) line.remove_suffix(1);
    body(number, line);
    text.remove_prefix(std::min(end + 1, text.size()));
  }
}

bool is_blank(std::string_view line) { return line.find_first_not_of(" \t") == std::string_view::npos; }

void read_txt(std::string_view text, BatchItems& to) {
  for_each_line(text, [&](std::size_t number, std::string_view line) {
    if (is_blank(line)) return;
    to.items.push_back(numbered_item(to.items.size() + 1, number));
    to.items.back().prompt = line;
  });
}

void read_jsonl(std::string_view text, BatchItems& to, std::set<std::string>& unused) {
  for_each_line(text, [&](std::size_t number, std::string_view line) {
    if (is_blank(line)) return;
    to.items.push_back(numbered_item(to.items.size() + 1, number));
    BatchItem& item = to.items.back();
    guarded(item, [&] { read_item(parse_json(line), item, unused); });
    if (const std::size_t at = item.error.find("at line 1, column "); at != std::string::npos)
      item.error.erase(at + 3, 8);  // the parser got this line alone
    if (!item.error.empty()) item.error = "line " + std::to_string(number) + ": " + item.error;
  });
}

void read_json(std::string_view text, BatchItems& to, std::set<std::string>& unused) {
  Json root;
  try {
    root = parse_json(text);
  } catch (const Json::exception& e) {
    bad("not JSON: " + json_message(e));
  }
  if (!root.is_array()) bad("expected a list of prompts ([…]), got " + std::string(root.type_name()));
  for (const Json& value : root) {
    to.items.push_back(numbered_item(to.items.size() + 1, 0));
    BatchItem& item = to.items.back();
    guarded(item, [&] { read_item(value, item, unused); });
    if (!item.error.empty()) item.error = "item " + std::to_string(to.items.size()) + ": " + item.error;
  }
}

void read_csv_row(const CsvRow& row, const std::vector<std::string>& columns, BatchItem& item) {
  if (!row.error.empty()) bad(row.error);
  for (std::size_t i = 0; i < std::min(columns.size(), row.fields.size()); ++i) {
    if (columns[i] == "prompt") item.prompt = row.fields[i];
    if (columns[i] == "id" && !row.fields[i].empty()) item.id = {row.fields[i], false};
  }
  if (row.fields.size() != columns.size())
    bad("expected " + std::to_string(columns.size()) + " fields as in the first line, got " +
        std::to_string(row.fields.size()));
  for (std::size_t i = 0; i < columns.size(); ++i) {
    const std::string& text = row.fields[i];
    if (const Option* option = find_override(columns[i]); option != nullptr && !text.empty()) {
      check_value(*option, text, "'" + columns[i] + "'");
      item.overrides.emplace_back(option, text);
    }
  }
}

void read_csv(std::string_view text, BatchItems& to, std::set<std::string>& unused) {
  const std::vector<CsvRow> rows = parse_csv(text);
  if (rows.empty()) bad("expected a first line with the column names, got an empty file");
  const auto& columns = rows.front().fields;
  if (!rows.front().error.empty()) bad("line 1: " + rows.front().error);
  std::set<std::string> seen;
  for (const std::string& column : columns) {
    if (!seen.insert(column).second) bad("line 1: column '" + column + "' is given twice");
    if (column != "prompt" && column != "id" && find_override(column) == nullptr) unused.insert(column);
  }
  if (!seen.contains("prompt")) {
    std::string names;
    for (const std::string& column : columns) names += (names.empty() ? "'" : ", '") + column + "'";
    bad("line 1: expected a column 'prompt', found " + names);
  }
  for (std::size_t i = 1; i < rows.size(); ++i) {
    to.items.push_back(numbered_item(i, rows[i].line));
    BatchItem& item = to.items.back();
    guarded(item, [&] { read_csv_row(rows[i], columns, item); });
    if (!item.error.empty()) item.error = "line " + std::to_string(rows[i].line) + ": " + item.error;
  }
}

}  // namespace

void check_input_name(const std::filesystem::path& path) {
  const std::string suffix = path.extension().string();
  const std::vector<std::string> suffixes{".txt", ".json", ".jsonl", ".csv"};
  if (std::find(suffixes.begin(), suffixes.end(), suffix) == suffixes.end())
    bad("'" + path.string() + "': expected a file called .txt, .json, .jsonl or .csv");
}

BatchItems read_batch_items(const std::filesystem::path& path) {
  check_input_name(path);
  const std::string suffix = path.extension().string();
  const std::string text = read_file(path);
  BatchItems result;
  std::set<std::string> unused;
  with_context("'" + path.string() + "'", [&] {
    if (suffix == ".txt") read_txt(text, result);
    if (suffix == ".json") read_json(text, result, unused);
    if (suffix == ".jsonl") read_jsonl(text, result, unused);
    if (suffix == ".csv") read_csv(text, result, unused);
  });
  std::vector<std::string> known{"id", "prompt", "messages"};
  for (const Option* o : sampling_options()) known.push_back(key_of(*o));
  for (const std::string& key : unused)
    result.notes.push_back("'" + path.string() + "': '" + key + "' is not used" + suggestion(key, known));
  if (result.items.empty()) result.notes.push_back("'" + path.string() + "' holds no prompts");
  return result;
}

}  // namespace bitnet::cli
