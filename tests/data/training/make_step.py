#!/usr/bin/env python3
"""Makes step.safetensors beside this script: one whole training step of a tiny BitNet b1.58 decoder in PyTorch.

usage: /usr/bin/python3 make_step.py [OUT.safetensors]       (Debian 12: python3-torch 1.13.1, python3-numpy)

The model is the 2B-4T block (RMSNorm → q, k, v → RoPE → attention → attn_sub_norm → o; RMSNorm →
down(ffn_sub_norm(relu(gate)² · up))), tied embedding, BitLinear with straight-through estimators exactly as in
microsoft/unilm's "Training Tips, Code and FAQ". The file holds, with Hugging Face tensor names NAME:
  NAME              initial weights (f32)
  NAME.grad         d(mean cross-entropy)/d(NAME), before clipping
  NAME.after        the weight after one AdamW step (lr 1e-3, betas 0.9 and 0.95, eps 1e-8, decay 0.1 on matrices
                    only, gradients clipped to norm 1)
  inputs, targets   i32 [sequences, length]
  loss              f32 [1];  grad_norm  f32 [1]
and the configuration as metadata. A seed is searched for which no activation or weight lies nearer than 1e-4 (of its
quantisation step) to a rounding tie, so that another implementation in f32 rounds everything the same way.
"""
import json
import math
import pathlib
import struct
import sys

import torch

C = dict(vocab=48, hidden=32, inter=64, layers=2, heads=4, kv_heads=2, head_dim=8, eps=1e-5, theta=10000.0,
         sequences=2, length=7)
MARGIN = 1e-4
margin = [1.0]


def note_ties(x):
    """Remembers the smallest distance of any value from a rounding tie."""
    y = x.detach()
    margin[0] = min(margin[0], float((y - y.floor() - 0.5).abs().min()))


def ste(x, quantised):
    return x + (quantised - x).detach()


def bit_linear(x, w):
    sx = 127 / x.abs().amax(-1, keepdim=True).clamp(min=1e-5)
    note_ties(x * sx)
    xq = ste(x, (x * sx).round().clamp(-128, 127) / sx)
    sw = 1 / w.abs().mean().clamp(min=1e-5)
    note_ties((w * sw).clamp(-1.2, 1.2))
    wq = ste(w, (w * sw).round().clamp(-1, 1) / sw)
    return xq @ wq.t()


def rms_norm(x, w):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + C["eps"]) * w


def rope(x):
    """x [sequences, length, heads, head_dim], rotate-half."""
    d = x.shape[-1]
    angle = torch.arange(x.shape[1]).double()[:, None] / C["theta"] ** (torch.arange(0, d, 2).double() / d)
    cos, sin = angle.cos().to(x.dtype)[:, None], angle.sin().to(x.dtype)[:, None]
    a, b = x[..., :d // 2], x[..., d // 2:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def forward(p, ids):
    n, length = ids.shape
    x = p["model.embed_tokens.weight"][ids]
    mask = torch.full((length, length), -math.inf).triu(1)
    for l in range(C["layers"]):
        w = lambda name: p[f"model.layers.{l}.{name}.weight"]
        h = rms_norm(x, w("input_layernorm"))
        q = rope(bit_linear(h, w("self_attn.q_proj")).view(n, length, C["heads"], -1))
        k = rope(bit_linear(h, w("self_attn.k_proj")).view(n, length, C["kv_heads"], -1))
        v = bit_linear(h, w("self_attn.v_proj")).view(n, length, C["kv_heads"], -1)
        k, v = (t.repeat_interleave(C["heads"] // C["kv_heads"], 2) for t in (k, v))
        s = torch.einsum("nqhd,nkhd->nhqk", q, k) / math.sqrt(C["head_dim"]) + mask.to(x.dtype)
        h = torch.einsum("nhqk,nkhd->nqhd", s.softmax(-1), v).reshape(n, length, -1)
        x = x + bit_linear(rms_norm(h, w("self_attn.attn_sub_norm")), w("self_attn.o_proj"))
        h = rms_norm(x, w("post_attention_layernorm"))
        h = bit_linear(h, w("mlp.gate_proj")).relu().pow(2) * bit_linear(h, w("mlp.up_proj"))
        x = x + bit_linear(rms_norm(h, w("mlp.ffn_sub_norm")), w("mlp.down_proj"))
    return rms_norm(x, p["model.norm.weight"]) @ p["model.embed_tokens.weight"].t()


def shapes():
    h, i, q, kv = C["hidden"], C["inter"], C["heads"] * C["head_dim"], C["kv_heads"] * C["head_dim"]
    out = {"model.embed_tokens.weight": (C["vocab"], h)}
    for l in range(C["layers"]):
        layer = {"input_layernorm": (h,), "self_attn.q_proj": (q, h), "self_attn.k_proj": (kv, h),
                 "self_attn.v_proj": (kv, h), "self_attn.attn_sub_norm": (q,), "self_attn.o_proj": (h, q),
                 "post_attention_layernorm": (h,), "mlp.gate_proj": (i, h), "mlp.up_proj": (i, h),
                 "mlp.ffn_sub_norm": (i,), "mlp.down_proj": (h, i)}
        out.update({f"model.layers.{l}.{k}.weight": v for k, v in layer.items()})
    out["model.norm.weight"] = (h,)
    return out


def initial(seed):
    g = torch.Generator().manual_seed(seed)
    p = {}
    for name, shape in shapes().items():
        noise = torch.randn(shape, generator=g)
        p[name] = 1 + 0.1 * noise if len(shape) == 1 else noise * (0.5 if "embed" in name else 0.15)
    ids = torch.randint(0, C["vocab"], (C["sequences"], C["length"] + 1), generator=g)
    return p, ids


def loss_of(p, ids):
    logits = forward(p, ids[:, :-1])
    return torch.nn.functional.cross_entropy(logits.reshape(-1, C["vocab"]), ids[:, 1:].reshape(-1))


def save(path, tensors, metadata):
    header, blob = {"__metadata__": metadata}, b""
    for name, t in tensors.items():
        dtype = "I32" if t.dtype == torch.int32 else "F32"
        data = t.contiguous().numpy().tobytes()
        header[name] = {"dtype": dtype, "shape": list(t.shape), "data_offsets": [len(blob), len(blob) + len(data)]}
        blob += data
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + blob)


def main():
    path = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else pathlib.Path(__file__).parent / "step.safetensors"
    for seed in range(1, 100000):
        p, ids = initial(seed)
        margin[0] = 1.0
        with torch.no_grad():
            loss_of(p, ids)
        if margin[0] > MARGIN:
            break
    tensors = {name: w.clone() for name, w in p.items()}
    p = {name: torch.nn.Parameter(w) for name, w in p.items()}
    matrices = [w for w in p.values() if w.dim() == 2]
    norms = [w for w in p.values() if w.dim() == 1]
    optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.1}, {"params": norms, "weight_decay": 0.0}],
                                  lr=1e-3, betas=(0.9, 0.95), eps=1e-8)
    loss = loss_of(p, ids)
    loss.backward()
    tensors.update({name + ".grad": w.grad.clone() for name, w in p.items()})
    norm = torch.nn.utils.clip_grad_norm_(list(p.values()), 1.0)
    optimizer.step()
    tensors.update({name + ".after": w.detach().clone() for name, w in p.items()})
    tensors["inputs"] = ids[:, :-1].to(torch.int32)
    tensors["targets"] = ids[:, 1:].to(torch.int32)
    tensors["loss"] = loss.detach().reshape(1)
    tensors["grad_norm"] = norm.detach().reshape(1).float()
    save(path, tensors, {**{k: str(v) for k, v in C.items()}, "seed": str(seed), "margin": f"{margin[0]:.3g}",
                         "torch": torch.__version__})
    print(f"seed {seed}, margin {margin[0]:.3g}, loss {loss.item():.6f}, gradient norm {norm.item():.6f}")


if __name__ == "__main__":
    main()
