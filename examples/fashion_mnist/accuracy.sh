#!/usr/bin/env bash
# usage: accuracy.sh <bitnet_example_fashion_mnist> <network> <percent> <points>: trains the network in full precision and
# ternary, and fails unless the ternary one has at least so many of the test images right, and at most so many points fewer
# than the other one.
set -euo pipefail
program=$1 network=$2 percent=$3 points=$4
full=$("$program" --model "$network" --precision full | tee /dev/stderr | grep -oE '[0-9.]+ % right' | tail -1)
least=$(awk -v full="${full%% *}" -v points="$points" -v percent="$percent" \
  'BEGIN { print (full - points > percent ? full - points : percent) }')
echo "$network: full precision ${full% right}; ternary has to reach $least %"
"$program" --model "$network" --precision ternary --at-least "$least"
