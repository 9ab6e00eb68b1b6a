// The commands of `bitnet-benchmarks`; see tool.hpp.
#include "bitnet/benchmarks/tool.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <map>
#include <optional>
#include <ostream>
#include <string_view>
#include <system_error>
#include <vector>

#include "bitnet/benchmarks/compare.hpp"
#include "bitnet/benchmarks/report.hpp"
#include "bitnet/core/error.hpp"
#include "bitnet/core/io/atomic_file.hpp"

namespace bitnet::benchmarks {
namespace {

constexpr int kOk = 0, kSlower = 1, kUsage = 2;

constexpr std::string_view kHelp =
    R"(bitnet-benchmarks: compares and draws what `bitnet bench -o json` and the Google Benchmark programs wrote

Usage:
  bitnet-benchmarks compare OLD.json NEW.json [--threshold 5%]
  bitnet-benchmarks report FILE.json… -o OUT.html

compare names the tests of both files with new speed ÷ old speed and a verdict: slower or faster when they are
further apart than the threshold and Welch's t-test on the samples gives p < 0.05. With one sample there is no
verdict: measure with repetitions (bitnet bench -r 5, --benchmark_repetitions=5).
report writes one HTML page with charts.

Exit codes: 0 ok, 1 compare: something is slower, 2 wrong usage, or files that cannot be read or compared.

Example:
  bitnet bench -m models/bitnet-demo-i2_s.gguf -o json > new.json
  bitnet-benchmarks compare old.json new.json --threshold 3%
  bitnet-benchmarks report old.json new.json -o speed.html
)";

struct UsageError : Error {
  explicit UsageError(std::string message) : Error(ErrorCode::kInvalidArgument, std::move(message)) {}
};

/// A command line: words, and the one option that its command has.
struct Arguments {
  std::vector<std::string> words;
  std::optional<std::string> option;
};

Arguments split(std::span<const std::string> all, std::string_view option, std::string_view letter) {
  Arguments to;
  for (std::size_t i = 0; i < all.size(); ++i) {
    const std::string& word = all[i];
    if (word == option || (!letter.empty() && word == letter)) {
      if (i + 1 == all.size()) throw UsageError(fmt::format("option {} needs a value", word));
      to.option = all[++i];
    } else if (word.starts_with(std::string(option) + "=")) {
      to.option = word.substr(option.size() + 1);
    } else if (word.size() > 1 && word[0] == '-') {
      throw UsageError(fmt::format("unknown option '{}': there is {}", word, option));
    } else {
      to.words.push_back(word);
    }
  }
  return to;
}

/// "5%" or "5" → 0.05
double percentage(std::string_view text) {
  std::string_view digits = text;
  if (digits.ends_with('%')) digits.remove_suffix(1);
  double value = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
  if (error != std::errc() || end != digits.data() + digits.size() || !(value >= 0 && value < 100))
    throw UsageError(fmt::format(
        "--threshold: expected a percentage of at least 0 and below 100, as in 5%, got '{}'", text));
  return value / 100;
}

/// Three or four digits, whatever the size.
std::string value_text(double value, const std::string& unit) {
  if (unit == "ns" && value >= 1e3)
    return value < 1e6 ? fmt::format("{:.4g} µs", value / 1e3) : fmt::format("{:.4g} ms", value / 1e6);
  return fmt::format("{:.4g} {}", value, unit);
}

/// Text as a cell of a markdown table.
std::string cell(std::string_view text) {
  std::string escaped;
  for (const char c : text) escaped += c == '|' ? std::string("\\|") : std::string(1, c);
  return escaped;
}

/// The last line of compare.
std::string summary(const ComparisonReport& report, const ComparisonOptions& options) {
  const auto count = [&](Verdict verdict) {
    return std::count_if(report.tests.begin(), report.tests.end(),
                         [&](const Comparison& c) { return c.verdict == verdict; });
  };
  const auto all = static_cast<std::ptrdiff_t>(report.tests.size());
  const auto slower = count(Verdict::kSlower), unknown = count(Verdict::kUnknown);
  if (unknown == all) return "no verdict: measure with repetitions (bitnet bench -r 5)";
  std::string text =
      slower == 0 ? "nothing is slower" : fmt::format("{} of {} tests are slower", slower, all);
  text +=
      fmt::format(" (by more than {:g} %, Welch's t-test p < {:g})", options.threshold * 100, options.level);
  if (unknown > 0) text += fmt::format(", no verdict on {} of {} tests", unknown, all);
  return text;
}

int compare_files(std::span<const std::string> all, std::ostream& out) {
  const Arguments arguments = split(all, "--threshold", "");
  if (arguments.words.size() != 2)
    throw UsageError(
        fmt::format("compare takes two files, OLD.json and NEW.json, got {}", arguments.words.size()));
  ComparisonOptions options;
  if (arguments.option) options.threshold = percentage(*arguments.option);
  const ComparisonReport report =
      compare(read_results(arguments.words[0]), read_results(arguments.words[1]), options);
  for (const std::string& note : report.notes) out << "note: " << note << '\n';
  out << "| test | old | new | speed | p | verdict |\n|:--|--:|--:|--:|--:|:--|\n";
  for (const Comparison& c : report.tests) {
    out << fmt::format("| {} | {} | {} | {:.3f} × | {} | {} |\n", cell(c.name),
                       value_text(c.old_mean, c.unit), value_text(c.new_mean, c.unit), c.speed,
                       c.p ? fmt::format("{:.2g}", *c.p) : "n/a", to_string(c.verdict));
  }
  out << summary(report, options) << '\n';
  return report.any_slower() ? kSlower : kOk;
}

/// Makes names of series distinct: files of one name in different folders get their paths, a file that comes
/// twice gets a number.
void tell_apart(std::vector<ResultFile>& files, std::span<const std::string> paths) {
  std::map<std::string, int> times, seen;
  for (const ResultFile& file : files) ++times[file.name];
  for (std::size_t i = 0; i < files.size(); ++i) {
    std::string& name = files[i].name;
    if (times[name] > 1) name = std::filesystem::path(paths[i]).replace_extension().string();
    if (const int n = ++seen[name]; n > 1) name += fmt::format(" ({})", n);
  }
}

/// Whether both name one existing file, however they are spelled.
bool same_file(const std::filesystem::path& a, const std::filesystem::path& b) {
  std::error_code absent;
  return std::filesystem::equivalent(a, b, absent) && !absent;
}

int draw_report(std::span<const std::string> all, std::ostream& out) {
  const Arguments arguments = split(all, "--output", "-o");
  if (arguments.words.empty()) throw UsageError("report takes at least one file of results");
  if (!arguments.option) throw UsageError("report needs -o OUT.html");
  std::vector<ResultFile> files;
  for (const std::string& word : arguments.words) {
    if (same_file(word, *arguments.option))
      throw UsageError(fmt::format("-o would overwrite '{}', which is to be read", word));
    files.push_back(read_results(word));
  }
  tell_apart(files, arguments.words);
  write_file(*arguments.option, html_report(files));
  out << "wrote '" << *arguments.option << "'\n";
  return kOk;
}

}  // namespace

int run_tool(std::span<const std::string> arguments, std::ostream& out, std::ostream& err) {
  try {
    const std::string command = arguments.empty() ? "" : arguments[0];
    const bool help = std::any_of(arguments.begin(), arguments.end(),
                                  [](const std::string& a) { return a == "--help" || a == "-h"; });
    if (help || command == "help") {
      out << kHelp;
      return kOk;
    }
    if (command == "compare") return compare_files(arguments.subspan(1), out);
    if (command == "report") return draw_report(arguments.subspan(1), out);
    throw UsageError(command.empty()
                         ? "a command comes first: compare or report"
                         : fmt::format("unknown command '{}': there are compare and report", command));
  } catch (const UsageError& e) {
    err << "bitnet-benchmarks: " << e.what() << "\nTry 'bitnet-benchmarks --help'.\n";
  } catch (const Error& e) {
    err << "bitnet-benchmarks: " << e.what() << '\n';
  }
  return kUsage;
}

}  // namespace bitnet::benchmarks
