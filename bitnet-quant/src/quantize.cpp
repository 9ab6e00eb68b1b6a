#include "bitnet/quant/quantize.hpp"
