// What this CPU can run, and the choice of an ISA by name. The list of ISAs is simd/bitnet/simd/isa.def.
#include "bitnet/core/isa.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cstddef>
#include <iterator>

#include "bitnet/core/env.hpp"
#include "bitnet/core/error.hpp"
#include "bitnet/core/self_test.hpp"
#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#elif defined(__aarch64__)
#include <sys/auxv.h>
#endif

namespace bitnet {
namespace {

/// Whether this process may use AMX's int8 tiles.
enum class AmxInt8 { kLacking, kRefused, kUsable };

#if defined(__x86_64__)
/// The CPU must have them, the operating system save them (XCR0 bits 17 and 18), and Linux permit this
/// process to use them, which it wants to be asked for: their state is 8 KB a thread. Asks.
AmxInt8 request_amx_int8() noexcept {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return AmxInt8::kLacking;
  const bool has_xgetbv = ((c >> 27) & 1u) != 0;  // leaf 1, ECX bit 27: OSXSAVE
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return AmxInt8::kLacking;
  if (!((d >> 24) & 1u) || !((d >> 25) & 1u)) return AmxInt8::kLacking;  // leaf 7, EDX 24, 25: TILE, INT8
  if (!has_xgetbv) return AmxInt8::kRefused;
  unsigned low = 0, high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  constexpr unsigned kTileState = 3u << 17;
  if ((low & kTileState) != kTileState) return AmxInt8::kRefused;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0 ? AmxInt8::kUsable : AmxInt8::kRefused;
}
#else
AmxInt8 request_amx_int8() noexcept { return AmxInt8::kLacking; }
#endif

/// The features that isa.def's expressions ask for.
struct CpuFeatures {
  bool sse41 = false, avx2 = false, fma = false, f16c = false, avx_vnni = false, avx512_core = false,
       avx512_vnni = false, avx512_vbmi = false, neon_dot = false;
  /// A function, so that Linux is asked only when this instruction set is a candidate.
  static AmxInt8 amx() noexcept {
    static const AmxInt8 state = request_amx_int8();
    return state;
  }
  static bool amx_int8() noexcept { return amx() == AmxInt8::kUsable; }
};

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
  bool (*supported)(const CpuFeatures& cpu) noexcept;
};

constexpr Row kRows[] = {
#define BITNET_ISA_ROW(name, supported) \
  {#name, []([[maybe_unused]] const CpuFeatures& cpu) noexcept -> bool { return supported; }},
#include "bitnet/simd/isa.def"
#undef BITNET_ISA_ROW
};
constexpr std::size_t kCount = std::size(kRows);

/// Why isa_from_name() refuses one that is compiled.
std::string_view why_not(std::string_view name) noexcept {
  if (name == "amx_int8" && CpuFeatures::amx() == AmxInt8::kRefused)
    return "the operating system does not let this process use AMX's tiles (XCR0, arch_prctl)";
  return "this CPU lacks it";
}

}  // namespace

std::string_view to_string(Isa isa) noexcept { return isa.index < kCount ? kRows[isa.index].name : "?"; }

std::vector<Isa> compiled_isas() {
  std::vector<Isa> all;
  for (std::size_t i = 0; i < kCount; ++i) all.push_back(Isa{static_cast<std::uint8_t>(i)});
  return all;
}

bool is_supported(Isa isa) noexcept {
  static const CpuFeatures cpu = detect();
  return isa.index < kCount && kRows[isa.index].supported(cpu);
}

Isa best_isa() noexcept {
  Isa best{kCount - 1};
  while (!is_supported(best)) --best.index;  // the first row always is
  return best;
}

Isa isa_from_name(std::string_view name) {
  std::vector<std::string_view> names, supported;
  bool found = false;
  for (const Isa isa : compiled_isas()) {
    names.push_back(to_string(isa));
    if (names.back() != name) continue;
    if (is_supported(isa)) return isa;
    found = true;
  }
  if (!found) {
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("unknown ISA '{}' (compiled: {})", name, fmt::join(names, ", ")));
  }
  for (const Isa isa : compiled_isas())
    if (is_supported(isa)) supported.push_back(to_string(isa));
  throw Error(ErrorCode::kUnsupported,
              fmt::format("ISA '{}': {} (there are: {})", name, why_not(name), fmt::join(supported, ", ")));
}

void throw_failed_self_test(std::string_view isa, std::string_view what) {
  std::vector<std::string_view> others;
  for (const Isa other : compiled_isas())
    if (is_supported(other) && to_string(other) != isa) others.push_back(to_string(other));
  throw Error(
      ErrorCode::kDevice,
      fmt::format("self-test of the instruction set '{}': {}; this processor, or the compiler that made this "
                  "program, computes wrongly with it: set BITNET_ISA to another ({})",
                  isa, what, fmt::join(others, ", ")));
}

Isa default_isa() {
  const auto name = env("BITNET_ISA");
  if (!name) return best_isa();
  return with_context("BITNET_ISA", [&] { return isa_from_name(*name); });
}

}  // namespace bitnet
