#!/usr/bin/env python3
"""Writes the shipped model's card, its loss curves and its samples from two finished training runs.

usage: model_card.py --bitnet BIN --ternary RUN [--float RUN] --model MODEL.gguf --corpus FOLDER --out FOLDER
                     [--probes FOLDER] [--chat RUN --chat-model MODEL.gguf] [--cores WORDS]

RUN: the output folder of `bitnet train` (log.jsonl with a held_out record, model.gguf) for configs/train/demo.yaml,
configs/train/demo-float.yaml and configs/train/demo-chat.yaml; without the second one the card has no comparison, without the
third no part on the model that chats. WORDS: what the runs computed on ("two cores"), beside the processor's name. Writes OUT/README.md (the card), OUT/loss.svg and OUT/samples.jsonl. Every figure comes from the runs' logs or from running BIN; exit status 1 if fewer
than 95 % of the samples' words occur in the training text. Python's standard library only.
"""
import argparse
import json
import math
import pathlib
import platform
import re
import subprocess
import sys
import tempfile

PROMPTS = ["It was", "The king", "She had been", "And the LORD said unto", "Elizabeth", "Mr. Knightley", "In those days",
           "My dear", "The children of Israel", "There was a man", "Emma", "He answered", "The house of", "When they came",
           "I am sure", "Jesus said to", "The young lady", "And it came to pass", "Captain Wentworth", "As soon as"]
SAMPLING = {"temp": 0.7, "top_k": 40, "top_p": 0.9, "n": 64}

# Conversations whose second message means something only with the first answer in view.
TALKS = [("Hello!", "My name is Anne. What is yours?"), ("Who are you?", "What can you do?"), ("I am sad today.", "Thank you."),
         ("Who is Elizabeth Bennet?", "And whom does she marry?"), ("Tell me a story.", "Thank you, good night."),
         ("Who was Moses?", "And David?"), ("What is the price of a telephone?", "Then what do you know?"),
         ("Shall we walk in the garden?", "And what shall we do if it rains?")]


def run(command, **kwargs):
    done = subprocess.run([str(c) for c in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **kwargs)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{done.stderr}")
    return done.stdout


def read_log(folder):
    """start, train, evaluation (validation text) records of log.jsonl, and the held_out one or None; steps repeated by a
    resumed run keep their last record."""
    start, train, evaluations, held_out = None, {}, {}, None
    for line in (folder / "log.jsonl").read_text().splitlines():
        record = json.loads(line)
        if record["type"] == "start":
            start = start or record
        elif record["type"] == "train":
            train[record["step"]] = record
        elif record["type"] == "evaluation":
            evaluations[record["step"]] = record
        elif record["type"] == "held_out":
            held_out = record
    return start, [train[s] for s in sorted(train)], [evaluations[s] for s in sorted(evaluations)], held_out


def seconds_of(train):
    """Training time; `seconds` starts anew when a run is resumed."""
    total, last = 0.0, 0.0
    for record in train:
        if record["seconds"] < last:
            total += last
        last = record["seconds"]
    return total + last


def smooth(points, width):
    out, window = [], []
    for x, y in points:
        window = (window + [y])[-width:]
        out.append((x, sum(window) / len(window)))
    return out


def curve_svg(series):
    """A line chart of loss over tokens. series: list of (name, colour, dashed, [(tokens, loss)])."""
    width, height, left, right, top, bottom = 760, 420, 56, 28, 16, 48
    xs = [x for *_, points in series for x, _ in points]
    ys = [y for *_, points in series for _, y in points]
    x1, y0, y1 = max(xs), math.floor(min(ys) * 2) / 2, min(math.ceil(max(ys) * 2) / 2, 7.0)
    px = lambda x: left + (width - left - right) * x / x1
    py = lambda y: top + (height - top - bottom) * (y1 - y) / (y1 - y0)
    svg = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
           f'<rect width="{width}" height="{height}" fill="white"/>'
           f'<clipPath id="plot"><rect x="{left}" y="{top}" width="{width - left - right}" height="{height - top - bottom}"/></clipPath>']
    y = y0
    while y <= y1 + 1e-9:
        svg.append(f'<line x1="{left}" x2="{width - right}" y1="{py(y):.1f}" y2="{py(y):.1f}" stroke="#ddd"/>'
                   f'<text x="{left - 8}" y="{py(y) + 4:.1f}" text-anchor="end">{y:g}</text>')
        y += 0.5
    step = 10 ** math.floor(math.log10(x1 / 2))  # 1, 2 or 5 times a power of ten, at most ten of them
    step *= next(k for k in (1, 2, 5, 10) if x1 / (k * step) <= 10)
    for i in range(int(x1 / step) + 1):
        svg.append(f'<text x="{px(i * step):.1f}" y="{height - bottom + 18}" text-anchor="middle">{i * step / 1e6:g}</text>')
    svg.append(f'<text x="{(left + width - right) / 2}" y="{height - 8}" text-anchor="middle">training tokens, millions</text>'
               f'<text x="14" y="{height / 2}" transform="rotate(-90 14 {height / 2})" text-anchor="middle">'
               'cross-entropy, nats per token</text>')
    for i, (name, colour, dashed, points) in enumerate(series):
        path = " ".join(f"{px(x):.1f},{py(y):.1f}" for x, y in points)
        dash = ' stroke-dasharray="6 4"' if dashed else ""
        svg.append(f'<polyline points="{path}" clip-path="url(#plot)" fill="none" stroke="{colour}" stroke-width="1.6"{dash}/>')
        ly = top + 16 + 18 * i
        svg.append(f'<line x1="{width - 270}" x2="{width - 240}" y1="{ly}" y2="{ly}" stroke="{colour}" stroke-width="2"{dash}/>'
                   f'<text x="{width - 232}" y="{ly + 4}">{name}</text>')
    return "\n".join(svg + ["</svg>"]) + "\n"


def words(text):
    return re.findall(r"[A-Za-z]+(?:'[a-z]+)?", text)


def samples(bitnet, model, out):
    """20 samples with seeds 1 … 20, each from its own prompt."""
    items = [{"id": str(i + 1), "prompt": p, "seed": i + 1, "temperature": SAMPLING["temp"], "top_k": SAMPLING["top_k"],
              "top_p": SAMPLING["top_p"], "max_tokens": SAMPLING["n"]} for i, p in enumerate(PROMPTS)]
    source = out / "prompts.jsonl"
    source.write_text("".join(json.dumps(i) + "\n" for i in items))
    target = out / "samples.jsonl"
    target.unlink(missing_ok=True)
    run([bitnet, "batch", "-m", model, "-i", source, "-o", target])
    return [json.loads(line) for line in target.read_text().splitlines()]


def talks(bitnet, model, work):
    """TALKS with the model's answers, each the most likely one: lists of messages, answered turn by turn."""
    chats = [[] for _ in TALKS]
    for turn in range(len(TALKS[0])):
        for chat, messages in zip(chats, TALKS):
            chat.append({"role": "user", "content": messages[turn]})
        source, target = work / "chats.jsonl", work / "answers.jsonl"
        source.write_text("".join(json.dumps({"id": str(i), "messages": c, "temperature": 0, "max_tokens": 96}) + "\n"
                                  for i, c in enumerate(chats)))
        target.unlink(missing_ok=True)
        run([bitnet, "batch", "-m", model, "-i", source, "-o", target])
        for chat, line in zip(chats, target.read_text().splitlines()):
            chat.append({"role": "assistant", "content": json.loads(line)["text"].strip()})
    return chats


def perplexity(bitnet, model, text):
    return json.loads(run([bitnet, "perplexity", "-m", model, "-f", text, "--json"]))


def cpu_name():
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def probe_table(folder):
    """Short runs at several learning rates, each a folder with a log: the choice of either model's rate."""
    rows = []
    for log in sorted(folder.glob("*/log.jsonl")):
        start, _, evaluations, _ = read_log(log.parent)
        if not evaluations:
            continue
        rows.append((start["quantization"], start["learning_rate"], start["steps"], evaluations[-1]))
    rows.sort(key=lambda r: (r[0], r[1]))
    lines = ["| weights | peak learning rate | steps | validation perplexity (all positions) |", "|---|---|---|---|"]
    for quantization, rate, steps, e in rows:
        name = "ternary" if quantization == "ternary" else "full precision"
        lines.append(f"| {name} | {rate:g} | {steps} | {e['perplexity']:.2f} |")
    return "\n".join(lines)


def chat_part(bitnet, folder, model):
    """The card's part on the fine-tuned model."""
    start, train, evaluations, _ = read_log(folder)
    best = min(evaluations, key=lambda e: e["perplexity"])
    with tempfile.TemporaryDirectory() as work:
        chats = talks(bitnet, model, pathlib.Path(work))
    text = f"""
## The model that chats

`{model.name}` ({model.stat().st_size:,} bytes) is the model above, fine-tuned on `chat/train.jsonl`: short conversations of our own
writing about itself, Austen's people, the Bible's, and small talk. `bitnet chat -m models/{model.name}` answers in turns. It
answers what it was taught and near wordings of it, and makes up the rest.

| | |
|---|---|
| command | `bitnet train configs/train/demo-chat.yaml` |
| steps | {train[-1]['step']:,} of {start['batch']} × {start['length']} positions, {seconds_of(train) / 60:.0f} minutes |
| perplexity of the answers in `chat/validation.jsonl` (other wordings) | {best['perplexity']:.2f} after {best['step']} steps, the best, {evaluations[-1]['perplexity']:.2f} after the last: it has the answers by heart |

Each answer below is the most likely one (`--temp 0`):

| you | the model | you | the model |
|---|---|---|---|
"""
    for chat in chats:
        text += "| " + " | ".join(quote(m["content"]) for m in chat) + " |\n"
    return text


def quote(text):
    return text.replace("\n", " ⏎ ").replace("|", "\\|").strip()


def main():
    parser = argparse.ArgumentParser()
    for name in ("bitnet", "ternary", "model", "corpus", "out"):
        parser.add_argument(f"--{name}", required=True, type=pathlib.Path)
    parser.add_argument("--float", type=pathlib.Path)
    parser.add_argument("--probes", type=pathlib.Path)
    parser.add_argument("--chat", type=pathlib.Path)
    parser.add_argument("--chat-model", type=pathlib.Path)
    parser.add_argument("--cores", default="two cores")
    a = parser.parse_args()
    if (a.chat is None) != (a.chat_model is None):
        sys.exit("--chat and --chat-model belong together")
    a.out.mkdir(parents=True, exist_ok=True)
    runs = {"ternary": read_log(a.ternary)}
    if a.float:
        runs["float"] = read_log(a.float)
    for name, folder in (("ternary", a.ternary), ("float", a.float)):
        if name in runs and runs[name][3] is None:
            sys.exit(f"{folder}/log.jsonl has no held_out record: is the run finished, and does it name data.held_out?")
    series = []
    looks = {"ternary": ("ternary", "#c0392b"), "float": ("full precision", "#2c5aa0")}
    for name in runs:
        label, colour = looks[name]
        _, train, evaluations, _ = runs[name]
        tokens = {t["step"]: t["tokens"] for t in train}
        series.append((f"{label}, training", colour, False, smooth([(t["tokens"], t["loss"]) for t in train], 10)))
        series.append((f"{label}, validation", colour, True,
                       [(tokens[e["step"]], e["nll"]) for e in evaluations
                        if e["step"] in tokens]))
    (a.out / "loss.svg").write_text(curve_svg([s for s in series if s[3]]))

    held_out = a.corpus / "heldout.txt"
    ternary = perplexity(a.bitnet, a.model, held_out)
    records = samples(a.bitnet, a.model, a.out)
    known = {w.lower() for w in words((a.corpus / "train.txt").read_text())}
    seen = [w for r in records for w in words(r["text"])[:-1]]  # the last word may be cut by the token limit
    share = sum(w.lower() in known for w in seen) / len(seen)

    start, train, _, trained = runs["ternary"]
    minutes = {k: seconds_of(v[1]) / 60 for k, v in runs.items()}
    comparison = ("\nThe same model in full precision (`configs/train/demo-float.yaml`) has not been trained to its end yet: there is no "
                  "comparison.\n")
    summary, float_time = f"ternary {ternary['perplexity']:.3f}", ""
    if a.float:
        # The trainer scores both models: no runnable file holds float linears of this architecture.
        full = runs["float"][3]
        ratio = 100 * (trained["perplexity"] / full["perplexity"] - 1)
        float_time = f" (full precision: {minutes['float']:.0f})"
        comparison = f"""| the same model in full precision, same tokens | – | – | {full['perplexity']:.3f} | {full['bits_per_byte']:.4f} |

The ternary model's perplexity is {ratio:+.1f} % against full precision.
"""
        summary += f", full precision {full['perplexity']:.3f} ({ratio:+.1f} %)"
    card = f"""# {a.model.stem}

A ternary (BitNet b1.58) language model of {start['parameters']:,} parameters that writes in the manner of its training text:
Jane Austen's novels and two English Bibles. It exists to show, test and measure the engine, and knows nothing else.

| | |
|---|---|
| file | `{a.model.name}`, {a.model.stat().st_size:,} bytes, GGUF (I2_S linears, f16 embeddings) |
| architecture | as microsoft/bitnet-b1.58-2B-4T: pre-norms, sub-norms, relu² GLU, rotary grouped-query attention, tied embedding; `bitnet inspect` shows its sizes |
| tokenizer | byte-level BPE, learnt from the training text |
| data | Austen without *Northanger Abbey*, King James Version, World English Bible: all in the public domain, extracted from Debian packages by `scripts/fetch_corpus.sh`; a little of the same books for validation; held out: *Northanger Abbey* |
| licence | MIT, as the project; the training text is in the public domain |
| command | `scripts/fetch_corpus.sh && bitnet train configs/train/demo.yaml` |
| tokens seen | {train[-1]['tokens']:,} in {train[-1]['step']:,} steps of {start['batch']} × {start['length']} |
| time | {minutes['ternary']:.0f} minutes{float_time} on {a.cores} of {cpu_name()}, shared with other work |

## Quality on the held-out novel

Scored after the last step; no choice was made by it. `bitnet perplexity` scores the second half of each window of {ternary['ctx_size']} tokens, the trainer all positions.

| weights | perplexity (`bitnet perplexity`) | bits per byte | perplexity (trainer) | bits per byte |
|---|---|---|---|---|
| ternary (this model) | {ternary['perplexity']:.3f} | {ternary['bits_per_byte']:.4f} | {trained['perplexity']:.3f} | {trained['bits_per_byte']:.4f} |
{comparison}
![loss over training tokens](loss.svg)
"""
    if a.probes and a.probes.is_dir():
        starts = [read_log(folder)[0] for folder in (a.ternary, a.float) if folder]
        chosen = " and ".join(f"{s['learning_rate']:g} ({'ternary' if s['quantization'] == 'ternary' else 'full precision'})"
                              for s in starts)
        card += f"""
## Learning rates

Short runs over the same data, with the whole schedule, scored on validation text that is neither trained on nor the held-out
novel:

{probe_table(a.probes)}

The full runs took {chosen}: near the minimum of a parabola through each one's points over the logarithm of the rate,
and a little lower, because they are longer.
"""
    card += f"""
## Samples

`bitnet batch -m {a.model.name} -i prompts.jsonl -o samples.jsonl`: temperature {SAMPLING['temp']}, top-k {SAMPLING['top_k']}, top-p {SAMPLING['top_p']},
{SAMPLING['n']} tokens, seeds 1 to {len(records)}. Of {len(seen)} words, {100 * share:.1f} % occur in the training text. The texts hold for
instruction sets with fused multiply-add (AVX2 and later, NEON); without it floats round differently and some texts
part ways (docs/numerics.md).

| seed | prompt | text |
|---|---|---|
"""
    for i, (prompt, record) in enumerate(zip(PROMPTS, records)):
        card += f"| {i + 1} | {prompt} | {quote(record['text'])} |\n"
    if a.chat:
        card += chat_part(a.bitnet, a.chat, a.chat_model)
    (a.out / "README.md").write_text(card)
    print(f"{a.out}/README.md: {summary}, {100 * share:.1f} % known words")
    sys.exit(0 if share >= 0.95 else 1)


if __name__ == "__main__":
    main()
