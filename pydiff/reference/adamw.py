"""AdamW with an average of the weights, in float64, written as algorithm 2 of Loshchilov & Hutter (2019)."""

import numpy as np


def adamw(p, g, m, v, ema, *, step, lr, beta1, beta2, eps, weight_decay, grad_scale, ema_decay):
    """All arrays (P,). Returns the new p, m, v, ema."""
    p, g, m, v, ema = (np.asarray(a, np.float64) for a in (p, g, m, v, ema))
    g = grad_scale * g
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g**2
    m_hat = m / (1 - beta1**step)
    v_hat = v / (1 - beta2**step)
    p = p - lr * m_hat / (np.sqrt(v_hat) + eps) - lr * weight_decay * p
    return p, m, v, ema_decay * ema + (1 - ema_decay) * p
