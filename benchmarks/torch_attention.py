#!/usr/bin/env python3
"""PyTorch peer of `ounce bench attention --method exact`: scaled_dot_product_attention alone, one layer, batch 1, random
queries, keys and values, f32 and bf16.

usage: torch_attention.py [CONTEXT] [HEADS] [HEAD_DIM] [RUNS]     (default 4096 32 128 3; threads: OMP_NUM_THREADS)

prefill: a prompt of CONTEXT tokens, causal. decode: one token after it, over all keys; 36 tokens per run. Prints the
median of tokens/s, and the peak resident memory of the process so far."""
import os, resource, statistics, sys, time
import torch
import torch.nn.functional as F

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
torch.manual_seed(0)
CONTEXT, HEADS, HEAD_DIM, RUNS = [int(a) for a in sys.argv[1:5]] + [4096, 32, 128, 3][len(sys.argv[1:5]) :]
DECODE = 36


def rate(amount, work):
    work()
    seconds = []
    for _ in range(RUNS):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return amount / statistics.median(seconds)


def row(name, rate):
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"attention_exact_{name}_{CONTEXT}_{HEADS}x{HEAD_DIM} {rate:.2f} tokens/s, peak {peak:.2f} GiB", flush=True)


with torch.no_grad():
    for name, dtype in [("f32", torch.float32), ("bf16", torch.bfloat16)]:
        q, k, v = (torch.randn(1, HEADS, CONTEXT, HEAD_DIM, dtype=dtype) for _ in range(3))
        row(f"{name}_prefill", rate(CONTEXT, lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True)))
        one = q[:, :, -1:].contiguous()

        def decode():
            for _ in range(DECODE):
                F.scaled_dot_product_attention(one, k, v)

        row(f"{name}_decode", rate(DECODE, decode))
