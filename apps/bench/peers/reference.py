"""Rows of attention and its gradients in float64, from the definitions; what ours are held against too (src/reference.ts)."""

import torch


def attention_rows(q, k, v, rows, visible, scale):
    """Rows (token, head) of softmax(scale q k^T) v. q [T, H, D], k and v [S, Hkv, D]; visible(token, head) gives a bool [S] or None."""
    group = q.shape[1] // k.shape[1]
    out = []
    for token, head in rows:
        keys, values = k[:, head // group].double(), v[:, head // group].double()
        logits = keys @ q[token, head].double() * scale
        seen = visible(token, head)
        if seen is not None:
            logits = logits.masked_fill(~seen, float("-inf"))
        out.append(torch.softmax(logits, 0) @ values)
    return out


def attention_gradients(q, k, v, d_out, head, visible, scale, queries, keys):
    """dq of some queries and dk, dv of some keys of one head, over all queries, in pieces of rows. visible(first, last) gives bool [rows, S]."""
    q, k, v, d_out = (x[:, head].double() for x in (q, k, v, d_out))
    tokens, dim = q.shape
    dq = torch.zeros(len(queries), dim, dtype=torch.float64, device=q.device)
    dk = torch.zeros(len(keys), dim, dtype=torch.float64, device=q.device)
    dv = torch.zeros_like(dk)
    columns = torch.tensor(keys, device=q.device)
    step = 1024
    for first in range(0, tokens, step):
        last = min(tokens, first + step)
        logits = (q[first:last] @ k.T * scale).masked_fill(~visible(first, last), float("-inf"))
        p = torch.softmax(logits, 1)
        d_p = d_out[first:last] @ v.T
        ds = p * (d_p - (p * d_p).sum(1, keepdim=True))
        dv += p[:, columns].T @ d_out[first:last]
        dk += ds[:, columns].T @ q[first:last] * scale
        for n, query in enumerate(queries):
            if first <= query < last:
                dq[n] = ds[query - first] @ k * scale
    return dq, dk, dv


def decayed(a, b, c, rows, decay, forward):
    """Rows of the sum over s of exp(decay |t - s|) (a_t . b_s) c_s, s from t back, or from t on."""
    out = []
    tokens = a.shape[0]
    for token, head in rows:
        reach = int(min(60 / -decay[head] + 1, tokens)) if decay[head] < 0 else tokens
        first, last = (token, min(tokens, token + reach + 1)) if forward else (max(0, token - reach), token + 1)
        s = torch.arange(first, last, device=a.device)
        weights = torch.exp(decay[head] * (s - token).abs().double()) * (b[first:last, head].double() @ a[token, head].double())
        out.append(weights @ c[first:last, head].double())
    return out
