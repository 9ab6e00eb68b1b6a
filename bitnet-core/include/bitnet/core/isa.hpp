#pragma once
// Instruction-set targets: which were compiled, which this CPU runs, and which one is chosen. Thread-safe.
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace bitnet {

/// One row of simd/isa.def. The value indexes every per-ISA kernel table; larger is never weaker.
struct Isa {
  std::uint8_t index = 0;  ///< row in isa.def
  friend bool operator==(Isa, Isa) = default;
};

/// Name of a compiled ISA, e.g. "avx2".
std::string_view to_string(Isa isa) noexcept;

/// All compiled ISAs, weakest first.
std::vector<Isa> compiled_isas();

/// True if this CPU (and the operating system) can run `isa`. Linux is asked to permit AMX's tiles by the
/// first call for amx_int8, of best_isa() or of an error that lists what there is, and not otherwise.
bool is_supported(Isa isa) noexcept;

/// The strongest supported ISA.
Isa best_isa() noexcept;

/// The ISA called `name`. Throws Error(kInvalidArgument) listing the compiled ones for an unknown name, and
/// Error(kUnsupported), listing the supported ones, for one that this CPU lacks or Linux does not permit.
Isa isa_from_name(std::string_view name);

/// Default of ExecutionContext: the one that the environment variable BITNET_ISA names (same errors as
/// isa_from_name), else best_isa().
Isa default_isa();

}  // namespace bitnet
