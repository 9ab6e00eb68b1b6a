#!/usr/bin/env bash
# usage: check_lists.sh <source root>: fails when two places that must name the same things do not: the environment
# variables (env.cpp, docs/environment.md) and the instruction sets (isa.def, BitNetIsa.cmake, simd/*.hpp).
set -u
cd "$1" || exit 2
failed=0

# same <what> <list> <list>
same() {
  [ -n "$2" ] && [ "$2" = "$3" ] && return
  printf '%s differ:\n' "$1"
  diff <(printf '%s\n' "$2") <(printf '%s\n' "$3")
  failed=1
}

code=$(grep -oE 'EnvVariable\{"[A-Z_]+"' bitnet-core/src/env.cpp | grep -oE '[A-Z_]{4,}' | sort)
# The first table of the page; the second lists what only scripts and tests read.
page=$(sed -n '/^## Read by the libraries/,/^## /p' docs/environment.md | grep -oE '^\| `[A-Z_]+`' | grep -oE '[A-Z_]{4,}' | sort)
same 'env.cpp and docs/environment.md' "$code" "$page"

rows=$(grep -oE '^BITNET_ISA_ROW\([a-z0-9_]+' bitnet-core/simd/bitnet/simd/isa.def | sed 's/.*(//' | sort -u)
flags=$(grep -oE '"[a-z0-9_]+\|' cmake/BitNetIsa.cmake | tr -d '"|' | sort -u)
# Parts that several vocabularies share have names that are no ISA's; every ISA has a file.
files=$(for isa in $rows; do [ -f "bitnet-core/simd/bitnet/simd/$isa.hpp" ] && echo "$isa"; done)
same 'isa.def and BitNetIsa.cmake' "$rows" "$flags"
same 'isa.def and the vocabularies in bitnet-core/simd' "$rows" "$files"
[ "$failed" -eq 0 ] && echo 'the lists agree'
exit $failed
