"""GPU times of peers, taken as ours are: 256 MiB written before each cold repetition, untimed, after 0.5 s of warm-up."""

import statistics
import time

import torch

COLD_BYTES = 256 * 1024 * 1024


class Clock:
    def __init__(self, warm_up_s=0.5, budget_ms=60.0, least=7, most=40):
        self.flush = torch.empty(COLD_BYTES, dtype=torch.uint8, device="cuda")
        self.warm_up_s, self.budget_ms, self.least, self.most = warm_up_s, budget_ms, least, most

    def _times(self, work, repeats, cold):
        pairs = []
        for _ in range(repeats):
            if cold:
                self.flush.zero_()
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            work()
            end.record()
            pairs.append((start, end))
        torch.cuda.synchronize()
        return [start.elapsed_time(end) for start, end in pairs]

    def measure(self, work):
        """Median with quartiles, cold and warm."""
        work()
        torch.cuda.synchronize()
        began = time.perf_counter()
        while time.perf_counter() - began < self.warm_up_s:
            for _ in range(4):
                work()
            torch.cuda.synchronize()
        once = max(min(self._times(work, 2, False)), 1e-3)
        repeats = int(min(self.most, max(self.least, self.budget_ms / (once + 0.2))))
        cold = self._times(work, repeats, True)
        warm = self._times(work, repeats, False)
        low, _, high = statistics.quantiles(cold, n=4)
        return {"ms": statistics.median(cold), "quartiles": [low, high], "warmMs": statistics.median(warm)}
