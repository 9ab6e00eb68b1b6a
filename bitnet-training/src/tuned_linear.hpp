#pragma once
// A quantised linear whose integers stay as they are and whose scales are trained: ternary in one plane or
// two, or int8; of floats nothing is trained. Private to bitnet-training.
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "bitnet/core/memory/memory_handle.hpp"
#include "bitnet/quant/model_io.hpp"
#include "bitnet/training/tape.hpp"

namespace bitnet::training {

/// Rows as a linear multiplies them: rounded to integers and times their scale again, in memory of the tape.
struct RoundedRows {
  ActivationForm form = ActivationForm::kInt8;
  const float* values = nullptr;  // [n, in]
};

/// Not thread-safe; its products use all threads of the tape's context.
class TunedLinear {
 public:
  /// `trained`: whether scales get gradients. Throws Error(kInvalidArgument) for sizes that disagree.
  TunedLinear(const ExecutionContext& context, std::string name, const quant::LogicalTensor& tensor,
              bool trained);
  TunedLinear(const TunedLinear&) = delete;
  TunedLinear& operator=(const TunedLinear&) = delete;

  bool quantised() const noexcept { return !planes_.empty(); }
  ActivationForm form() const noexcept { return form_; }
  std::size_t bytes() const noexcept;
  void parameters(std::vector<Parameter*>& all);
  /// Scales of now, from the parameters; called after those change.
  void refresh();

  /// y = Σ over planes of (s · codes)·rows; the gradient of the rows goes to `x` straight through their
  /// rounding. Linears of floats multiply x itself.
  Variable forward(Tape& tape, Variable x, const RoundedRows& rows) const;
  /// The same integers with the scales of now; floats as f32.
  quant::LogicalTensor tensor(TensorId id) const;

 private:
  struct Plane {
    MemoryArray<std::int8_t> codes;    // [out, in]
    std::vector<float> start, scales;  // [ceil(out / rows_per_scale), groups]
    std::int64_t rows_per_scale = 1, cols_per_scale = 0, groups = 1;
    std::unique_ptr<Parameter> factor;  ///< scales = start · exp(factor); null: not trained
  };
  struct Product {
    const TunedLinear* linear;
    Variable x, y;
    const float* values;
  };
  Plane plane(const ExecutionContext& context, std::string name, std::span<const std::int8_t> codes,
              std::span<const float> scales, std::int64_t rows_per_scale, std::int64_t cols_per_scale,
              bool trained) const;
  void expand(const Tape& tape, std::int64_t begin, std::int64_t rows, float* to) const;
  void backward(Tape& tape, const Product& p) const;
  void dot_codes(const Tape& tape, const Plane& plane, std::int64_t begin, std::int64_t rows, const float* dw,
                 std::span<double> sums) const;
  static void give(Tape& tape, const Plane& plane, std::span<const double> sums);

  std::int64_t out_, in_;
  ActivationForm form_;
  bool int8_ = false;
  std::vector<Plane> planes_;  // none: floats
  MemoryArray<float> dense_;
  mutable Node node_;  ///< floats as a constant of any tape
};

}  // namespace bitnet::training
