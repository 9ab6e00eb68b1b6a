#pragma once
// The program `bitnet-benchmarks` as a function, so that tests can call it. Thread-safe, but for the streams
// that it is given.
#include <iosfwd>
#include <span>
#include <string>

namespace bitnet::benchmarks {

/// Runs `compare` or `report` (arguments without the program's name). Returns 0, 1 when compare found
/// something slower, 2 on wrong usage or files that cannot be read or compared. Throws nothing but
/// std::bad_alloc.
int run_tool(std::span<const std::string> arguments, std::ostream& out, std::ostream& err);

}  // namespace bitnet::benchmarks
