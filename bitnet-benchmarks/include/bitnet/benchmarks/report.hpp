#pragma once
// Results as a page with charts. The charts themselves are bitnet-core's report/chart.hpp. A pure function,
// thread-safe.
#include <span>
#include <string>

#include "bitnet/benchmarks/results.hpp"

namespace bitnet::benchmarks {

/// One HTML file: what was measured where, speeds with their spread, fractions of the limit, scaling over
/// threads and over the batch, times of micro-benchmarks, and every figure in a table.
std::string html_report(std::span<const ResultFile> files);

}  // namespace bitnet::benchmarks
