#pragma once
// The integer kernels of an instruction set against plain loops, once before a process uses them
// (bitnet/core/self_test.hpp). Those of floats and attention are tested by bitnet-core.
#include "kernels/int8_table.hpp"
#include "kernels/ternary_table.hpp"

namespace bitnet::quant {

/// Multiplies a few rows of odd shapes with both codes, and quantises a few values; some 500 µs. Throws
/// Error(kDevice) naming the kernel, what it gave where, what is right, and how to go on without it.
void self_test(const TernaryKernels& kernels);

/// The same for int8 × int8 products.
void self_test(const Int8Kernels& kernels);

/// ternary_kernels(isa), tested by the first call of this process. Later calls cost a load and allocate
/// nothing. Thread-safe; throws what self_test() throws, each time.
const TernaryKernels& tested_kernels(Isa isa);
/// int8_kernels(isa) likewise.
const Int8Kernels& tested_int8_kernels(Isa isa);

}  // namespace bitnet::quant
