#!/usr/bin/env python3
"""Measures bitnet-core's tensor ops beside NumPy: the cases of bench/tensor.cpp, in turns of the two, and prints a table
of medians as Markdown. NumPy is what /usr/bin/python3 imports (Debian: python3-numpy, with libopenblas0-pthread for its
products); both get the same number of threads.

usage: compare_numpy.py BITNET_BENCH_TENSOR [--threads N] [--rounds N] [--sizes 1024,256]
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

arguments = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
arguments.add_argument("bench", help="the executable bitnet_bench_tensor")
arguments.add_argument("--threads", type=int, default=1)
arguments.add_argument("--rounds", type=int, default=5)
arguments.add_argument("--sizes", default="1024,256", help="of bench/tensor.cpp, separated by commas")
options = arguments.parse_args()
for variable in ["OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"]:
    os.environ[variable] = str(options.threads)  # before NumPy loads its BLAS
os.environ.pop("OPENBLAS_CORETYPE", None)  # OpenBLAS chooses its kernels by the processor

import numpy as np  # noqa: E402

rng = np.random.default_rng(1)


def random(*shape):
    return rng.standard_normal(shape, dtype=np.float32)


def softmax(x):
    e = np.exp(x - x.max(axis=1, keepdims=True))
    e /= e.sum(axis=1, keepdims=True)
    return e


def layer_norm(x, w, b):
    d = x - x.mean(axis=1, keepdims=True)
    return d / np.sqrt((d * d).mean(axis=1, keepdims=True) + np.float32(1e-5)) * w + b


def elementwise(n):
    x, y, z, row, column = random(n, n), random(n, n), random(n, n), random(1, n), random(n, 1)
    index = np.arange(n) * 7919 % n
    w = row.reshape(n)
    return {
        "add": lambda: x + y,
        "add_in_place": lambda: np.add(z, y, out=z),
        "add_row": lambda: x + row,
        "add_column": lambda: x + column,
        "add_transposed": lambda: x + y.T,
        "exp": lambda: np.exp(x),
        "tanh": lambda: np.tanh(x),
        "less": lambda: x < y,
        "to_f16": lambda: x.astype(np.float16),
        "transpose_copy": lambda: np.ascontiguousarray(x.T),
        "sum_all": lambda: x.sum(),
        "sum_rows": lambda: x.sum(axis=1),
        "sum_columns": lambda: x.sum(axis=0),
        "max_rows": lambda: x.max(axis=1),
        "argmax_rows": lambda: x.argmax(axis=1),
        "softmax": lambda: softmax(x),
        "layer_norm": lambda: layer_norm(x, w, w),
        "take_rows": lambda: np.take(x, index, axis=0),
        "concat": lambda: np.concatenate([x, y]),
    }


def matrices(n):
    a, b, side, vector = random(n, n), random(n, n), random(n, 4), random(n)
    spd = a @ a.T + n * np.eye(n, dtype=np.float32)
    batch, tall, tall_side = random(16, n // 4, n // 4), random(2 * n, n // 2), random(2 * n, 1)
    integers = (random(n, n) * 40).astype(np.int8).astype(np.int32)  # NumPy's products of int8 are int8 and wrap
    systems = np.ascontiguousarray(np.broadcast_to(spd[: n // 4, : n // 4], (16, n // 4, n // 4)))
    return {
        "matmul": lambda: a @ b,
        "matmul_transposed": lambda: a @ b.T,
        "matmul_batched": lambda: batch @ batch,
        "matmul_vector": lambda: a @ vector,
        "vector_matmul": lambda: vector @ a,
        "matmul_i8": lambda: integers @ integers,
        "solve": lambda: np.linalg.solve(spd, side),
        "cholesky": lambda: np.linalg.cholesky(spd),
        "cholesky_batched": lambda: np.linalg.cholesky(systems),
        "qr": lambda: np.linalg.qr(a),
        "svd": lambda: np.linalg.svd(a, full_matrices=False),
        "symmetric_eigen": lambda: np.linalg.eigh(spd),
        "least_squares": lambda: np.linalg.lstsq(tall, tall_side, rcond=2.0**-24),
    }


def numpy_time(call):
    """Seconds a call, over about 50 ms of them."""
    call()
    count = 1
    while True:
        begin = time.perf_counter()
        for _ in range(count):
            call()
        seconds = time.perf_counter() - begin
        if seconds > 0.05:
            return seconds / count
        count = max(count * 2, int(count * 0.06 / max(seconds, 1e-9)))


def our_times(size):
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        environment = dict(os.environ, BITNET_THREADS=str(options.threads))
        subprocess.run([options.bench, f"--benchmark_filter=^tensor/{size}/", "--benchmark_min_time=0.05",
                        f"--benchmark_out={file.name}", "--benchmark_out_format=json"], env=environment, check=True,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        result = json.load(open(file.name))
    unit = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1}
    times = {b["name"].split("/")[2]: b["real_time"] * unit[b["time_unit"]] for b in result["benchmarks"]}
    return result["context"], times


def blas():
    """The BLAS that is loaded, by its file."""
    with open("/proc/self/maps") as maps:
        files = {line.split()[-1] for line in maps if "blas" in line.lower() and ".so" in line}
    return ", ".join(sorted(os.path.basename(f) for f in files)) or "none"


calls = {"tiny": {**elementwise(32), **matrices(32)}, "1024": elementwise(1024), "256": matrices(256)}
for size in options.sizes.split(","):
    ours, theirs = {}, {}
    for _ in range(options.rounds):
        context, times = our_times(size)
        if set(times) != set(calls[size]):
            sys.exit(f"bench/tensor.cpp and this script differ in {set(times) ^ set(calls[size])}")
        for name, seconds in times.items():
            ours.setdefault(name, []).append(seconds)
            theirs.setdefault(name, []).append(numpy_time(calls[size][name]))
    side = {"tiny": 32}.get(size) or int(size)
    print(f"\nMatrices of {side} × {side} f32, {options.threads} thread(s), {context['isa']}, NumPy {np.__version__}, "
          f"BLAS {blas()}, median of {options.rounds} (spread: (max − min)/median)\n")
    print("| op | bitnet µs | spread | NumPy µs | spread | NumPy / bitnet |\n|---|---|---|---|---|---|")
    for name in calls[size]:
        a, b = statistics.median(ours[name]), statistics.median(theirs[name])
        spread = lambda v, m: f"{100 * (max(v) - min(v)) / m:.0f} %"
        print(f"| {name} | {a * 1e6:.1f} | {spread(ours[name], a)} | {b * 1e6:.1f} | {spread(theirs[name], b)} | {b / a:.2f} |")
