#!/usr/bin/python3
"""Times training steps of one decoder, the 2B-4T block with a tied embedding, here (bench/train_step.cpp) and in PyTorch,
in full precision and as quantisation-aware training (QAT), and prints medians, ratios and peak memory as Markdown.

Four processes take turns: ours and PyTorch's, dense and QAT. Each turn is one step that does not count and some that do,
so that clocks and neighbours drift for all alike. All begin with the same weights and the same batch; unless the losses of
the first five steps agree, nothing is measured. PyTorch's QAT is that of microsoft/unilm's "Training Tips, Code and FAQ": each BitLinear
quantises its own input; with --shared q, k, v and gate, up share theirs, as ours do.

PyTorch gets what makes it fastest: OpenBLAS chooses its kernels by the processor whatever OPENBLAS_CORETYPE says, and,
unless --as-installed is given, OpenMP's threads do not spin where OpenBLAS's own want to work (OMP_WAIT_POLICY=passive:
without it a step takes twice as long on two cores).

usage: compare_pytorch.py BITNET_TRAIN_BENCH [--threads N] [--rounds N] [--steps N] [--shape gpt_12m|tiny] [--shared]
                          [--as-installed]

PyTorch is what /usr/bin/python3 imports; on Debian: apt-get install python3-torch libopenblas0-pthread (without the second
its products run on the reference BLAS, many times slower). Exit code 77: there is no PyTorch.
"""
import argparse
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time

SHAPES = {  # as in bench/train_step.cpp
    "gpt_12m": dict(vocab=4096, hidden=384, inter=1024, layers=6, heads=6, kv_heads=6, head_dim=64, length=256, batch=8),
    "tiny": dict(vocab=256, hidden=128, inter=128, layers=2, heads=4, kv_heads=2, head_dim=32, length=32, batch=2),
}
arguments = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
arguments.add_argument("bench", help="the executable bitnet_train_bench")
arguments.add_argument("--threads", type=int, default=2)
arguments.add_argument("--rounds", type=int, default=9)
arguments.add_argument("--steps", type=int, default=2, help="that count, in each turn")
arguments.add_argument("--shape", choices=SHAPES, default="gpt_12m")
arguments.add_argument("--shared", action="store_true", help="PyTorch's QAT quantises an input once for all its layers")
arguments.add_argument("--as-installed", action="store_true", help="leave PyTorch's environment as it is")
arguments.add_argument("--pytorch", help=argparse.SUPPRESS)  # "dense" or "qat": be that process
arguments.add_argument("--file", help=argparse.SUPPRESS)  # weights and batch
options = arguments.parse_args()
for variable in ["OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "BITNET_THREADS"]:
    os.environ[variable] = str(options.threads)  # before a BLAS is loaded
os.environ.pop("OPENBLAS_CORETYPE", None)
if not options.as_installed:
    os.environ["OMP_WAIT_POLICY"] = "passive"
C = SHAPES[options.shape]


def parameters():
    """Names and shapes, in the order of our parameters."""
    hidden, inter, q, kv = C["hidden"], C["inter"], C["heads"] * C["head_dim"], C["kv_heads"] * C["head_dim"]
    yield "embed", (C["vocab"], hidden)
    for layer in range(C["layers"]):
        for name, shape in [("attn_norm", (hidden,)), ("q", (q, hidden)), ("k", (kv, hidden)), ("v", (kv, hidden)),
                            ("attn_sub_norm", (q,)), ("o", (hidden, q)), ("ffn_norm", (hidden,)), ("gate", (inter, hidden)),
                            ("up", (inter, hidden)), ("ffn_sub_norm", (inter,)), ("down", (hidden, inter))]:
            yield f"{layer}.{name}", shape
    yield "norm", (hidden,)


def pytorch_steps(kind):
    """A function that does one step and returns the loss before it."""
    import numpy as np
    import torch
    import torch.nn.functional as F

    torch.set_num_threads(options.threads)
    raw, at, p = np.fromfile(options.file, dtype=np.float32), 0, {}
    for name, shape in parameters():
        p[name] = torch.nn.Parameter(torch.from_numpy(raw[at:at + math.prod(shape)].reshape(shape).copy()))
        at += math.prod(shape)
    tokens = torch.from_numpy(raw[at:].view(np.int32).astype(np.int64))
    del raw
    inputs, targets = tokens.view(2, C["batch"], C["length"])

    length, half = C["length"], C["head_dim"] // 2
    angle = torch.arange(length).double()[:, None] / 10000.0 ** (torch.arange(half).double() / half)
    cos, sin = angle.cos().float(), angle.sin().float()
    mask = torch.full((length, length), -math.inf).triu(1)

    def norm(x, w):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * w

    def quantised_rows(x):
        scale = 127.0 / x.abs().amax(-1, keepdim=True).clamp(min=1e-5)
        return x + ((x * scale).round().clamp(-128, 127) / scale - x).detach()

    def quantised_weights(w):
        scale = 1.0 / w.abs().mean().clamp(min=1e-5)
        return w + ((w * scale).round().clamp(-1, 1) / scale - w).detach()

    def linears(x, weights):
        if kind == "dense":
            return [F.linear(x, w) for w in weights]
        if options.shared:
            x = quantised_rows(x)
            return [F.linear(x, quantised_weights(w)) for w in weights]
        return [F.linear(quantised_rows(x), quantised_weights(w)) for w in weights]

    def heads(x, n):
        return x.view(C["batch"], length, n, C["head_dim"]).transpose(1, 2)

    def rope(x):
        a, b = x[..., :half], x[..., half:]
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

    def attention(w, x):
        q, k, v = linears(norm(x, w("attn_norm")), [w("q"), w("k"), w("v")])
        q, k, v = rope(heads(q, C["heads"])), rope(heads(k, C["kv_heads"])), heads(v, C["kv_heads"])
        group = C["heads"] // C["kv_heads"]
        if group > 1:
            k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        s = (q @ k.transpose(-1, -2)) * (1 / math.sqrt(C["head_dim"])) + mask
        y = (s.softmax(-1) @ v).transpose(1, 2).reshape(C["batch"], length, -1)
        return linears(norm(y, w("attn_sub_norm")), [w("o")])[0]

    def feed_forward(w, x):
        gate, up = linears(norm(x, w("ffn_norm")), [w("gate"), w("up")])
        return linears(norm(gate.relu().square() * up, w("ffn_sub_norm")), [w("down")])[0]

    decayed = [t for t in p.values() if t.dim() == 2]
    rest = [t for t in p.values() if t.dim() == 1]
    optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}],
                                  lr=1e-3, betas=(0.9, 0.95), eps=1e-8)

    def step():
        x = F.embedding(inputs, p["embed"])
        for layer in range(C["layers"]):
            w = lambda name: p[f"{layer}.{name}"]
            x = x + attention(w, x)
            x = x + feed_forward(w, x)
        logits = F.linear(norm(x, p["norm"]), p["embed"])
        loss = F.cross_entropy(logits.view(-1, C["vocab"]), targets.reshape(-1))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(list(p.values()), 1.0)
        optimizer.step()
        return float(loss)

    return step


def pytorch_process():
    """What bench/train_step.cpp does, in PyTorch."""
    step = pytorch_steps(options.pytorch)
    for line in sys.stdin:
        for _ in range(int(line)):
            begin = time.perf_counter()
            loss = step()
            print(f"{time.perf_counter() - begin:.6f} {loss:.7g}")
        sys.stdout.flush()


class Process:
    def __init__(self, command):
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.seconds = []

    def steps(self, count):
        """[(seconds, loss)] of `count` steps."""
        self.process.stdin.write(f"{count}\n")
        self.process.stdin.flush()
        lines = [self.process.stdout.readline().split() for _ in range(count)]
        if not all(len(line) == 2 for line in lines):
            sys.exit(f"{self.process.args} ended before its steps did")
        return [(float(seconds), float(loss)) for seconds, loss in lines]

    def peak_mib(self):
        with open(f"/proc/{self.process.pid}/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024

    def end(self):
        self.process.stdin.close()
        self.process.wait()


def pytorch_version():
    """PyTorch's version, the BLAS that it uses, by its file, and what kernels that chose."""
    code = ("import os, torch\n(torch.ones(64, 64) @ torch.ones(64, 64)).sum()\n"
            "files = [line.split()[-1] for line in open('/proc/self/maps') if 'blas' in line]\n"
            "print(torch.__version__, *sorted({os.path.basename(os.path.realpath(f)) for f in files}))")
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                           env=dict(os.environ, OPENBLAS_VERBOSE="2"))
    return " ".join((found.stdout + found.stderr).split()) if found.returncode == 0 else None


def report(runs, version):
    tokens = C["batch"] * C["length"]
    median = {name: statistics.median(run.seconds) for name, run in runs.items()}
    peak = {name: run.peak_mib() for name, run in runs.items()}
    print(f"\n{options.shape}, {tokens} tokens a step, {options.threads} thread(s), PyTorch {version}, "
          f"{len(next(iter(runs.values())).seconds)} steps each (spread: (max − min)/median)\n")
    print("| step | ms | spread | tokens/s | peak MiB |\n|---|---|---|---|---|")
    for name, run in runs.items():
        spread = 100 * (max(run.seconds) - min(run.seconds)) / median[name]
        print(f"| {name} | {1000 * median[name]:.1f} | {spread:.0f} % | {tokens / median[name]:.0f} | {peak[name]:.0f} |")
    print(f"\ndense: {median['PyTorch dense'] / median['bitnet dense']:.2f} × PyTorch; "
          f"QAT: {median['PyTorch qat'] / median['bitnet qat']:.2f} × PyTorch; "
          f"QAT against our dense step: {100 * (median['bitnet qat'] / median['bitnet dense'] - 1):+.1f} %; "
          f"memory, ours ÷ PyTorch's: dense {peak['bitnet dense'] / peak['PyTorch dense']:.2f}, "
          f"QAT {peak['bitnet qat'] / peak['PyTorch qat']:.2f}")


def main():
    version = pytorch_version()
    if not version:
        print("no PyTorch: apt-get install python3-torch libopenblas0-pthread", file=sys.stderr)
        sys.exit(77)
    with tempfile.NamedTemporaryFile(suffix=".bin") as file:
        runs = {}
        for kind in ["dense", "qat"]:
            runs[f"bitnet {kind}"] = Process([options.bench, kind, options.shape, file.name])
            losses = [[loss for _, loss in runs[f"bitnet {kind}"].steps(5)]]  # and the file is there now
            command = [sys.executable, __file__, *sys.argv[1:], "--pytorch", kind, "--file", file.name]
            runs[f"PyTorch {kind}"] = Process(command)
            losses.append([loss for _, loss in runs[f"PyTorch {kind}"].steps(5)])
            # Of QAT, a value near a tie is rounded to another integer after a few steps, and counts.
            if any(abs(a - b) > (1e-4 if kind == "dense" else 1e-2) * a for a, b in zip(*losses)):
                sys.exit(f"not the same model: the {kind} losses are {losses}")
        for _ in range(options.rounds):
            for run in runs.values():
                time.sleep(0.05)  # the threads of the one before have gone to sleep
                run.seconds += [seconds for seconds, _ in run.steps(1 + options.steps)[1:]]
        report(runs, version)
        for run in runs.values():
            run.end()


if options.pytorch:
    pytorch_process()
else:
    main()
