#pragma once
// What chrome://tracing and Perfetto want of a trace: the Trace Event Format (JSON), as far as our events use
// it.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

namespace bitnet::testing {

/// Nanoseconds of a time in microseconds with three decimals.
inline std::int64_t trace_ns(const nlohmann::json& us) { return std::llround(us.get<double>() * 1000); }

/// One complete event ("X"): a name, a process and a thread, times ≥ 0, arguments.
inline void expect_complete_event(const nlohmann::json& e) {
  EXPECT_TRUE(e.at("name").is_string() && !e["name"].get<std::string>().empty()) << e;
  EXPECT_TRUE(e.at("pid").is_number_unsigned() && e.at("tid").is_number_unsigned()) << e;
  EXPECT_TRUE(e.at("ts").is_number() && e["ts"] >= 0) << e;
  EXPECT_TRUE(e.at("dur").is_number() && e["dur"] >= 0) << e;
  EXPECT_TRUE(e.at("args").is_object()) << e;
}

/// An object with "traceEvents": metadata ("M") that names the process, and complete events that nest on each
/// thread, an enclosing one before those inside it. Perfetto refuses slices that overlap otherwise. Returns
/// the trace.
inline nlohmann::json expect_trace(const std::string& text) {
  const nlohmann::json trace = nlohmann::json::parse(text);
  std::map<std::pair<int, int>, std::vector<std::int64_t>> open;  // ends of the events around the present one
  bool named = false;
  for (const nlohmann::json& e : trace.at("traceEvents")) {
    if (e.at("ph") == "M") {
      named = named || (e.at("name") == "process_name" && e.at("args").at("name").is_string());
      continue;
    }
    EXPECT_EQ(e.at("ph"), "X") << e;
    expect_complete_event(e);
    auto& ends = open[{e["pid"], e["tid"]}];
    const std::int64_t begin = trace_ns(e["ts"]), end = begin + trace_ns(e["dur"]);
    while (!ends.empty() && ends.back() <= begin) ends.pop_back();
    if (!ends.empty()) {
      EXPECT_LE(end, ends.back()) << "overlaps the one around it: " << e;
    }
    ends.push_back(end);
  }
  EXPECT_TRUE(named) << "no process_name";
  const auto unit = trace.value("displayTimeUnit", "ms");
  EXPECT_TRUE(unit == "ms" || unit == "ns") << unit;
  return trace;
}

}  // namespace bitnet::testing
