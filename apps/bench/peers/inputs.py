"""The inputs of the benchmark: the same numbers as src/inputs.ts makes, by tensor name and element index."""

import torch

WORD = 0xFFFFFFFF


def mix(x):
    """32-bit finaliser "lowbias32", on int64 tensors or numbers."""
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & WORD
    x = ((x ^ (x >> 15)) * 0x846CA68B) & WORD
    return x ^ (x >> 16)


def key_of(name):
    """FNV-1a over the characters of a name."""
    key = 0x811C9DC5
    for letter in name:
        key = ((key ^ ord(letter)) * 0x01000193) & WORD
    return key


def make_input(name, shape, dtype, device):
    """A tensor of nearly normal numbers, exact in f16: (sum of the hash's four bytes - 510) / 128."""
    size = 1
    for edge in shape:
        size *= edge
    key = key_of(name)
    first, second = mix(key), mix((key + 1) & WORD)
    out = torch.empty(size, dtype=dtype, device=device)
    piece = 1 << 26
    for start in range(0, size, piece):
        i = torch.arange(start, min(size, start + piece), dtype=torch.int64, device=device)
        h = mix((mix(i ^ first) + second) & WORD)
        total = (h & 255) + ((h >> 8) & 255) + ((h >> 16) & 255) + (h >> 24) - 510
        out[start : start + i.numel()] = (total.to(torch.float32) / 128).to(dtype)
    return out.view(shape)


def sample_rows(tokens, heads):
    """(token, head) of the rows that are checked; the same as sampleRows in src/samples.ts."""
    places = [
        (0, 0),
        (1, heads - 1),
        (tokens // 4, heads >> 1),
        (tokens * 37 // 100, 1),
        (tokens // 2, 0),
        (tokens - 2, heads - 1),
        (tokens - 1, heads >> 1),
    ]
    if tokens > 1 << 18:
        places = places[::3]
    rows = [(min(max(t, 0), tokens - 1), min(h, heads - 1)) for t, h in places]
    return list(dict.fromkeys(rows))


def row_error(got, expected):
    """|got - expected| / |expected|, Euclidean; rows below the smallest normal number of `got`'s format count against that number."""
    apart = (got.double() - expected).norm().item()
    length = expected.norm().item()
    if apart != apart or apart == float("inf"):
        return float("inf")
    if length == 0:
        return apart
    return apart / max(length, expected.numel() ** 0.5 * torch.finfo(got.dtype).tiny)
