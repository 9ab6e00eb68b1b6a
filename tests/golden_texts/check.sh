#!/usr/bin/env bash
# usage: check.sh [--write] <transcript> <program of `bitnet` and what goes before it>…
# A transcript holds lines `$ bitnet …` (with ` < FILE` at the end where a command reads from standard input), and below each what the
# command wrote to standard output. Runs the commands
# and compares what they write now; --write puts it there instead. BITNET_ISA names the instruction set: one that this
# CPU lacks, or the operating system withholds, is skipped (77). Commands are run from the source tree, so that a transcript can be repeated by hand.
set -u
write=
[ "$1" = --write ] && { write=yes; shift; }
transcript=$(realpath "$1")
shift
program=()
for word in "$@"; do
  [ -e "$word" ] && word=$(realpath "$word")
  program+=("$word")
done
cd "$(dirname "$0")/../.." || exit 1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
while IFS= read -r line; do
  command=${line#\$ bitnet } input=/dev/null
  if [[ $command == *" < "* ]]; then
    input=${command##* < } command=${command% < *}
  fi
  eval "arguments=($command)"
  text=$("${program[@]}" "${arguments[@]}" 2>"$work/err" <"$input")
  code=$?
  if [ $code -ne 0 ]; then
    cat "$work/err" >&2
    grep -qE "ISA '.*': (this CPU lacks it|the operating system does not let)" "$work/err" && exit 77
    echo "check.sh: ended with $code: $line" >&2
    exit 1
  fi
  printf '%s\n%s\n' "$line" "$text"
done < <(grep '^\$ bitnet ' "$transcript") >"$work/now"
[ -s "$work/now" ] || { echo "check.sh: no commands in $transcript"; exit 1; }
if [ -n "$write" ]; then
  cp "$work/now" "$transcript"
else
  diff -u "$transcript" "$work/now" && echo "as in $(basename "$transcript")"
fi
