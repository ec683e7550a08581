#!/usr/bin/env python3
"""Training speed of the methods' recipes against models of equal active size, in interleaved rounds.

usage: methods.py OUT.json [ROUNDS]      environment: OUNCE (binary, default target/release/ounce)

Every pair is a recipe of models/recipes and the same recipe without its method. `formula` is the ratio of speeds that the
arithmetic of both predicts: FLOPs per token of the products alone, forward and backward alike."""
import json, os, re, resource, statistics, subprocess, sys, tempfile, time

if len(sys.argv) < 2:
    sys.exit(__doc__)

OUT, ROUNDS = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 5
OUNCE = os.environ.get("OUNCE", "target/release/ounce")
RECIPES = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "models", "recipes")


def without(text, *tables):
    """The recipe without some tables."""
    for table in tables:
        text = re.sub(rf"(?ms)^\[{re.escape(table)}\]\n.*?(?=^\[|\Z)", "", text)
    return text


def replaced(text, **keys):
    """The recipe with values of keys replaced, or lines removed (None)."""
    for key, value in keys.items():
        text, n = re.subn(rf"(?m)^{key} = .*\n", "" if value is None else f"{key} = {value}\n", text)
        assert n == 1, key
    return text


def flops(d, length, layers, vocab, ffn, heads=1.0, extra=0.0):
    """FLOPs per token of a decoder: projections, causal scores of a share of the heads, feed-forward, logits."""
    return layers * (8 * d * d + 2 * length * d * heads + ffn + extra) + 2 * d * vocab


def pairs(read):
    aoe, mole, moh, dga = read("aoe"), read("mole"), read("moh"), read("dga")
    moe = replaced(without(aoe, "model.config"), family=None)
    dense = replaced(moe, intermediate_size=256, experts=None, experts_per_token=None, balance=None)
    f = lambda ffn, **more: flops(128, 128, 4, 1024, ffn, **more)
    swiglu = lambda width: 6 * 128 * width
    routed = f(swiglu(256) + 2 * 8 * 128)
    # AoE: two experts of three factors, and the first factor of the six that lose.
    own = f(2 * 2 * (128 * 32 + 32 * 160 + 2 * 160 * 128) + 6 * 2 * 128 * 32)
    yield "aoe", aoe, "moe", moe, routed / own
    yield "aoe", aoe, "dense", dense, f(swiglu(256)) / own
    # MoLE trains all its experts: a shared one and four routed ones, two matrices each. (Ours computes the routed ones once
    # per different id of a batch; the formula is the card's, once per token.)
    lookup = lambda experts: f(4 * 128 * 256 * (1 + experts))
    yield "mole", mole, "dense", replaced(mole, experts=0), lookup(0) / lookup(4)
    full = without(moh, "model.moh")
    yield "moh", moh, "all heads", full, 1.0
    yield "dga", dga, "exact", without(dga, "model.dga"), None
    ladder = read("ladder")
    yield "ladder", ladder, "sequential", without(ladder, "model.residual"), 1.0
    yield "long_short", read("long_short"), "alpha 0", replaced(read("long_short"), alpha=0), None
    drt = read("drt")
    window = replaced(without(drt, "model.config"), family='"mistral"', layers=6)
    window = window.replace("[tokenizer]", "[model.config]\nsliding_window = 41\n\n[tokenizer]")
    yield "drt", drt, "window, 6 layers", window, None


def recipe(name):
    return open(os.path.join(RECIPES, f"{name}.toml")).read()


def busy():
    """Processor seconds of everyone, and of our own children."""
    f = list(map(int, open("/proc/stat").readline().split()[1:9]))
    own = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (sum(f) - f[3] - f[4]) / os.sysconf("SC_CLK_TCK"), own.ru_utime + own.ru_stime


jobs = list(pairs(recipe))
found = {}
start, (all_before, own_before) = time.time(), busy()
with tempfile.TemporaryDirectory() as folder:
    for i, (_, x, _, y, _) in enumerate(jobs):
        for part, text in [("method", x), ("peer", y)]:
            open(f"{folder}/{i}-{part}.toml", "w").write(text)
    for turn in range(ROUNDS):
        for i, (a, _, b, _, formula) in enumerate(jobs):
            command = [OUNCE, "bench", "train", "--json", "--no-progress", "--runs", "3"]
            for part in ["method", "peer"]:
                command += ["--recipe", f"{folder}/{i}-{part}.toml"]
            text = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
            rows = [json.loads(line)["median"] for line in text.splitlines() if line.startswith("{")]
            entry = found.setdefault(f"{a} against {b}", {"formula": formula, "method": [], "peer": []})
            entry["method"].append(rows[0])
            entry["peer"].append(rows[1])
            print(f"round {turn + 1} {a} against {b}: {rows[0]:.0f} {rows[1]:.0f}", file=sys.stderr, flush=True)
for name, e in found.items():
    e["ratio"] = statistics.median(e["method"]) / statistics.median(e["peer"])
    s = lambda v: f"{min(v):.0f} / {statistics.median(v):.0f} / {max(v):.0f}"
    print(f"{name}: {s(e['method'])}, {s(e['peer'])}, {e['ratio']:.2f}x, formula {e['formula']}")
all_after, own_after = busy()
others = round(max(0.0, all_after - all_before - own_after + own_before) / (time.time() - start), 3)
print(f"others kept {others} processors busy")
json.dump({"unit": "tokens/s", "rounds": ROUNDS, "others_cpus": others, "figures": found}, open(OUT, "w"), indent=1)
