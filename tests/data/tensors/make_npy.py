#!/usr/bin/env python3
"""Makes the .npy files beside it with NumPy itself, for bitnet-core/tests/npy_test.cpp, which knows their values:
arange(24) - 5 of every type that is read, in C and Fortran order, both byte orders, all format versions.

usage: make_npy.py
"""
import os

import numpy as np

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "npy")
os.makedirs(HERE, exist_ok=True)
base = (np.arange(24) - 5).reshape(2, 3, 4)


def save(name, array, version=None):
    with open(os.path.join(HERE, name + ".npy"), "wb") as f:
        np.lib.format.write_array(f, array, version=version)


for descr in ["<f4", ">f4", "<f2", ">f2", "|i1", "<i4", ">i4", "<f8", ">i8", "<i8", "<i2"]:
    name = descr.replace("<", "little_").replace(">", "big_").replace("|", "")
    save(name, base.astype(descr))
save("fortran_f4", np.asfortranarray(base.astype(np.float32)))
save("fortran_i1", np.asfortranarray(base.astype(np.int8)))
save("bool", base > 0)
save("u8", np.array([0, 2**63 + 7], np.uint64))
save("version_2", base.astype(np.float32), (2, 0))
save("version_3", base.astype(np.float32), (3, 0))
save("scalar", np.array(2.5, np.float32))
save("one_axis", np.array([1.5, -2.5], np.float32))
save("empty", np.zeros((3, 0, 2), np.float32))
save("record", np.zeros(2, [("x", "<f4"), ("y", "<i4")]))
save("complex", np.zeros(2, np.complex64))
save("text", np.array(["ab"]))
