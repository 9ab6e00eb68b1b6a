// See tuning_table.hpp.
#include "tuning_table.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <yaml-cpp/depthguard.h>

#include <algorithm>
#include <bit>
#include <filesystem>
#include <optional>
#include <set>

#include "bitnet/core/env.hpp"
#include "bitnet/core/error.hpp"
#include "bitnet/core/io/atomic_file.hpp"
#include "bitnet/core/log.hpp"
#include "bitnet/core/text/suggest.hpp"
#include "bitnet/gpu/tuning.hpp"
#include "bitnet/yaml/documents.hpp"
#include "tuning_data.hpp"

namespace bitnet::gpu {
namespace {

constexpr std::string_view kFormat = "bitnet-opencl-tuning-1";
constexpr std::string_view kDefault = "default";
constexpr std::uint64_t kMostBytes = 1 << 20;  // of a table

constexpr KernelForm kWide = KernelForm::kWide, kGroups = KernelForm::kGroups;
constexpr TunableRule kAny = TunableRule::kAny, kPowerOfTwo = TunableRule::kPowerOfTwo,
                      kMultipleOf16 = TunableRule::kMultipleOf16;

// A row more needs more registers; work-groups are bounded by what OpenCL devices take.
constexpr int kRowsOfWide[] = {2, 3, 4, 6, 8}, kRowsOfGroups[] = {2, 4, 8, 16};
constexpr int kOutGroups[] = {16, 32, 64, 128, 256}, kSplits[] = {1, 2, 4, 8};
constexpr int kDenseGroups[] = {16, 32, 64, 128}, kQuantGroups[] = {32, 64, 128, 256};
constexpr int kMostRows = 16, kMostSplit = 16, kMostItems = 1024;

// The kernels say what each macro is.
constexpr Tunable kTunables[] = {
    {kWide, "ternary_matmul", "many", "BN_ROWS", 1, kMostRows, kAny, kRowsOfWide},
    {kWide, "int8_matmul", "many", "BN_ROWS", 1, kMostRows, kAny, kRowsOfWide},
    {kWide, "dense_matmul", "one", "BN_DENSE_WG", 1, kMostItems, kAny, kDenseGroups},
    {kWide, "dense_matmul", "many", "BN_DENSE_WG", 1, kMostItems, kAny, kDenseGroups},
    {kWide, "dense_matmul", "many", "BN_ROWS", 1, kMostRows, kAny, kRowsOfWide},
    {kGroups, "normalize_quantize", "any", "BN_QUANT_WG", 16, kMostItems, kPowerOfTwo, kQuantGroups},
    {kGroups, "ternary_matmul", "one", "BN_OUT_WG", 16, kMostItems, kMultipleOf16, kOutGroups},
    {kGroups, "ternary_matmul", "one", "BN_SPLIT", 1, kMostSplit, kPowerOfTwo, kSplits},
    {kGroups, "ternary_matmul", "many", "BN_OUT_WG", 16, kMostItems, kMultipleOf16, kOutGroups},
    {kGroups, "ternary_matmul", "many", "BN_ROWS", 1, kMostRows, kAny, kRowsOfGroups},
    {kGroups, "int8_matmul", "one", "BN_OUT_WG", 16, kMostItems, kMultipleOf16, kOutGroups},
    {kGroups, "int8_matmul", "many", "BN_OUT_WG", 16, kMostItems, kMultipleOf16, kOutGroups},
    {kGroups, "int8_matmul", "many", "BN_ROWS", 1, kMostRows, kAny, kRowsOfGroups},
    {kGroups, "dense_matmul", "one", "BN_DENSE_WG", 1, kMostItems, kAny, kDenseGroups},
    {kGroups, "dense_matmul", "many", "BN_DENSE_WG", 1, kMostItems, kAny, kDenseGroups},
    {kGroups, "dense_matmul", "many", "BN_ROWS", 1, kMostRows, kAny, kRowsOfGroups},
};

/// Of the number of work-items of a group; the others are launched whatever they are.
bool counts_items(const Tunable& t) { return t.macro.ends_with("_WG"); }

[[noreturn]] void fail_at(const std::string& file, int line, const std::string& what) {
  throw Error(ErrorCode::kInvalidArgument, fmt::format("{}:{}: {}", file, line, what));
}

int line_of(const YAML::Node& node) { return std::max(node.Mark().line, 0) + 1; }

/// Reads one table.
class Reader {
 public:
  explicit Reader(const std::string& name) : name_(name) {}

  TuningTable read(const YAML::Node& root) {
    TuningTable table;
    bool has_format = false;
    for (const Entry& e : mapping(root, "the table")) {
      if (e.key == "format") {
        has_format = true;
        if (!e.value.IsScalar() || e.value.Scalar() != kFormat)
          fail(e, fmt::format("expected '{}'", kFormat));
      } else if (e.key == "devices") {
        if (!e.value.IsSequence()) fail(e, "expected a list of mappings");
        std::set<std::string> devices;
        for (const auto& device : e.value) add(table, device, devices);
      } else {
        unknown(e, {"format", "devices"}, "the table");
      }
    }
    if (!has_format) fail_at(name_, 1, fmt::format("expected 'format: {}'", kFormat));
    return table;
  }

 private:
  struct Entry {
    std::string key;
    int line;
    YAML::Node value;
  };

  [[noreturn]] void fail(const Entry& e, const std::string& what) const {
    fail_at(name_, e.line, fmt::format("'{}': {}", e.key, what));
  }

  [[noreturn]] void unknown(const Entry& e, const std::vector<std::string>& known,
                            std::string_view where) const {
    fail_at(name_, e.line,
            fmt::format("unknown key '{}' in {}{} (there are {})", e.key, where, suggestion(e.key, known),
                        fmt::join(known, ", ")));
  }

  std::vector<Entry> mapping(const YAML::Node& node, const std::string& what) const {
    if (!node.IsMap()) fail_at(name_, line_of(node), what + " must be a mapping of keys to values");
    std::vector<Entry> all;
    std::set<std::string> keys;
    for (const auto& entry : node) {
      const int line = line_of(entry.first);
      if (!entry.first.IsScalar()) fail_at(name_, line, "expected a word as key");
      all.push_back({entry.first.Scalar(), line, entry.second});
      if (!keys.insert(all.back().key).second) fail(all.back(), "is given twice");
    }
    return all;
  }

  std::string text(const Entry& e) const {
    if (!e.value.IsScalar() || e.value.Scalar().empty()) fail(e, "expected a text that is not empty");
    return e.value.Scalar();
  }

  /// `devices`: the names until now.
  void add(TuningTable& table, const YAML::Node& node, std::set<std::string>& devices) const {
    TuningRow row;
    row.values.assign(std::size(kTunables), 0);
    for (const Entry& e : mapping(node, "an entry of 'devices'")) {
      if (e.key == "device") {
        row.device = text(e);
      } else if (e.key == "driver") {
        row.driver = text(e);
      } else if (e.key == "model") {
        row.model = text(e);
      } else if (e.key == "record") {
        bool record = false;
        if (!e.value.IsScalar() || !YAML::convert<bool>::decode(e.value, record))
          fail(e, "expected true or false");
        row.record = record;
      } else if (e.key == to_string(kWide)) {
        read_programs(kWide, e, row);
      } else if (e.key == to_string(kGroups)) {
        read_programs(kGroups, e, row);
      } else {
        unknown(e, {"device", "driver", "model", "record", "wide", "groups"}, "an entry of 'devices'");
      }
    }
    if (row.device.empty()) fail_at(name_, line_of(node), "an entry of 'devices' needs the key 'device'");
    if (!devices.insert(row.device).second)
      fail_at(name_, line_of(node), fmt::format("the device '{}' is given twice", row.device));
    table.rows.push_back(std::move(row));
  }

  void read_programs(KernelForm form, const Entry& programs, TuningRow& row) const {
    for (const Entry& program : mapping(programs.value, fmt::format("'{}'", programs.key))) {
      check_known(program, {form, {}, {}}, fmt::format("'{}'", programs.key));
      for (const Entry& rows : mapping(program.value, fmt::format("'{}'", program.key))) {
        check_known(rows, {form, program.key, {}}, fmt::format("'{}'", program.key));
        const std::string where = fmt::format("'{}' of '{}'", rows.key, program.key);
        for (const Entry& macro : mapping(rows.value, where)) {
          check_known(macro, {form, program.key, rows.key}, where);
          read_value({form, program.key, rows.key}, macro, row);
        }
      }
    }
  }

  /// Where a key stands: empty at the end, what it is itself.
  struct Place {
    KernelForm form;
    std::string_view program, rows;
    bool holds(const Tunable& t) const {
      return t.form == form && (program.empty() || t.program == program) && (rows.empty() || t.rows == rows);
    }
    std::string_view word(const Tunable& t) const {
      return program.empty() ? t.program : rows.empty() ? t.rows : t.macro;
    }
  };

  void check_known(const Entry& e, const Place& place, const std::string& where) const {
    std::vector<std::string> known;
    for (const Tunable& t : kTunables) {
      if (!place.holds(t)) continue;
      const std::string word(place.word(t));
      if (word == e.key) return;
      if (std::find(known.begin(), known.end(), word) == known.end()) known.push_back(word);
    }
    unknown(e, known, where);
  }

  void read_value(const Place& place, const Entry& e, TuningRow& row) const {
    std::size_t i = 0;
    while (!place.holds(kTunables[i]) || kTunables[i].macro != e.key) ++i;  // it is known
    const Tunable& t = kTunables[i];
    int value = 0;
    if (!e.value.IsScalar() || !YAML::convert<int>::decode(e.value, value) || !is_value(t, value))
      fail(e, fmt::format("expected a {} from {} to {}",
                          t.rule == kPowerOfTwo     ? "power of two"
                          : t.rule == kMultipleOf16 ? "multiple of 16"
                                                    : "whole number",
                          t.low, t.high));
    row.values[i] = value;
  }

  const std::string& name_;
};

/// As a yaml word in double quotes.
std::string quoted_word(std::string_view s) {
  std::string out = "\"";
  for (const char c : s) {
    if (c == '"' || c == '\\') out += '\\';
    if (static_cast<unsigned char>(c) < 0x20) {
      out += fmt::format("\\x{:02x}", static_cast<unsigned>(static_cast<unsigned char>(c)));
    } else {
      out += c;
    }
  }
  return out + "\"";
}

bool begins(std::string_view name, std::string_view pattern) {
  return pattern.ends_with('*') && name.starts_with(pattern.substr(0, pattern.size() - 1));
}

/// The row of the device itself, or else that with the longest beginning of its name, or null.
const TuningRow* row_for(const TuningTable& table, std::string_view name) {
  const TuningRow* best = nullptr;
  for (const TuningRow& row : table.rows) {
    if (row.device == kDefault) continue;
    if (row.device == name) return &row;
    if (begins(name, row.device) && (best == nullptr || row.device.size() > best->device.size())) best = &row;
  }
  return best;
}

const TuningRow* default_of(const TuningTable& table) {
  for (const TuningRow& row : table.rows)
    if (row.device == kDefault) return &row;
  return nullptr;
}

void put_over(TunableValues& values, const TunableValues& above) {
  for (std::size_t i = 0; i < values.size(); ++i)
    if (above[i] != 0) values[i] = above[i];
}

TuningTable read_table(const std::filesystem::path& path) {
  return parse_tuning(read_file(path, kMostBytes, FileKind::kAny), path.string());
}

struct UserTable {
  std::filesystem::path path;
  TuningTable table;
};

/// Asked for by name: to be read, or an error. Found: to be read if it can be.
UserTable user_table(const Options& options) {
  const bool by_name = options.tuning_file.has_value() || env("BITNET_OPENCL_TUNING").has_value();
  UserTable user{options.tuning_file.value_or(user_tuning_file()), {}};
  if (user.path.empty()) return user;
  std::error_code ignored;
  if (!by_name && !std::filesystem::exists(user.path, ignored)) return user;
  try {
    user.table = read_table(user.path);
  } catch (const Error& e) {
    if (by_name) throw;
    log(LogLevel::kWarning, fmt::format("{}; the shipped sizes of work-groups are used", e.what()));
  }
  return user;
}

/// Whether build options define a macro.
bool defines(std::string_view options, std::string_view macro) {
  for (const std::string_view flag : {"-D", "-D "}) {
    const std::string text = fmt::format("{}{}", flag, macro);
    for (std::size_t at = options.find(text); at != std::string_view::npos; at = options.find(text, at + 1)) {
      const std::size_t end = at + text.size();
      if (end == options.size() || options[end] == '=' || options[end] == ' ') return true;
    }
  }
  return false;
}

Tuning made(TunableValues values, bool records, std::size_t most, KernelForm form, const Options& options,
            std::string origin) {
  fit(values, most);
  for (std::size_t i = 0; i < values.size(); ++i) {
    const Tunable& t = kTunables[i];
    if (t.form != form || (counts_items(t) && defines(options.build_options, t.macro))) values[i] = 0;
  }
  return {form, std::move(values), records, std::move(origin)};
}

}  // namespace

std::span<const Tunable> tunables() noexcept { return kTunables; }

std::string_view to_string(KernelForm form) noexcept { return form == kWide ? "wide" : "groups"; }

bool is_value(const Tunable& t, int value) noexcept {
  if (value < t.low || value > t.high) return false;
  if (t.rule == kPowerOfTwo) return std::has_single_bit(static_cast<unsigned>(value));
  return t.rule == kAny || value % 16 == 0;
}

TuningTable parse_tuning(const std::string& text, const std::string& name) {
  try {
    const std::vector<YAML::Node> documents = yaml::load_all(text);
    if (documents.empty()) fail_at(name, 1, fmt::format("expected 'format: {}'", kFormat));
    if (documents.size() > 1) fail_at(name, line_of(documents[1]), "a second document; expected one");
    return Reader(name).read(documents[0]);
  } catch (const YAML::DeepRecursion& e) {
    fail_at(name, std::max(e.mark.line, 0) + 1, "lists or mappings within each other, too deep to be read");
  } catch (const YAML::Exception& e) {
    fail_at(name, std::max(e.mark.line, 0) + 1, e.msg);
  }
}

std::string to_yaml(const TuningTable& table) {
  std::string out = fmt::format("format: {}\ndevices:\n", kFormat);
  if (table.rows.empty()) out = fmt::format("format: {}\ndevices: []\n", kFormat);
  for (const TuningRow& row : table.rows) {
    out += fmt::format("  - device: {}\n", row.device == kDefault ? row.device : quoted_word(row.device));
    if (!row.driver.empty()) out += fmt::format("    driver: {}\n", quoted_word(row.driver));
    if (!row.model.empty()) out += fmt::format("    model: {}\n", quoted_word(row.model));
    if (row.record) out += fmt::format("    record: {}\n", *row.record);
    std::string_view program, rows;
    std::optional<KernelForm> form;
    bool open = false;
    for (std::size_t i = 0; i < std::size(kTunables); ++i) {
      const Tunable& t = kTunables[i];
      if (row.values[i] == 0) continue;
      const bool same_form = form == t.form, same_program = same_form && program == t.program;
      const bool same = same_program && rows == t.rows;
      if (open && !same) out += "}\n";
      if (!same_form) out += fmt::format("    {}:\n", to_string(t.form));
      if (!same_program) out += fmt::format("      {}:\n", t.program);
      out += same ? fmt::format(", {}: {}", t.macro, row.values[i])
                  : fmt::format("        {}: {{{}: {}", t.rows, t.macro, row.values[i]);
      form = t.form;
      program = t.program;
      rows = t.rows;
      open = true;
    }
    if (open) out += "}\n";
  }
  return out;
}

int Tuning::value(std::string_view program, std::string_view rows, std::string_view macro,
                  int otherwise) const {
  for (std::size_t i = 0; i < values_.size(); ++i) {
    const Tunable& t = kTunables[i];
    if (t.form == form_ && t.program == program && t.rows == rows && t.macro == macro && values_[i] != 0)
      return values_[i];
  }
  return otherwise;
}

std::string Tuning::options(std::string_view program, std::string_view rows) const {
  std::string out;
  for (std::size_t i = 0; i < values_.size(); ++i) {
    const Tunable& t = kTunables[i];
    if (t.form == form_ && t.program == program && t.rows == rows && values_[i] != 0)
      out += fmt::format("{}-D{}={}", out.empty() ? "" : " ", t.macro, values_[i]);
  }
  return out;
}

void fit(TunableValues& values, std::size_t most) {
  const int limit = static_cast<int>(std::clamp<std::size_t>(most, 1, kMostItems));
  for (std::size_t i = 0; i < values.size(); ++i) {
    const Tunable& t = kTunables[i];
    if (!counts_items(t) || values[i] <= limit) continue;
    // The kernels need what low says; a device without it does not build them, and says so.
    values[i] = t.rule == kPowerOfTwo ? static_cast<int>(std::bit_floor(static_cast<unsigned>(limit)))
                                      : (t.rule == kMultipleOf16 ? limit / 16 * 16 : limit);
    values[i] = std::max(values[i], t.low);
  }
  for (std::size_t i = 0; i < values.size(); ++i) {  // parts of k that share a group
    const Tunable& t = kTunables[i];
    if (t.macro != "BN_SPLIT" || values[i] == 0) continue;
    for (std::size_t j = 0; j < values.size(); ++j) {
      const Tunable& group = kTunables[j];
      if (group.form != t.form || group.program != t.program || group.rows != t.rows || !counts_items(group))
        continue;
      while (values[i] > 1 && values[i] * values[j] > limit) values[i] /= 2;
    }
  }
}

const TuningTable& shipped_tuning() {
  static const TuningTable table =
      parse_tuning(std::string(tuning_data::opencl), "bitnet-gpu/tuning/opencl.yaml");
  return table;
}

Tuning tuning_with(const TuningRow& row, std::size_t most, KernelForm form, const Options& options) {
  TunableValues values = default_of(shipped_tuning())->values;
  put_over(values, row.values);
  return made(std::move(values), row.record.value_or(false), most, form, options, row.device);
}

Tuning tuning_of(std::string_view name, std::size_t most, KernelForm form, const Options& options) {
  const UserTable user = user_table(options);
  TunableValues values = default_of(shipped_tuning())->values;
  std::string origin(kDefault);
  const auto of_user = [&](const TuningRow& row) {
    return fmt::format("{} of {}", row.device, user.path.string());
  };
  if (const TuningRow* row = default_of(user.table)) {
    put_over(values, row->values);
    origin = of_user(*row);
  }
  if (const TuningRow* row = row_for(user.table, name)) {
    put_over(values, row->values);
    origin = of_user(*row);
  } else if (const TuningRow* shipped = row_for(shipped_tuning(), name)) {
    put_over(values, shipped->values);
    origin = shipped->device;
  }
  bool records = true;
  const TuningRow* const rows[] = {row_for(user.table, name), default_of(user.table),
                                   row_for(shipped_tuning(), name), default_of(shipped_tuning())};
  for (const TuningRow* row : rows) {
    if (row == nullptr || !row->record) continue;
    records = *row->record;
    break;
  }
  return made(std::move(values), records, most, form, options, std::move(origin));
}

std::filesystem::path user_tuning_file() {
  if (const auto file = env("BITNET_OPENCL_TUNING")) return *file;
  constexpr const char* kFile = "bitnet/opencl-tuning.yaml";
  if (const auto data = env("XDG_DATA_HOME")) return std::filesystem::path(*data) / kFile;
  if (const auto home = env("HOME")) return std::filesystem::path(*home) / ".local/share" / kFile;
  return {};
}

void check_tuning_file(const std::filesystem::path& path) {
  std::error_code ignored;
  if (std::filesystem::exists(path, ignored)) static_cast<void>(read_table(path));
  const AtomicFile written_later(path);  // what is not committed leaves nothing
}

void save_tuning(const TuneResult& result, const std::filesystem::path& path) {
  TuningTable table;
  std::error_code ignored;
  if (std::filesystem::exists(path, ignored)) table = read_table(path);
  for (TuningRow& row : parse_tuning(result.yaml, "the result").rows) {
    const auto same = std::find_if(table.rows.begin(), table.rows.end(),
                                   [&](const TuningRow& r) { return r.device == row.device; });
    if (same == table.rows.end()) {
      table.rows.push_back(std::move(row));
    } else {
      TunableValues values = same->values;  // what was not measured now, as another form of kernels, stays
      put_over(values, row.values);
      row.values = std::move(values);
      if (!row.record) row.record = same->record;
      *same = std::move(row);
    }
  }
  write_file(path, to_yaml(table));
}

}  // namespace bitnet::gpu
