#!/usr/bin/env python3
"""Makes modules.safetensors beside this script: layers, losses and optimisers of PyTorch in small, and ten training steps.

usage: /usr/bin/python3 make_modules.py [OUT.safetensors]    (Debian 12: python3-torch 1.13.1, python3-numpy)

Tensors are named CASE/NAME. A layer's case holds its input x, its parameters, the output y and, of the loss
sum(sin(1 + 1.7 i) * y_i) over the flattened y, the gradients NAME.grad. Images are rows of channels (NHWC), weights of
convolutions [out, height * width * in]. `curve` holds the losses of ten AdamW steps of make_step.py's model on its batch.
Seeds are searched for with no value nearer than 1e-4 (of its quantisation step) to a rounding tie.
"""
import pathlib
import sys

import torch
import torch.nn.functional as F

import make_step as step

OUT = {}


def record(case, tensors, y):
    """Stores a case and its gradients. tensors: name -> leaf."""
    flat = y.reshape(-1)
    (torch.sin(1 + 1.7 * torch.arange(len(flat)).double()).float() * flat).sum().backward()
    for name, t in tensors.items():
        OUT[f"{case}/{name}"] = t.detach().clone()
        OUT[f"{case}/{name}.grad"] = t.grad.clone()
    OUT[f"{case}/y"] = y.detach().clone()


def leaves(generator, **shapes):
    return {k: torch.nn.Parameter(torch.randn(s, generator=generator)) for k, s in shapes.items()}


def until_clear(make):
    """Calls make(seed) until nothing it rounds is near a tie."""
    for seed in range(1, 100000):
        step.margin[0] = 1.0
        before = dict(OUT)
        make(torch.Generator().manual_seed(seed))
        if step.margin[0] > step.MARGIN:
            return
        OUT.clear()
        OUT.update(before)


def quantised_input(x, bits=8, strength=1.0):
    top = 2 ** (bits - 1) - 1
    s = top / x.abs().amax(-1, keepdim=True).clamp(min=1e-5)
    step.note_ties(x * s)
    return x + strength * ((x * s).round().clamp(-top - 1, top) / s - x).detach()


def quantised_rows(w, s, strength, clip=1.5):
    """Clipped straight-through estimator with a scale a row, s [out, 1] with or without gradient (LSQ)."""
    step.note_ties((w / s).clamp(-1.2, 1.2))
    inside = (w.abs() <= clip * s).float()
    t = (w / s).detach().round().clamp(-1, 1)
    q = inside * s * (w / s + (t - w / s).detach()) + (1 - inside) * s * t
    return (1 - strength) * w + strength * q


def layers():
    g = torch.Generator().manual_seed(1)
    p = leaves(g, x=(5, 9), w=(7, 9), b=(7,))
    record("linear", p, F.linear(p["x"], p["w"], p["b"]))
    p = leaves(g, x=(5, 9), w=(9,))
    record("rms_norm", p, step.rms_norm(p["x"], p["w"]))
    p = leaves(g, w=(11, 6))
    ids = torch.randint(0, 11, (8,), generator=g)
    OUT["embedding/ids"] = ids.to(torch.int32)
    record("embedding", p, F.embedding(ids, p["w"]))
    p = leaves(g, x=(12, 12), q=(16, 12), k=(8, 12), v=(8, 12), o=(12, 16), n=(16,))
    n, length, heads, kv = 2, 6, 4, 2
    q = step.rope((p["x"] @ p["q"].t()).view(n, length, heads, -1))
    k = step.rope((p["x"] @ p["k"].t()).view(n, length, kv, -1)).repeat_interleave(heads // kv, 2)
    v = (p["x"] @ p["v"].t()).view(n, length, kv, -1).repeat_interleave(heads // kv, 2)
    s = torch.einsum("nqhd,nkhd->nhqk", q, k) / 2 + torch.full((length, length), -torch.inf).triu(1)
    a = torch.einsum("nhqk,nkhd->nqhd", s.softmax(-1), v).reshape(n * length, -1)
    record("attention", p, step.rms_norm(a, p["n"]) @ p["o"].t())


def bit_layers():
    def plain(g):
        p = leaves(g, x=(6, 32), w=(10, 32))
        record("bit_linear_2b4t", p, step.bit_linear(p["x"], p["w"]))

    def with_norm(g):
        p = leaves(g, x=(6, 32), w=(10, 32), norm=(32,))
        record("bit_linear_2024", p, step.bit_linear(step.rms_norm(p["x"], p["norm"]), p["w"]))

    def clipped(g):
        p = leaves(g, x=(6, 33), w=(10, 33))
        s = p["w"].detach().abs().median(-1, keepdim=True).values
        record("bit_linear_clipped", p, quantised_input(p["x"], 4, 0.5) @ quantised_rows(p["w"], s, 0.5).t())

    def learned(g):
        p = leaves(g, x=(6, 32), w=(10, 32), scale=(10, 1))
        with torch.no_grad():
            p["scale"].copy_(p["w"].abs().mean(-1, keepdim=True) * 1.1)
        rate = 32 ** -0.5
        s = p["scale"] * rate + (p["scale"] * (1 - rate)).detach()
        record("bit_linear_learned", p, quantised_input(p["x"]) @ quantised_rows(p["w"], s, 1.0).t())

    def convolution(g):
        p = leaves(g, x=(2 * 30, 3), w=(4, 27))
        image = p["x"].view(2, 5, 6, 3).permute(0, 3, 1, 2)
        rows = F.unfold(image, 3, padding=1, stride=2).view(2, 3, 9, -1).permute(0, 3, 2, 1).reshape(-1, 27)
        record("bit_conv2d", p, step.bit_linear(rows, p["w"]))

    for make in (plain, with_norm, clipped, learned, convolution):
        until_clear(make)
    p = leaves(torch.Generator().manual_seed(2), x=(2 * 30, 3), w=(4, 27), b=(4,))
    y = F.conv2d(p["x"].view(2, 5, 6, 3).permute(0, 3, 1, 2), p["w"].view(4, 3, 3, 3).permute(0, 3, 1, 2), p["b"],
                 stride=2, padding=1)
    record("conv2d", p, y.permute(0, 2, 3, 1).reshape(-1, 4))
    # Small integers, so that windows have several largest values: the first gets the gradient.
    x = torch.randint(-2, 3, (2 * 30, 3), generator=torch.Generator().manual_seed(4)).float()
    p = {"x": torch.nn.Parameter(x)}
    y = F.max_pool2d(p["x"].view(2, 5, 6, 3).permute(0, 3, 1, 2), 3, stride=2, padding=1)
    record("max_pool", p, y.permute(0, 2, 3, 1).reshape(-1, 3))


def losses():
    g = torch.Generator().manual_seed(3)
    targets = torch.randint(0, 13, (7,), generator=g)
    targets[2] = -1
    OUT["cross_entropy/targets"] = targets.to(torch.int32)
    p = leaves(g, x=(7, 13))
    y = F.cross_entropy(p["x"], targets, ignore_index=-1, label_smoothing=0.1, reduction="sum") * 0.125
    record("cross_entropy", p, y.reshape(1, 1))
    p, teacher = leaves(g, x=(7, 13)), torch.randn(7, 13, generator=g) * 2
    OUT["kl_divergence/teacher"] = teacher
    y = F.kl_div(F.log_softmax(p["x"] / 5, -1), F.softmax(teacher / 5, -1), reduction="sum") * 25 * 0.125
    record("kl_divergence", p, y.reshape(1, 1))
    p, target = leaves(g, x=(7, 13)), torch.randn(7, 13, generator=g)
    OUT["squared_error/target"] = target
    record("squared_error", p, (F.mse_loss(p["x"], target, reduction="sum") * 0.125).reshape(1, 1))


def optimizers():
    """Five steps with gradients sin(0.37 t (i + 1)) from weights 0.01 i - 0.5, lr 0.01, weight decay 0.1."""
    made = {"adamw": lambda w: torch.optim.AdamW([w], lr=0.01, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1),
            "sgd": lambda w: torch.optim.SGD([w], lr=0.01, momentum=0.9),
            "sgd_nesterov": lambda w: torch.optim.SGD([w], lr=0.01, momentum=0.9, nesterov=True)}
    for name, make in made.items():
        i = torch.arange(100).double()
        w = torch.nn.Parameter((0.01 * i - 0.5).float())
        optimizer = make(w)
        for t in range(1, 6):
            w.grad = torch.sin(0.37 * t * (i + 1)).float()
            optimizer.step()
        OUT[f"{name}/after"] = w.detach().clone()


def curve():
    for seed in range(1, 100000):
        p, ids = step.initial(seed)
        step.margin[0] = 1.0
        with torch.no_grad():
            step.loss_of(p, ids)
        if step.margin[0] > step.MARGIN:
            break
    p = {name: torch.nn.Parameter(w) for name, w in p.items()}
    groups = [{"params": [w for w in p.values() if w.dim() == 2], "weight_decay": 0.1},
              {"params": [w for w in p.values() if w.dim() == 1], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), eps=1e-8)
    all_losses = []
    for _ in range(10):
        optimizer.zero_grad()
        loss = step.loss_of(p, ids)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(list(p.values()), 1.0)
        optimizer.step()
        all_losses.append(loss.detach())
    OUT["curve"] = torch.stack(all_losses)


def main():
    path = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else pathlib.Path(__file__).parent / "modules.safetensors"
    for make in (layers, bit_layers, losses, optimizers, curve):
        make()
    step.save(path, OUT, {"torch": torch.__version__})
    print(f"{len(OUT)} tensors; losses {[round(float(x), 4) for x in OUT['curve']]}")


if __name__ == "__main__":
    main()
