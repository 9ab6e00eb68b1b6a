"""What make_goldens.py writes with: the files and their cases, bfloat16, operands of the shapes that every op must have
seen, and the bounds of what is rounded. Random numbers come from one generator here, in the order of the calls.
"""
import json
import os
import struct

import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))
U = 2.0**-24
rng = np.random.Generator(np.random.PCG64(20240607))
tensors, cases = {}, []


class BF16:
    """bfloat16 as its bits; NumPy has no such type."""

    def __init__(self, bits):
        self.bits = np.asarray(bits).astype(np.uint16)

    @staticmethod
    def of(x):
        """Rounds float64 once, half to even: to float32 with the last bit odd where inexact, then to 16 bits."""
        shape = np.shape(x)
        x = np.asarray(x, np.float64).reshape(-1)  # NumPy turns results of rank 0 into other things
        with np.errstate(over="ignore", invalid="ignore"):
            f = x.astype(np.float32)
            inexact = (f.astype(np.float64) != x) & np.isfinite(f) & (f.view(np.uint32) & 1 == 0)
            up = np.nextafter(f, np.float32(np.inf)), np.nextafter(f, np.float32(-np.inf))
            f = np.where(inexact, np.where(f.astype(np.float64) < x, up[0], up[1]), f).astype(np.float32)
        u = f.view(np.uint32).astype(np.uint64)
        rounded = (u + 0x7FFF + ((u >> 16) & 1)) >> 16
        return BF16(np.where(np.isnan(f), (u >> 16) | 0x40, rounded).reshape(shape))

    def f64(self):
        bits = self.bits.reshape(-1).astype(np.uint32) << 16
        return bits.view(np.float32).astype(np.float64).reshape(self.bits.shape)

    @property
    def shape(self):
        return self.bits.shape


NAMES = {"float32": "F32", "float16": "F16", "int8": "I8", "int32": "I32"}


def f64(x):
    return x.f64() if isinstance(x, BF16) else np.asarray(x).astype(np.float64)


def keep(x):
    """Stores an array and gives its name."""
    name = f"t{len(tensors):04d}"
    tensors[name] = x if isinstance(x, BF16) else np.array(x, order="C")
    return name


def write():
    header, data, at = {}, [], 0
    for name, x in tensors.items():
        raw = (x.bits if isinstance(x, BF16) else x).tobytes()
        dtype = "BF16" if isinstance(x, BF16) else NAMES[x.dtype.name]
        header[name] = {"dtype": dtype, "shape": list(x.shape), "data_offsets": [at, at + len(raw)]}
        data.append(raw)
        at += len(raw)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(os.path.join(HERE, "goldens.safetensors"), "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + b"".join(data))
    with open(os.path.join(HERE, "cases.json"), "w") as f:
        f.write("[\n" + ",\n".join(json.dumps(c, sort_keys=True) for c in cases) + "\n]\n")


def apply_view(x, view):
    for step in view:
        if step[0] == "permute":
            x = np.transpose(x, step[1])
        elif step[0] == "slice":
            _, axis, begin, end, by = step
            index = [slice(None)] * x.ndim
            index[axis] = slice(begin, end, by)
            x = x[tuple(index)]
        elif step[0] == "broadcast":
            x = np.broadcast_to(x, step[1])
        elif step[0] == "reshape":
            x = x.reshape(step[1])
    return x


class Arg:
    """A stored array and the view of it that the op is given; as numpy sees it: `.x`."""

    def __init__(self, base, *view):
        self.base, self.view = base, list(view)
        bits = base.bits if isinstance(base, BF16) else base
        self.x = apply_view(bits, self.view)
        if isinstance(base, BF16):
            self.x = BF16(self.x)


names = {}


def case(op, args, out, bound=None, **params):
    for a in args:
        if id(a.base) not in names:
            names[id(a.base)] = (keep(a.base), a.base)
    c = {"op": op, "args": [{"t": names[id(a.base)][0], "view": a.view} for a in args], "params": params, "out": keep(out)}
    if bound is not None:
        # Rounded up, so that storing it costs nothing.
        c["bound"] = keep(np.nextafter(np.broadcast_to(bound, np.shape(out)).astype(np.float32), np.float32(np.inf)))
    cases.append(c)


def gamma(n):
    return n * U / (1 - n * U)


def rounded(y, like):
    """float64 results in the dtype of an operand, and the bound of `ulps` of float32 before that rounding."""
    if isinstance(like, BF16):
        return BF16.of(y)
    with np.errstate(over="ignore"):
        return np.asarray(y).astype(like.dtype)


def with_storage(bound, y, like):
    """A float32 computation's bound, enlarged by rounding ours and NumPy's to the dtype of `like`."""
    y = np.where(np.isfinite(y), np.abs(y), 0)
    if isinstance(like, BF16):
        return bound * 1.01 + 2.0**-8 * y + 2.0**-133
    if like.dtype == np.float16:
        return bound * 1.01 + 2.0**-10 * y + 2.0**-24
    return bound + 2 * U * y + 2.0**-149


SPECIAL = np.array([0.0, -0.0, 1, -1, 0.5, -0.5, 1.5, 2.5, -2.5, np.inf, -np.inf, np.nan, 1e-40, -1e-40, 3e38, -3e38,
                    65504, 65520, 7e4, 1e-7, 127.5, -128.5, 300, -300, 2147483520, 2147483648, -2147483904,
                    8388607.5, -8388608, 1 + 2.0**-8, 1 + 3 * 2.0**-8, 0.49999997, 6e-8], np.float32)


def floats(*shape, dtype="float32", low=-2.0, high=2.0):
    x = np.asarray(rng.uniform(low, high, shape))
    return BF16.of(x) if dtype == "bfloat16" else x.astype(dtype)


def ints(*shape, dtype="int32", low=-100, high=100):
    return np.asarray(rng.integers(low, high, shape)).astype(dtype)


def any_of(dtype, *shape):
    return ints(*shape, dtype=dtype) if dtype.startswith("int") else floats(*shape, dtype=dtype)


def shaped(dtype, *more):
    """One operand of each of the shapes that every op must have seen, behind axes `more`."""
    lead = list(range(len(more)))
    n = len(more)
    return [Arg(any_of(dtype, *more, 0, 3)), Arg(any_of(dtype, *more, 1, 1)), Arg(any_of(dtype, *more, 3, 5)),
            Arg(any_of(dtype, *more, 1, 5), ["broadcast", [*more, 3, 5]]),
            Arg(any_of(dtype, *more, 5, 3), ["permute", [*lead, n + 1, n]]), Arg(any_of(dtype, *more, 3, 9), ["slice", n + 1, 1, 9, 2])]


T, STEP = ["permute", [1, 0]], ["slice", 1, 1, 9, 2]
DTYPES = ["float32", "float16", "bfloat16", "int8", "int32"]


def pairs(dtype):
    """Operands over the shapes."""
    m = lambda *s: Arg(any_of(dtype, *s))
    yield m(0), m(0)
    yield m(1), m(1)
    yield m(), m()
    yield m(7), m(7)
    yield m(3, 5), m(3, 5)
    yield m(3, 5), m()
    yield m(3, 1), m(1, 5)
    yield m(4, 3, 5), m(5)
    yield m(5), m(4, 3, 5)
    yield m(4, 3, 5), m(3, 1)
    yield m(0, 1), m(1, 5)
    yield m(2, 0, 3), m(3)
    yield Arg(any_of(dtype, 5, 3), T), m(3, 5)
    yield Arg(any_of(dtype, 3, 9), STEP), Arg(any_of(dtype, 4, 3), T)
    yield Arg(any_of(dtype, 1, 6), ["broadcast", [4, 6]]), Arg(any_of(dtype, 6, 4), T)
    if dtype == "float32":
        yield m(2100), m(2, 1)
        yield Arg(any_of(dtype, 20, 33), T), m(33, 1)
        a = np.repeat(SPECIAL, len(SPECIAL)).reshape(-1, len(SPECIAL))
        yield Arg(a), Arg(a, T)
