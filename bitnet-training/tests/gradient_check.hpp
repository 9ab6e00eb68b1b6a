#pragma once
// One op on the tape against its double-precision twin (double_ops.hpp).
#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "double_ops.hpp"

namespace bitnet::training::reference {

// f32 sums of at most a few hundred terms: a few hundred roundings of 6e-8, of terms as large as the result.
inline constexpr double kTolerance = 2e-5;

/// Forward values against double precision, gradients against central differences of it. Both passes run
/// twice, so that overwriting and accumulating gradients are covered.
inline void check(OpCase c, double tolerance = kTolerance) {
  const ExecutionContext context(ExecutionContext::Options{2, {}});
  Tape tape(context);
  std::vector<std::unique_ptr<Parameter>> parameters;
  std::vector<Variable> variables;
  for (const Matrix& m : c.inputs) {
    parameters.push_back(std::make_unique<Parameter>(context, "p", m.rows, m.cols, false));
    fill(*parameters.back(), m);
    variables.push_back(parameters.back()->variable());
  }
  const Matrix expected = c.reference(c.inputs);
  for (int pass = 1; pass <= 2; ++pass) {
    const Variable y = c.op(tape, variables);
    ASSERT_EQ(y.rows(), expected.rows);
    ASSERT_EQ(y.cols(), expected.cols);
    EXPECT_LT(relative_error(y.value(), expected.v), tolerance);
    // An intermediate as well: consumers of y other than the loss.
    tape.backward(weighted_sum(tape, y));
    tape.reset();
    for (std::size_t p = 0; p < parameters.size(); ++p) {
      auto differences =
          central_differences(c.inputs[p], [&] { return weighted_sum(c.reference(c.inputs)); });
      for (double& g : differences) g *= pass;
      EXPECT_LT(relative_error(parameters[p]->grad(), differences), tolerance)
          << "input " << p << ", pass " << pass;
    }
  }
}

}  // namespace bitnet::training::reference
