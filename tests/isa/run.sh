#!/bin/sh
# usage: run.sh SOURCE_DIR WORK_DIR COMPILER EMULATOR ISA FLAGS…
# Builds standalone.cpp and the kernel objects of ISA with COMPILER and FLAGS, runs the program under EMULATOR (words
# separated by spaces; empty: directly) and compares its hash with the one that standalone_hashes.txt names for its
# class. Exit status 77 (skipped) when the compiler or the emulator is missing.
set -eu
src=$1 work=$2 compiler=$3 emulator=$4 isa=$5
shift 5
command -v "$compiler" >/dev/null || { echo "no $compiler"; exit 77; }
[ -z "$emulator" ] || command -v "${emulator%% *}" >/dev/null || { echo "no ${emulator%% *}"; exit 77; }
mkdir -p "$work"
common="-std=c++20 -DBITNET_ISA=$isa -I$src/bitnet-core/include -I$src/bitnet-core/simd
  -I$src/bitnet-quant/include"
kernel="-O3 -ffp-contract=off -fno-exceptions -fno-rtti -fno-math-errno -Wno-psabi"
# shellcheck disable=SC2086  # the flags are words
{
  for table in core/src/kernels/f32_table core/src/kernels/attention_table core/src/kernels/read_table \
    core/src/kernels/tensor_table quant/src/kernels/ternary_table quant/src/kernels/int8_table quant/src/kernels/peak_table; do
    "$compiler" $common $kernel "$@" -I"$src/bitnet-${table%%/*}/src" -c "$src/bitnet-$table.cpp" \
      -o "$work/${table##*/}.o"
  done
  "$compiler" $common -O1 -I"$src/bitnet-core/src" -I"$src/bitnet-quant/src" -static "$src/tests/isa/standalone.cpp" \
    "$work"/*_table.o -o "$work/standalone"
  result=$($emulator "$work/standalone") || { echo "$result"; exit 1; }
}
echo "$isa: $result"
grep -qxF "$result" "$src/tests/isa/standalone_hashes.txt" || {
  echo "expected one of:"
  cat "$src/tests/isa/standalone_hashes.txt"
  exit 1
}
