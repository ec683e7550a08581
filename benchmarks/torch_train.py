#!/usr/bin/env python3
"""PyTorch peer of `ounce bench train` and of the demo model's training step.

usage: torch_train.py dense|moe [STEPS] [bf16] [plain] [compile]
       (threads: OMP_NUM_THREADS; prints tokens/s of each step after one warm-up)

bf16: autocast; plain: attention of two matrix products, which on some processors is faster than the fused one;
compile: torch.compile (the mixture's loop over experts depends on data, so it is broken into pieces).

dense: width 256, 4 layers, 8 heads, SwiGLU 1024, vocabulary 4096 untied, batch 8 x 512.
moe:   models/demo.toml: width 256, 4 layers, 8 heads, 8 experts of 192 (top 2), vocabulary 4096 tied, batch 16 x 256.
Attention is torch's fused scaled_dot_product_attention unless `plain`, the optimiser its fused AdamW.
"""
import os, sys, time
import torch
import torch.nn.functional as F

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
torch.manual_seed(0)
KIND = sys.argv[1]
WORDS = sys.argv[2:]
STEPS = next((int(w) for w in WORDS if w.isdigit()), 5)
BF16, PLAIN, COMPILE = ("bf16" in WORDS, "plain" in WORDS, "compile" in WORDS)
D, LAYERS, HEADS, V = 256, 4, 8, 4096
HD = D // HEADS
B, T = (8, 512) if KIND == "dense" else (16, 256)


FUTURE = torch.ones(T, T, dtype=torch.bool).triu(1)


class Norm(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.ones(D))

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * self.w


def linear(i, o):
    return torch.nn.Linear(i, o, bias=False)


class SwiGLU(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.gate, self.up, self.down = linear(D, width), linear(D, width), linear(width, D)

    def forward(self, x):
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Mixture(torch.nn.Module):
    def __init__(self, experts=8, width=192, k=2):
        super().__init__()
        self.k, self.router = k, linear(D, experts)
        self.experts = torch.nn.ModuleList([SwiGLU(width) for _ in range(experts)])

    def forward(self, x):
        shape, x = x.shape, x.reshape(-1, D)
        p = torch.softmax(self.router(x), -1)
        w, chosen = p.topk(self.k, -1)
        w = w / w.sum(-1, keepdim=True)
        y = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            token, slot = torch.where(chosen == e)
            y = y.index_add(0, token, (expert(x[token]) * w[token, slot, None]).to(y.dtype))
        share = F.one_hot(chosen, len(self.experts)).sum(1).float().mean(0)
        self.balance = 0.01 / LAYERS * len(self.experts) * (share * p.mean(0)).sum()
        return y.reshape(shape)


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.o = (linear(D, D) for _ in range(4))
        self.n1, self.n2 = Norm(), Norm()
        self.ffn = SwiGLU(1024) if KIND == "dense" else Mixture()

    def forward(self, x, cos, sin):
        h = self.n1(x)
        q, k, v = (f(h).view(B, T, HEADS, HD).transpose(1, 2) for f in (self.q, self.k, self.v))

        def turn(a):
            l, r = a[..., : HD // 2], a[..., HD // 2 :]
            return torch.cat([l * cos - r * sin, r * cos + l * sin], -1)

        if PLAIN:
            scores = turn(q) @ turn(k).transpose(-1, -2) * HD**-0.5
            a = torch.softmax(scores.masked_fill(FUTURE, float("-inf")), -1) @ v
        else:
            a = F.scaled_dot_product_attention(turn(q), turn(k), v, is_causal=True)
        x = x + self.o(a.transpose(1, 2).reshape(B, T, D))
        return x + self.ffn(self.n2(x))


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(V, D)
        self.blocks = torch.nn.ModuleList([Block() for _ in range(LAYERS)])
        self.norm, self.head = Norm(), linear(D, V)
        torch.nn.init.normal_(self.embed.weight, std=0.02)
        if KIND == "moe":
            self.head.weight = self.embed.weight

    def forward(self, ids, cos, sin):
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x, cos, sin)
        return self.head(self.norm(x))


model = Model()
optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
angle = torch.arange(T).float()[:, None] * (10000 ** (-torch.arange(0, HD, 2).float() / HD))[None]
cos, sin = angle.cos(), angle.sin()
x, y = torch.randint(0, V, (B, T)), torch.randint(0, V, (B, T))
run = torch.compile(model) if COMPILE else model
for step in range(STEPS + 1):
    start = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16, enabled=BF16):
        loss = F.cross_entropy(run(x, cos, sin).float().view(-1, V), y.view(-1))
        if KIND == "moe":
            loss = loss + sum(b.ffn.balance for b in model.blocks)
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimiser.step()
    loss.item()
    if step:
        print(f"{B * T / (time.perf_counter() - start):.0f}", flush=True)
