"""Layers of BN-Inception in NumPy."""

import jax
import numpy as np
import oracles


class ByHand:
    """The layers of one network in float64, from its parameters."""

    def __init__(self, variables, *, train):
        self.params = jax.tree.map(np.float64, variables["params"])
        self.stats = jax.tree.map(np.float64, variables.get("batch_stats", {}))
        self.train = train
        self.inputs = {}

    def convolve(self, name, h, stride=1, groups=False):
        kernel = self.params[name]["kernel"]
        windows = _windows(h, len(kernel), stride, 0.0)
        formula = "bhwcij,ijco->bhwo"
        if groups:
            size = len(kernel)
            kernel = kernel.reshape(size, size, h.shape[3], -1)
            formula = "bhwcij,ijcm->bhwcm"
        y = np.einsum(formula, windows, kernel)
        return y.reshape(*y.shape[:3], -1) + self.params[name].get("bias", 0)

    def __call__(self, name, h, stride=1):
        h = self.convolve(name, h, stride)
        norm = self.params.get(f"{name}_norm")
        if norm is not None and self.train:
            h = oracles.batch_norm(h, norm["scale"], norm["bias"])
        elif norm is not None:
            stats = self.stats[f"{name}_norm"]
            h = oracles.inference(
                h, norm["scale"], norm["bias"], stats["mean"], stats["var"]
            )
        self.inputs[name] = h
        return np.maximum(h, 0)

    def module(self, name, h, *, stride, pool):
        branches = [] if stride == 2 else [self(f"{name}_1x1", h)]
        reduced = self(f"{name}_3x3_reduce", h)
        branches.append(self(f"{name}_3x3", reduced, stride))
        double = self(f"{name}_double_3x3_reduce", h)
        double = self(f"{name}_double_3x3_1", double)
        branches.append(self(f"{name}_double_3x3_2", double, stride))
        if pool == "avg":
            pooled = _windows(h, 3, 1, 0.0).mean((4, 5))
        elif stride == 1:
            pooled = _windows(h, 3, 1, -np.inf).max((4, 5))
        else:
            # Windows begin at the edge of an even size.
            pooled = max_from_the_edge(h)
        if stride == 1:
            pooled = self(f"{name}_pool_projection", pooled)
        return np.concatenate([*branches, pooled], axis=-1)


def _windows(h, size, stride, fill):
    edge = (size // 2, size // 2)
    padded = np.pad(h, ((0, 0), edge, edge, (0, 0)), constant_values=fill)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size), (1, 2))
    return windows[:, ::stride, ::stride]


def max_from_the_edge(h):
    """The largest of each 3 x 3 window, two pixels apart, from the first pixel on."""
    padded = np.pad(h, ((0, 0), (0, 1), (0, 1), (0, 0)), constant_values=-np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))
    return windows[:, ::2, ::2].max((4, 5))
