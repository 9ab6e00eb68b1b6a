#!/usr/bin/env python3
"""Reads the Hugging Face directory that we wrote (ours-hf/) with the public `safetensors` package and checks it.

Optional: a ctest checks that the library still writes these very bytes. Needs: pip install safetensors==0.8.0 numpy==2.4.6
The directory is what write_model makes in the test ModelIo.DirectoryIsTheStoredOneThatPythonReads: linears hold the trits
((i·i + 3·i) mod 7) mod 3 − 1, counted from the tensor's role number, with the scale 0.5; other tensors (i mod 17) / 16.
"""
import json
import sys
from pathlib import Path

import numpy as np
from safetensors import safe_open

ROLES = {"q_proj": 4, "k_proj": 5, "v_proj": 6, "o_proj": 8, "gate_proj": 10, "up_proj": 11, "down_proj": 13}
folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "ours-hf"
config = json.loads((folder / "config.json").read_text())
assert config["model_type"] == "bitnet" and config["quantization_config"]["linear_class"] == "autobitlinear"
raw = (folder / "model.safetensors").read_bytes()
header = json.loads(raw[8:8 + int.from_bytes(raw[:8], "little")])
hidden, inter = config["hidden_size"], config["intermediate_size"]
q, kv = (config[k] * config["head_dim"] for k in ("num_attention_heads", "num_key_value_heads"))
SHAPES = {"q_proj": (q, hidden), "k_proj": (kv, hidden), "v_proj": (kv, hidden), "o_proj": (hidden, q),
          "gate_proj": (inter, hidden), "up_proj": (inter, hidden), "down_proj": (hidden, inter)}


def unpack(packed, out):
    """transformers' unpack_weights in NumPy: quarter i of the rows lies in bits 2i."""
    rows = np.concatenate([(packed >> (2 * i)) & 3 for i in range(4)])
    return rows[:out].astype(np.int64) - 1


checked = 0
with safe_open(str(folder / "model.safetensors"), framework="np") as file:
    assert set(file.keys()) == set(header) - {"__metadata__"}
    for name in file.keys():
        short = name.split(".")[-2]
        if short in ROLES and name.endswith("_scale"):
            assert file.get_tensor(name).tolist() == [0.5], name
        elif short in ROLES:
            out, cols = SHAPES[short]
            i = np.arange(out * cols, dtype=np.int64).reshape(out, cols) + ROLES[short]
            assert np.array_equal(unpack(file.get_tensor(name), out), (i * i + 3 * i) % 7 % 3 - 1), name
        elif header[name]["dtype"] == "F16":
            values = file.get_tensor(name).reshape(-1)
            assert np.array_equal(values, np.arange(values.size) % 17 / 16), name
        else:
            assert header[name]["dtype"] == "BF16", name  # NumPy has no bfloat16: the norms' values are left out
        checked += 1
print(checked, "tensors agree")
