#!/usr/bin/env python3
"""Makes goldens.safetensors and cases.json beside itself: what NumPy gives for every op of bitnet/core/{ops,
reductions,indexing,linalg}.hpp and for Tensor's views and conversions, over shapes that are empty, of one element,
odd, broadcast and not contiguous. bitnet-core/tests/golden_test.cpp reads both.

usage: make_goldens.py            (Debian 12's python3-numpy; another version is refused, so that files can be compared:
but for a last bit of an exponential, which depends on where NumPy's memory lies, they come out the same on one processor)

A case is {"op", "args": [{"t": tensor, "view": [...]}, ...], "params", "out": tensor, "bound": tensor or absent}. With
no bound every bit counts (any NaN equals any other); a bound is the largest |ours - out| element by element, derived
below and in goldens.py from u = 2^-24 and gamma(n) = n u / (1 - n u) as in docs/numerics.md. Where NumPy computes in a
wider type than ours, `out` is its float64 result rounded once.
"""
import sys

import numpy as np

from goldens import (Arg, BF16, DTYPES, SPECIAL, STEP, T, U, any_of, apply_view, case, cases, f64, floats,
                     gamma, ints, pairs, rng, rounded, shaped, tensors, with_storage, write)

PINNED = "1.24.2"


def elementwise():
    # Of -0 and 0 NumPy's maximum gives the one that the processor's instruction does; ours is the left one.
    maximum = lambda a, b: np.where((a == b) & (a == 0), a, np.maximum(a, b))
    minimum = lambda a, b: np.where((a == b) & (a == 0), a, np.minimum(a, b))
    numpy_ops = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "maximum": maximum, "minimum": minimum}
    comparisons = {"equal": np.equal, "not_equal": np.not_equal, "less": np.less, "less_equal": np.less_equal,
                   "greater": np.greater, "greater_equal": np.greater_equal}
    for dtype in DTYPES:
        for x, y in pairs(dtype):
            long = np.size(f64(x.x)) > 2000  # one op is enough for what is cut into runs
            for op, f in numpy_ops.items():
                if long and op != "sub":
                    continue
                if op == "div" and dtype.startswith("int"):
                    continue
                if isinstance(x.x, BF16):
                    out = BF16.of(f(x.x.f64().astype(np.float32), y.x.f64().astype(np.float32)).astype(np.float64))
                else:
                    out = f(x.x, y.x)
                case(op, [x, y], np.asarray(out) if not isinstance(out, BF16) else out)
            for op, f in comparisons.items():
                if long and op != "less":
                    continue
                a, b = (f64(x.x), f64(y.x)) if isinstance(x.x, BF16) else (x.x, y.x)
                case(op, [x, y], np.asarray(f(a, b)).astype(np.int8))
        condition = lambda *s: ints(*s, dtype="int8", low=0, high=2)
        for c in [Arg(condition(*s)) for s in [(0,), (1,), (7,), (3, 5), (4, 1, 5)]] + [
                Arg(condition(5, 3), T), Arg(condition(1, 5), ["broadcast", [3, 5]])]:
            shape = c.x.shape
            x, y = Arg(any_of(dtype, *shape[-1:])), Arg(any_of(dtype, 3, 5) if shape == (4, 1, 5) else any_of(dtype))
            bits = lambda a: a.x.bits if isinstance(a.x, BF16) else a.x
            out = np.where(c.x != 0, bits(x), bits(y))
            case("where", [c, x, y], BF16(out) if dtype == "bfloat16" else out.astype(dtype))
    unaries()
    for dtype in ["float32", "float16", "bfloat16"]:
        for x in shaped(dtype) + ([Arg(SPECIAL)] if dtype == "float32" else []):
            y = np.clip(f64(x.x), -1.5, 2)
            case("clamp", [x], rounded(y, x.x), low=-1.5, high=2.0)


def unaries():
    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    exact = {"neg": np.negative, "abs": np.abs, "square": np.square, "sqrt": np.sqrt, "reciprocal": lambda x: np.float32(1) / x,
             "relu": lambda x: np.where(x < 0, np.float32(0), x), "floor": np.floor, "ceil": np.ceil, "round": np.rint}
    close = {"exp": (np.exp, 2), "log": (np.log, 3), "tanh": (np.tanh, 4), "sigmoid": (sigmoid, 4),
             "silu": (lambda x: x * sigmoid(x), 4)}
    for dtype in ["float32", "float16", "bfloat16"]:
        wide = np.concatenate([rng.uniform(-90, 89, 500), rng.uniform(-1, 1, 250), 2.0**rng.uniform(-30, 30, 150)])
        special = SPECIAL[:-1] if dtype == "float32" else SPECIAL[:16]
        line = np.concatenate([wide if dtype == "float32" else wide[::4], special])
        line = BF16.of(line) if dtype == "bfloat16" else line.astype(dtype)
        args = [Arg(line)] + shaped(dtype)
        for a in args:
            x32 = f64(a.x).astype(np.float32)
            for op, f in exact.items():
                y = f(x32)
                if dtype == "float32":
                    case(op, [a], y)
                elif dtype == "float16":
                    case(op, [a], y.astype(np.float16))
                else:
                    case(op, [a], BF16.of(y.astype(np.float64)))
            for op, (f, ulps) in close.items():
                y = f(f64(a.x))
                if op == "silu":
                    y = np.where(f64(a.x) == -np.inf, np.nan, y)  # -inf * 0
                # Beyond float32's range the result is infinite, below its smallest normal the error is absolute.
                y = np.where(np.abs(y) > 3.4028235e38, np.sign(y) * np.inf, y)
                bound = 2 * U * ulps * np.where(np.isfinite(y), np.abs(y), 0) + ulps * 2.0**-149
                if op in ("sigmoid", "silu"):  # 0 where e^-x overflows, below -88.72
                    bound += np.where(f64(a.x) < -88.7, np.where(np.isfinite(y), np.abs(y), 0), 0)
                case(op, [a], rounded(y, a.x), with_storage(bound, y, a.x))
    for dtype in ["int8", "int32"]:
        x = Arg(np.array([0, 1, -1, 5, -100, np.iinfo(dtype).min, np.iinfo(dtype).max], dtype))
        for op, f in {"neg": np.negative, "abs": np.abs, "square": np.square, "relu": lambda v: np.maximum(v, 0)}.items():
            for a in [x] + shaped(dtype):
                case(op, [a], f(a.x).astype(dtype))


def reduced(shape, axes):
    return int(np.prod([shape[a] for a in axes])) if shape else 1


def reductions():
    shapes = [((0,), [(0,)]), ((1,), [(0,)]), ((), [()]), ((7,), [(0,)]), ((3, 5), [(0,), (1,), (0, 1), (-1,)]),
              ((4, 3, 5), [(1,), (0, 2), (2, 0)]), ((3, 0), [(1,), (0,)]), ((37, 33), [(0,), (1,)]), ((2, 2100), [(1,), (0, 1)]),
              ((3, 40, 19), [(1,), (0, 1), (0,)])]
    for dtype in ["float32", "float16", "bfloat16"]:
        for shape, lists in shapes:
            x = any_of(dtype, *shape)
            args = [Arg(x)]
            if len(shape) == 2:
                args.append(Arg(floats(shape[1], shape[0], dtype=dtype), T))
                args.append(Arg(floats(1, shape[1], dtype=dtype), ["broadcast", list(shape)]))
            for a in args:
                if dtype != "float32" and np.prod(shape) > 1500:
                    continue
                for axes in lists:
                    float_reductions(a, axes, shape)
    nan = np.array([[1, np.nan, 3], [4, 5, 6], [np.inf, -np.inf, 0]], np.float32)
    for op, f in {"max": np.max, "min": np.min}.items():
        case(op, [Arg(nan)], f(nan, axis=1), axes=[1])
        case(op, [Arg(nan)], f(nan, axis=0), axes=[0])
    columns = rng.uniform(-1, 1, (20, 24)).astype(np.float32)
    columns[3, 5] = np.nan
    for op, f in {"max": np.max, "min": np.min}.items():
        case(op, [Arg(columns)], f(columns, axis=0), axes=[0])
    for dtype in ["int8", "int32"]:
        for a, axes in [(Arg(any_of(dtype, 7)), (0,)), (Arg(any_of(dtype, 4, 3, 5)), (0, 2))] + [
                (a, axes) for a in shaped(dtype) for axes in [(0,), (1,), (0, 1)]]:
            shape = a.x.shape
            case("sum", [a], np.sum(a.x, axis=axes, dtype=np.int64).astype(np.int32), axes=list(axes))
            if reduced(shape, axes) > 0:
                case("max", [a], np.max(a.x, axis=axes), axes=list(axes))
                case("min", [a], np.min(a.x, axis=axes), axes=list(axes))
    for dtype in DTYPES:
        for a, axis in [(Arg(any_of(dtype, 1)), 0), (Arg(any_of(dtype, 7)), 0), (Arg(any_of(dtype, 4, 3, 5)), 1),
                        (Arg(any_of(dtype, 2, 0, 3)), 2)] + [(a, axis) for a in shaped(dtype) for axis in [0, -1]]:
            v = f64(a.x)
            if v.shape[axis] == 0:
                continue
            case("argmax", [a], np.argmax(v, axis=axis).astype(np.int32), axis=axis)
            case("argmin", [a], np.argmin(v, axis=axis).astype(np.int32), axis=axis)
    twice = np.array([[1, 3, 3, np.nan, np.nan], [2, -1, -1, 0, 2]], np.float32)
    case("argmax", [Arg(twice)], np.argmax(twice, axis=1).astype(np.int32), axis=1)
    case("argmin", [Arg(twice)], np.argmin(twice, axis=1).astype(np.int32), axis=1)


def float_reductions(a, axes, shape):
    x, n = f64(a.x), reduced(shape, axes)
    lanes = -(-n // 16)
    total, size = np.sum(x, axis=axes), np.sum(np.abs(x), axis=axes)
    of = lambda y, bound, op, keep_dims=False: case(
        op, [a], rounded(np.reshape(y, kept) if keep_dims else y, a.x),
        with_storage(np.reshape(bound, kept) if keep_dims else bound, np.reshape(y, kept) if keep_dims else y, a.x),
        axes=list(axes), keep_dims=keep_dims)
    kept = [1 if i in [p % max(len(shape), 1) for p in axes] else s for i, s in enumerate(shape)]
    of(total, gamma(lanes + 5) * size, "sum")
    of(total, gamma(lanes + 5) * size, "sum", True)
    of(size, gamma(lanes + 5) * size, "norm_l1")
    norm = np.sqrt(np.sum(x * x, axis=axes))
    of(norm, gamma(lanes + 6) * norm, "norm_l2")
    of(np.max(np.abs(x), axis=axes, initial=0), 0 * norm, "norm_max")
    if n > 0:
        for op, f in {"max": np.max, "min": np.min}.items():
            of(f(x, axis=axes), 0 * norm, op)
        mean = np.mean(x, axis=axes)
        delta = gamma(lanes + 6) * size / n  # of our mean
        of(mean, delta, "mean")
        var = np.var(x, axis=axes)
        spread = np.mean(np.abs(x - np.mean(x, axis=axes, keepdims=True)), axis=axes)
        of(var, gamma(lanes + 9) * var + 2.1 * (delta + U * np.abs(mean)) * spread + 2 * delta**2, "var")
    elif np.size(total) > 0:
        case("mean", [a], rounded(np.full(np.shape(total), np.nan), a.x), axes=list(axes))


def rows():
    for dtype in ["float32", "float16", "bfloat16"]:
        for shape, axis in [((1,), 0), ((7,), 0), ((3, 5), 0), ((3, 5), 1), ((4, 3, 17), 1), ((0, 3), 1), ((3, 0), 1), ((2, 300), -1)]:
            variants = [Arg(floats(*shape, dtype=dtype, low=-9, high=9))]
            if len(shape) == 2:
                variants.append(Arg(floats(shape[1], shape[0], dtype=dtype, low=-9, high=9), T))
                variants.append(Arg(floats(1, shape[1], dtype=dtype, low=-9, high=9), ["broadcast", list(shape)]))
            for a in variants:
                softmaxes(a, axis, shape)
        for shape in [(1,), (7,), (2, 3, 33), (0, 4), (3, 300)]:
            norms(dtype, Arg(floats(*shape, dtype=dtype)))
        for a in shaped(dtype):
            norms(dtype, a)
    inf = np.float32(np.inf)
    special = np.array([[1, np.nan, 2], [-inf, -inf, -inf], [inf, 0, 1]], np.float32)
    case("softmax", [Arg(special)], np.full((3, 3), np.nan, np.float32), axis=1)
    x = np.array([[-inf, 0.0, 0.0]], np.float32)
    case("softmax", [Arg(x)], np.array([[0, 0.5, 0.5]], np.float32), axis=1)


def softmaxes(a, axis, shape):
    x = f64(a.x)
    n = shape[axis]
    if n == 0:
        case("softmax", [a], rounded(x, a.x), axis=axis)
        return
    d = x - np.max(x, axis=axis, keepdims=True, initial=-np.inf)
    e = np.exp(d)
    s = np.sum(e, axis=axis, keepdims=True)
    y, reach = e / s, np.max(-d, axis=axis, keepdims=True, initial=0)
    relative = 8 * U + 2 * U * reach + gamma(-(-n // 16) + 7)  # exp twice, its argument twice, the sum, 1/s, the product
    case("softmax", [a], rounded(y, a.x), with_storage(relative * y, y, a.x), axis=axis)
    y = d - np.log(s)
    bound = U * np.abs(d) + relative + 6 * U * np.abs(np.log(s)) + 2 * U * np.abs(y)
    case("log_softmax", [a], rounded(y, a.x), with_storage(bound, y, a.x), axis=axis)


def norms(dtype, a):
    shape = f64(a.x).shape
    w, b = Arg(floats(shape[-1], dtype=dtype)), Arg(floats(shape[-1], dtype=dtype))
    x, n, eps = f64(a.x), shape[-1], float(np.float32(1e-5))
    lanes = -(-n // 16)
    y = x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * f64(w.x)
    case("rms_norm", [a, w], rounded(y, a.x), with_storage(gamma(lanes + 10) * np.abs(y), y, a.x), eps=eps)
    mean = np.mean(x, axis=-1, keepdims=True)
    d = x - mean
    var = np.mean(d * d, axis=-1, keepdims=True)
    factor = 1 / np.sqrt(var + eps)
    y = d * factor * f64(w.x) + f64(b.x)
    delta = gamma(lanes + 6) * np.mean(np.abs(x), axis=-1, keepdims=True) + U * np.abs(mean)
    var_error = gamma(lanes + 9) * var + 2.1 * delta * np.mean(np.abs(d), axis=-1, keepdims=True) + 2 * delta**2
    relative = var_error / (2 * (var + eps)) + 6 * U
    bound = np.abs(f64(w.x)) * factor * (1.01 * delta + np.abs(d) * relative * 1.01) + 2 * U * (np.abs(y) + np.abs(f64(b.x)))
    case("layer_norm", [a, w, b], rounded(y, a.x), with_storage(bound, y, a.x), eps=eps)


def products():
    for dtype in ["float32", "float16", "bfloat16", "int8"]:
        m = lambda *s: Arg(any_of(dtype, *s))
        operands = [(m(1, 1), m(1, 1)), (m(3, 5), m(5, 7)), (m(0, 5), m(5, 7)), (m(3, 0), m(0, 7)), (m(3, 5), m(5, 0)),
                    (m(5), m(5)), (m(5), m(5, 7)), (m(3, 5), m(5)), (m(2, 3, 5), m(5, 7)), (m(2, 3, 5), m(2, 5, 7)),
                    (m(4, 1, 3, 5), m(2, 5, 7)), (m(2, 3, 5), m(5)), (m(5), m(2, 5, 7)), (m(0, 3, 5), m(5, 7)),
                    (Arg(any_of(dtype, 5, 3), T), Arg(any_of(dtype, 7, 5), T)),
                    (Arg(any_of(dtype, 5, 2, 3), ["permute", [1, 2, 0]]), Arg(any_of(dtype, 7, 2, 5), ["permute", [1, 2, 0]])),
                    (Arg(any_of(dtype, 3, 9), STEP), Arg(any_of(dtype, 4, 9), STEP)),
                    (Arg(any_of(dtype, 1, 5), ["broadcast", [3, 5]]), m(5, 7)), (m(37, 65), m(65, 35))]
        for a, b in operands:
            x, y = f64(a.x), f64(b.x)
            out = np.matmul(x, y)
            if dtype == "int8":
                case("matmul", [a, b], np.asarray(out).astype(np.int32))
                continue
            bound = gamma(x.shape[-1] + 1) * np.matmul(np.abs(x), np.abs(y))
            case("matmul", [a, b], rounded(out, a.x), with_storage(bound, out, a.x))


def indexing():
    for dtype in DTYPES:
        raw = lambda a: a.x.bits if isinstance(a.x, BF16) else a.x
        back = lambda y: BF16(y) if dtype == "bfloat16" else np.asarray(y).astype(dtype)
        m = lambda *s: Arg(any_of(dtype, *s))
        i32 = lambda high, *s: Arg(ints(*s, low=0, high=max(high, 1)))
        for x, index, axis in [(m(5, 3), i32(5, 4), 0), (m(5, 3), i32(3, 2, 2), 1), (m(5), i32(5, 0), 0), (m(1), i32(1, 1), 0),
                               (Arg(any_of(dtype, 3, 5), T), i32(5, 6), 0), (m(2, 4, 3), i32(4, 2), -2), (m(5, 3), i32(5), 0),
                               (Arg(any_of(dtype, 5, 1), ["broadcast", [5, 3]]), Arg(ints(1, low=0, high=5), ["broadcast", [4]]), 0)]:
            case("take", [x, index], back(np.take(raw(x), index.x, axis=axis)), axis=axis)
        for x, index, axis in [(m(5, 3), i32(5, 2, 3), 0), (m(5, 3), i32(3, 5, 7), 1), (m(7), i32(7, 3), 0),
                               (Arg(any_of(dtype, 3, 5), T), Arg(ints(3, 2, low=0, high=5), T), 0), (m(2, 4, 3), i32(4, 2, 6, 3), 1),
                               (m(4, 3), i32(4, 0, 3), 0), (m(1), i32(1, 1), 0),
                               (m(5, 3), Arg(ints(1, 3, low=0, high=5), ["broadcast", [4, 3]]), 0)]:
            case("gather", [x, index], back(np.take_along_axis(raw(x), index.x, axis=axis)), axis=axis)
            values = Arg(any_of(dtype, *index.x.shape))
            y = np.array(raw(x))
            put = np.array(y)
            for at in np.ndindex(*index.x.shape):  # in order: the last of equal indices wins
                to = list(at)
                to[axis] = index.x[at]
                put[tuple(to)] = raw(values)[at]
            case("scatter", [x, index, values], back(put), axis=axis)
            total = BF16(y).f64() if dtype == "bfloat16" else np.array(y)
            added = f64(values.x) if dtype == "bfloat16" else raw(values)
            for at in np.ndindex(*index.x.shape):
                to = list(at)
                to[axis] = index.x[at]
                s = total[tuple(to)] + added[at]
                total[tuple(to)] = BF16.of(np.float32(s)).f64() if dtype == "bfloat16" else s
            case("scatter_add", [x, index, values], BF16.of(total) if dtype == "bfloat16" else total.astype(dtype), axis=axis)
        for args, axis in [([m(2, 3), m(4, 3)], 0), ([m(2, 3), m(2, 1), m(2, 0)], 1), ([m(7)], 0),
                           ([m(3, 4), Arg(any_of(dtype, 4, 3), T)], -1), ([m(2, 2, 3), m(2, 5, 3)], 1),
                           ([m(1)], 0), ([m(3, 5), Arg(any_of(dtype, 1, 5), ["broadcast", [2, 5]])], 0)]:
            case("concat", args, back(np.concatenate([raw(a) for a in args], axis=axis)), axis=axis)
        for args, axis in [([m(2, 3), m(2, 3)], 0), ([m(3), m(3), m(3)], 1), ([m(3, 4), Arg(any_of(dtype, 4, 3), T)], -1), ([m()], 0),
                           ([m(0, 3), m(0, 3)], 1), ([m(3, 5), Arg(any_of(dtype, 1, 5), ["broadcast", [3, 5]])], 0)]:
            case("stack", args, back(np.stack([raw(a) for a in args], axis=axis)), axis=axis)


def views():
    """Views, and views of views, as NumPy lays them out."""
    x = Arg(ints(4, 6, 10))
    for view in [[["slice", 0, 1, 3, 1]], [["slice", 2, 1, 10, 3]], [["slice", 1, 2, 2, 1]], [["slice", 2, 0, 10, 11]],
                 [["permute", [2, 0, 1]]], [["permute", [2, 0, 1]], ["slice", 0, 1, 8, 2]], [["reshape", [24, 10]]],
                 [["reshape", [2, 12, 5, 2]]], [["reshape", [240]]], [["slice", 0, 0, 4, 2], ["reshape", [2, 3, 2, 10]]],
                 [["slice", 2, 0, 10, 2], ["reshape", [24, 5]]], [["slice", 2, 0, 10, 2], ["reshape", [4, 1, 6, 5, 1]]],
                 [["permute", [1, 0, 2]], ["reshape", [6, 4, 2, 5]]], [["slice", 1, 0, 1, 1], ["broadcast", [4, 3, 10]]],
                 [["slice", 1, 0, 1, 1], ["broadcast", [2, 4, 3, 10]], ["permute", [3, 1, 0, 2]]]]:
        case("view", [Arg(x.base, *view)], apply_view(x.x, view))
    for a in shaped("float16"):
        case("view", [a], a.x)


def casts():
    """Every dtype to every other; ternary's values are i8 on both sides."""
    everything = np.concatenate([SPECIAL, floats(300, low=-3, high=3), floats(60, low=-7e4, high=7e4)])
    everything = np.concatenate([everything, floats(99, low=-1e-4, high=1e-4)]).astype(np.float32)
    limits = np.iinfo(np.int32)
    integers = np.array([0, 1, -1, 127, 128, -128, -129, 65504, 65519, 65520, -65520, 2**24, 2**24 + 1, 2**24 + 3, 16842753,
                         16842752, 25231361, -25231361, limits.max, limits.min, 2**30 + 2**22, 2**30 + 2**22 + 1], np.int32)
    with np.errstate(over="ignore", invalid="ignore"):
        sources = {"f32": everything, "f16": everything.astype(np.float16), "bf16": BF16.of(everything),
                   "i8": ints(300, dtype="int8", low=-128, high=128), "i32": integers}
    for x in sources.values():
        v = f64(x)

        def integer(low, high):
            return np.where(np.isnan(v), 0, np.clip(np.rint(np.where(np.isnan(v), 0, v)), low, high))

        with np.errstate(over="ignore"):
            results = {"f32": v.astype(np.float32), "f16": v.astype(np.float16), "bf16": BF16.of(v),
                       "i8": integer(-128, 127).astype(np.int8), "i32": integer(limits.min, limits.max).astype(np.int32)}
        for name, y in results.items():
            case("cast", [Arg(x)], y, dtype=name)
        whole = len(v) // 4 * 4
        trits = integer(-1, 1)[:whole].astype(np.int8)
        ternary_casts(Arg(x, ["slice", 0, 0, whole, 1]), trits)
    for dtype in DTYPES:
        for a in shaped(dtype):
            case_casts(a)
        four = lambda *s: any_of(dtype, *s)
        for a in [Arg(four(0, 4)), Arg(four(3, 4)), Arg(four(1, 4), ["broadcast", [3, 4]]), Arg(four(4, 3), T), Arg(four(3, 9), STEP)]:
            ternary_casts(a, np.clip(np.rint(f64(a.x)), -1, 1).astype(np.int8))


def ternary_casts(a, trits):
    """To ternary and on to every dtype; ternary itself is shown as i8."""
    for name, to in {"f32": np.float32, "f16": np.float16, "i8": np.int8, "i32": np.int32, "ternary": np.int8}.items():
        case("cast_ternary", [a], trits.astype(to), dtype=name)
    case("cast_ternary", [a], BF16.of(trits), dtype="bf16")


def case_casts(a):
    """Small numbers, which every dtype holds after rounding."""
    v = f64(a.x)
    for name, to in {"f32": np.float32, "f16": np.float16}.items():
        case("cast", [a], v.astype(to), dtype=name)
    case("cast", [a], BF16.of(v), dtype="bf16")
    for name, to in {"i8": np.int8, "i32": np.int32}.items():
        case("cast", [a], np.rint(v).astype(to), dtype=name)


def linear_algebra():
    def close(y, scale):  # ours is double, rounded once; NumPy's double; scale: condition times the largest element
        return 1.01 * U * np.abs(y) + 1e-13 * scale + 2.0**-149

    def record(op, args, y, scale, **params):
        case(op, args, np.asarray(y).astype(np.float32), close(y, scale), **params)

    def positive(*shape):
        a = floats(*shape)
        return (a @ np.swapaxes(a, -1, -2) + 2 * np.eye(shape[-1])).astype(np.float32)

    LAST = ["permute", [0, 2, 1]]
    squares = [(Arg(floats(*shape)), k) for shape, k in
               [((1, 1), 1), ((3, 3), 2), ((7, 7), 3), ((2, 5, 5), 1), ((33, 33), 4), ((0, 0), 2)]]
    squares += [(Arg(floats(1, 3, 3), ["broadcast", [2, 3, 3]]), 2), (Arg(floats(2, 5, 5), LAST), 1)]
    for a, k in squares:
        shape = a.x.shape
        b = Arg(floats(*shape[:-1], k))
        c = np.max(np.linalg.cond(f64(a.x))) if shape[-1] else 1
        y = np.linalg.solve(f64(a.x), f64(b.x))
        record("solve", [a, b], y, c * np.max(np.abs(y), initial=0))
        y = np.linalg.inv(f64(a.x))
        record("inverse", [a], y, c * np.max(np.abs(y), initial=0))
        p = positive(*shape[-2:] if a.view else shape)
        p = ((p + np.swapaxes(p, -1, -2)) / 2).astype(np.float32)
        if a.view == [LAST]:  # a symmetric matrix, transposed without a copy
            p = Arg(np.stack([p, p + np.eye(shape[-1], dtype=np.float32)]), LAST)
        else:
            p = Arg(p[None], *a.view) if a.view else Arg(p)
        y = np.linalg.cholesky(f64(p.x))
        record("cholesky", [p], y, np.max(np.linalg.cond(f64(p.x))) * np.max(np.abs(y), initial=0) if shape[-1] else 1)
        y = np.linalg.eigvalsh(f64(p.x))
        record("eigenvalues", [p], y, np.max(np.abs(y), initial=0))
    transposed = Arg(floats(4, 4), T)
    vector = Arg(floats(4))
    y = np.linalg.solve(f64(transposed.x), f64(vector.x))
    record("solve", [transposed, vector], y, np.linalg.cond(f64(transposed.x)) * np.max(np.abs(y)))
    for a in [Arg(floats(*shape)) for shape in [(1, 1), (5, 3), (3, 5), (2, 4, 4), (40, 17), (0, 3)]] + [
            Arg(floats(3, 5), T), Arg(floats(1, 4, 3), ["broadcast", [2, 4, 3]])]:
        shape = a.x.shape
        s = np.linalg.svd(f64(a.x), compute_uv=False)
        record("singular_values", [a], s, np.max(s, initial=0))
        if shape[-2] == 0:
            case("qr_r", [a], np.zeros((0, shape[-1]), np.float32))
            case("least_squares", [a, Arg(floats(0, 2))], np.zeros((shape[-1], 2), np.float32))  # of least norm
            continue
        c = np.max(np.linalg.cond(f64(a.x)))
        stack = f64(a.x).reshape((-1,) + shape[-2:])
        upper = []
        for m in stack:
            r = np.linalg.qr(m)[1]
            upper.append(r * np.where(np.diag(r) < 0, -1, 1)[:, None])
        upper = np.reshape(upper, shape[:-2] + np.shape(upper)[1:])
        record("qr_r", [a], upper, c * np.max(np.abs(upper)))
        b = Arg(floats(*shape[:-1], 2))
        y = np.reshape([np.linalg.lstsq(m, n, rcond=2.0**-24)[0] for m, n in zip(stack, f64(b.x).reshape((-1, shape[-2], 2)))],
                       shape[:-2] + (shape[-1], 2))
        record("least_squares", [a, b], y, c * c * np.max(np.abs(y)))
    a, b = Arg(floats(1, 1)), Arg(floats(1, 1))
    record("least_squares", [a, b], f64(b.x) / f64(a.x), 1)
    a = floats(6, 4)
    a[:, 3] = a[:, 0] + a[:, 1]  # of rank 3 up to rounding: the solution of least norm
    b = Arg(floats(6))
    y = np.linalg.lstsq(f64(a), f64(b.x), rcond=1e-5)[0]
    record("least_squares", [Arg(a), b], y, 100 * np.max(np.abs(y)), rcond=1e-5)
    for m in [Arg(floats(1, 1)), Arg(floats(4, 4)), Arg(floats(9, 9)), Arg(floats(5, 5), T)]:
        c = np.linalg.cond(f64(m.x))
        record("condition", [m], c, c * c)
        y = 1 / (np.linalg.norm(f64(m.x), 1) * np.linalg.norm(np.linalg.inv(f64(m.x)), 1))
        case("rcond_estimate", [m], np.float32(2 * y), 1.00001 * y)  # an estimate: from the truth to three times it
    line = Arg(floats(1, 1), ["broadcast", [1, 5]])  # one singular value
    case("condition", [line], np.float32(1), 1e-6)
    # NumPy has neither of an empty matrix nor the inverse of a singular one; linalg.hpp says what they are.
    case("rcond_estimate", [Arg(floats(1, 2), ["broadcast", [2, 2]])], np.float32(0))
    case("condition", [Arg(floats(0, 0))], np.float32(0))
    case("rcond_estimate", [Arg(floats(0, 0))], np.float32(1))


def main():
    if np.__version__ != PINNED:
        sys.exit(f"numpy {PINNED} (Debian 12) makes these files, this is {np.__version__}")
    np.seterr(all="ignore")
    for make in [elementwise, reductions, rows, products, indexing, views, casts, linear_algebra]:
        make()
    write()
    print(f"{len(cases)} cases, {len(tensors)} arrays")


main()
