#!/usr/bin/env python3
"""Makes the demo model's training text from unpacked Debian packages (see fetch_corpus.sh).

usage: extract_corpus.py UNPACKED OUT

UNPACKED is a directory into which r-cran-janeaustenr, bible-kjv, bible-kjv-text and sword-text-web were unpacked.
Writes OUT/train.txt, OUT/validation.txt (every 64th document, for choosing learning rates) and OUT/heldout.txt: UTF-8, one paragraph a line, an empty line between documents (a novel's
chapter, a chapter of the Bible). Northanger Abbey is held out. All texts are in the public domain. Standard library only.
"""
import pathlib
import re
import struct
import subprocess
import sys
import zlib

HELD_OUT = "NORTHANGER ABBEY"
VALIDATION_EVERY = 64
LONGEST_VERSE = 1500  # longer entries of the World English Bible are its preface, glossary and an appended book


def austen_books(folder):
    """Yields the lines of each novel: the R database is records of [u32 big-endian length][zlib stream], each a
    serialised character vector; a string is a CHARSXP: [u32 flags, low byte 9][i32 length][bytes]."""
    data = (folder / "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb").read_bytes()
    at = 0
    while at < len(data):
        stream = zlib.decompressobj()
        record = stream.decompress(data[at + 4:])
        if len(record) != struct.unpack_from(">I", data, at)[0]:
            sys.exit(f"Rdata.rdb: record at {at} has an unexpected length")
        at = len(data) - len(stream.unused_data)
        # "X\n", format and writer versions, native encoding, then STRSXP flags and its length
        pos = 2 + 12
        pos += 4 + struct.unpack_from(">i", record, pos)[0]
        count = struct.unpack_from(">i", record, pos + 4)[0]
        pos += 8
        lines = []
        for _ in range(count):
            size = struct.unpack_from(">i", record, pos + 4)[0]
            lines.append(record[pos + 8:pos + 8 + max(size, 0)].decode("utf-8"))
            pos += 8 + max(size, 0)
        yield lines


def plain(text):
    """One typographic convention for all sources, so that a small vocabulary is not spent on variants."""
    text = text.translate(str.maketrans({"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2014": "--",
                                         "\u2013": "-", "\u2026": "...", "\u00a0": " ", "`": "'"}))
    return re.sub(r"\s+", " ", text.replace("_", "")).strip()


def novel(lines):
    """Chapters of joined paragraphs: hard-wrapped lines up to an empty one are one paragraph."""
    chapters, paragraph = [[]], []
    for line in lines + [""]:
        if line.strip():
            paragraph.append(line)
            continue
        text = plain(" ".join(paragraph))
        paragraph = []
        if re.match(r"(VOLUME|CHAPTER|Chapter)\b", text):
            chapters.append([])
        elif text and not text.isupper():
            chapters[-1].append(text)
    return [c for c in chapters[1:] if c]  # what stands before the first chapter is the title page


def king_james(folder):
    """Chapters of the King James Version as printed by the `bible` program: "Ge1:1 In the beginning …"."""
    run = subprocess.run([str((folder / "usr/bin/bible").resolve()), "-l", "100000", "-f", "gen1:1-rev22:21"],
                         cwd=folder / "usr/lib", stdout=subprocess.PIPE, check=True)
    chapters, last = [], None
    for line in run.stdout.decode("utf-8", "replace").splitlines():
        match = re.match(r"([1-3]?[A-Za-z]+\d+):\d+ +(.*)", line)
        if not match:
            continue
        if match.group(1) != last:
            chapters.append([])
            last = match.group(1)
        chapters[-1].append(plain(re.sub(r"[{}]", "", match.group(2))))
    return chapters


def world_english(folder):
    """Chapters of the World English Bible from SWORD's compressed text module: .bzs is a table of blocks (u32
    offset, size, unpacked size), .bzz the zlib blocks, .bzv a table of verses (u32 block, u32 offset, u16 size) in
    which an entry without text stands before each chapter."""
    base = folder / "usr/share/sword/modules/texts/ztext/engWEB2015eb"
    chapters = []
    for testament in ("ot", "nt"):
        blocks = (base / f"{testament}.bzs").read_bytes()
        verses = (base / f"{testament}.bzv").read_bytes()
        packed = (base / f"{testament}.bzz").read_bytes()
        cache = {}
        chapters.append([])
        for at in range(0, len(verses) - 9, 10):
            block, offset, size = struct.unpack_from("<IIH", verses, at)
            if size == 0:
                if chapters[-1]:
                    chapters.append([])
                continue
            if block not in cache:
                begin, length, _ = struct.unpack_from("<III", blocks, 12 * block)
                cache = {block: zlib.decompress(packed[begin:begin + length])}
            text = cache[block][offset:offset + size].decode("utf-8", "replace")
            text = re.sub(r"<note\b.*?</note>|<title\b.*?</title>", " ", text, flags=re.S)
            text = plain(re.sub(r"<[^>]*>", " ", text))
            text = re.sub(r" ([,.;:?!])", r"\1", text)
            text = re.sub(r"(^|\s)([\"']) ", r"\1\2", text)  # an opening quote, cut off by the markup
            if text and len(text) <= LONGEST_VERSE:
                chapters[-1].append(text)
    return [c for c in chapters if c]


def verses_to_paragraphs(chapters):
    """A chapter's verses become paragraphs of about 400 characters, cut after a full stop."""
    out = []
    for verses in chapters:
        paragraphs, current = [], ""
        for verse in verses:
            current = f"{current} {verse}".strip()
            if len(current) > 400 and current[-1] in ".!?\"'":
                paragraphs.append(current)
                current = ""
        if current:
            paragraphs.append(current)
        out.append(paragraphs)
    return out


def write(path, documents):
    text = "\n\n".join("\n".join(paragraphs) for paragraphs in documents) + "\n"
    path.write_text(text, encoding="utf-8")
    print(f"{path}: {len(text.encode('utf-8'))} bytes, {len(documents)} documents")


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    folder, out = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
    out.mkdir(parents=True, exist_ok=True)
    train, held_out = [], []
    for lines in austen_books(folder):
        title = next(line for line in lines if line.strip()).strip()
        (held_out if title == HELD_OUT else train).extend(novel(lines))
    if not held_out:
        sys.exit(f"the novel to hold out, {HELD_OUT}, was not found")
    train += verses_to_paragraphs(king_james(folder))
    train += verses_to_paragraphs(world_english(folder))
    write(out / "train.txt", [d for i, d in enumerate(train) if i % VALIDATION_EVERY != VALIDATION_EVERY - 1])
    write(out / "validation.txt", train[VALIDATION_EVERY - 1::VALIDATION_EVERY])
    write(out / "heldout.txt", held_out)


if __name__ == "__main__":
    main()
