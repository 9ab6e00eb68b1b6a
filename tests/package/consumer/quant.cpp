// Links BitNet::quant: quantises a matrix and multiplies a vector by it.
#include <bitnet/quant/bit_linear.hpp>
#include <bitnet/quant/quantize.hpp>

#include <cmath>
#include <cstdio>
#include <vector>

int main() {
  const std::vector<float> w{1, -1, 0, 2, 1, -1, 1, 0};  // [2, 4], mean |w| = 7/8
  const bitnet::quant::TernaryWeights weights = bitnet::quant::absmean(w, 2, 4);
  const bitnet::ExecutionContext context;
  const bitnet::quant::BitLinear linear(context, weights);
  bitnet::quant::QuantizedRows x;
  bitnet::quant::quantize_rows(context, std::vector<float>{1, 1, 1, 1}, 1, 4, x);
  std::vector<float> y(2);
  linear.forward(context, x, y);
  std::printf("%g %g\n", static_cast<double>(y[0]), static_cast<double>(y[1]));
  return std::fabs(y[0] - 0.875f) < 1e-5f && std::fabs(y[1] - 0.875f) < 1e-5f ? 0 : 1;
}
