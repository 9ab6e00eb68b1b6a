#!/usr/bin/env python3
"""Writes golden.gguf, an independent reference for our GGUF reader and block decoders, with the public `gguf` package.

Optional: the file it makes is in the tree. Needs: pip install gguf==0.17.1 numpy==2.4.6
Every quantised tensor `X` has a companion `X.f32` holding the values that the package dequantises it to.
"""
import sys
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Q

out = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent / "golden.gguf")
rng = np.random.default_rng(2026)
w = gguf.GGUFWriter(str(out), "bitnet-b1.58")
w.add_uint8("t.u8", 200)
w.add_int8("t.i8", -100)
w.add_uint16("t.u16", 60000)
w.add_int16("t.i16", -30000)
w.add_uint32("t.u32", 4000000000)
w.add_int32("t.i32", -2000000000)
w.add_uint64("t.u64", 2**63 + 5)
w.add_int64("t.i64", -(2**62))
w.add_float32("t.f32", 1.5)
w.add_float64("t.f64", 0.1)
w.add_bool("t.bool", True)
w.add_string("t.string", "naïve ∀")
w.add_array("t.strings", ["a", "", "ü"])
w.add_array("t.ints", [1, -2, 3])
w.add_array("t.floats", [0.5, -0.25])
w.add_array("t.bools", [True, False])

w.add_tensor("f32", rng.standard_normal((2, 3), dtype=np.float32))
w.add_tensor("f16", rng.standard_normal((3, 4), dtype=np.float32).astype(np.float16))
bf16 = rng.standard_normal((2, 8), dtype=np.float32)
w.add_tensor("bf16", gguf.quants.quantize(bf16, Q.BF16), raw_dtype=Q.BF16)
w.add_tensor("bf16.f32", gguf.quants.dequantize(gguf.quants.quantize(bf16, Q.BF16), Q.BF16))

trits = rng.integers(-1, 2, size=(3, 512)).astype(np.float32)
trits[:, ::256] = 1.0  # every block has an entry of full size, so that its scale is the matrix's
for name, kind in (("tq1_0", Q.TQ1_0), ("tq2_0", Q.TQ2_0)):
    data = gguf.quants.quantize(trits * np.float32(0.375), kind)
    w.add_tensor(name, data, raw_dtype=kind)
    w.add_tensor(name + ".f32", gguf.quants.dequantize(data, kind))
values = rng.standard_normal((4, 64), dtype=np.float32)
data = gguf.quants.quantize(values, Q.Q8_0)
w.add_tensor("q8_0", data, raw_dtype=Q.Q8_0)
w.add_tensor("q8_0.f32", gguf.quants.dequantize(data, Q.Q8_0))
# The package cannot make Q6_K: random codes with a sane f16 scale in the last two bytes of each block.
blocks = rng.integers(0, 256, size=(2, 2, 210), dtype=np.uint8)
blocks[..., 208:] = np.frombuffer(np.linspace(0.01, 0.5, 4).astype(np.float16).tobytes(), np.uint8).reshape(2, 2, 2)
data = blocks.reshape(2, 420)
w.add_tensor("q6_k", data, raw_dtype=Q.Q6_K)
w.add_tensor("q6_k.f32", gguf.quants.dequantize(data, Q.Q6_K))

w.write_header_to_file()
w.write_kv_data_to_file()
w.write_tensors_to_file()
w.close()
print(out, out.stat().st_size, "bytes")
