#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The tiny preset's training step in PyTorch on the CPU, on the batches and weights that bench_train --dump
wrote: scaled_dot_product_attention with the batches' masks, vocabulary matrix at text targets and patch layers
at patches only, fused AdamW, clipping. Eager or compiled, f32 or bf16 autocast. All that can be prepared ahead
(masks, indices, rotary tables) is prepared ahead; targets and pictures are padded to one size, so that
nothing is compiled twice.

    bench_torch.py FILE [--mode eager|compile] [--precision f32|bf16] [--steps N] [--threads 2]
Prints one JSON object: ms a step (median), and the loss of the first step for comparison."""
import argparse
import json
import math
import time

import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors.torch import load_file

B, T, LAYERS, DIM, HEADS, FF, PATCH, H, W, C, IDS = 7, 256, 6, 192, 6, 512, 2, 8, 8, 8, 384
P, D = (H // PATCH) * (W // PATCH), PATCH * PATCH * C


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention_norm, self.ff_norm = nn.RMSNorm(DIM, eps=1e-5), nn.RMSNorm(DIM, eps=1e-5)
        self.qkv, self.attention_out = nn.Linear(DIM, 3 * DIM, bias=False), nn.Linear(DIM, DIM, bias=False)
        self.gate_up, self.down = nn.Linear(DIM, 2 * FF, bias=False), nn.Linear(FF, DIM, bias=False)

    def turn(self, x, cos, sin):
        a, b = x.chunk(2, -1)
        return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)

    def forward(self, x, cos, sin, mask):
        qkv = self.qkv(self.attention_norm(x)).view(B, T, 3, HEADS, DIM // HEADS).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        q, k = self.turn(q, cos, sin).to(v.dtype), self.turn(k, cos, sin).to(v.dtype)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + self.attention_out(y.transpose(1, 2).reshape(B, T, DIM))
        gate, up = self.gate_up(self.ff_norm(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)


class Transfusion(nn.Module):
    def __init__(self):
        super().__init__()
        self.token, self.head = nn.Embedding(IDS, DIM), nn.Linear(DIM, IDS, bias=False)
        self.patch_in, self.patch_out = nn.Linear(D, DIM), nn.Linear(DIM, D)
        self.time = nn.ModuleDict({"in": nn.Linear(256, D), "out": nn.Linear(D, D)})
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm = nn.RMSNorm(DIM, eps=1e-5)

    def loss(self, b, noise):
        noisy = b.signal * b.latent + b.sigma * noise
        time = self.time["out"](F.silu(self.time["in"](b.waves)))
        patches = self.patch_in(noisy + time[:, None])
        x = self.token(b.token).to(patches.dtype)
        x = x.index_copy(0, b.patch_row, patches.view(-1, DIM)[: len(b.patch_row)]).view(B, T, DIM)
        for block in self.blocks:
            x = block(x, b.cos, b.sin, b.mask)
        x = self.norm(x).view(B * T, DIM)
        text = F.cross_entropy(self.head(x[b.lm_row]).float(), b.lm_target, reduction="none")
        error = (self.patch_out(x[b.patch_row_all]).view(-1, P, D).float() - noise).square().mean((1, 2))
        return text @ b.lm_weight + 5 * error @ b.image_weight


def to_patches(x):
    x = x.view(-1, H // PATCH, PATCH, W // PATCH, PATCH, C)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, P, D)


class Batch:
    """Targets and pictures padded to `targets` and `images`, with weight zero. Padded pictures go to row 0 of
    the gathers; their patches are left out of the scatter."""

    def __init__(self, f, i, targets, images, dtype):
        get = lambda name: f[f"{i}.{name}"]
        pad = lambda x, n: torch.cat((x, torch.zeros(n - len(x), *x.shape[1:], dtype=x.dtype)))
        n, used = len(get("lm_row")), len(get("image_row"))
        self.token = get("token").clamp(min=0).long()
        key = torch.arange(T, dtype=torch.int32)
        start, limit = get("start").view(B, T, 1), get("limit").view(B, T, 1)
        self.mask = ((key >= start) & (key <= limit))[:, None]
        half = DIM // HEADS // 2
        angle = get("position").view(B, 1, T, 1).float() * 10000.0 ** (-torch.arange(half) / half)
        self.cos, self.sin = angle.cos(), angle.sin()
        self.lm_row, self.lm_target = pad(get("lm_row"), targets).long(), pad(get("lm_target"), targets).long()
        self.lm_weight = pad(torch.full((n,), 1 / n), targets)
        self.image_weight = pad(torch.full((used,), 1 / used), images)
        rows = (get("image_row")[:, None] + torch.arange(P)).long()
        self.patch_row_all = pad(rows, images).view(-1)
        # distinct rows for the scatter: padded pictures write to rows beyond their own, the last PAD rows
        free = torch.tensor(sorted(set(range(B * T)) - set(rows.view(-1).tolist())))
        pads = [r for r in free.tolist() if get("token")[r] == IDS - 1]
        need = (images - used) * P
        self.patch_row = torch.cat((rows.view(-1), torch.tensor(pads[:need], dtype=torch.long)))
        t = pad(get("image_time"), images).float()
        a = torch.cos((t / 1000 + 0.008) / 1.008 * math.pi / 2).square().clamp(1e-5, 0.9999)
        self.signal, self.sigma = a.sqrt()[:, None, None], (1 - a).sqrt()[:, None, None]
        waves = t[:, None] * 10000.0 ** (-torch.arange(128) / 128)
        self.waves = torch.cat((waves.cos(), waves.sin()), -1)
        self.latent = to_patches(pad(get("latent"), images))
        self.noise = to_patches(pad(get("noise"), images))


def read(path, dtype):
    f = load_file(path)
    count = len({k.split(".")[0] for k in f if k[0].isdigit()})
    targets = max(len(f[f"{i}.lm_row"]) for i in range(count))
    images = max(len(f[f"{i}.image_row"]) for i in range(count))
    model = Transfusion()
    names = {k: v for k, v in f.items() if not k[0].isdigit()}
    model.load_state_dict(names)
    return model, [Batch(f, i, targets, images, dtype) for i in range(count)]


def main():
    p = argparse.ArgumentParser()
    p.add_argument("file")
    p.add_argument("--mode", default="eager", choices=["eager", "compile"])
    p.add_argument("--precision", default="f32", choices=["f32", "bf16"])
    p.add_argument("--steps", type=int, default=20)
    p.add_argument("--threads", type=int, default=2)
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    model, batches = read(a.file, a.precision)
    matrices = [q for q in model.parameters() if q.dim() > 1]
    others = [q for q in model.parameters() if q.dim() == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, 1e-3, (0.9, 0.95), 1e-8, fused=True)
    loss_of = torch.compile(model.loss, dynamic=False) if a.mode == "compile" else model.loss

    def step(i, noise=None):
        b = batches[i % len(batches)]
        with torch.autocast("cpu", torch.bfloat16, enabled=a.precision == "bf16"):
            loss = loss_of(b, torch.randn_like(b.noise) if noise is None else noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss

    first = step(0, batches[0].noise).item()
    for i in range(1, 2 * len(batches)):
        step(i)
    ms = []
    for i in range(a.steps):
        begin = time.perf_counter()
        step(i).item()
        ms.append((time.perf_counter() - begin) * 1e3)
    ms.sort()
    middle = ms[len(ms) // 2]
    print(json.dumps({"what": "train", "program": "pytorch", "mode": a.mode, "precision": a.precision,
                      "threads": a.threads, "ms": round(middle, 3), "ms_least": round(ms[0], 3), "positions_s": round(B * T / middle * 1e3),
                      "first_loss": round(first, 6)}), flush=True)


if __name__ == "__main__":
    main()
