// The executable `bitnet-benchmarks`; everything it does is tool.cpp.
#include <exception>
#include <iostream>
#include <string>
#include <vector>

#include "bitnet/benchmarks/tool.hpp"

int main(int argc, char** argv) {
  try {
    const std::vector<std::string> arguments(argv + 1, argv + argc);
    const int code = bitnet::benchmarks::run_tool(arguments, std::cout, std::cerr);
    std::cout.flush();
    if (std::cout) return code;
    std::cerr << "bitnet-benchmarks: cannot write to standard output\n";
  } catch (const std::exception& e) {
    std::cerr << "bitnet-benchmarks: " << e.what() << '\n';
  }
  return 2;
}
