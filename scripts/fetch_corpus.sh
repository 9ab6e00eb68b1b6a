#!/usr/bin/env bash
# Fetches the demo model's training text from Debian packages (public domain: six Austen novels, the King James and
# the World English Bible) and writes FOLDER/train.txt, FOLDER/validation.txt (a little of the same books, for choosing
# learning rates) and FOLDER/heldout.txt (Northanger Abbey).
#
# usage: scripts/fetch_corpus.sh [FOLDER]      default: build/corpus
#
# Packages are downloaded and unpacked, not installed. Nothing is done when all three files are there.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-build/corpus}
packages="r-cran-janeaustenr bible-kjv bible-kjv-text sword-text-web"

if [[ -s $out/train.txt && -s $out/validation.txt && -s $out/heldout.txt ]]; then
  echo "corpus: $out/{train,validation,heldout}.txt are there already"
  exit 0
fi
for tool in apt-get dpkg-deb python3; do
  command -v "$tool" >/dev/null || { echo "fetch_corpus.sh needs $tool" >&2; exit 1; }
done

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$out" "$work/deb" "$work/root"
echo "corpus: downloading $packages"
# shellcheck disable=SC2086  # a list of words
if ! (cd "$work/deb" && apt-get -qq download $packages 2>/dev/null); then
  echo "corpus: the package lists are missing or old; running apt-get update"
  if [[ $(id -u) -eq 0 ]]; then apt-get -qq update; else sudo apt-get -qq update; fi
  # shellcheck disable=SC2086
  (cd "$work/deb" && apt-get -qq download $packages)
fi
for deb in "$work"/deb/*.deb; do dpkg-deb -x "$deb" "$work/root"; done
python3 scripts/extract_corpus.py "$work/root" "$out"
