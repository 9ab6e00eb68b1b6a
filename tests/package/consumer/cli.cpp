// Links BitNet::cli: the program runs as a function.
#include <bitnet/cli/app.hpp>

#include <iostream>
#include <sstream>

int main() {
  std::istringstream in;
  std::ostringstream out;
  bitnet::cli::Io io{.in = in, .out = out, .err = std::cerr};
  const char* const help[] = {"bitnet", "--help"};
  if (bitnet::cli::run(2, help, io) != bitnet::cli::kOk || out.str().find("inspect") == std::string::npos)
    return 1;
  const char* const wrong[] = {"bitnet", "no-such-command"};
  return bitnet::cli::run(2, wrong, io) == bitnet::cli::kUsage ? 0 : 1;
}
