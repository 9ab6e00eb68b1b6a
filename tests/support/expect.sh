#!/usr/bin/env bash
# usage: expect.sh <exit code | fails> <extended regular expression> <command>…: runs the command, repeats what it said
# (both streams) and passes if some line matches and it ended with that code ("fails": with any but 0). Ctest's own
# PASS_REGULAR_EXPRESSION ignores the exit code, and with it a sanitizer's report.
set -u
wanted=$1 pattern=$2
shift 2
said=$("$@" 2>&1 </dev/null)
code=$?
printf '%s\n' "$said"
case $wanted in
  fails) [ "$code" -ne 0 ] ;;
  *) [ "$code" -eq "$wanted" ] ;;
esac || { echo "expect.sh: the command ended with $code, not $wanted"; exit 1; }
grep -qE -e "$pattern" <<<"$said" || { echo "expect.sh: no line matches '$pattern'"; exit 1; }
