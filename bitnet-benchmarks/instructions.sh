#!/usr/bin/env bash
# usage: instructions.sh <bitnet_one_product> [shape] [rows…]
# Instructions of one product for every instruction set of this CPU and both codes, and multiply-adds per instruction:
# by `perf stat` where it has counters, else by callgrind, whose CPU has no more than AVX2. What preparing costs is
# subtracted: a product's count is that of a run of three less that of a run of one, halved.
set -eu
program=$1 shape=${2:-up}
shift $(($# < 2 ? $# : 2))
[ $# -gt 0 ] || set -- 1 16
if perf stat -x, -e instructions:u true 2>&1 | grep -qE '^[0-9]+,'; then
  counter=perf
elif command -v valgrind >/dev/null; then
  counter=callgrind
else
  echo "neither perf counters nor valgrind"
  exit 77
fi

count() {  # count <words of bitnet_one_product>…: instructions of the whole run
  if [ $counter = perf ]; then
    perf stat -x, -e instructions:u "$program" "$@" 2>&1 >/dev/null | sed -n 's/^\([0-9]*\),.*instructions.*/\1/p'
  else
    BITNET_ISA=$1 valgrind --tool=callgrind --callgrind-out-file=/dev/null "$program" "$@" 2>&1 >/dev/null |
      sed -n 's/.*Collected : \([0-9]*\).*/\1/p'
  fi
}

if [ $counter = perf ]; then
  isas=$("$program" --list)
else
  isas=$(valgrind -q "$program" --list)  # those of valgrind's CPU
fi
[ -n "$isas" ] || { echo "'$program --list' names no instruction set"; exit 1; }
echo "| ISA | code | shape | rows | instructions ($counter) | multiply-adds per instruction |"
echo "|---|---|---|---|---|---|"
for isa in $isas; do
  for code in two_bit base3; do
    for rows in "$@"; do
      work=$("$program" "$isa" "$code" "$shape" "$rows" 1)
      one=$(count "$isa" "$code" "$shape" "$rows" 1)
      three=$(count "$isa" "$code" "$shape" "$rows" 3)
      [ -n "$one" ] && [ -n "$three" ] || { echo "$counter gave no count for $isa"; exit 1; }
      awk -v w="${work%% *}" -v n="$(((three - one) / 2))" -v at="| $isa | $code | $shape | $rows |" \
        'BEGIN { printf "%s %.0f | %.1f |\n", at, n, w / n }'
    done
  done
done
