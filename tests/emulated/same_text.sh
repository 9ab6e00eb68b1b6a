#!/usr/bin/env bash
# usage: same_text.sh <emulator and its options> -- <program> <arguments>…: fails unless the program prints the same
# under the emulator as on this machine with BITNET_ISA=scalar, whose class (docs/numerics.md) both emulated processors
# belong to.
set -u
emulator=()
while [ "$1" != -- ]; do
  emulator+=("$1")
  shift
done
shift
native=$(BITNET_ISA=scalar "$@") || { echo "the native run ended with $?"; exit 1; }
emulated=$(env -u BITNET_ISA "${emulator[@]}" "$@") || { echo "the emulated run ended with $?"; exit 1; }
printf 'native:   %s\nemulated: %s\n' "$native" "$emulated"
[ -n "$native" ] && [ "$native" = "$emulated" ]
