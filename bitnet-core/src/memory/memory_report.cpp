// Tables and charts of a pool's counts.
#include "bitnet/core/memory/memory_report.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <vector>

#include "bitnet/core/memory/hybrid_memory_pool.hpp"
#include "bitnet/core/report/chart.hpp"

namespace bitnet {
namespace {

using Row = std::vector<std::string>;
constexpr double kMiB = 1024 * 1024;
constexpr std::size_t kBarColumns = 40, kTimelineRows = 12, kReportedLeaks = 8;

std::string mib(double bytes) { return fmt::format("{:.2f} MiB", bytes / kMiB); }
std::string mib(std::size_t bytes) { return mib(static_cast<double>(bytes)); }

std::string percent(double part, double whole) {
  return whole == 0 ? std::string("n/a") : fmt::format("{:.2f} %", 100 * part / whole);
}

/// Bytes of blocks beyond those asked for.
std::string unused(std::uint64_t asked, std::uint64_t given) {
  return asked == 0
             ? std::string("n/a")
             : percent(static_cast<double>(given) - static_cast<double>(asked), static_cast<double>(given));
}

/// While other threads are at work, a free may be counted whose allocation was not yet.
std::uint64_t live(const MemoryStats& s) { return s.allocations - std::min(s.allocations, s.frees); }

std::string size_name(const SizeClassStats& size) {
  return size.block_bytes == 0 ? std::string("large") : std::to_string(size.block_bytes);
}

std::vector<Row> totals(const MemoryStats& s, TrackingLevel level) {
  const bool counted = level != TrackingLevel::kNone;
  return {
      {"in use", mib(s.used)},
      {"held", mib(s.held)},
      {"limit", s.limit == kNoMemoryLimit ? std::string("none") : mib(s.limit)},
      {"peak in use", counted ? mib(s.peak_used) : "not kept"},
      {"peak held", mib(s.peak_held)},
      {"allocations", std::to_string(s.allocations)},
      {"live blocks", std::to_string(live(s))},
      {"refused", std::to_string(s.refusals)},
      {"the pool's own tables", mib(s.bookkeeping)},
      {"unused in small blocks", unused(s.small_asked, s.small_given)},
      {"unused in large blocks", unused(s.large_asked, s.large_given)},
      {"free beside blocks", mib(s.free_bytes)},
      {"largest free piece", mib(s.largest_free)},
      {"fragmentation of it",
       percent(static_cast<double>(s.free_bytes - std::min(s.free_bytes, s.largest_free)),
               static_cast<double>(s.free_bytes))},
      {"damaged free blocks", std::to_string(s.damaged)},
  };
}

report::LineChart use_over_time(const std::vector<MemorySample>& samples) {
  report::LineChart chart;
  chart.title = "Memory over time";
  chart.x_label = "s";
  chart.y_label = "MiB";
  chart.series.resize(2);
  chart.series[0].name = "asked for";
  chart.series[1].name = "held";
  for (const MemorySample& sample : samples) {
    chart.series[0].points.push_back({sample.seconds, static_cast<double>(sample.used) / kMiB});
    chart.series[1].points.push_back({sample.seconds, static_cast<double>(sample.held) / kMiB});
  }
  return chart;
}

report::LineChart rate_over_time(const std::vector<MemorySample>& samples) {
  report::LineChart chart;
  chart.title = "Allocations";
  chart.x_label = "s";
  chart.y_label = "allocations/s";
  chart.series.resize(1);
  for (std::size_t i = 1; i < samples.size(); ++i) {
    const double seconds = samples[i].seconds - samples[i - 1].seconds;
    if (seconds > 0)
      chart.series[0].points.push_back(
          {samples[i].seconds,
           static_cast<double>(samples[i].allocations - samples[i - 1].allocations) / seconds});
  }
  return chart;
}

report::BarChart bars(std::string title, std::string unit) {
  report::BarChart chart;
  chart.title = std::move(title);
  chart.unit = std::move(unit);
  chart.series = {""};
  return chart;
}

void add_bar(report::BarChart& chart, std::string label, double value) {
  chart.groups.push_back({std::move(label), {report::Bar{value, 0}}});
}

void add_tags(report::Page& page, std::vector<TagStats> tags) {
  std::sort(tags.begin(), tags.end(), [](const TagStats& a, const TagStats& b) { return a.peak > b.peak; });
  report::BarChart chart = bars("Peak by tag", "MiB");
  std::vector<Row> rows;
  for (const TagStats& tag : tags) {
    add_bar(chart, tag.tag, static_cast<double>(tag.peak) / kMiB);
    rows.push_back({tag.tag, std::to_string(tag.allocations), mib(tag.used), mib(tag.peak)});
  }
  page.chart(chart);
  page.table({"tag", "allocations", "in use", "peak"}, rows);
}

void add_live_blocks(report::Page& page, const std::vector<LiveBlock>& blocks, std::size_t most) {
  std::vector<Row> rows;
  for (std::size_t i = 0; i < std::min(most, blocks.size()); ++i) {
    std::string stack;
    for (const std::string& frame : blocks[i].stack) stack += (stack.empty() ? "" : " < ") + frame;
    rows.push_back({std::to_string(blocks[i].bytes), blocks[i].tag, fmt::format("{:.3f}", blocks[i].seconds),
                    stack.empty() ? "not kept" : stack});
  }
  page.paragraph(fmt::format("{} of {} blocks, the largest first.", rows.size(), blocks.size()));
  page.table({"bytes", "tag", "at s", "asked for by"}, rows);
}

/// A histogram: one line a size.
void add_sizes(std::string& out, const std::vector<SizeClassStats>& sizes) {
  std::uint64_t most = 1;
  for (const SizeClassStats& size : sizes) most = std::max(most, size.allocations);
  out += fmt::format("  {:<24} {:>16} {:>12}\n", "bytes of a block", "allocations", "live");
  for (const SizeClassStats& size : sizes) {
    const auto stars = static_cast<std::size_t>((size.allocations * kBarColumns + most - 1) / most);
    out += fmt::format("  {:<24} {:>16} {:>12}  {}\n", size_name(size), size.allocations, size.live,
                       std::string(stars, '#'));
  }
}

/// Samples at equal distances, at most kTimelineRows, each with the rate since the one before.
void add_timeline(std::string& out, const std::vector<MemorySample>& samples) {
  if (samples.empty()) return;
  out += fmt::format("  {:<24} {:>16} {:>12} {:>16}\n", "at second", "asked for", "held", "allocations/s");
  MemorySample before{};
  const std::size_t n = std::min(samples.size(), kTimelineRows);
  for (std::size_t i = 0; i < n; ++i) {
    const MemorySample& sample = samples[(i + 1) * samples.size() / n - 1];
    const double seconds = sample.seconds - before.seconds;
    const double rate =
        seconds > 0 ? static_cast<double>(sample.allocations - before.allocations) / seconds : 0;
    out += fmt::format("  {:<24.3f} {:>16} {:>12} {:>16.0f}\n", sample.seconds, mib(sample.used),
                       mib(sample.held), rate);
    before = sample;
  }
}

}  // namespace

std::string memory_text(const MemoryResource& resource) {
  const auto* pool = dynamic_cast<const HybridMemoryPool*>(&resource);
  const MemoryStats stats = resource.stats();
  std::string out = fmt::format("memory pool '{}'\n", stats.name);
  for (const Row& row : totals(stats, pool == nullptr ? TrackingLevel::kBasic : pool->options().tracking))
    out += fmt::format("  {:<24} {:>16}\n", row[0], row[1]);
  add_sizes(out, stats.size_classes);
  if (pool == nullptr) return out;
  const std::vector<TagStats> tags = pool->tags();
  if (!tags.empty())
    out += fmt::format("  {:<24} {:>16} {:>12} {:>16}\n", "tag", "allocations", "in use", "peak");
  for (const TagStats& tag : tags)
    out += fmt::format("  {:<24.24} {:>16} {:>12} {:>16}\n", tag.tag, tag.allocations, mib(tag.used),
                       mib(tag.peak));
  add_timeline(out, pool->timeline());
  return out;
}

std::string leak_text(const HybridMemoryPool& pool) {
  const MemoryStats stats = pool.stats();
  if (stats.allocations == stats.frees)
    return fmt::format("memory pool '{}': nothing is left of {} allocations\n", stats.name,
                       stats.allocations);
  std::string out = fmt::format("memory pool '{}': {} of {} blocks are left, {} in all\n", stats.name,
                                live(stats), stats.allocations, mib(stats.used));
  for (const TagStats& tag : pool.tags()) {
    if (tag.used != 0) out += fmt::format("  {:<24.24} {:>16}\n", tag.tag, mib(tag.used));
  }
  if (pool.options().tracking != TrackingLevel::kDetailed) return out;
  std::vector<LiveBlock> blocks = pool.live_blocks();
  blocks.resize(std::min(blocks.size(), kReportedLeaks));
  for (const LiveBlock& block : blocks)
    out += fmt::format("  {} bytes of '{}', asked for at {:.3f} s by {}\n", block.bytes, block.tag,
                       block.seconds, fmt::join(block.stack, " < "));
  return out;
}

std::string memory_page(const HybridMemoryPool& pool, std::size_t most_blocks) {
  const MemoryStats stats = pool.stats();
  const TrackingLevel level = pool.options().tracking;
  report::Page page(fmt::format("Memory pool '{}'", stats.name));
  page.paragraph(fmt::format("Tracking level: {}.", to_string(level)));
  page.table({"what", "value"}, totals(stats, level));
  page.heading("Sizes");
  report::BarChart sizes = bars("Allocations by size of block", "allocations");
  std::vector<Row> rows;
  for (const SizeClassStats& size : stats.size_classes) {
    add_bar(sizes, size_name(size), static_cast<double>(size.allocations));
    rows.push_back({size_name(size), std::to_string(size.allocations), std::to_string(size.live)});
  }
  page.chart(sizes);
  page.table({"bytes of a block", "allocations", "live"}, rows);
  if (level < TrackingLevel::kStandard) {
    page.paragraph("Use over time, tags and live blocks are kept from the level 'standard' on.");
    return page.html();
  }
  page.heading("Over time");
  page.chart(use_over_time(pool.timeline()));
  page.chart(rate_over_time(pool.timeline()));
  page.heading("Tags");
  add_tags(page, pool.tags());
  page.heading("Live blocks");
  add_live_blocks(page, pool.live_blocks(), most_blocks);
  return page.html();
}

}  // namespace bitnet
