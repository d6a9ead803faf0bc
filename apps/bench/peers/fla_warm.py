"""Compiles a share of flash-linear-attention's autotuning candidates, so that many processes fill Triton's cache together.

    python3 fla_warm.py FOLDER SHARE SHARES

The tuning itself, whose timings must not be disturbed, is left to peers.py, which then finds every candidate compiled.
"""

import os
import sys

os.environ["FLA_CACHE_RESULTS"] = "0"  # a share's winner is no winner

import torch  # noqa: E402
from triton.runtime import autotuner  # noqa: E402

from inputs import make_input  # noqa: E402


def keep_share(share, shares):
    begin = autotuner.Autotuner.__init__

    def init(self, *arguments, **named):
        begin(self, *arguments, **named)
        self.configs = self.configs[share::shares] or self.configs[:1]

    autotuner.Autotuner.__init__ = init


def main(folder, share, shares):
    keep_share(share, shares)
    sys.path.insert(0, folder)
    from fla.ops.simple_gla import chunk_simple_gla

    heads, tokens = 16, 4096
    gamma = -(2.0 ** (-8.0 / heads * torch.arange(1, heads + 1, device="cuda", dtype=torch.float32)))
    for dim in (64, 128):
        shape = (1, tokens, heads, dim)
        q, k, v, d_out = (make_input(name, shape, torch.float16, "cuda") for name in ("q", "k", "v", "dOut"))
        with torch.no_grad():
            chunk_simple_gla(q, k, v, g_gamma=gamma, scale=1.0)
        q, k, v = (x.requires_grad_() for x in (q, k, v))
        torch.autograd.grad(chunk_simple_gla(q, k, v, g_gamma=gamma, scale=1.0)[0], (q, k, v), d_out)
    torch.cuda.synchronize()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
