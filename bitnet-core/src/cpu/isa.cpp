// What this CPU can run, and the choice of an ISA by name. The list of ISAs is simd/bitnet/simd/isa.def.
#include "bitnet/core/isa.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cstddef>
#include <optional>
#include <span>

#include "bitnet/core/env.hpp"
#include "bitnet/core/error.hpp"
#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#elif defined(__aarch64__)
#include <sys/auxv.h>
#endif

namespace bitnet {
namespace {

/// The features that isa.def's expressions ask for.
struct CpuFeatures {
  bool sse41 = false, avx2 = false, fma = false, f16c = false, avx_vnni = false, avx512_core = false,
       avx512_vnni = false, avx512_vbmi = false, amx_int8 = false, neon_dot = false;
};

#if defined(__x86_64__)
/// AMX's int8 tiles: the CPU has them, the operating system saves them (XCR0 bits 17 and 18), and Linux
/// permits this process to use them, which it wants to be asked for: their state is 8 KB a thread.
bool request_amx_int8() noexcept {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !((c >> 27) & 1u)) return false;  // leaf 1, ECX bit 27: OSXSAVE
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  if (!((d >> 24) & 1u) || !((d >> 25) & 1u)) return false;  // leaf 7, EDX bits 24, 25: AMX-TILE, AMX-INT8
  unsigned low = 0, high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  constexpr unsigned kTileState = 3u << 17;
  if ((low & kTileState) != kTileState) return false;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#endif

CpuFeatures detect() noexcept {
  CpuFeatures c;
#if defined(__x86_64__)
  __builtin_cpu_init();  // includes the XGETBV check: the OS saves YMM and ZMM
  c.sse41 = __builtin_cpu_supports("sse4.1");
  c.avx2 = __builtin_cpu_supports("avx2");
  c.fma = __builtin_cpu_supports("fma");
  c.avx512_core = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  c.avx512_vnni = __builtin_cpu_supports("avx512vnni");
  c.amx_int8 = request_amx_int8();
  c.avx512_vbmi = __builtin_cpu_supports("avx512vbmi");
  unsigned a = 0, b = 0, cx = 0, d = 0;
  if (__get_cpuid(1, &a, &b, &cx, &d)) c.f16c = c.avx2 && ((cx >> 29) & 1u);  // leaf 1, ECX bit 29
  if (__get_cpuid_count(7, 1, &a, &b, &cx, &d))
    c.avx_vnni = c.avx2 && ((a >> 4) & 1u);  // leaf 7.1, EAX bit 4
#elif defined(__aarch64__)
  c.neon_dot = (getauxval(AT_HWCAP) & (1ul << 20)) != 0;  // HWCAP_ASIMDDP
#endif
  return c;
}

struct Row {
  const char* name;
  bool supported;
};

std::span<const Row> rows() noexcept {
#define BITNET_ISA_ROW(name, supported) Row{#name, (supported)},
  static const Row* const table = [] {
    [[maybe_unused]] const CpuFeatures cpu = detect();
    static const Row made[] = {
#include "bitnet/simd/isa.def"
    };
    return made;
  }();
#undef BITNET_ISA_ROW
#define BITNET_ISA_ROW(name, supported) +1
  constexpr std::size_t kCount = 0
#include "bitnet/simd/isa.def"
      ;
#undef BITNET_ISA_ROW
  return {table, kCount};
}

}  // namespace

std::string_view to_string(Isa isa) noexcept {
  return isa.index < rows().size() ? rows()[isa.index].name : "?";
}

std::vector<Isa> compiled_isas() {
  std::vector<Isa> all;
  for (std::size_t i = 0; i < rows().size(); ++i) all.push_back(Isa{static_cast<std::uint8_t>(i)});
  return all;
}

bool is_supported(Isa isa) noexcept { return isa.index < rows().size() && rows()[isa.index].supported; }

Isa best_isa() noexcept {
  Isa best;
  for (std::size_t i = 0; i < rows().size(); ++i) {
    if (rows()[i].supported) best.index = static_cast<std::uint8_t>(i);
  }
  return best;
}

Isa isa_from_name(std::string_view name) {
  std::vector<std::string_view> names, supported;
  std::optional<Isa> found;
  for (const Isa isa : compiled_isas()) {
    names.push_back(to_string(isa));
    if (is_supported(isa)) supported.push_back(names.back());
    if (names.back() == name) found = isa;
  }
  if (found && is_supported(*found)) return *found;
  if (found) {
    throw Error(ErrorCode::kUnsupported,
                fmt::format("ISA '{}': this CPU lacks it (it has: {})", name, fmt::join(supported, ", ")));
  }
  throw Error(ErrorCode::kInvalidArgument,
              fmt::format("unknown ISA '{}' (compiled: {})", name, fmt::join(names, ", ")));
}

Isa default_isa() {
  const auto name = env("BITNET_ISA");
  if (!name) return best_isa();
  return with_context("BITNET_ISA", [&] { return isa_from_name(*name); });
}

}  // namespace bitnet
