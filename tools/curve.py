#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""PyTorch's loss curves of 200 steps of the tiny preset, on what `tests/model/test_curve --dump FILE` wrote: in
f32; and in bf16 (matrices and activations; weights, moments, norms and losses in f32) some ways that differ by
nothing but rounding, which together are the spread that bf16 allows:
  bf16            every activation is stored in bf16, the residual stream too
  autocast        torch.autocast: products in bf16, the residual stream in f32
  wide            as bf16, but products of f32 copies, their results rounded: what PyTorch's own are in exact sums
the first and the last of them also from weights moved by up to half a unit in the last place of bf16, 4 and 17 times.

    tools/curve.py FILE tests/model        (needs torch and safetensors; writes golden-tiny.safetensors)
    tools/curve.py --plot CSV PNG          (needs matplotlib; CSV of TF_CURVE, tests/model/golden-tiny.safetensors)"""
import contextlib
import math
import os
import sys

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

LAYERS, DIM, HEADS, PATCH, H, W, C, IDS = 6, 192, 6, 2, 8, 8, 8, 384
B, T, BATCHES, STEPS, WARMUP, LR, LR_END = 3, 256, 8, 200, 20, 1.5e-3, 7.5e-5
P, D = (H // PATCH) * (W // PATCH), PATCH * PATCH * C
HALF = DIM // HEADS // 2
STRETCH = 20  # as in test_curve


def abar(t):
    return min(max(math.cos((t / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2, 1e-5), 0.9999)


def to_patches(x):
    x = x.reshape(-1, H // PATCH, PATCH, W // PATCH, PATCH, C)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, P, D)


class Batch:
    def __init__(self, data, i):
        get = lambda name: data[f"{i}.{name}"].long()
        self.token = get("token").clamp(min=0)
        self.rows, self.targets = get("lm_row"), get("lm_target")
        self.patches = (get("image_row")[:, None] + torch.arange(P)).flatten()
        self.latent = data[f"{i}.latent"].reshape(-1, H, W, C)
        key, start, limit = torch.arange(T), get("start").reshape(B, T, 1), get("limit").reshape(B, T, 1)
        self.mask = ((key >= start) & (key <= limit))[:, None]
        angle = get("position").reshape(B, 1, T, 1) * 10000.0 ** (-torch.arange(HALF) / HALF)
        self.cos, self.sin = angle.cos(), angle.sin()


def rms(x, weight, act):
    x = x.float()
    return (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * weight).to(act)


def turn(x, b, act):
    p, q = x.float().chunk(2, -1)
    return torch.cat((p * b.cos - q * b.sin, q * b.cos + p * b.sin), -1).to(act)


def forward(w, b, noise, times, act, wide):
    """Text loss and pictures' loss; `act` is what activations are stored in, `wide` multiplies f32 copies of it."""
    widen = torch.Tensor.float if wide else lambda x: x
    narrow = (lambda x: x.to(act)) if wide else lambda x: x
    linear = lambda x, *weights: narrow(F.linear(widen(x.to(act)), *(widen(y.to(act)) for y in weights)))
    line = lambda x, *names: linear(x, *(w[name] for name in names))
    a = torch.tensor([abar(t) for t in times]).reshape(-1, 1, 1, 1)
    patches = to_patches(a.sqrt() * b.latent + (1 - a).sqrt() * noise)
    wave = torch.tensor(times)[:, None] * 10000.0 ** (-torch.arange(128) / 128)
    time = F.silu(line(torch.cat((wave.cos(), wave.sin()), -1), "time.in.weight", "time.in.bias"))
    time = line(time, "time.out.weight", "time.out.bias")
    patches = line(patches, "patch_in.weight", "patch_in.bias") + time[:, None]
    x = w["token.weight"][b.token].to(act)
    x = x.index_copy(0, b.patches, patches.reshape(-1, DIM).to(act)).reshape(B, T, DIM)
    for n in range(LAYERS):
        k = f"blocks.{n}."
        qkv = line(rms(x, w[k + "attention_norm.weight"], act), k + "qkv.weight")
        q, key, v = qkv.reshape(B, T, 3, HEADS, 2 * HALF).permute(2, 0, 3, 1, 4)
        q, key = turn(q, b, v.dtype), turn(key, b, v.dtype)
        y = narrow(F.scaled_dot_product_attention(widen(q), widen(key), widen(v), attn_mask=b.mask))
        x = x + line(y.transpose(1, 2).reshape(B, T, DIM), k + "attention_out.weight")
        gate, up = line(rms(x, w[k + "ff_norm.weight"], act), k + "gate_up.weight").float().chunk(2, -1)
        x = x + line((F.silu(gate) * up).to(act), k + "down.weight")
    x = rms(x, w["norm.weight"], act).reshape(B * T, DIM)
    logits = linear(x[b.rows], w["head.weight"][:IDS]).float()
    predicted = line(x[b.patches].reshape(-1, P, DIM), "patch_out.weight", "patch_out.bias").float()
    return F.cross_entropy(logits, b.targets), (predicted - to_patches(noise)).square().mean()


def update(w, m, v, step, lr):
    norm = math.sqrt(sum(p.grad.double().square().sum().item() for p in w.values()))
    with torch.no_grad():
        for k, p in w.items():
            g = p.grad * min(1.0, 1.0 / norm)
            m[k] = 0.9 * m[k] + 0.1 * g
            v[k] = 0.95 * v[k] + 0.05 * g.square()
            change = (m[k] / (1 - 0.9 ** step)) / ((v[k] / (1 - 0.95 ** step)).sqrt() + 1e-8)
            p -= lr * (change + (0.1 * p if p.dim() == 2 else 0))
            p.grad = None


def train(data, way, moved):
    """[STEPS, 3]: loss, text, pictures. `moved`: seed of the weights' move, or None."""
    g = torch.Generator().manual_seed(moved or 0)
    w = {k: x.clone() for k, x in data.items() if k[0].isalpha() and k not in ("times", "noise")}
    for x in w.values():
        if moved is not None:
            x *= 1 + (2 * torch.rand(x.shape, generator=g) - 1) * 2 ** -9
        x.requires_grad_()
    m, v = ({k: torch.zeros_like(x) for k, x in w.items()} for _ in "mv")
    batches = [Batch(data, i) for i in range(BATCHES)]
    act = torch.bfloat16 if way in ("bf16", "wide") else torch.float32
    context = torch.autocast("cpu", torch.bfloat16) if way == "autocast" else contextlib.nullcontext()
    curve = []
    for step in range(STEPS):
        b = batches[step % BATCHES]
        n = len(b.latent)
        with context:
            lm, diffusion = forward(w, b, data["noise"][step, :n].reshape(n, H, W, C),
                                    data["times"][step, :n].tolist(), act, way == "wide")
        loss = lm + 5 * diffusion
        loss.backward()
        curve.append([loss.item(), lm.item(), diffusion.item()])
        done = max(step - WARMUP, 0) / (STEPS - 1 - WARMUP)
        update(w, m, v, step + 1, LR * (step + 1) / WARMUP if step < WARMUP else
               LR_END + (LR - LR_END) * (1 + math.cos(math.pi * done)) / 2)
    return torch.tensor(curve)


def make(path, folder):
    data = load_file(path)
    f32 = train(data, "f32", None)
    bf16 = []
    runs = [("bf16", seed) for seed in (None, 1, 2, 3, 4)] + [("autocast", None)]
    runs += [("wide", seed) for seed in (None, *range(1, 18))]
    for way, moved in runs:
        bf16.append(train(data, way, moved))
        apart = (bf16[-1] - f32)[:, 0].square().mean().sqrt().item()
        print(f"{way} {moved}: {apart:.6f} from f32 in the mean", flush=True)
    save_file({"f32": f32, "bf16": torch.stack(bf16)}, os.path.join(folder, "golden-tiny.safetensors"))


def plot(csv, png):
    import matplotlib
    matplotlib.use("agg")
    import matplotlib.pyplot as plt
    stored = load_file(os.path.join(os.path.dirname(__file__), "../tests/model/golden-tiny.safetensors"))
    f32, bf16 = stored["f32"][:, 0], stored["bf16"][:, :, 0]
    means = lambda curve: (curve - f32).unflatten(-1, (-1, STRETCH)).mean(-1)
    middle, spread = means(bf16).mean(0), means(bf16).std(0)
    at = range(STRETCH // 2, STEPS, STRETCH)
    curves = {}
    for line in open(csv):
        device, precision, step, loss = line.split(",")[:4]
        curves.setdefault(f"transfused, {device}, {precision}", {})[int(step)] = float(loss)
    figure, (above, below) = plt.subplots(2, 1, figsize=(8, 7), sharex=True, height_ratios=(3, 2))
    above.plot(f32, "k", lw=3, alpha=0.3, label="PyTorch, f32")
    below.fill_between(at, middle - 4 * spread, middle + 4 * spread, color="0.9", lw=0, label="4 standard deviations")
    for i, run in enumerate(bf16):
        below.plot(at, means(run), color="0.7", lw=0.6, label=f"PyTorch, bf16 ({len(bf16)} runs)" if i == 0 else None)
    for name, values in curves.items():
        y = torch.tensor([values[s] for s in range(STEPS)])
        above.plot(y, lw=0.8, label=name)
        below.plot(at, means(y), lw=0.8, label=name)
    above.set_ylabel("loss"), below.set_ylabel(f"loss - PyTorch's in f32, means of {STRETCH}"), below.set_xlabel("step")
    above.legend(), below.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(png, dpi=90)


if __name__ == "__main__":
    if len(sys.argv) == 4 and sys.argv[1] == "--plot":
        plot(*sys.argv[2:])
    elif len(sys.argv) == 3:
        make(*sys.argv[1:])
    else:
        sys.exit(__doc__)
