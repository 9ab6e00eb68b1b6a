// Zones in a buffer, and what is made of them: a table and a trace. What the ops of a Backend record is in
// device/backend.cpp.
#include "bitnet/core/profiler.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <map>
#include <nlohmann/json.hpp>

#include "bitnet/core/error.hpp"

namespace bitnet {
namespace {

// What profiler.hpp says that a zone takes.
static_assert(sizeof(ProfileEvent) == 48);

std::uint32_t thread_number() noexcept {
  static std::atomic<std::uint32_t> last{0};
  thread_local const std::uint32_t own = last.fetch_add(1, std::memory_order_relaxed) + 1;
  return own;
}

double seconds(std::int64_t ns) { return static_cast<double>(ns) * 1e-9; }

std::int64_t ns_between(std::chrono::steady_clock::time_point a, std::chrono::steady_clock::time_point b) {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(b - a).count();
}

/// By thread, then by begin, an enclosing zone before those inside it.
std::vector<ProfileEvent> nested_order(std::span<const ProfileEvent> events) {
  std::vector<ProfileEvent> sorted(events.begin(), events.end());
  std::stable_sort(sorted.begin(), sorted.end(), [](const ProfileEvent& a, const ProfileEvent& b) {
    if (a.thread != b.thread) return a.thread < b.thread;
    return a.begin_ns != b.begin_ns ? a.begin_ns < b.begin_ns : a.duration_ns > b.duration_ns;
  });
  return sorted;
}

std::string quoted(std::string_view text) {
  return nlohmann::json(text).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

}  // namespace

Profiler::Profiler(std::size_t capacity) : capacity_(capacity) {
  if (capacity == 0) throw Error(ErrorCode::kInvalidArgument, "a profiler for 0 zones: expected 1 or more");
  // Not touched before it is used.
  with_context(fmt::format("a profiler for {} zones", capacity),
               [&] { events_ = std::make_unique_for_overwrite<ProfileEvent[]>(capacity); });
}

void Profiler::record(const char* name, std::chrono::steady_clock::time_point begin,
                      std::chrono::steady_clock::time_point end, std::uint64_t bytes,
                      std::int64_t rows) noexcept {
  const std::size_t at = next_.fetch_add(1, std::memory_order_relaxed);
  if (at >= capacity_) return;
  events_[at] = {name, ns_between(start_, begin), ns_between(begin, end), bytes, rows, thread_number()};
}

std::span<const ProfileEvent> Profiler::events() const noexcept {
  return {events_.get(), std::min(capacity_, next_.load())};
}

std::uint64_t Profiler::dropped() const noexcept {
  const std::size_t n = next_.load();
  return n > capacity_ ? n - capacity_ : 0;
}

void Profiler::clear() noexcept { next_ = 0; }

std::vector<ProfileRow> Profiler::summary() const {
  std::map<std::string_view, ProfileRow> rows;
  std::vector<const ProfileEvent*> open;  // the zones around the present one
  const std::vector<ProfileEvent> sorted = nested_order(events());
  for (const ProfileEvent& e : sorted) {
    while (!open.empty() && (open.back()->thread != e.thread ||
                             open.back()->begin_ns + open.back()->duration_ns <= e.begin_ns))
      open.pop_back();
    if (!open.empty()) rows[open.back()->name].self_seconds -= seconds(e.duration_ns);
    ProfileRow& row = rows[e.name];
    ++row.calls;
    row.bytes += e.bytes;
    row.total_seconds += seconds(e.duration_ns);
    row.self_seconds += seconds(e.duration_ns);
    open.push_back(&e);
  }
  std::vector<ProfileRow> result;
  for (auto& [name, row] : rows) {
    row.name = name;
    result.push_back(std::move(row));
  }
  std::stable_sort(result.begin(), result.end(),
                   [](const ProfileRow& a, const ProfileRow& b) { return a.self_seconds > b.self_seconds; });
  return result;
}

std::string Profiler::table() const {
  const std::vector<ProfileRow> rows = summary();
  double all = 0;
  for (const ProfileRow& r : rows) all += r.self_seconds;
  std::string text = fmt::format("{:<26}{:>10}{:>12}{:>12}{:>8}{:>12}{:>9}\n", "zone", "calls", "total ms",
                                 "own ms", "own %", "mean us", "GB/s");
  for (const ProfileRow& r : rows) {
    const double rate = r.total_seconds > 0 ? static_cast<double>(r.bytes) / r.total_seconds * 1e-9 : 0;
    text += fmt::format(
        "{:<26}{:>10}{:>12.3f}{:>12.3f}{:>8.1f}{:>12.2f}{:>9}\n", r.name, r.calls, r.total_seconds * 1e3,
        r.self_seconds * 1e3, all > 0 ? 100 * r.self_seconds / all : 0.0,
        r.total_seconds * 1e6 / static_cast<double>(r.calls), r.bytes > 0 ? fmt::format("{:.1f}", rate) : "");
  }
  if (dropped() > 0)
    text += fmt::format("{} zones more were dropped: the buffer holds {}\n", dropped(), capacity_);
  return text;
}

std::string Profiler::chrome_trace(std::string_view process) const {
  std::string text;
  chrome_trace(process, [&](std::string_view piece) { text += piece; });
  return text;
}

void Profiler::chrome_trace(std::string_view process, const std::function<void(std::string_view)>& write,
                            std::string_view other) const {
  constexpr std::size_t kPiece = std::size_t{1} << 16;
  std::string text = fmt::format(
      "{{\"displayTimeUnit\":\"ns\",\"otherData\":{{\"dropped\":{}{}{}}},\"traceEvents\":[\n"
      "{{\"ph\":\"M\",\"name\":\"process_name\",\"pid\":1,\"args\":{{\"name\":{}}}}}",
      dropped(), other.empty() ? "" : ",", other, quoted(process));
  const auto out = std::back_inserter(text);
  for (const ProfileEvent& e : nested_order(events())) {
    fmt::format_to(
        out, ",\n{{\"ph\":\"X\",\"name\":{},\"pid\":1,\"tid\":{},\"ts\":{:.3f},\"dur\":{:.3f},\"args\":{{",
        quoted(e.name), e.thread, static_cast<double>(e.begin_ns) * 1e-3,
        static_cast<double>(e.duration_ns) * 1e-3);
    const char* comma = "";
    if (e.rows > 0) fmt::format_to(out, "\"rows\":{}", e.rows), comma = ",";
    if (e.bytes > 0) {
      fmt::format_to(out, "{}\"bytes\":{}", comma, e.bytes);
      if (e.duration_ns > 0)
        fmt::format_to(out, ",\"GB/s\":{:.3f}",
                       static_cast<double>(e.bytes) / static_cast<double>(e.duration_ns));
    }
    text += "}}";
    if (text.size() < kPiece) continue;
    write(text);
    text.clear();
  }
  write(text += "\n]}\n");
}

}  // namespace bitnet
