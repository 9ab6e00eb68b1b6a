#pragma once
// What the files will hold of a linear, and the figures of that. Private to bitnet-quant.
#include <cstdint>
#include <span>

#include "bitnet/quant/quantizer.hpp"

namespace bitnet::quant {

/// Bytes of a linear in files that `output` describes, scales included; null: kExtended with floats as they
/// are.
std::uint64_t stored_bytes(const LogicalTensor& tensor, const WriteOptions* output);

/// Rounds q.tensor as its files will, and fills the report's bytes, metrics and histogram of it. `w`: the
/// weights that were there, [out, in]; `hessian`: of the linear's inputs, or null. Throws
/// Error(kUnsupported) on floats that the type cannot hold, Error(kCancelled).
void finish_linear(const ExecutionContext& context, std::span<const float> w, const Hessian* hessian,
                   const WriteOptions* output, CancelFlag cancelled, QuantizedLinear& q);

}  // namespace bitnet::quant
