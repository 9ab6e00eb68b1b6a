#!/usr/bin/env bash
# usage: check_sources_test.sh <check_sources.sh>: fails unless the check passes on a small tree that keeps the rules
# and, for each rule, fails and names the file on the same tree with that rule broken once.
set -u
check=$1
tree=$(mktemp -d) || exit 2
trap 'rm -rf "$tree"' EXIT
failed=0

# fresh: the tree that keeps the rules.
fresh() {
  rm -rf "${tree:?}"/*
  local library
  for library in core quant inference training gpu cli benchmarks; do
    mkdir -p "$tree/bitnet-$library/include/bitnet/$library" "$tree/bitnet-$library/src"
    printf '#pragma once\n// What is here. Thread-safe.\n#include <vector>\n#include "bitnet/%s/b.hpp"\n' "$library" >"$tree/bitnet-$library/include/bitnet/$library/a.hpp"
    printf '// exit(1) in a comment is no call\n#include "bitnet/core/a.hpp"\n' >"$tree/bitnet-$library/src/a.cpp"
  done
  printf '// The environment.\nconst char* v = secure_getenv("V");\n' >"$tree/bitnet-core/src/env.cpp"
  printf '// OpenCL.\n#include <CL/cl.h>\n' >"$tree/bitnet-gpu/src/cl.cpp"
}

# broken <file> <line>: the check must fail and name the file once the line stands in it.
broken() {
  fresh
  printf '%s\n' "$2" >>"$tree/$1"
  local said
  if said=$("$check" "$tree"); then
    echo "passed with '$2' in $1"
    failed=1
  elif [[ $said != *"$1:"* ]]; then
    echo "did not name $1 with '$2' in it: $said"
    failed=1
  fi
}

fresh
"$check" "$tree" || { echo 'failed on a tree that keeps the rules'; failed=1; }
broken bitnet-core/include/bitnet/core/a.hpp '#include <nlohmann/json.hpp>'
broken bitnet-core/include/bitnet/core/a.hpp '#include <unistd.h>'
broken bitnet-core/include/bitnet/core/a.hpp '#include "bitnet/quant/a.hpp"'
broken bitnet-inference/src/a.cpp '#include "bitnet/gpu/a.hpp"'
broken bitnet-training/src/a.cpp '#include "bitnet/inference/a.hpp"'
broken bitnet-gpu/src/a.cpp '#include "bitnet/quant/a.hpp"'
broken bitnet-core/src/a.cpp 'void f() { std::cout << 1; }'
broken bitnet-quant/src/a.cpp 'void f() { std::exit(1); }'
broken bitnet-core/src/a.cpp '#include <CL/cl.h>'
broken bitnet-cli/src/a.cpp 'auto v = std::getenv("V");'
broken bitnet-core/src/b.cpp '#include <vector>'
broken bitnet-quant/include/bitnet/quant/b.hpp '// What is here: it uses all threads of the context.'
broken bitnet-cli/include/bitnet/cli/b.hpp '// What is here.'
exit $failed
