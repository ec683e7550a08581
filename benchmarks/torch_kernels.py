#!/usr/bin/env python3
"""PyTorch peer of `ounce bench kernels`: x Wᵀ 2048³ in f32 and bf16 (GFLOP/s), one row times a bf16 4096 x 11008 matrix
(GB/s of weights). In `gemm_bf16_2048` all is bf16 (Ounce's result is f32);
`gemm_bf16_from_f32_2048` takes x and gives the result in f32, as Ounce's row of that name does.
usage: torch_kernels.py [RUNS]   (threads: OMP_NUM_THREADS; prints the median of each)"""
import os, statistics, sys, time
import torch
import torch.nn.functional as F

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
RUNS = int(sys.argv[1]) if len(sys.argv) > 1 else 3


def rate(amount, work):
    work()
    seconds = []
    for _ in range(RUNS):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return amount / statistics.median(seconds)


with torch.no_grad():
    x, w = torch.randn(2048, 2048), torch.randn(2048, 2048)
    print(f"gemm_f32_2048 {rate(2 * 2048**3 / 1e9, lambda: F.linear(x, w)):.1f} GFLOP/s", flush=True)
    v, tall = torch.randn(1, 4096).bfloat16(), torch.randn(11008, 4096).bfloat16()
    print(f"gemv_bf16_4096x11008 {rate(tall.numel() * 2 / 1e9, lambda: F.linear(v, tall)):.2f} GB/s", flush=True)
    w, x32 = w.bfloat16(), x
    x = x.bfloat16()
    print(f"gemm_bf16_2048 {rate(2 * 2048**3 / 1e9, lambda: F.linear(x, w)):.1f} GFLOP/s", flush=True)
    cast = rate(2 * 2048**3 / 1e9, lambda: F.linear(x32.bfloat16(), w).float())
    print(f"gemm_bf16_from_f32_2048 {cast:.1f} GFLOP/s", flush=True)
