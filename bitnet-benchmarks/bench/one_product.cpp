// One kind of product, a given number of times and nothing else: what bitnet-benchmarks/instructions.sh
// counts the instructions of. Times are gemv.cpp's and gemm.cpp's business.
//   bitnet_one_product <isa> <two_bit|base3> <shape of linear_shapes()> <rows> <times>
//   bitnet_one_product --list    the instruction sets of this CPU (or of the one that is emulated), weakest
//   first
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "bitnet/benchmarks/workloads.hpp"
#include "bitnet/core/error.hpp"
#include "bitnet/quant/bit_linear.hpp"

namespace bitnet {
namespace {

int run(const std::vector<std::string>& words) {
  if (words.size() == 1 && words[0] == "--list") {
    for (const Isa isa : compiled_isas())
      if (is_supported(isa)) std::printf("%s\n", std::string(to_string(isa)).c_str());
    return 0;
  }
  for (const benchmarks::LinearShape& shape : benchmarks::linear_shapes()) {
    if (words.size() != 5 || shape.name != words[2]) continue;
    const ExecutionContext machine({.threads = 1, .isa = isa_from_name(words[0])});
    const auto code = quant::tile_code_from_name(words[1]);
    const std::int64_t rows = std::atoll(words[3].c_str());
    const quant::BitLinear linear(machine, benchmarks::random_weights(shape, 1), code);
    quant::QuantizedRows x;
    quant::quantize_rows(machine, benchmarks::random_rows(rows, shape.in, 2), rows, shape.in, x);
    std::vector<float> y(static_cast<std::size_t>(rows * shape.out));
    for (int i = std::atoi(words[4].c_str()); i > 0; --i) linear.forward(machine, x, y);
    std::printf("%lld %g\n", static_cast<long long>(rows * shape.out * shape.in), static_cast<double>(y[0]));
    return 0;
  }
  std::fprintf(stderr, "usage: bitnet_one_product <isa> <two_bit|base3> <shape> <rows> <times> | --list\n");
  return 2;
}

}  // namespace
}  // namespace bitnet

int main(int argc, char** argv) {
  try {
    return bitnet::run({argv + 1, argv + argc});
  } catch (const bitnet::Error& e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 1;
  }
}
