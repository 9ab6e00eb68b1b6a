#!/usr/bin/env python3
"""Reads the GGUF files that we wrote (ours-*.gguf) with the public `gguf` package and checks keys and values.

Optional: a ctest checks that the library still writes these very bytes. Needs: pip install gguf==0.17.1 numpy==2.4.6
The files are what write_model makes in the test ModelIo.FilesAreTheStoredOnesThatPythonReads: linears hold the trits
((i·i + 3·i) mod 7) mod 3 − 1, counted from the tensor's role number, times 0.5.
"""
import sys
from pathlib import Path

import gguf
import numpy as np

ROLES = {"attn_q": 4, "attn_k": 5, "attn_v": 6, "attn_output": 8, "ffn_gate": 10, "ffn_up": 11, "ffn_down": 13}
folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
checked = 0
for path in sorted(folder.glob("ours-*.gguf")):
    reader = gguf.GGUFReader(str(path))
    assert reader.fields["general.architecture"].contents() == "bitnet-b1.58"
    assert reader.fields["bitnet-b1.58.embedding_length"].contents() == 256
    assert reader.fields["general.file_type"].contents() == {"ours-tq1_0": 36, "ours-tq2_0": 37}[path.stem]
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(-1)
        short = tensor.name.split(".")[-2]
        if short in ROLES:
            assert tensor.tensor_type.name.lower() == path.stem.removeprefix("ours-")
            i = np.arange(values.size, dtype=np.int64) + ROLES[short]
            expected = ((i * i + 3 * i) % 7 % 3 - 1) * np.float32(0.5)
        else:
            expected = (np.arange(values.size) % 17 / 16).astype(np.float32)
        assert np.array_equal(values.astype(np.float32), expected.astype(np.float32)), (path.name, tensor.name)
        checked += 1
    print(path.name, len(reader.tensors), "tensors agree")
sys.exit(0 if checked else "no files found")
