#pragma once
// What tells models of the same sizes apart, without reading all of them. What is in the files for damage is
// their own checksums' business.
#include <string>

#include "bitnet/quant/model_io.hpp"

namespace bitnet::quant {

/// 16 hexadecimal digits from the model's configuration as far as activations depend on it, and from every
/// tensor: name, shape, scales and the values of eight rows evenly spread over it. Values, not bytes: the
/// same model in another container, or in another type that holds the same values, has the same fingerprint.
/// Training, fine-tuning, merging and another initialisation change it; a change of single rows may not.
/// Against mistakes, not against forgery. Reads about 8 rows a tensor (30 MB of a model of 8·10⁹ weights).
/// Throws what ModelReader::rows() and its rows throw. Thread-safe.
std::string model_fingerprint(const ModelReader& reader);

}  // namespace bitnet::quant
