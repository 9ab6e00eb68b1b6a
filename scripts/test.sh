#!/usr/bin/env bash
# Installs what the tests need, builds, and runs every test with ctest; the last lines are ctest's summary, the exit
# status is non-zero when any test failed. Runs again without redoing what is done.
#
#   scripts/test.sh          release build: unit tests, conformance, installed package, NEON and old x86 under qemu, PoCL
#   scripts/test.sh --full   the developer presets (g++ and clang), ASan + UBSan, TSan and shared libraries besides; the
#                            minimal and fuzz presets are built, each fuzzer runs for a moment, and the OpenCL kernels
#                            run in a simulator (oclgrind)
#
# Environment: BITNET_TEST_DATA names a folder of real files that some tests read (skipped without it), JOBS the number
# of parallel jobs (default: the number of cores).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/packages.sh

full=0
case "${1:-}" in
  "") ;;
  --full) full=1 ;;
  *)
    sed -n '2,11s/^# \{0,1\}//p' "$0"
    [ "$1" = --help ] && exit 0
    echo "error: unknown option '$1'" >&2
    exit 2
    ;;
esac
jobs=${JOBS:-$(nproc)}

step "Packages"
packages=("${packages_build[@]}" "${packages_test[@]}")
[ "$full" -eq 0 ] || packages+=("${packages_full[@]}")
install_packages "${packages[@]}"
use_ccache
export BITNET_REQUIRE_OPENCL=1  # PoCL is installed: no device is a fault here, not a reason to skip

failed=()
# check <preset>: configures, builds and tests one preset; notes a failure and goes on, so that one run tells all.
check() {
  step "Preset $1: build"
  local mpi=ON
  case $1 in asan | tsan | aarch64) mpi=OFF ;; esac  # OpenMPI is not instrumented; groups of threads are
  cmake --preset "$1" -DBITNET_BUILD_TESTS=ON -DBITNET_WITH_MPI=$mpi && cmake --build --preset "$1" -j "$jobs" || {
    failed+=("$1 (build)")
    return 0
  }
  step "Preset $1: tests"
  ctest --preset "$1" -j "$jobs" || failed+=("$1")
}

# check_fuzzers: builds the fuzzers and gives each of them its seeds and some seconds.
check_fuzzers() {
  step "Preset fuzz: build, and 10 seconds of each fuzzer"
  cmake --preset fuzz && cmake --build --preset fuzz -j "$jobs" || {
    failed+=("fuzz (build)")
    return 0
  }
  local fuzzer corpus
  for fuzzer in build/fuzz/fuzz/fuzz_*; do
    [ -x "$fuzzer" ] && [ -f "$fuzzer" ] || continue
    corpus=$(mktemp -d)
    "$fuzzer" -max_total_time=10 -rss_limit_mb=4096 -print_final_stats=0 "$corpus" tests/data/*/ || failed+=("$fuzzer")
    rm -rf "$corpus"
  done
}

if [ "$full" -eq 1 ]; then
  for preset in dev dev-clang asan tsan shared; do check "$preset"; done
  step "Preset minimal: build"
  cmake --preset minimal && cmake --build --preset minimal -j "$jobs" || failed+=("minimal (build)")
  check_fuzzers
  [ ${#failed[@]} -eq 0 ] || step "Failed so far: ${failed[*]}"
fi
before=${#failed[@]}
check release
if [ "$full" -eq 1 ]; then
  step "Preset oclgrind: the OpenCL kernels in a simulator"
  ctest --preset oclgrind -j "$jobs" || failed+=(oclgrind)
fi
[ "$before" -eq 0 ] || echo "failed before release: ${failed[*]:0:before}" >&2
[ ${#failed[@]} -eq 0 ]
