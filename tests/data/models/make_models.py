#!/usr/bin/env python3
"""Makes the tiny random models beside this script, each with the logits that a plain NumPy transformer gives.

usage: make_models.py [OUT]        (OUT: default, the script's own folder; needs numpy only)

The implementation is independent of the C++ project: its own forward pass in float64, its own packing, its own
safetensors and GGUF writers. Each model NAME is a folder NAME/ (Hugging Face) or a file NAME.gguf; NAME.expected.safetensors
holds `tokens` (I32 [n]) and `logits` (F32 [n, vocab]), and in its metadata `margin`: the smallest distance of any
activation, in units of its int8 step, from a rounding tie. Seeds are searched until the margin exceeds 2e-4, so that
float32 and float64 arithmetic quantise every activation alike, and logits may be compared to float accuracy.
"""
import json
import pathlib
import struct
import sys

import numpy as np

MARGIN = 2e-4
BYTE_TOKENS = 3  # <s>, </s>, <unk> precede the byte alphabet in the GGUF vocabularies


# ---- containers ------------------------------------------------------------------------------------------------

def bf16(a):
    u = np.ascontiguousarray(a, np.float32).view(np.uint32).astype(np.uint64)
    return ((u + 0x7FFF + ((u >> 16) & 1)) >> 16).astype(np.uint16)


def from_bf16(u):
    return (u.astype(np.uint32) << 16).view(np.float32)


def save_safetensors(path, tensors, metadata=None):
    """tensors: name → (dtype name, array)"""
    header, blob = {}, b""
    if metadata:
        header["__metadata__"] = metadata
    for name, (dtype, a) in tensors.items():
        data = np.ascontiguousarray(a).tobytes()
        header[name] = {"dtype": dtype, "shape": list(a.shape), "data_offsets": [len(blob), len(blob) + len(data)]}
        blob += data
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + blob)


def gguf_string(s):
    b = s.encode()
    return struct.pack("<Q", len(b)) + b


def gguf_value(v):
    """Type id and bytes of a key's value; floats are f32, integers u32."""
    if isinstance(v, bool):
        return 7, struct.pack("<?", v)
    if isinstance(v, int):
        return 4, struct.pack("<I", v)
    if isinstance(v, float):
        return 6, struct.pack("<f", v)
    if isinstance(v, str):
        return 8, gguf_string(v)
    items = [gguf_value(x) if not isinstance(x, np.int32) else (5, struct.pack("<i", x)) for x in v]
    return 9, struct.pack("<iQ", items[0][0], len(items)) + b"".join(b for _, b in items)


def save_gguf(path, keys, tensors):
    """tensors: list of (name, numpy dims slowest first, type id, bytes)"""
    out = b"GGUF" + struct.pack("<IqQ", 3, len(tensors), len(keys))
    for key, value in keys.items():
        kind, data = gguf_value(value)
        out += gguf_string(key) + struct.pack("<i", kind) + data
    offset = 0
    for name, dims, kind, data in tensors:
        out += gguf_string(name) + struct.pack("<I", len(dims)) + b"".join(struct.pack("<q", d) for d in reversed(dims))
        out += struct.pack("<iQ", kind, offset)
        offset += len(data) + (-len(data) % 32)
    out += b"\0" * (-len(out) % 32)
    for *_, data in tensors:
        out += data + b"\0" * (-len(data) % 32)
    path.write_bytes(out)


# ---- packings --------------------------------------------------------------------------------------------------

def pack_hf(t):
    """uint8 [ceil(out/4), in]: a byte holds rows r, r+R, r+2R, r+3R."""
    rows = -(-t.shape[0] // 4)
    codes = np.ones((4 * rows, t.shape[1]), np.uint8)
    codes[:t.shape[0]] = t + 1
    packed = np.zeros((rows, t.shape[1]), np.uint8)
    for i in range(4):
        packed |= codes[i * rows:(i + 1) * rows] << (2 * i)
    return packed


def pack_i2s(t, scale):
    c = (t.reshape(-1, 4, 32) + 1).astype(np.uint8)  # blocks of 128: group g of 32 → bits 6 − 2g
    b = c[:, 0] << 6 | c[:, 1] << 4 | c[:, 2] << 2 | c[:, 3]
    return b.tobytes() + struct.pack("<f", scale) + b"\0" * 28


def pack_tq2(t, scale):
    out = b""
    for block in (t.reshape(-1, 256) + 1).astype(np.uint8):
        for half in block.reshape(2, 4, 32):
            out += (half[0] | half[1] << 2 | half[2] << 4 | half[3] << 6).astype(np.uint8).tobytes()
        out += np.float16(scale).tobytes()
    return out


def pack_tq1(t, scale):
    out = b""
    for block in (t.reshape(-1, 256) + 1).astype(np.int64):
        parts = [block[:160].reshape(5, 32), block[160:240].reshape(5, 16), block[240:].reshape(4, 4)]
        for part in parts:
            q = np.zeros(part.shape[1], np.int64)
            for row in part:
                q = q * 3 + row
            if len(part) == 4:
                q *= 3
            out += ((q * 256 + 242) // 243).astype(np.uint8).tobytes()
        out += np.float16(scale).tobytes()
    return out


# ---- the transformer, float64 ----------------------------------------------------------------------------------

class Forward:
    def __init__(self, c, w):
        self.c, self.w, self.margin = c, w, 1.0

    def norm(self, x, weight):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + self.c["rms_norm_eps"]) * weight.astype(np.float64)

    def linear(self, x, name):
        w = self.w[name]
        if not isinstance(w, tuple):
            return x @ w.astype(np.float64).T
        trits, scale = w
        a = 127.0 / np.maximum(np.abs(x).max(-1, keepdims=True), 1e-5)
        exact = x * a
        # the largest element is exactly ±127 whatever the rounding; ties are distances from …5
        self.margin = min(self.margin, float(np.abs(exact - np.floor(exact) - 0.5).min()))
        q = np.clip(np.rint(exact), -128, 127)
        return (q @ trits.astype(np.float64).T) / a * float(scale)

    def rope(self, x, positions):
        d = x.shape[-1]
        angle = positions[:, None, None] / self.c["rope_theta"] ** (np.arange(0, d, 2) / d)
        cos, sin = np.cos(angle), np.sin(angle)
        a, b = x[..., :d // 2], x[..., d // 2:]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

    def __call__(self, tokens):
        c, w = self.c, self.w
        n, heads, kv, d = len(tokens), c["n_heads"], c["n_kv_heads"], c["head_dim"]
        x = w["embed"][tokens].astype(np.float64)
        pos = np.arange(n)
        mask = np.triu(np.full((n, n), -np.inf), 1)
        for l in range(c["n_layers"]):
            p = f"{l}."
            h = self.norm(x, w[p + "attn_norm"])
            q = self.rope(self.linear(h, p + "q").reshape(n, heads, d), pos)
            k = self.rope(self.linear(h, p + "k").reshape(n, kv, d), pos)
            v = self.linear(h, p + "v").reshape(n, kv, d)
            k, v = np.repeat(k, heads // kv, 1), np.repeat(v, heads // kv, 1)
            s = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(d) + mask
            s = np.exp(s - s.max(-1, keepdims=True))
            s /= s.sum(-1, keepdims=True)
            h = np.einsum("hqk,khd->qhd", s, v).reshape(n, heads * d)
            if c["sub_norms"]:
                h = self.norm(h, w[p + "attn_sub_norm"])
            x = x + self.linear(h, p + "o")
            h = self.norm(x, w[p + "ffn_norm"])
            g, u = self.linear(h, p + "gate"), self.linear(h, p + "up")
            h = (np.maximum(g, 0) ** 2 if c["relu2"] else g / (1 + np.exp(-g))) * u
            if c["sub_norms"]:
                h = self.norm(h, w[p + "ffn_sub_norm"])
            x = x + self.linear(h, p + "down")
        x = self.norm(x, w["norm"])
        return x @ w["head" if "head" in w else "embed"].astype(np.float64).T


# ---- models ----------------------------------------------------------------------------------------------------

def shapes(c):
    q, kv, h, i = c["n_heads"] * c["head_dim"], c["n_kv_heads"] * c["head_dim"], c["hidden"], c["inter"]
    return {"q": (q, h), "k": (kv, h), "v": (kv, h), "o": (h, q), "gate": (i, h), "up": (i, h), "down": (h, i)}


def absmean(w):
    w = w.astype(np.float32)
    m = np.float32(max(np.float32(np.abs(w).astype(np.float64).mean()), np.float32(1e-5)))
    return np.clip(np.rint(w * (np.float32(1) / m)), -1, 1).astype(np.int8), m


def random_weights(c, rng, linears):
    """`linears`: "ternary" (trits and a scale), or a function that rounds float weights to the stored type."""
    w = {"embed": rng.normal(0, 0.7, (c["vocab"], c["hidden"])).astype(np.float32)}
    for l in range(c["n_layers"]):
        for name in ("attn_norm", "ffn_norm") + (("attn_sub_norm", "ffn_sub_norm") if c["sub_norms"] else ()):
            n = {"attn_sub_norm": c["n_heads"] * c["head_dim"], "ffn_sub_norm": c["inter"]}.get(name, c["hidden"])
            w[f"{l}.{name}"] = (1 + rng.normal(0, 0.2, n)).astype(np.float32)
        for name, shape in shapes(c).items():
            if linears == "ternary":
                w[f"{l}.{name}"] = (rng.integers(-1, 2, shape).astype(np.int8),
                                    np.float32(rng.uniform(0.6, 1.4) / np.sqrt(shape[1])))
            else:
                w[f"{l}.{name}"] = linears(rng.normal(0, 1 / np.sqrt(shape[1]), shape).astype(np.float32))
    w["norm"] = (1 + rng.normal(0, 0.2, c["hidden"])).astype(np.float32)
    if not c["tied"]:
        w["head"] = rng.normal(0, 0.7, (c["vocab"], c["hidden"])).astype(np.float32)
    return w


HF = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "q": "self_attn.q_proj",
      "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.o_proj", "gate": "mlp.gate_proj",
      "up": "mlp.up_proj", "down": "mlp.down_proj", "attn_sub_norm": "self_attn.attn_sub_norm",
      "ffn_sub_norm": "mlp.ffn_sub_norm"}
HF_1BITLLM = {**HF, "attn_sub_norm": "self_attn.inner_attn_ln", "ffn_sub_norm": "mlp.ffn_layernorm"}
GGUF = {"attn_norm": "attn_norm", "ffn_norm": "ffn_norm", "q": "attn_q", "k": "attn_k", "v": "attn_v",
        "o": "attn_output", "gate": "ffn_gate", "up": "ffn_up", "down": "ffn_down", "attn_sub_norm": "attn_sub_norm",
        "ffn_sub_norm": "ffn_sub_norm"}


def save_hf(folder, c, w, stored, config, names=HF, form=None):
    """`stored`: name → array to store for a float tensor, or None for packed linears with weight_scale in `form`."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {"model.embed_tokens.weight": stored(w["embed"])}
    for key, value in w.items():
        if key[0].isdigit():
            layer, short = key.split(".")
            name = f"model.layers.{layer}.{names[short]}.weight"
            if isinstance(value, tuple) and form:
                tensors[name] = ("U8", pack_hf(value[0]))
                scale = value[1] if form == "multiply" else np.float32(1) / value[1]
                tensors[name + "_scale"] = ("F32", np.array([scale], np.float32))
            else:
                tensors[name] = stored(value)
    tensors["model.norm.weight"] = stored(w["norm"])
    if "head" in w:
        tensors["lm_head.weight"] = stored(w["head"])
    save_safetensors(folder / "model.safetensors", tensors, {"format": "pt"})
    base = {"vocab_size": c["vocab"], "hidden_size": c["hidden"], "intermediate_size": c["inter"],
            "num_hidden_layers": c["n_layers"], "num_attention_heads": c["n_heads"],
            "num_key_value_heads": c["n_kv_heads"], "max_position_embeddings": 64,
            "rms_norm_eps": c["rms_norm_eps"], "rope_theta": c["rope_theta"], "tie_word_embeddings": c["tied"],
            "bos_token_id": 0, "eos_token_id": 1}
    (folder / "config.json").write_text(json.dumps({**base, **config}, indent=2) + "\n")


def permute(w, heads):
    """Rows as llama.cpp's converter orders them for interleaved RoPE."""
    return w.reshape(heads, 2, w.shape[0] // heads // 2, w.shape[1]).swapaxes(1, 2).reshape(w.shape)


def byte_alphabet():
    """GPT-2's characters for the bytes 0 … 255."""
    keep = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(b) if b in keep else chr(next(others)) for b in range(256)]


def save_gguf_model(path, c, w, arch, pack, type_id, file_type):
    tensors = [("token_embd.weight", w["embed"].shape, 1, w["embed"].astype(np.float16).tobytes())]
    for key, value in w.items():
        if key[0].isdigit():
            layer, short = key.split(".")
            name = f"blk.{layer}.{GGUF[short]}.weight"
            if isinstance(value, tuple):
                trits, scale = value
                if arch == "llama" and short in "qk":
                    trits = permute(trits, c["n_heads"] if short == "q" else c["n_kv_heads"])
                tensors.append((name, trits.shape, type_id, pack(trits, scale)))
            else:
                tensors.append((name, value.shape, 0, value.tobytes()))
    tensors.append(("output_norm.weight", w["norm"].shape, 0, w["norm"].tobytes()))
    if "head" in w:
        tensors.append(("output.weight", w["head"].shape, 1, w["head"].astype(np.float16).tobytes()))
    tokens = ["<s>", "</s>", "<unk>"] + byte_alphabet() + ["!\""]  # the last one is the only merge's result
    assert len(tokens) == c["vocab"]
    keys = {"general.architecture": arch, "general.name": path.stem, "general.file_type": file_type,
            f"{arch}.vocab_size": c["vocab"], f"{arch}.context_length": 64, f"{arch}.embedding_length": c["hidden"],
            f"{arch}.block_count": c["n_layers"], f"{arch}.feed_forward_length": c["inter"],
            f"{arch}.rope.dimension_count": c["head_dim"], f"{arch}.rope.freq_base": float(c["rope_theta"]),
            f"{arch}.attention.head_count": c["n_heads"], f"{arch}.attention.head_count_kv": c["n_kv_heads"],
            f"{arch}.attention.layer_norm_rms_epsilon": c["rms_norm_eps"],
            "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "llama-bpe", "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.token_type": [np.int32(3 if i < BYTE_TOKENS else 1) for i in range(len(tokens))],
            "tokenizer.ggml.merges": ["! \""], "tokenizer.ggml.bos_token_id": 0, "tokenizer.ggml.eos_token_id": 1}
    save_gguf(path, keys, tensors)


def f16_scale(w):
    """Scales as TQ1_0 and TQ2_0 hold them."""
    return {k: (v[0], np.float32(np.float16(v[1]))) if isinstance(v, tuple) else v for k, v in w.items()}


def make(out, name, c, linears, save, effective=lambda w: w):
    """Searches a seed, stores the model with save(path, w) and its logits from effective(w)."""
    for seed in range(1, 100000):
        rng = np.random.default_rng([seed, len(name)])
        w = random_weights(c, rng, linears)
        forward = Forward(c, effective(w))
        tokens = rng.integers(3, c["vocab"], 8)
        logits = forward(tokens)
        if forward.margin > MARGIN:
            break
    save(out / name, w)
    save_safetensors(out / f"{name.removesuffix('.gguf')}.expected.safetensors",
                     {"tokens": ("I32", tokens.astype(np.int32)), "logits": ("F32", logits.astype(np.float32))},
                     {"margin": f"{forward.margin:.3g}", "seed": str(seed)})
    print(f"{name}: seed {seed}, margin {forward.margin:.3g}, |logits| up to {np.abs(logits).max():.2f}")


def f16_embeddings(w):
    return {k: v.astype(np.float16).astype(np.float32) if k in ("embed", "head") else v for k, v in w.items()}


def bf16_floats(w):
    return {k: from_bf16(bf16(v)) if not isinstance(v, tuple) else v for k, v in w.items()}


def ternarised(w):
    return {k: absmean(v) if k[0].isdigit() and "norm" not in k else v for k, v in w.items()}


def main():
    out = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else pathlib.Path(__file__).parent
    f32 = lambda a: ("F32", a)
    as_bf16 = lambda a: ("BF16", bf16(a))
    common = {"rms_norm_eps": 1e-5, "vocab": 90}
    b25 = {**common, "hidden": 128, "inter": 128, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "head_dim": 32,
           "rope_theta": 500000.0, "sub_norms": True, "relu2": True, "tied": True}
    b25_config = {"architectures": ["BitNetForCausalLM"], "model_type": "bitnet", "hidden_act": "relu2"}
    offline = {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "offline"}
    make(out, "bitnet-25-packed", b25, "ternary",
         lambda p, w: save_hf(p, b25, w, as_bf16, {**b25_config, "quantization_config": offline}, form="multiply"),
         bf16_floats)
    online = {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online"}
    make(out, "bitnet-25-online", b25, lambda a: from_bf16(bf16(a)),
         lambda p, w: save_hf(p, b25, w, as_bf16, {**b25_config, "quantization_config": online}),
         lambda w: ternarised(bf16_floats(w)))
    old = {**common, "hidden": 60, "inter": 100, "n_layers": 2, "n_heads": 6, "n_kv_heads": 6, "head_dim": 10,
           "rope_theta": 10000.0, "sub_norms": True, "relu2": False, "tied": False}
    make(out, "1bitllm-float", old, lambda a: a,
         lambda p, w: save_hf(p, old, w, f32, {"architectures": ["BitnetForCausalLM"], "model_type": "llama",
                                               "hidden_act": "silu", "weight_bits": 1, "input_bits": 8},
                              names=HF_1BITLLM), ternarised)
    llama = {**common, "hidden": 96, "inter": 72, "n_layers": 2, "n_heads": 6, "n_kv_heads": 3, "head_dim": 16,
             "rope_theta": 500000.0, "sub_norms": False, "relu2": False, "tied": False}
    llama_config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu"}
    # 1/s as stored, inverted again by the reader: the effective scale
    inverted = lambda w: {k: (v[0], np.float32(1) / (np.float32(1) / v[1])) if isinstance(v, tuple) else v
                          for k, v in bf16_floats(w).items()}
    make(out, "llama-packed-divide", llama, "ternary",
         lambda p, w: save_hf(p, llama, w, as_bf16,
                              {**llama_config, "quantization_config": {"quant_method": "bitnet"}}, form="divide"),
         inverted)
    dense = {**llama, "head_dim": 20, "n_kv_heads": 2, "rope_theta": 10000.0}
    make(out, "llama-dense", dense, lambda a: a,
         lambda p, w: save_hf(p, dense, w, f32, {**llama_config, "head_dim": 20}))
    gguf = {**b25, "vocab": 260}
    make(out, "bitnet-b1.58-i2_s.gguf", gguf, "ternary",
         lambda p, w: save_gguf_model(p, gguf, w, "bitnet-b1.58", pack_i2s, 36, 40), f16_embeddings)
    wide = {**llama, "vocab": 260, "hidden": 256, "inter": 256, "n_layers": 1, "n_heads": 4, "n_kv_heads": 2, "head_dim": 64}
    for kind, pack, type_id, file_type in (("tq2_0", pack_tq2, 35, 37), ("tq1_0", pack_tq1, 34, 36)):
        make(out, f"llama-{kind}.gguf", wide, "ternary",
             lambda p, w: save_gguf_model(p, wide, w, "llama", pack, type_id, file_type),
             lambda w: f16_scale(f16_embeddings(w)))


if __name__ == "__main__":
    main()
