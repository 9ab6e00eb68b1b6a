#pragma once
// Of a few repeated measurements: mean, spread and median. Empty input gives 0; a NaN is
// Error(kInvalidArgument), which says where it stands. Functions are thread-safe.
#include <span>

namespace bitnet {

double mean(std::span<const double> values);
/// Standard deviation of the sample (n − 1); 0 for fewer than two values.
double standard_deviation(std::span<const double> values);
/// Of an even number: the mean of the middle two. Throws std::bad_alloc.
double median(std::span<const double> values);

}  // namespace bitnet
