#!/usr/bin/env bash
# usage: check_sources.sh <source root>: fails, naming file and line, when a library includes what its place in the
# workspace forbids, a public header includes a third-party one, a library reads the environment, prints or exits, a
# source does not begin with a paragraph that says what is in it, or a public header does not say what holds for threads.
set -u
shopt -s lastpipe   # report, the last stage of each pipeline, must set `failed` of this shell and not of a subshell
cd "$1" || exit 2
failed=0

# report <what is wrong>: prints and counts the lines on standard input.
report() {
  local lines
  lines=$(cat)
  [ -z "$lines" ] && return
  printf '%s:\n%s\n\n' "$1" "$lines"
  failed=1
}

declare -A may=(
  [core]='core' [quant]='core|quant' [inference]='core|quant|inference' [training]='core|quant|training'
  [gpu]='core|gpu' [cli]='core|quant|inference|training|gpu|cli'
  [benchmarks]='core|quant|inference|training|gpu|cli|benchmarks'
)
for library in "${!may[@]}"; do
  folder=bitnet-$library
  [ -d "$folder/include" ] || continue
  # Standard headers have neither a slash nor a dot in their names.
  grep -rnE '^ *# *include *<' "$folder/include" | grep -vE '<[a-z0-9_]+>' |
    report "$folder: a public header includes a third-party or system header"
  grep -rnE '^ *# *include *"' "$folder/include" | grep -vE "\"bitnet/(${may[$library]})/" |
    report "$folder: a public header includes what it must not"
  grep -rnE '^ *# *include *["<]bitnet/' "$folder/src" 2>/dev/null | grep -vE "[\"<]bitnet/(${may[$library]}|simd|yaml)/" |
    report "$folder: a source includes a library that it must not know"
  case $library in cli | benchmarks) continue ;; esac
  grep -rnE '\b(std::)?(cout|puts|printf|exit|abort|_Exit|quick_exit|terminate)\b *(\(|<<)' "$folder/src" "$folder/include" |
    grep -vE ':[0-9]+: *//' | report "$folder: a library prints to stdout or ends the process"
done
grep -rnE '["<]CL/' bitnet-*/src bitnet-*/include | grep -v '^bitnet-gpu/src/' | report 'OpenCL outside bitnet-gpu/src'
grep -rnE '\b(secure_)?getenv *\(' bitnet-*/src bitnet-*/include | grep -v '^bitnet-core/src/env.cpp:' |
  report 'the environment is read outside bitnet-core/src/env.cpp'
find bitnet-* \( -name '*.cpp' -o -name '*.hpp' \) -exec awk 'FNR == 1 && /^#pragma once/ { next }
  FNR <= 2 { if (!/^\/\//) print FILENAME ":" FNR ": " $0; nextfile }' {} + |
  report 'a source does not begin with a comment that says what is in it'
# A word about threads that a function uses is none about those that may call it.
says='//.*(thread-safe|immutable|plain value|pure function|one thread at a time|(from|by) (several|distinct|one) threads?)'
find bitnet-*/include -name '*.hpp' -exec grep -LiE "$says" {} + | sed 's/$/: expected e.g. "Not thread-safe." or "Pure functions."/' |
  report 'a public header does not say what holds for threads'
[ "$failed" -eq 0 ] && echo 'every include and call is where it may be'
exit $failed
