// See common.hpp.
#include "common.hpp"

#include <sys/resource.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <istream>
#include <iterator>
#include <optional>
#include <ostream>
#include <utility>

#include "adapters.hpp"
#include "bitnet/core/error_monitor.hpp"
#include "bitnet/core/io/atomic_file.hpp"
#include "bitnet/core/isa.hpp"
#include "text_stream.hpp"

namespace bitnet::cli {

namespace fs = std::filesystem;

std::string require(const Values& values, const Option& option) {
  const std::string text = values.text(option);
  if (!text.empty()) return text;
  std::string name = "--" + std::string(option.name);
  if (option.letter != 0) name = std::string("-") + option.letter + " (" + name + ")";
  throw UsageError("missing option " + name + " " + std::string(option.value));
}

std::string read_text(const std::string& path, Io& io) {
  constexpr std::size_t kMost = std::size_t{1} << 31;  // bytes
  TextReader reader(path, io);
  std::string text, block;
  while (reader.next(block)) {
    if (text.size() + block.size() > kMost)
      throw Error(ErrorCode::kInvalidArgument,
                  "'" + path + "' is larger than " + std::to_string(kMost) + " bytes");
    text += block;
  }
  return text;
}

bool would_replace(const fs::path& out, const fs::path& in) {
  std::error_code ignored;
  if (fs::equivalent(out, in, ignored)) return true;
  if (!fs::is_directory(in, ignored) || !fs::exists(out, ignored)) return false;
  for (fs::directory_iterator i(in, ignored), end; i != end; i.increment(ignored))
    if (fs::equivalent(out, i->path(), ignored)) return true;
  return false;
}

bool same_file(const fs::path& a, const fs::path& b) {
  std::error_code ignored;
  if (fs::equivalent(a, b, ignored)) return true;
  return fs::weakly_canonical(a, ignored) == fs::weakly_canonical(b, ignored);
}

void check_replaces_no_input(const Values& values, const fs::path& out, const std::string& subject) {
  const auto refuse_over = [&](const fs::path& in, const std::string& name) {
    if (in.empty() || in == "-" || !would_replace(out, in)) return;
    std::error_code ignored;
    const std::string_view part = fs::is_directory(in, ignored) ? "a file of " : "";
    throw Error(ErrorCode::kInvalidArgument, subject + " would replace " + std::string(part) + name);
  };
  refuse_over(values.text(opt::kModel), "the model");
  for (const auto& adapter : adapter_sources(values)) refuse_over(adapter.path, "an adapter");
  for (const Option* o :
       {&opt::kFile, &opt::kInput, &opt::kConfig, &opt::kSynthConfig, &opt::kCalibrate, &opt::kCalibration,
        &opt::kTuningText, &opt::kTuningFile, &opt::kEvaluate, &opt::kPlan, &opt::kOriginal})
    refuse_over(values.text(*o), "the file of --" + std::string(o->name));
}

fs::path report_path(const Values& values, const Option& option, std::string_view name) {
  const std::string option_name = "--" + std::string(option.name);
  const fs::path path = values.text(option);
  if (path.empty()) throw UsageError(option_name + ": expected a file");
  if (path == "-") throw UsageError(option_name + " needs a file: standard output is the text's");
  check_replaces_no_input(values, path, option_name + " '" + path.string() + "': the " + std::string(name));
  return path;
}

InputText text_or_file(const Values& values, const Option& text_option, const Option& file_option, Io& io) {
  const std::string names = "--" + std::string(text_option.name) + " or --" + std::string(file_option.name);
  bool has_text = values.has(text_option), has_file = values.has(file_option);
  if (has_text && has_file) {
    const Origin text = values.origin(text_option), file = values.origin(file_option);
    if (text == file) throw UsageError("give " + names + ", not both");
    has_text = text > file;  // the command line wins over a yaml file
    has_file = !has_text;
  }
  if (has_text) return {values.text(text_option), ""};
  if (has_file) {
    const std::string path = values.text(file_option);
    return {read_text(path, io), path};
  }
  throw UsageError("missing " + names);
}

std::string quoted(std::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    const auto u = static_cast<unsigned char>(c);
    char code[8];
    switch (c) {
      case '\n':
        out += "\\n";
        break;
      case '\r':
        out += "\\r";
        break;
      case '\t':
        out += "\\t";
        break;
      case '"':
        out += "\\\"";
        break;
      case '\\':
        out += "\\\\";
        break;
      default:
        if (u < 0x20 || u == 0x7F) {
          std::snprintf(code, sizeof code, "\\x%02X", u);
          out += code;
        } else {
          out += c;
        }
    }
  }
  return out + '"';
}

std::string grouped(std::int64_t n) {
  std::string digits = std::to_string(n);
  const std::size_t first = digits.starts_with('-') ? 1 : 0;
  for (std::size_t at = digits.size(); at > first + 3;) {
    at -= 3;
    digits.insert(at, ",");
  }
  return digits;
}

std::string fixed(double x, int digits) {
  char text[64];
  std::snprintf(text, sizeof text, "%.*f", digits, x);
  return text;
}

std::string significant(double x, int digits) {
  const double least = std::pow(10.0, 1 - digits);  // what keeps two digits
  if (x == 0 || !(std::fabs(x) < least)) return fixed(x, digits);
  char text[64];
  std::snprintf(text, sizeof text, "%.3g", x);
  return text;
}

std::string human_bytes(std::uint64_t bytes) {
  static constexpr const char* kUnits[] = {"bytes", "KiB", "MiB", "GiB", "TiB"};
  auto value = static_cast<double>(bytes);
  std::size_t unit = 0;
  while (value >= 1024 && unit + 1 < std::size(kUnits)) {
    value /= 1024;
    ++unit;
  }
  return fixed(value, unit == 0 ? 0 : 1) + " " + kUnits[unit];
}

std::string human_time(double seconds) {
  const auto s = static_cast<long long>(std::ceil(std::clamp(seconds, 0.0, 3.6e9)));
  char text[64];
  if (s >= 3600) {
    std::snprintf(text, sizeof text, "%lld:%02lld:%02lld", s / 3600, s / 60 % 60, s % 60);
  } else {
    std::snprintf(text, sizeof text, "%lld:%02lld", s / 60, s % 60);
  }
  return text;
}

std::string failure_text(const Error& error) {
  if (error.severity() != Severity::kFatal) return error.what();
  return std::string(error.what()) + " (internal error at " + place_of(error) + ")";
}

std::recursive_mutex& output_mutex() {
  static std::recursive_mutex mutex;
  return mutex;
}

void check_cancelled(const Io& io) {
  if (io.is_cancelled()) throw Error(ErrorCode::kCancelled, "interrupted");
}

void check_out(Io& io) {
  if (!io.out) throw Error(ErrorCode::kIo, "cannot write to standard output (is the disk full?)");
}

std::size_t thread_count(std::int64_t asked) {
  return asked == 0 ? usable_cores() : static_cast<std::size_t>(asked);
}

std::size_t parse_bytes(const std::string& text) {
  static constexpr std::pair<const char*, int> kUnits[] = {
      {"KiB", 10}, {"MiB", 20}, {"GiB", 30}, {"TiB", 40}};
  constexpr double kMost = 1ULL << 60;
  std::string number = text;
  int shift = 0;
  for (const auto& [name, bits] : kUnits) {
    if (!number.ends_with(name)) continue;
    number.resize(number.size() - 3);
    shift = bits;
  }
  while (number.ends_with(' ')) number.pop_back();
  const std::optional<double> value = parse_real(number);
  if (!value || !(*value > 0) || std::ldexp(*value, shift) > kMost)
    throw Error(ErrorCode::kInvalidArgument,
                "expected a number of bytes, or one with KiB, MiB, GiB or TiB behind it, as in 4GiB, got '" +
                    text + "'");
  return static_cast<std::size_t>(std::ldexp(*value, shift));
}

// The least is a pool's (MemoryPoolOptions::limit).
std::size_t parse_limit(const std::string& text) {
  constexpr std::size_t kLeast = std::size_t{64} << 10;
  const std::size_t limit = parse_bytes(text);
  if (limit < kLeast)
    throw Error(ErrorCode::kInvalidArgument, "expected at least 64 KiB, got '" + text + "'");
  return limit;
}

MemoryPoolOptions pool_options(const Values& values) {
  MemoryPoolOptions options = host_pool_options();
  if (values.has(opt::kMemoryLimit)) options.limit = checked(values, opt::kMemoryLimit, parse_limit);
  return options;
}

std::shared_ptr<HybridMemoryPool> limited_pool(const Values& values) {
  return values.has(opt::kMemoryLimit) ? std::make_shared<HybridMemoryPool>(pool_options(values)) : nullptr;
}

std::shared_ptr<const ExecutionContext> make_context(const Values& values,
                                                     std::shared_ptr<HybridMemoryPool> memory) {
  ExecutionContext::Options options;
  options.threads = thread_count(values.integer(opt::kThreads));
  if (values.has(opt::kIsa)) options.isa = checked(values, opt::kIsa, isa_from_name);
  options.memory = memory != nullptr ? std::move(memory) : limited_pool(values);
  return std::make_shared<const ExecutionContext>(options);
}

std::uint64_t peak_memory_bytes() {
  rusage usage{};
  if (getrusage(RUSAGE_SELF, &usage) != 0) return 0;
  return static_cast<std::uint64_t>(usage.ru_maxrss) * 1024;  // Linux counts in KiB
}

std::string ProgressBar::line(double done, double total, double seconds, const std::string& unit,
                              const std::string& remark, int columns) {
  const double share = total > 0 ? std::clamp(done / total, 0.0, 1.0) : 0.0;
  constexpr int kBar = 24;
  const int full = static_cast<int>(share * kBar);
  std::string text = "[" + std::string(static_cast<std::size_t>(full), '#') +
                     std::string(static_cast<std::size_t>(kBar - full), '.') + "] ";
  text +=
      grouped(static_cast<std::int64_t>(done)) + "/" + grouped(static_cast<std::int64_t>(total)) + " " + unit;
  if (share > 0) text += ", " + human_time(seconds / share - seconds) + " to go";
  if (!remark.empty()) text += ", " + remark;
  const auto limit = static_cast<std::size_t>(std::max(columns - 1, 1));
  if (text.size() > limit) text.resize(limit);
  return text;
}

void ProgressBar::update(double done, double total, const std::string& remark) {
  if (!io_.err_is_terminal) return;
  const double now = watch_.seconds();
  if (visible_ && now - drawn_at_ < 0.1 && done < total) return;
  drawn_at_ = now;
  visible_ = true;
  io_.err << '\r' << line(done, total, now, unit_, remark, io_.columns) << "\x1b[K" << std::flush;
}

void ProgressBar::clear() {
  if (!visible_) return;
  io_.err << "\r\x1b[K" << std::flush;
  visible_ = false;
}

}  // namespace bitnet::cli
