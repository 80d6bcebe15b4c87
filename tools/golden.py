#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Golden values of the transformer: a plain PyTorch model of the published recipe, in float64, written without
looking at model/. For each case it stores weights, documents, latents, times and noise, and what must come
out of them: the batch's layout, per-token and per-picture losses, the loss, every gradient; and one case of
50 training steps. tests/model/test_golden.c reads them.

    tools/golden.py tests/model        (needs torch and safetensors; writes tests/model/golden-*.safetensors)
"""
import json
import math
import os
import sys

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

PIECES, BOS, EOS = 37, 1, 2
BOI, EOI, PAD = PIECES, PIECES + 1, PIECES + 2
IDS, ROWS = PIECES + 3, 128
torch.set_default_dtype(torch.float64)


class Case:
    """Sizes, and documents: a list for each sequence of (bos, eos, segments); a segment is ("text", tokens)
    or ("image", time), time 0 meaning clean."""

    def __init__(self, name, documents, layers=2, dim=24, heads=3, ff=20, patch=1, latent=(2, 3, 4),
                 time="patch", positions="document", attention="image", length=48, seed=1):
        self.__dict__.update(locals())
        self.h, self.w, self.c = latent
        self.P = (self.h // patch) * (self.w // patch)
        self.D = patch * patch * self.c

    def facts(self):
        keys = "layers dim heads ff patch h w c time positions attention length".split()
        return {k: str(getattr(self, k)) for k in keys} | {
            "pieces": str(PIECES), "bos": str(BOS), "eos": str(EOS), "batch": str(len(self.documents))}


def lay_out(case):
    """Every position of every sequence: token (-1 at patches), start, limit, position, LM target (-1: none),
    and where the pictures are, in order."""
    B, T = len(case.documents), case.length
    token = torch.full((B, T), PAD)
    start = torch.arange(T).repeat(B, 1)
    limit, position = start.clone(), start.clone()
    if case.positions == "document":
        position[:] = 0
    target = torch.full((B, T), -1)
    pictures = []
    for b, documents in enumerate(case.documents):
        at = 0
        for bos, eos, segments in documents:
            ids, blocks = [BOS] if bos else [], []
            for kind, value in segments:
                if kind == "text":
                    ids += value
                else:
                    ids.append(BOI)
                    blocks.append((len(ids), value))
                    ids += [-1] * case.P + [EOI]
            if eos:
                ids.append(EOS)
            n = len(ids)
            assert at + n <= T
            here = torch.arange(n)
            token[b, at:at + n] = torch.tensor(ids)
            start[b, at:at + n] = at
            limit[b, at:at + n] = at + here
            position[b, at:at + n] = here if case.positions == "document" else at + here
            for i in range(n - 1):
                if ids[i] not in (-1, BOI):
                    target[b, at + i] = ids[i + 1]
            for first, time in blocks:
                if case.attention == "image":
                    limit[b, at + first:at + first + case.P] = at + first + case.P - 1
                pictures.append((b, at + first, time))
            at += n
    return token, start, limit, position, target, pictures


def abar(t):
    return 1.0 if t == 0 else min(max(math.cos((t / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2, 1e-5), 0.9999)


def make_weights(case):
    g = torch.Generator().manual_seed(case.seed)
    w = {}

    def matrix(name, rows, columns):
        w[name] = torch.randn(rows, columns, generator=g) / math.sqrt(columns)

    def vector(name, n, centre):
        w[name] = centre + 0.1 * torch.randn(n, generator=g)

    d, ff, W = case.dim, case.ff, case.D if case.time == "patch" else case.dim
    matrix("token.weight", ROWS, d)
    matrix("head.weight", ROWS, d)
    vector("norm.weight", d, 1)
    for n in range(case.layers):
        block = f"blocks.{n}."
        vector(block + "attention_norm.weight", d, 1)
        matrix(block + "qkv.weight", 3 * d, d)
        matrix(block + "attention_out.weight", d, d)
        vector(block + "ff_norm.weight", d, 1)
        matrix(block + "gate_up.weight", 2 * ff, d)
        matrix(block + "down.weight", d, ff)
    if case.P:
        matrix("patch_in.weight", d, case.D)
        vector("patch_in.bias", d, 0)
        matrix("patch_out.weight", case.D, d)
        vector("patch_out.bias", case.D, 0)
        matrix("time.in.weight", W, 256)
        vector("time.in.bias", W, 0)
        matrix("time.out.weight", W, W)
        vector("time.out.bias", W, 0)
    # what is stored is float32: begin from exactly that
    return {k: v.float().double().requires_grad_() for k, v in w.items()}


def rms(x, weight):
    return x / torch.sqrt(x.square().mean(-1, keepdim=True) + 1e-5) * weight


def turn(x, position):
    half = x.shape[-1] // 2
    angle = position[..., None, None] * 10000.0 ** (-torch.arange(half) / half)
    a, b = x[..., :half], x[..., half:]
    return torch.cat((a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()), -1)


def to_patches(x, case):
    """[n, h, w, c] -> [n, P, D]: patches row by row, each in order row, column, channel."""
    k, n = case.patch, x.shape[0]
    x = x.reshape(n, case.h // k, k, case.w // k, k, case.c)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(n, case.P, case.D)


def forward(case, w, layout, latent, noise, times):
    """Per-token losses (in order of position), per-picture errors."""
    token, start, limit, position, target, pictures = layout
    B, T = token.shape
    x = w["token.weight"][token.clamp(min=0)]
    if pictures:
        a = torch.tensor([abar(t) for t in times]).reshape(-1, 1, 1, 1)
        patches = to_patches(a.sqrt() * latent + (1 - a).sqrt() * noise, case)
        wave = torch.tensor([t if t else 1.0 for t in times])[:, None] * 10000.0 ** (-torch.arange(128) / 128)
        wave = torch.cat((wave.cos(), wave.sin()), -1)
        time = F.silu(wave @ w["time.in.weight"].T + w["time.in.bias"])
        time = (time @ w["time.out.weight"].T + w["time.out.bias"])[:, None]
        if case.time == "patch":
            patches = patches + time
        patches = patches @ w["patch_in.weight"].T + w["patch_in.bias"]
        if case.time == "model":
            patches = patches + time
        x = x.clone()
        for i, (b, first, _) in enumerate(pictures):
            x[b, first:first + case.P] = patches[i]
    key = torch.arange(T)
    sees = (key >= start[..., None]) & (key <= limit[..., None])
    hd = case.dim // case.heads
    for n in range(case.layers):
        block = f"blocks.{n}."
        qkv = rms(x, w[block + "attention_norm.weight"]) @ w[block + "qkv.weight"].T
        q, k, v = qkv.reshape(B, T, 3, case.heads, hd).unbind(2)
        q, k = turn(q, position), turn(k, position)
        score = torch.einsum("bqhc,bkhc->bhqk", q, k) / math.sqrt(hd)
        score = score.masked_fill(~sees[:, None], -math.inf).softmax(-1)
        mixed = torch.einsum("bhqk,bkhc->bqhc", score, v).reshape(B, T, case.dim)
        x = x + mixed @ w[block + "attention_out.weight"].T
        gate, up = (rms(x, w[block + "ff_norm.weight"]) @ w[block + "gate_up.weight"].T).chunk(2, -1)
        x = x + (F.silu(gate) * up) @ w[block + "down.weight"].T
    x = rms(x, w["norm.weight"])
    has = target >= 0
    logits = x[has] @ w["head.weight"][:IDS].T
    token_loss = F.cross_entropy(logits, target[has], reduction="none")
    if not pictures:
        return token_loss, torch.zeros(0), torch.zeros(0, dtype=torch.bool)
    rows = torch.stack([x[b, first:first + case.P] for b, first, _ in pictures])
    predicted = rows @ w["patch_out.weight"].T + w["patch_out.bias"]
    error = (predicted - to_patches(noise, case)).square().mean((1, 2))
    noised = torch.tensor([t > 0 for t in times])
    return token_loss, torch.where(noised, error, 0.0), noised


def documents_as_tensors(case):
    documents, segments, text, number = [], [], [], 0
    for b, sequence in enumerate(case.documents):
        for bos, eos, parts in sequence:
            documents.append([b, bos, eos, len(parts)])
            for kind, value in parts:
                segments.append([0, len(value)] if kind == "text" else [1, value])
                text += value if kind == "text" else []
    i32 = lambda x: torch.tensor(x, dtype=torch.int32)
    return {"documents": i32(documents), "segments": i32(segments), "text": i32(text or [0])}


def stored(tensors):
    out = {}
    for name, x in tensors.items():
        x = x.detach()
        x = x.float() if x.is_floating_point() else x.to(torch.int32)
        out[name] = x.contiguous()
    return out


def make_case(case, folder):
    w, layout = make_weights(case), lay_out(case)
    times = [t for _, _, t in layout[5]]
    g = torch.Generator().manual_seed(case.seed + 100)
    shape = (max(len(times), 1), max(case.h, 1), max(case.w, 1), max(case.c, 1))
    latent, noise = (torch.randn(shape, generator=g).float().double() for _ in range(2))
    token_loss, image_loss, noised = forward(case, w, layout, latent, noise, times)
    lm = token_loss.mean()
    diffusion = image_loss.sum() / max(int(noised.sum()), 1)
    loss = lm + 5 * diffusion
    loss.backward()
    names = ("layout.token", "layout.start", "layout.limit", "layout.position")
    out = dict(zip(names, layout[:4])) | documents_as_tensors(case) | {"latent": latent, "noise": noise}
    out |= {"token_loss": token_loss, "image_loss": image_loss if len(times) else torch.zeros(1)}
    out |= {"loss": torch.stack([loss, lm, torch.as_tensor(diffusion)])}
    out |= dict(w) | {"grad." + k: v.grad if v.grad is not None else torch.zeros_like(v) for k, v in w.items()}
    save(out, case.facts(), f"{folder}/golden-{case.name}.safetensors")


def adamw(w, m, v, step, lr):
    """One step: gradients scaled to norm 1 at most, betas 0.9 / 0.95, eps 1e-8, decay 0.1 on matrices."""
    norm = math.sqrt(sum(p.grad.square().sum().item() for p in w.values()))
    with torch.no_grad():
        for k, p in w.items():
            grad = p.grad * min(1.0, 1.0 / norm)
            m[k] = 0.9 * m[k] + 0.1 * grad
            v[k] = 0.95 * v[k] + 0.05 * grad.square()
            update = (m[k] / (1 - 0.9 ** step)) / ((v[k] / (1 - 0.95 ** step)).sqrt() + 1e-8)
            p -= lr * (update + (0.1 * p if p.dim() == 2 else 0))
            p.grad = None


def make_curve(case, folder, steps=50, micro=2, lr=3e-3, lr_end=1e-4, warmup=10):
    """Steps of `micro` micro batches with the same documents and latents, times and noise new each time."""
    w, layout = make_weights(case), lay_out(case)
    g = torch.Generator().manual_seed(case.seed + 200)
    n = len(layout[5])
    latent = torch.randn(micro, n, case.h, case.w, case.c, generator=g).float().double()
    noise = torch.randn(steps, micro, n, case.h, case.w, case.c, generator=g).float().double()
    times = torch.randint(1, 1001, (steps, micro, n), generator=g)
    m, v = ({k: torch.zeros_like(x) for k, x in w.items()} for _ in "mv")
    first = {k: x.detach().clone() for k, x in w.items()}
    curve = []
    for step in range(steps):
        parts = [forward(case, w, layout, latent[i], noise[step, i], times[step, i].tolist())
                 for i in range(micro)]
        lm = torch.cat([p[0] for p in parts]).mean()
        diffusion = torch.cat([p[1] for p in parts]).mean()
        loss = lm + 5 * diffusion
        loss.backward()
        curve.append([loss.item(), lm.item(), diffusion.item()])
        done = max(step - warmup, 0) / (steps - 1 - warmup)
        rate = lr * (step + 1) / warmup if step < warmup else \
            lr_end + (lr - lr_end) * (1 + math.cos(math.pi * done)) / 2
        adamw(w, m, v, step + 1, rate)
    out = documents_as_tensors(case) | {"latent": latent, "noise": noise, "times": times,
                                        "curve": torch.tensor(curve)} | first
    facts = case.facts() | {"steps": str(steps), "micro": str(micro), "lr": str(lr), "lr_end": str(lr_end),
                            "warmup": str(warmup)}
    save(out, facts, f"{folder}/golden-{case.name}.safetensors")


def save(tensors, facts, path):
    save_file(stored(tensors), path, metadata=facts)
    print(json.dumps({"file": path, "bytes": os.path.getsize(path)}))


def text(*tokens):
    return ("text", list(tokens))


def image(time):
    return ("image", time)


def cases():
    caption = (1, 1, [text(5, 9, 30), image(731)])
    image_first = (1, 1, [image(412), text(8, 8, 4, 11)])
    dropped = (1, 1, [image(1000)])
    plain = (1, 1, [text(*range(3, 14))])
    piece = (0, 0, [text(20, 21, 22, 23, 24)])
    edit = (1, 1, [image(0), text(6, 7), image(88)])
    two = (1, 1, [image(250), text(12, 13), image(499), text(14)])
    mixed = [[caption, image_first, plain], [piece, dropped, caption], [two, (1, 0, [text(9, 3)])]]
    yield Case("patch1", mixed)
    yield Case("patch2", mixed, patch=2, latent=(4, 6, 2), time="model", positions="sequence", seed=2)
    yield Case("causal", [[caption, two], [image_first, dropped, piece]], attention="causal",
               latent=(3, 2, 5), time="model", seed=3)
    yield Case("edit", [[edit, caption], [(1, 1, [image(1), image(999), text(4)])]], patch=2,
               latent=(4, 4, 3), dim=16, heads=2, ff=28, layers=3, seed=4)
    yield Case("text", [[plain, piece], [(1, 1, [text(33, 36)])]], latent=(0, 0, 0), layers=1, length=24,
               seed=5)


if __name__ == "__main__":
    target = sys.argv[1]
    for one in cases():
        make_case(one, target)
    make_curve(Case("curve", [[(1, 1, [text(5, 9, 30), image(1)]), (1, 1, [image(1), text(8, 4)])],
                              [(1, 1, [image(1)]), (1, 1, [text(*range(3, 20))])]],
                    patch=2, latent=(4, 4, 4), dim=24, heads=2, ff=32, length=40, seed=6), target)
