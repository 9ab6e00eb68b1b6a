#!/bin/sh
# usage: check_instrumented.sh <nm> <symbol prefix> <archive>: fails unless every kernel object of a static library,
# and some other object, refers to the sanitizer's runtime. A shared library is looked at as a whole.
nm=$1; symbol=$2; library=$3
case $library in *.so*) "$nm" -D "$library" | grep -q "$symbol"; exit $? ;; esac
"$nm" -A "$library" 2>/dev/null | awk -v symbol="$symbol" '
  { split($1, part, ":"); object = part[2]; seen[object] = 1 }
  index($0, symbol) { hit[object] = 1 }
  END {
    for (o in seen) {
      if (o in hit) n++
      else if (o ~ /_table/) { print "not instrumented: " o; bad = 1 }
    }
    print n + 0 " instrumented objects"
    exit bad || n < 2
  }'
