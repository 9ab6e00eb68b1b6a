#!/usr/bin/env bash
# Fails if clang-format 14 would change a C++ source of the tree. usage: check_format.sh SOURCE_ROOT
set -euo pipefail
cd "$1"
format=$(command -v clang-format-14 || command -v clang-format || true)
if [ -z "$format" ] || ! "$format" --version | grep -q 'version 14\.'; then
  echo "no clang-format 14 here"
  exit 77
fi
# The folders of sources, not the whole tree: build folders lie inside it.
find bitnet-* tests examples fuzz \( -name '*.cpp' -o -name '*.hpp' \) -print0 | xargs -0 "$format" --dry-run -Werror
