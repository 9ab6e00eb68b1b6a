#pragma once
// The conformance table of backends: every op × shape. A new op or shape is a line of one of these; a file of
// its own is one of these and a line of cases().
#include <vector>

#include "case_run.hpp"

namespace bitnet::conformance {

/// Ternary products with a scale of whole rows: linear_cases.cpp.
void add_linears(std::vector<Case>& cases);
/// Products with group scales, two planes, int8 and activations of 4 bits, dense ones, embeddings and logits:
/// weight_form_cases.cpp.
void add_weight_forms(std::vector<Case>& cases);
/// Ops on single values and on rows: row_op_cases.cpp.
void add_row_ops(std::vector<Case>& cases);
/// attention_cases.cpp.
void add_attention(std::vector<Case>& cases);

inline std::vector<Case> cases() {
  std::vector<Case> all;
  add_linears(all);
  add_weight_forms(all);
  add_row_ops(all);
  add_attention(all);
  return all;
}

}  // namespace bitnet::conformance
