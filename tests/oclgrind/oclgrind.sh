#!/usr/bin/env bash
# usage: oclgrind.sh <clean | faulty> <oclgrind or oclgrind-kernel> <command>…: runs the command where the only OpenCL device
# is the simulator (Debian's oclgrind, OpenCL 1.2), which looks at every access of every work-item. Passes if the command
# succeeds and the simulator reports nothing ("clean"), or something ("faulty": it is able to). It finds races, those of equal
# values included, accesses beyond buffers, barriers that not all items reach, and calls of the API with wrong arguments.
# Uninitialised values are not asked for: oclgrind 21.10 reports vectors of known values, and crashes.
set -eu
wanted=$1 simulator=$2
shift 2
log=$(mktemp)
trap 'rm -f "$log"' EXIT
"$simulator" --data-races --uniform-writes --max-errors 50 --log "$log" "$@"
head -n 200 "$log"
if [ "$wanted" = clean ]; then
  [ ! -s "$log" ] || { echo "oclgrind.sh: the simulator reports faults"; exit 1; }
else
  [ -s "$log" ] || { echo "oclgrind.sh: the simulator reports nothing"; exit 1; }
fi
