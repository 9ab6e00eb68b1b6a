// See stored_form.hpp.
#include "quantizer/stored_form.hpp"

#include <cmath>
#include <utility>

#include "model_io/writer_base.hpp"

namespace bitnet::quant {
namespace {

/// As packing.cpp stores scales in blocks; one that f16 cannot hold stays for it to refuse.
void round_scales(std::vector<float>& scales) {
  for (float& s : scales) {
    const float half = f16_to_f32(f32_to_f16(s));
    if (std::isfinite(half) && (half != 0 || s == 0)) s = half;
  }
}

void round_to_files(const WriteOptions& output, LogicalTensor& t) {
  if (t.ternary) {
    if (output.type == LinearType::kTQ1_0 || output.type == LinearType::kTQ2_0)
      round_scales(t.weights.scales);
  } else if (!t.planes && !t.int8) {
    t.dense = model_io::as_dtype(std::move(t), output.dense_type);
    t.dtype = output.dense_type;
  }
}

}  // namespace

std::uint64_t stored_bytes(const LogicalTensor& tensor, const WriteOptions* output) {
  if (output == nullptr) return model_io::linear_bytes(tensor, LinearType::kExtended, tensor.dtype);
  return model_io::linear_bytes(tensor, output->type, output->dense_type);
}

void finish_linear(const ExecutionContext& context, std::span<const float> w, const Hessian* hessian,
                   const WriteOptions* output, CancelFlag cancelled, QuantizedLinear& q) {
  if (output != nullptr) round_to_files(*output, q.tensor);
  q.report.bytes = stored_bytes(q.tensor, output);
  q.report.metrics = measure(context, w, q.tensor, hessian, cancelled);
  q.report.histogram = histogram_of(w, q.tensor);
}

}  // namespace bitnet::quant
