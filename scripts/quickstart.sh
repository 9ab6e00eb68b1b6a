#!/usr/bin/env bash
# From a fresh Debian 12 to text: installs what the build needs, builds `bitnet` with the release preset, and runs
# batch inference on a few prompts with the model that ships in models/. Runs again without redoing what is done.
#
#   scripts/quickstart.sh [PROMPTS.txt]     one prompt a line; default examples/prompts.txt
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/packages.sh

model=models/bitnet-demo-i2_s.gguf
prompts=${1:-examples/prompts.txt}
if [ "$prompts" = --help ]; then
  sed -n '2,5s/^# \{0,1\}//p' "$0"
  exit 0
fi
[ -f "$prompts" ] || {
  echo "error: no file '$prompts' with prompts" >&2
  exit 2
}

step "Packages"
install_packages "${packages_build[@]}"
use_ccache

step "Build (release preset)"
configure=()
[ -f build/release/CMakeCache.txt ] || configure=(-DBITNET_BUILD_TESTS=OFF)   # test.sh turns them on
cmake --preset release "${configure[@]}"
cmake --build --preset release -j "${JOBS:-$(nproc)}" --target bitnet

step "Batch inference: $prompts with $model"
out=build/quickstart.jsonl
rm -f "$out.partial"   # of a call that was killed
build/release/bitnet-cli/bitnet batch -m "$model" -i "$prompts" -o "$out" --config configs/batch.yaml

step "Text (also in $out)"
# The escapes of a JSON string are those that printf's %b knows, but for the quote.
field() { sed -nE "s/.*\"$1\": ?\"(([^\"\\\\]|\\\\.)*)\".*/\\1/; T; s/\\\\\"/\"/g; p" <<<"$2"; }
while IFS= read -r record; do
  printf '%b%b\n\n' "$(field prompt "$record")" "$(field text "$record")"
done <"$out"
echo "Next: build/release/bitnet-cli/bitnet --help, and README.md for C++"
