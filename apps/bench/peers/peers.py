"""Peers of the benchmark on a CUDA machine: torch (cuBLAS, SDPA), FlexAttention, flash-linear-attention.

    python3 peers.py --json peers.json [--only matmul,sdpa,decode,fla,gla,flex,masks] [--fla FOLDER] [--masks masks.json]

Writes what src/record.ts calls a PeerRecord: ids of our entries, medians with cold and warm caches, and the error of sampled rows
against float64 on the numbers that our kernels got. FOLDER holds the sources of flash-linear-attention (the folder `fla` in it).
"""

import argparse
import json
import sys
import traceback

import torch
import torch.nn.functional as F

from inputs import make_input, row_error, sample_rows
from reference import attention_gradients, attention_rows, decayed
from timing import Clock

DEVICE = "cuda"
HALF, SINGLE = torch.float16, torch.float32
HEADS = 16
TOLERANCE = {HALF: {"forward": 4e-3, "backward": 4e-3}, SINGLE: {"forward": 2e-4, "backward": 1e-3}}
NAMES = {HALF: "f16", SINGLE: "f32"}


class Record:
    """Entries and failures, written after each one, so that a run cut short keeps what it has."""

    def __init__(self, path):
        self.path = path
        self.clock = Clock()
        self.versions = {"torch": torch.__version__, "cuda": torch.version.cuda, "python": sys.version.split()[0]}
        self.rates, self.entries, self.failures = {}, [], []
        self.masks = None

    def write(self):
        record = {
            "schema": "heed-peers-1",
            "device": {"name": torch.cuda.get_device_name(0)},
            "versions": self.versions,
            "rates": self.rates,
            "entries": self.entries,
            "failures": self.failures,
        }
        with open(self.path, "w") as file:
            json.dump(record, file, indent=1)

    def measure(self, ids, name, version, tolerance, prepare, note=None):
        """`prepare` returns the work to time and a function that gives the error of a run. `ids`: one id, or several with one figure."""
        ids = [ids] if isinstance(ids, str) else ids
        try:
            work, error = prepare()
            worst = error()
            figures = self.clock.measure(work)
            for one in ids:
                entry = {"id": one, "name": name, "version": version, **figures, "error": worst, "tolerance": tolerance}
                if note:
                    entry["note"] = note
                self.entries.append(entry)
            print(f"{ids[0]:52s} {name:28s} {figures['ms']:9.4f} ms (warm {figures['warmMs']:9.4f})  error {worst:.1e}", flush=True)
            return figures
        except Exception as failure:  # one peer that cannot run must not end the others
            traceback.print_exc()
            self.failures.extend({"id": one, "why": f"{name}: {type(failure).__name__}: {str(failure)[:300]}"} for one in ids)
            return None
        finally:
            self.write()
            torch.cuda.empty_cache()


def heads_first(x):
    """[1, tokens, heads, dim] as SDPA takes it, contiguous."""
    return x.transpose(1, 2).contiguous()


def matmul(record):
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    for dtype, edges in ((HALF, (1024, 2048, 4096, 8192)), (SINGLE, (1024, 2048, 4096))):
        for edge in edges:

            def prepare():
                a, b = (make_input(name, (edge, edge), dtype, DEVICE) for name in "ab")
                rows = [0, edge * 37 // 100, edge - 1]

                def error():
                    got = a @ b
                    return max(row_error(got[r, -64:], a[r].double() @ b[:, -64:].double()) for r in rows)

                return lambda: a @ b, error

            name = "cuBLAS" if dtype == HALF else "torch f32, no TF32"
            found = record.measure(f"matmul/{NAMES[dtype]}/{edge}", name, torch.__version__, 2e-3 if dtype == HALF else 1e-5, prepare)
            if found:
                key = f"{NAMES[dtype]}Tflops"
                record.rates[key] = max(record.rates.get(key, 0), 2 * edge**3 / found["ms"] / 1e9)
    x = torch.ones(1 << 28, dtype=torch.uint8, device=DEVICE)
    y = torch.empty_like(x)
    record.rates["copyGbps"] = 2 * x.numel() / record.clock.measure(lambda: y.copy_(x))["ms"] / 1e6
    record.write()


def memory(record):
    def rows_of(name, rows, width, dtype):
        return make_input(name, (rows, width), dtype, DEVICE)

    def entry(op, source, expected):
        places = [0, source.shape[0] // 3, source.shape[0] - 1]

        def error():
            got = op()
            return max(row_error(got[r], expected(source[r].double())) for r in places)

        return op, error

    def copied():
        x = rows_of("x", 16384, 1024, SINGLE)
        y = torch.empty_like(x)
        return entry(lambda: y.copy_(x), x, lambda row: row)

    def normed():
        x = rows_of("x", 65536, 1024, HALF)
        return entry(lambda: F.rms_norm(x, (1024,), eps=1e-6), x, lambda row: row / (row.square().mean() + 1e-6).sqrt())

    def losses():
        logits = rows_of("logits", 16384, 8192, SINGLE)
        targets = torch.arange(16384, device=DEVICE) * 7919 % 8192

        def call():
            return F.cross_entropy(logits, targets, reduction="none")

        def error():
            got = call()
            return max(row_error(got[r], F.cross_entropy(logits[r].double(), targets[r])) for r in (0, 16384 // 3, 16383))

        return call, error

    def stepped():
        p = rows_of("parameters", 8192, 8192, SINGLE)
        p.grad = rows_of("gradients", 8192, 8192, SINGLE)
        before = p[8191].double().clone()
        optimizer = torch.optim.AdamW([p], lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)

        def error():
            optimizer.step()
            g = p.grad[8191].double()
            return row_error(p[8191], before - 1e-3 * (g / (g.abs() + 1e-8) + 0.1 * before))

        return optimizer.step, error

    version = torch.__version__
    record.measure("copy/f32/16384x1024", "torch copy", version, 1e-5, copied)
    record.measure("rms-norm/f16/65536x1024", "torch rms_norm", version, 2e-3, normed)
    record.measure("cross-entropy/f32/16384x8192", "torch cross_entropy", version, 1e-5, losses)
    record.measure("adamw/f32/8192x8192", "torch AdamW, fused", version, 1e-6, stepped)


def attention_entry(tokens, head_dim, dtype, call, visible, pairs_visible, backward, heads=HEADS):
    """Work and error of an attention function on [1, heads, tokens, dim]; `visible(token, head)` and `pairs_visible(first, last)` say what is seen."""
    scale = head_dim**-0.5
    shape = (1, tokens, heads, head_dim)
    source = [make_input(name, shape, dtype, DEVICE) for name in ("q", "k", "v")]
    q, k, v = (heads_first(x).requires_grad_(backward) for x in source)
    rows = sample_rows(tokens, heads)
    flat = [x[0] for x in source]

    def forward_error():
        with torch.no_grad():
            out = call(q, k, v)[0]
        expected = attention_rows(*flat, rows, visible, scale)
        return max(row_error(out[h, t], e) for (t, h), e in zip(rows, expected))

    if not backward:

        def work():
            with torch.no_grad():
                call(q, k, v)

        return work, forward_error
    cotangent = make_input("dOut", shape, dtype, DEVICE)
    d_out = heads_first(cotangent)
    out = call(q, k, v)

    def run():
        return torch.autograd.grad(out, (q, k, v), d_out, retain_graph=True)

    def error():
        dq, dk, dv = (g[0] for g in run())
        head = heads >> 1
        queries = [t for t, _ in rows if t > 1]
        keys = sorted({0, tokens // 8 + 1, tokens // 2 + 1, tokens - 3, tokens - 1})
        eq, ek, ev = attention_gradients(*flat, cotangent[0], head, pairs_visible, scale, queries, keys)
        found = [row_error(dq[head, t], eq[n]) for n, t in enumerate(queries) if eq[n].norm() > 0]
        found += [row_error(dk[head, t], ek[n]) for n, t in enumerate(keys) if ev[n].norm() > 0]
        found += [row_error(dv[head, t], ev[n]) for n, t in enumerate(keys) if ev[n].norm() > 0]
        return max(found)

    return run, error


def causal_row(tokens):
    places = torch.arange(tokens, device=DEVICE)
    return lambda token, head: places <= token


def causal_rows(tokens):
    places = torch.arange(tokens, device=DEVICE)
    return lambda first, last: places[None, :] <= torch.arange(first, last, device=DEVICE)[:, None]


def sdpa(record):
    def call(q, k, v):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    cases = [(HALF, d, t, b) for d in (64, 128) for t, b in ((4096, 0), (16384, 0), (65536, 0), (4096, 1), (16384, 1))]
    cases += [(SINGLE, 64, 4096, 0), (SINGLE, 64, 4096, 1)]
    for dtype, head_dim, tokens, backward in cases:
        way = "backward" if backward else "forward"
        ids = [f"attention/causal/{NAMES[dtype]}/d{head_dim}/{tokens}/{way}"]
        if dtype == HALF and head_dim == 64 and not backward:
            ids.append(f"zeta/{tokens}/forward")  # what ZETA stands in for
        record.measure(
            ids,
            "torch SDPA flash" if dtype == HALF else "torch SDPA f32",
            torch.__version__,
            TOLERANCE[dtype][way],
            lambda: attention_entry(tokens, head_dim, dtype, call, causal_row(tokens), causal_rows(tokens), bool(backward)),
        )


def decode(record):
    for tokens, heads, kv_heads, dim in [(t, 32, 8, 128) for t in (32768, 131072)]:

        def prepare():
            q = make_input("q", (1, 1, heads, dim), HALF, DEVICE)
            k, v = (make_input(name, (1, tokens, kv_heads, dim), HALF, DEVICE) for name in "kv")
            qh, kh, vh = heads_first(q), heads_first(k), heads_first(v)

            def call():
                with torch.no_grad():
                    return F.scaled_dot_product_attention(qh, kh, vh, enable_gqa=True)

            def error():
                out = call()[0]
                rows = sample_rows(1, heads)
                expected = attention_rows(q[0], k[0], v[0], rows, lambda t, h: None, dim**-0.5)
                return max(row_error(out[h, t], e) for (t, h), e in zip(rows, expected))

            return call, error

        record.measure(f"decode/f16/hq{heads}hkv{kv_heads}/d{dim}/{tokens}", "torch SDPA", torch.__version__, 4e-3, prepare)


def fla(record):
    import fla as package
    from fla.ops.simple_gla import chunk_simple_gla

    version = package.__version__
    record.versions["flash-linear-attention"] = version
    slopes = 2.0 ** (-8.0 / HEADS * torch.arange(1, HEADS + 1, device=DEVICE, dtype=torch.float32))
    gamma = -slopes  # a log-decay: negative
    cases = [("lightning2", 64, t, b) for t in (65536, 16384, 4096) for b in (0, 1)]
    cases += [("lightning2", *rest) for rest in ((128, 65536, 0), (128, 65536, 1), (64, 262144, 0), (64, 1048576, 0))]
    cases += [("lightning", 64, tokens, 0) for tokens in (65536, 131072, 262144)]
    for name, dim, tokens, backward in cases:
        decays = name == "lightning2"
        decay = [-s if decays else 0.0 for s in slopes.double().tolist()]

        def prepare():
            shape = (1, tokens, HEADS, dim)
            q, k, v = (make_input(name, shape, HALF, DEVICE).requires_grad_(bool(backward)) for name in ("q", "k", "v"))
            rows = sample_rows(tokens, HEADS)

            def call():
                return chunk_simple_gla(q, k, v, g_gamma=gamma if decays else None, scale=1.0)[0]

            def worst(got, expected):
                return max(row_error(got[0, t, h], e) for (t, h), e in zip(rows, expected))

            with torch.no_grad():
                fq, fk, fv = q[0], k[0], v[0]
            if not backward:

                def work():
                    with torch.no_grad():
                        return call()

                return work, lambda: worst(work(), decayed(fq, fk, fv, rows, decay, False))
            d_out = make_input("dOut", shape, HALF, DEVICE)
            out = call()

            def run():
                return torch.autograd.grad(out, (q, k, v), d_out, retain_graph=True)

            def error():
                dq, dk, dv = run()
                do = d_out[0]
                return max(
                    worst(dq, decayed(do, fv, fk, rows, decay, False)),
                    worst(dk, decayed(fv, do, fq, rows, decay, True)),
                    worst(dv, decayed(fk, fq, do, rows, decay, True)),
                )

            return run, error

        way = "backward" if backward else "forward"
        record.measure(f"{name}/f16/d{dim}/{tokens}/{way}", "fla chunk_simple_gla", version, TOLERANCE[HALF][way], prepare)
    fla_based(record)


def mask_mod(name, shape, tokens):
    """The masks of LongCA-bench that FlexAttention can say in a line, from the parameters in our record; None for the others."""
    if "documents" in shape:
        lengths = torch.tensor([int(n) for n in shape["documents"].split()], device=DEVICE)
        ids = torch.repeat_interleave(torch.arange(len(lengths), device=DEVICE, dtype=torch.int32), lengths)
        starts = torch.repeat_interleave(torch.cumsum(lengths, 0) - lengths, lengths).to(torch.int32)
        last = len(lengths) - 1
    w, p, block = shape.get("window", 0), shape.get("prefix", 0), shape.get("block", 1)
    mods = {
        "causal": lambda b, h, i, j: i >= j,
        "full-sliding-window": lambda b, h, i, j: (i - j).abs() <= w,
        "causal-sliding-window": lambda b, h, i, j: (i >= j) & (i - j <= w),
        "full-document": lambda b, h, i, j: ids[i] == ids[j],
        "causal-document": lambda b, h, i, j: (ids[i] == ids[j]) & (i >= j),
        "shared-question": lambda b, h, i, j: ((ids[i] == ids[j]) & (i >= j)) | ((ids[j] == 0) & (ids[i] != 0)),
        "global-sliding-window": lambda b, h, i, j: ((i - j).abs() <= w) | (i < 2 * w) | (j < 2 * w),
        "causal-blockwise": lambda b, h, i, j: (i >= j) & ((ids[i] == ids[j]) | (ids[i] == last)),
        "prefix-lm-causal": lambda b, h, i, j: (i >= j) | (j < p),
        "prefix-lm-document": lambda b, h, i, j: (ids[i] == ids[j]) & ((i >= j) | (j - starts[j] < p)),
        "block-causal-document": lambda b, h, i, j: (ids[i] == ids[j]) & (j < (i // block + 1) * block),
    }
    return mods.get(name)


def masks(record):
    if not record.masks:
        raise ValueError("name a record of ours with --masks: it says how the masks were drawn")
    with open(record.masks) as file:
        entries = [entry for entry in json.load(file)["entries"] if entry["id"].startswith("mask/")]
    measure = flex_measure(record)
    for entry in entries:
        mod = mask_mod(entry["mask"]["name"], entry["shape"], entry["shape"]["tokens"])
        if mod:
            measure(entry["id"], entry["shape"]["tokens"], mod, entry["pass"] == "backward")


def flex_measure(record):
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    torch._dynamo.config.recompile_limit = 256  # one compilation a mask and length
    compiled = torch.compile(flex_attention, dynamic=False)

    def measure(entry_id, tokens, mod, backward):
        def prepare():
            block_mask = create_block_mask(mod, None, None, tokens, tokens, device=DEVICE)
            places = torch.arange(tokens, device=DEVICE)

            def visible(token, head):
                return mod(0, head, torch.tensor(token, device=DEVICE), places)

            def pairs(first, last):
                return mod(0, HEADS >> 1, torch.arange(first, last, device=DEVICE)[:, None], places[None, :])

            return attention_entry(tokens, 64, HALF, lambda q, k, v: compiled(q, k, v, block_mask=block_mask), visible, pairs, backward)

        way = "backward" if backward else "forward"
        record.measure(entry_id, "FlexAttention", torch.__version__, TOLERANCE[HALF][way], prepare)

    return measure


def fla_based(record):
    import fla as package
    from fla.ops.based import fused_chunk_based

    for tokens in (16384, 65536):

        def prepare():
            q, k = (make_input(name, (1, tokens, HEADS, 16), HALF, DEVICE) for name in "qk")
            v = make_input("v", (1, tokens, HEADS, 64), HALF, DEVICE)
            rows = sample_rows(tokens, HEADS)

            def call():
                with torch.no_grad():
                    return fused_chunk_based(q, k, v)

            def error():
                got = call()
                worst = 0.0
                for token, head in rows:
                    s = k[0, : token + 1, head].double() @ q[0, token, head].double() / 4
                    weights = 1 + s + s * s / 2
                    worst = max(worst, row_error(got[0, token, head], weights @ v[0, : token + 1, head].double() / weights.sum()))
                return worst

            return call, error

        record.measure(f"based/f16/f16/d64/{tokens}/forward", "fla fused_chunk_based", package.__version__, TOLERANCE[HALF]["forward"], prepare)


def gla(record):
    """A gate a token and channel, beside lawcat. Without its normaliser and with gates given as f32 log-decays. Tuning takes minutes at first."""
    import fla as package
    from fla.ops.gla import chunk_gla

    for tokens in (65536, 16384, 262144):

        def prepare():
            shape = (1, tokens, HEADS, 64)
            q, k, v = (make_input(name, shape, HALF, DEVICE) for name in "qkv")
            gate = F.logsigmoid(make_input("gate", shape, SINGLE, DEVICE)) / 16
            rows = sample_rows(tokens, HEADS)

            def call():
                with torch.no_grad():
                    return chunk_gla(q, k, v, gate, scale=1.0)[0]

            def error():
                got = call()
                worst = 0.0
                for token, head in rows:
                    # what lies 8,192 tokens back has decayed by e^-300
                    past = slice(max(0, token - 8192), token + 1)
                    rates = gate[0, past, head].double()
                    behind = rates.flip(0).cumsum(0).flip(0) - rates
                    weights = (k[0, past, head].double() * behind.exp()) @ q[0, token, head].double()
                    worst = max(worst, row_error(got[0, token, head], weights @ v[0, past, head].double()))
                return worst

            return call, error

        note = "the gated scan alone, no normaliser"
        record.measure(f"lawcat/f16/d64/{tokens}/forward", "fla chunk_gla", package.__version__, TOLERANCE[HALF]["forward"], prepare, note)


def flex(record):
    measure = flex_measure(record)

    def window(b, h, i, j):
        return (i >= j) & (i - j < 1024)

    edge, width = 128, 13

    def neighborhood(b, h, i, j):
        reach = width // 2
        row = (i // edge).clamp(reach, edge - 1 - reach)
        column = (i % edge).clamp(reach, edge - 1 - reach)
        return ((j // edge - row).abs() <= reach) & ((j % edge - column).abs() <= reach)

    measure("window1024/f16/d64/16384/forward", 16384, window, False)
    measure("fna2d/128x128/13x13/f16/d64/forward", edge * edge, neighborhood, False)
    measure("window1024/f16/d64/65536/forward", 65536, window, False)
    measure("attention/causal/f16/d64/16384/forward", 16384, lambda b, h, i, j: i >= j, False)
    measure("window1024/f16/d64/16384/backward", 16384, window, True)
    measure("fna2d/128x128/13x13/f16/d64/backward", edge * edge, neighborhood, True)


FAMILIES = {"memory": memory, "matmul": matmul, "sdpa": sdpa, "decode": decode, "fla": fla, "gla": gla, "flex": flex, "masks": masks}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", required=True)
    parser.add_argument("--only", default="memory,matmul,sdpa,decode,fla,flex")
    parser.add_argument("--fla", help="folder that holds the folder fla")
    parser.add_argument("--masks", help="a record of ours with the masks; for --only masks")
    options = parser.parse_args()
    if options.fla:
        sys.path.insert(0, options.fla)
    record = Record(options.json)
    record.masks = options.masks
    for name in options.only.split(","):
        try:
            FAMILIES[name](record)
        except Exception as failure:  # a family whose package is missing says so and leaves the others alone
            traceback.print_exc()
            record.failures.append({"id": name, "why": f"{type(failure).__name__}: {str(failure)[:300]}"})
            record.write()


if __name__ == "__main__":
    main()
