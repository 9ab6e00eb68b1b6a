#!/usr/bin/env python3
"""Trains a small GPT in full precision with `bitnet train`, makes it ternary by every method of `bitnet quantize`, and
prints what each leaves of its perplexity as a table in Markdown: docs/guides/quantization.md, Proof.

usage: post_training.py BITNET --train FILE --held-out FILE [--work DIR] [--steps N] [--threads N] [--require SHARE]

Python's standard library is all that it needs. DIR keeps the trained model, which is used again when it is there. The
exit status is 1 when gptq with refit and one scale a tensor recovers less than SHARE of what absmean loses. The tests
run it with a model so small (--width, --layers, --context) that the figures prove nothing but that all of it works.
"""
import argparse
import json
import os
import pathlib
import subprocess
import sys

arguments = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
arguments.add_argument("bitnet", help="the executable")
arguments.add_argument("--train", required=True, help="text to train and to calibrate on")
arguments.add_argument("--held-out", required=True, help="text that perplexity is measured on")
arguments.add_argument("--work", default="build/post-training", help="directory for models and reports")
arguments.add_argument("--steps", type=int, default=1500)
arguments.add_argument("--batch", type=int, default=8)
arguments.add_argument("--vocab", type=int, default=512, help="tokens, 256 of them bytes")
arguments.add_argument("--width", type=int, default=256, help="of the model, a multiple of 128")
arguments.add_argument("--layers", type=int, default=4)
arguments.add_argument("--context", type=int, default=256, help="tokens of a sequence")
arguments.add_argument("--tokens", type=int, default=16384, help="of calibration, and of evaluation")
arguments.add_argument("--tune-steps", type=int, default=200, help="of the methods that are tuned")
arguments.add_argument("--threads", type=int, default=0, help="0: all cores")
arguments.add_argument("--require", type=float, default=0.9)
options = arguments.parse_args()
work = pathlib.Path(options.work)
work.mkdir(parents=True, exist_ok=True)

CONFIG = """model: {{vocab_size: {vocab}, hidden_size: {width}, intermediate_size: {inner}, layers: {layers}, heads: 4,
  kv_heads: 4, context: {context}, quantization: none}}
data: {{train: {train}, validation: {held_out}, validation_tokens: {validation}}}
training: {{steps: {steps}, warmup: {warmup}, schedule: cosine, learning_rate: 1.5e-3, weight_decay: 0.1,
  length: {context}, batch: {batch}, micro_batch: 2, seed: 1}}
output: {{directory: {output}, evaluate_every: 500, log_every: 50}}
"""


def bitnet(*words):
    command = [options.bitnet, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}\n{done.stderr}")
    return done.stdout


def quoted(path):
    return json.dumps(os.path.abspath(path))


def trained():
    """The directory of the model in full precision."""
    config = work / "train.yaml"
    text = CONFIG.format(vocab=options.vocab, width=options.width, inner=3 * options.width, layers=options.layers,
                         context=options.context, train=quoted(options.train), held_out=quoted(options.held_out),
                         validation=2 * options.tokens, steps=options.steps, warmup=min(100, options.steps // 4),
                         batch=options.batch, output=quoted(work / "run"))
    model = work / "run" / "model"
    if config.exists() and config.read_text() == text and model.exists():
        return model
    config.write_text(text)
    threads = ["--threads", options.threads] if options.threads else []
    subprocess.run([options.bitnet, "train", str(config), *map(str, threads)], check=True)
    return model


# Method, its yaml, whether it needs calibration, whether scales and norms are tuned. `scales` is what the columns of the
# table differ in.
METHODS = [
    ("absmean", "method: absmean", "", False, False),
    ("ls", "method: ls", "", False, False),
    ("ls+refit", "method: ls+refit", "", True, False),
    ("gptq, least-squares scale, no refit", "method: gptq", "gptq: {multipliers: [1], refit: false}", True, False),
    ("gptq, least-squares scale", "method: gptq", "gptq: {multipliers: [1]}", True, False),
    ("gptq, best of scales, no refit", "method: gptq", "gptq: {refit: false}", True, False),
    ("gptq, best of scales", "method: gptq", "", True, False),
    ("ls, tuned", "method: ls", "", True, True),
    ("gptq, best of scales, tuned", "method: gptq", "", True, True),
    ("two planes", "method: two-plane", "", False, False),
]
SCALES = ["tensor", "row", "group64"]


def quantised(model, name, weights, more, calibrated, tuned, scales):
    """The report's logits and bits a weight, or None where the method has no such scales."""
    if name == "absmean" and scales != "tensor":
        return None
    stem = work / (name.replace(" ", "-").replace(",", "") + "-" + scales)
    plan = stem.with_suffix(".yaml")
    plan.write_text(f"scheme: mixed_precision\nweights: {{{weights}, scales: {scales}}}\n{more}\n")
    report = stem.with_suffix(".json")
    out = stem.with_suffix(".model")
    # One plane with a scale a tensor is what every format holds: it is shown with the one most used.
    kind = "i2_s" if scales == "tensor" and name != "two planes" else "extended"
    if kind == "extended" and out.is_dir():
        for file in out.iterdir():
            file.unlink()
    text = ["--calibrate", options.train] if calibrated else []
    text += ["--tune-steps", options.tune_steps] if tuned else []
    threads = ["--threads", options.threads] if options.threads else []
    target = out if kind == "extended" else out.with_suffix(".gguf")
    bitnet("quantize", model, target, "--type", kind, "--plan", plan, *text, "--calibration-tokens",
           options.tokens, "--evaluate", options.held_out, "--report", report, *threads)
    lost = json.loads(report.read_text())
    return lost["logits"] | {"bits": lost["total"]["bits_per_weight"]}


def main():
    model = trained()
    rows, before, worst = [], None, None
    share = {}
    for method in METHODS:
        cells = []
        for scales in SCALES:
            result = quantised(model, *method, scales)
            if result is None:
                cells.append("–")
                continue
            after, before = result["perplexity_after"], result["perplexity_before"]
            worst = after if worst is None else worst
            share[method[0], scales] = (worst - after) / (worst - before)
            cells.append(f"{after:.3f} ({100 * share[method[0], scales]:.1f} %)")
            print(f"{method[0]}, {scales}: {cells[-1]}, KL {result['mean_kl']:.4f}, the same first choice "
                  f"{100 * result['top1_agreement']:.1f} %, {result['bits']:.2f} bits a weight", file=sys.stderr)
        rows.append(f"| {method[0]} | " + " | ".join(cells) + " |")
    print(f"Perplexity in full precision {before:.3f}; behind each perplexity the share of absmean's loss that is "
          "recovered.\n")
    print("| method | " + " | ".join(f"scales: {s}" for s in SCALES) + " |")
    print("|---|" + "---|" * len(SCALES))
    print("\n".join(rows))
    reached = share["gptq, best of scales", "tensor"]
    if reached < options.require:
        sys.exit(f"gptq with refit recovers {100 * reached:.1f} % of absmean's loss, expected {100 * options.require:.0f} %")


main()
