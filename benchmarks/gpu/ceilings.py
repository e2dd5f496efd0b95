"""What this GPU can do at best, measured in the same run: the rate of a copy, and of a large matrix product in
bfloat16, tf32 and float32. Shares in the tables are of these, not of a data sheet."""

import statistics

import torch

COPY_BYTES, SIDE, TURNS = 2 * 2**30, 8192, 20


def ceilings(device):
    """{"copy_gbs", "bf16_tflops", "tf32_tflops", "fp32_tflops"}, medians."""
    count, side, turns = (2**16, 64, 3) if device.tiny else (COPY_BYTES // 4, SIDE, TURNS)
    source = torch.randn(count, device=device.at)
    target = torch.empty_like(source)
    found = {"copy_gbs": 2 * 4 * count / median(device, lambda: target.copy_(source), turns) * 1e-9}
    target = source = None  # 4 GB
    a, b = torch.randn(2, side, side, device=device.at)
    for name, tf32 in (("fp32_tflops", False), ("tf32_tflops", True)):
        torch.backends.cuda.matmul.allow_tf32 = tf32
        found[name] = 2 * side**3 / median(device, lambda: a @ b, turns if tf32 else max(3, turns // 4)) * 1e-12
    torch.backends.cuda.matmul.allow_tf32 = False
    a, b = a.bfloat16(), b.bfloat16()
    found["bf16_tflops"] = 2 * side**3 / median(device, lambda: a @ b, turns) * 1e-12
    return found


def median(device, function, turns):
    """Seconds of a call."""
    for _ in range(2):
        function()
    return statistics.median(device.seconds(function, 1) for _ in range(turns))
