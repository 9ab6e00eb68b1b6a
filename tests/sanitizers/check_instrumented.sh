#!/bin/sh
# usage: check_instrumented.sh <nm> <symbol prefix> <object>…: fails, naming it, when an object that defines a function
# does not refer to the sanitizer's runtime.
nm=$1; symbol=$2; shift 2
[ $# -gt 0 ] || { echo "no objects"; exit 1; }
bad=0; hit=0
for object in "$@"; do
  names=$("$nm" "$object") || { bad=1; continue; }
  case $names in
    *" $symbol"*) hit=$((hit + 1)) ;;
    *) printf '%s\n' "$names" | grep -qE ' [TtWw] ' && { echo "not instrumented: $object"; bad=1; } ;;
  esac
done
echo "$hit of $# objects are instrumented"
[ "$bad" -eq 0 ] && [ "$hit" -gt 0 ]
