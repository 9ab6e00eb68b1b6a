#!/usr/bin/env python3
"""Writes golden.safetensors with the public `safetensors` package: one tensor of each dtype that we name.

Optional: the file it makes is in the tree. Needs: pip install safetensors==0.8.0 numpy==2.4.6
"""
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

out = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent / "golden.safetensors")
save_file(
    {
        "f64": np.array([0.1, -2.0], np.float64),
        "f32": np.arange(6, dtype=np.float32).reshape(2, 3) / 4,
        "f16": np.array([[1.5], [-0.25]], np.float16),
        "i64": np.array([-(2**62)], np.int64),
        "i32": np.array([7, -8], np.int32),
        "i16": np.array([-300], np.int16),
        "i8": np.array([-128, 127], np.int8),
        "u8": np.array([[161, 24], [144, 10]], np.uint8),
        "bool": np.array([True, False]),
        "scalar": np.array(2.5, np.float32),
        "empty": np.zeros((0, 4), np.float32),
    },
    str(out),
    metadata={"format": "pt"},
)
print(out, out.stat().st_size, "bytes")
