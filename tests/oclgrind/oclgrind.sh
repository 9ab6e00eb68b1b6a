#!/usr/bin/env bash
# usage: oclgrind.sh <clean | faulty> <oclgrind or oclgrind-kernel> <command>…: runs the command where the only OpenCL device
# is the simulator (Debian's oclgrind, OpenCL 1.2), which looks at every access of every work-item. Passes if the command
# succeeds and the simulator reports nothing ("clean": of a GoogleTest program of which at least one test passed, so that a
# filter that matches nothing fails), or something ("faulty": it is able to). It finds races, those of equal
# values included, accesses beyond buffers, barriers that not all items reach, and calls of the API with wrong arguments.
# Uninitialised values are not asked for: oclgrind 21.10 reports vectors of known values, and crashes.
set -eu
wanted=$1 simulator=$2
shift 2
log=$(mktemp) said=$(mktemp)
trap 'rm -f "$log" "$said"' EXIT
set -o pipefail
"$simulator" --data-races --uniform-writes --max-errors 50 --log "$log" "$@" | tee "$said"
head -n 200 "$log"
if [ "$wanted" = clean ]; then
  grep -q '^\[  PASSED  \] [1-9]' "$said" || { echo "oclgrind.sh: no test ran"; exit 1; }
  [ ! -s "$log" ] || { echo "oclgrind.sh: the simulator reports faults"; exit 1; }
else
  [ -s "$log" ] || { echo "oclgrind.sh: the simulator reports nothing"; exit 1; }
fi
