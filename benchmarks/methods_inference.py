#!/usr/bin/env python3
"""Decoding of MoLE from its table, and DRT over long texts, against models of equal active size, in interleaved rounds.

usage: methods_inference.py OUT.json [ROUNDS] [WORD]       only jobs with WORD in their name
environment: OUNCE (binary, default target/release/ounce), TEXT (a text of some megabytes for a vocabulary of 8192)

Models are made here: recipes of one step, so that they have every tensor of a trained one. What speed needs is shapes."""
import json, os, resource, statistics, subprocess, sys, tempfile, time

if len(sys.argv) < 2:
    sys.exit(__doc__)
OUT, ROUNDS = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 5
WORD = sys.argv[3] if len(sys.argv) > 3 else ""
OUNCE, TEXT = os.environ.get("OUNCE", "target/release/ounce"), os.environ.get("TEXT")

RECIPE = """{model}
[tokenizer]
train_vocab = {vocab}
[data]
train = ["{text}"]
[optimizer]
lr = 1e-6
[run]
steps = 1
batch = 1
length = {length}
export = "bf16"
"""
# 8 layers of width 512; the shared expert is the dense model's feed-forward block.
MOLE = """[model]
family = "mole"
hidden_size = 512
layers = 8
heads = 8
intermediate_size = 2048
experts = {experts}
max_positions = 4096
[model.config]
hidden_act = "gelu"
"""
# Width 256, 8 layers of 8 heads; windows of 512 tokens.
COMMON = "hidden_size = 256\nheads = 8\nintermediate_size = 688\ntied = true\nmax_positions = 1073741824\n"
DRT = f"""[model]
family = "drt"
layers = 8
{COMMON}[model.config]
decoder_layers = [4, 4]
encoder_layers = 1
enc_chunk_size = 64
landmark_null_slot = false
chunk_topk = 8
slide_window = 512
chunk_id = 256
"""
WINDOW = f"[model]\nfamily = \"mistral\"\nlayers = 10\n{COMMON}[model.config]\nsliding_window = 512\n"
EXACT = f"[model]\nlayers = 8\n{COMMON}"


def ounce(*args):
    return subprocess.run([OUNCE, *args, "--no-progress"], stdout=subprocess.PIPE, text=True, check=True).stdout


def model(name, text, vocab, data, length=256):
    """Trains for one step; returns the checkpoint's folder."""
    with open(f"{name}.toml", "w") as f:
        f.write(RECIPE.format(model=text, vocab=vocab, text=data, length=length))
    ounce("train", f"{name}.toml", "--out", name)
    return f"{name}/final"


def bench(what, folder, context):
    """tokens/s and peak memory; one process per model."""
    row = json.loads(ounce("bench", what, folder, "--context", str(context), "--runs", "1" if context > 1 else "3", "--json"))
    return {"tokens_per_second": row["median"], "peak_rss_mb": row["peak_rss_bytes"] / 1e6}


def jobs():
    if TEXT and "drt" not in WORD:
        for kind, experts in [("dense", 0), ("trained form", 4)]:
            folder = model(f"mole-{experts}", MOLE.format(experts=experts), 8192, TEXT)
            yield f"mole {kind} decode", lambda f=folder: bench("decode", f, 1)
        for dtype in ["f32", "f16"]:
            ounce("convert", folder, "--to", "mole-lut", "--dtype", dtype, "--out", f"mole-lut-{dtype}")
            yield f"mole table {dtype} decode", lambda d=dtype: bench("decode", f"mole-lut-{d}", 1)
    if "mole" not in WORD:
        ounce("data", "toy", "--out", "toy")
        # Longest contexts. Exact attention over 64 K tokens takes minutes, over 256 K half an hour.
        kinds = [
            ("drt", DRT, {"prefill": 1 << 18, "decode": 1 << 18}),
            ("window, 10 layers", WINDOW, {"prefill": 1 << 18, "decode": 1 << 16}),
            ("exact", EXACT, {"prefill": 1 << 16, "decode": 1 << 14}),
        ]
        folders = [model(k.split(",")[0], text, 257, "toy/toy-text.txt", 1024) for k, text, _ in kinds]
        for context in [1 << 14, 1 << 16, 1 << 18]:
            for (kind, _, most), folder in zip(kinds, folders):
                for what in ["prefill", "decode"]:
                    if context <= most[what]:
                        yield f"drt {kind} {what} {context}", lambda w=what, f=folder, c=context: bench(w, f, c)


def busy():
    """Processor seconds of everyone, and of our own children."""
    f = list(map(int, open("/proc/stat").readline().split()[1:9]))
    own = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (sum(f) - f[3] - f[4]) / os.sysconf("SC_CLK_TCK"), own.ru_utime + own.ru_stime


OUT, found = os.path.abspath(OUT), {}
with tempfile.TemporaryDirectory() as folder:
    os.chdir(folder)
    made = [(name, run) for name, run in jobs() if WORD in name]
    if not made:
        sys.exit(f"no job has \"{WORD}\" in its name; those of MoLE need TEXT")
    start, (all_before, own_before) = time.time(), busy()
    for turn in range(ROUNDS):
        for name, run in made:
            row = run()
            for key, value in row.items():
                found.setdefault(name, {}).setdefault(key, []).append(value)
            print(f"round {turn + 1} {name}: {row['tokens_per_second']:.0f}", file=sys.stderr, flush=True)
    all_after, own_after = busy()
    others = round(max(0.0, all_after - all_before - own_after + own_before) / (time.time() - start), 3)
for name, row in found.items():
    show = lambda v: f"{min(v):.0f} / {statistics.median(v):.0f} / {max(v):.0f}"
    print(f"{name}: {show(row['tokens_per_second'])} tokens/s, {show(row['peak_rss_mb'])} MB")
print(f"others kept {others} processors busy")
json.dump({"rounds": ROUNDS, "others_cpus": others, "figures": found}, open(OUT, "w"), indent=1)
