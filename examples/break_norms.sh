#!/usr/bin/env bash
# usage: break_norms.sh <IN.gguf> <OUT.gguf>: copies a model of `bitnet synth` with NaN in place of its norms' weights,
# which are the float 1.0: a model that loads and fails as it runs.
set -eu
mkdir -p "$(dirname "$2")"
LC_ALL=C sed 's/\x00\x00\x80?\x00\x00\x80?/\x00\x00\xC0\x7F\x00\x00\xC0\x7F/g' "$1" >"$2"
! cmp -s "$1" "$2"
