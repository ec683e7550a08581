#!/usr/bin/env python3
"""Interleaved rounds of Ounce and its peers, with the load others made, as benchmarks/README.md asks.

usage: rounds.py OUT.json [ROUNDS] [WORD] [CONTEXT]
    only jobs with WORD in their command; the word `attention` runs those of attention alone, at CONTEXT (4096) tokens
environment: OUNCE (binary, default target/release/ounce), PYTHON (one with torch), LLAMA_BENCH (llama.cpp's),
             MODEL (Hugging Face folder) and GGUF (the same weights for llama.cpp); a peer without its variable is left out.
"""
import json, os, re, resource, statistics, subprocess, sys, time

if len(sys.argv) < 2:
    sys.exit(__doc__)

OUT = sys.argv[1]
ROUNDS = int(sys.argv[2]) if len(sys.argv) > 2 else 5
WORD = sys.argv[3] if len(sys.argv) > 3 else ""
CONTEXT = sys.argv[4] if len(sys.argv) > 4 else "4096"
OUNCE = os.environ.get("OUNCE", "target/release/ounce")
PYTHON, LLAMA = os.environ.get("PYTHON"), os.environ.get("LLAMA_BENCH")
MODEL, GGUF = os.environ.get("MODEL"), os.environ.get("GGUF")
HERE = os.path.dirname(os.path.abspath(__file__))


def ounce(prefix, *args):
    def read(text):
        rows = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
        found = {f"{prefix}{r['name']} ({r['unit']})": r["median"] for r in rows}
        found |= {f"{prefix}{r['name']} peak RSS (MB)": r["peak_rss_bytes"] / 1e6 for r in rows[:1]}
        return found
    return f"{prefix}{args[0]}", [OUNCE, "bench", *args, "--json", "--no-progress"], {}, read


def torch(name, script, *args, threads="2"):
    def read(text):
        numbers = [float(n) for n in re.findall(r"^(\d+(?:\.\d+)?)$", text, re.M)]
        if numbers:
            return {f"{name} (tokens/s)": statistics.median(numbers)}
        return {f"{name} {key} ({unit})": float(v) for key, v, unit in re.findall(r"^(\w+) ([\d.]+) (\S+)$", text, re.M)}
    return name, [PYTHON, f"{HERE}/{script}", *args], {"OMP_NUM_THREADS": threads}, read


def torch_attention(context, runs):
    def read(text):
        return {f"torch {k} ({u})": float(v) for k, v, u in re.findall(r"^(\S+) ([\d.]+) (\S+), peak", text, re.M)}
    return "torch attention", [PYTHON, f"{HERE}/torch_attention.py", context, "32", "128", runs], {"OMP_NUM_THREADS": "2"}, read


def llama(threads):
    def read(text):
        return {f"llama.cpp {threads}t {t['n_prompt'] and 'pp512' or 'tg128'} (tokens/s)": t["avg_ts"] for t in json.loads(text)}
    return f"llama.cpp {threads}t", [LLAMA, "-m", GGUF, "-t", threads, "-p", "512", "-n", "128", "-r", "2", "-o", "json"], {}, read


JOBS = [ounce("2t ", "kernels", "--runs", "7"), ounce("2t ", "train", "--runs", "3"), ounce("1t ", "train", "--runs", "2", "--threads", "1")]
if MODEL:
    JOBS += [ounce("2t ", "decode", MODEL, "--runs", "2"), ounce("2t ", "prefill", MODEL, "--runs", "2")]
if PYTHON:
    JOBS += [torch("torch", "torch_kernels.py", "7")]
    for words in ["dense 4", "dense 4 plain", "dense 4 bf16 plain", "dense 6 bf16 plain compile", "dense 6 plain compile",
                  "dense 6 bf16 compile", "moe 4", "moe 4 plain", "moe 4 bf16 plain"]:
        JOBS.append(torch(f"torch {words}", "torch_train.py", *words.split()))
if LLAMA and GGUF:
    JOBS.append(llama("2"))
if WORD == "attention":
    # MoH's share of the time does not depend on the context; long prompts take minutes.
    runs, methods = ("2", ["exact", "dga", "moh"]) if int(CONTEXT) <= 4096 else ("1", ["exact", "dga"])
    for method in methods:
        JOBS.append(ounce("2t ", "attention", "--method", method, "--context", CONTEXT, "--runs", runs))
    JOBS.append(ounce("2t ", "attention", "--method", "exact", "--compute", "bf16", "--context", CONTEXT, "--runs", runs))
    if PYTHON:
        JOBS.append(torch_attention(CONTEXT, runs))
JOBS = [job for job in JOBS if WORD in " ".join(job[1])]


def ticks():
    f = list(map(int, open("/proc/stat").readline().split()[1:9]))
    return sum(f) - f[3] - f[4]


def measure(command, env):
    """Output of one run and the processors that others kept busy meanwhile."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    before, busy, wall = used.ru_utime + used.ru_stime, ticks(), time.time()
    text = subprocess.run(command, env=os.environ | env, capture_output=True, text=True, check=True).stdout
    wall, busy = time.time() - wall, ticks() - busy
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    own = used.ru_utime + used.ru_stime - before
    return text, max(0.0, busy / os.sysconf("SC_CLK_TCK") - own) / wall


figures, load = {}, {}
for turn in range(ROUNDS):
    for name, command, env, read in JOBS:
        for attempt in range(3):
            text, others = measure(command, env)
            if others <= 0.05:
                break
        load.setdefault(name, []).append(round(others, 3))
        for key, value in read(text).items():
            figures.setdefault(key, []).append(value)
        print(f"round {turn + 1} {name}: others {others:.2f} CPUs", file=sys.stderr, flush=True)
    summary = {k: {"min": min(v), "median": statistics.median(v), "max": max(v), "rounds": v} for k, v in figures.items()}
    json.dump({"rounds": turn + 1, "figures": summary, "others_cpus": load}, open(OUT, "w"), indent=1)
for key, v in summary.items():
    print(f"{key}: {v['min']:.1f} / {v['median']:.1f} / {v['max']:.1f}")
