#!/bin/sh
# usage: limit_addresses.sh KIB COMMAND…
# Runs COMMAND in at most so many KiB of addresses.
set -eu
ulimit -v "$1"
shift
exec "$@"
