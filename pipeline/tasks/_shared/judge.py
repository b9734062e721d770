"""A small network that knows the real pictures, to judge those that another network makes.

It is taught the targets of the training rows: by classes where there are any. What it thinks of made
pictures says whether they are recognised; how its features of made and of real ones are distributed
says how far apart the two are (the Frechet distance of Heusel et al. 2017, with features of this
data instead of ImageNet's).
"""

from __future__ import annotations

import numpy as np

from pipeline.prepared import Rows
from pipeline.target import Target
from pipeline.tasks._shared.generative import levels

ROWS = 24_000
PASSES = 3
BATCH = 64
RATE = 0.01
FEATURES = 64
SEED = 0


class Judge:
    """Taught once, the same for the same rows; torch's global generator is left as it was."""

    def __init__(self, train: Rows, name: str, target: Target) -> None:
        import torch
        from torch import nn

        chosen = np.random.default_rng(SEED).permutation(len(train))[:ROWS]
        channels = train.arrays[name].shape[-1]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            self.body = nn.Sequential(
                *(nn.Conv2d(channels, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
                *(nn.MaxPool2d(2, ceil_mode=True), nn.Conv2d(16, 32, 3, padding=1)),
                *(nn.BatchNorm2d(32), nn.ReLU(), nn.AdaptiveMaxPool2d(4), nn.Flatten()),
                *(nn.Linear(16 * 32, FEATURES), nn.BatchNorm1d(FEATURES), nn.ReLU()),
            )
            self.head = nn.Linear(FEATURES, len(target.labels) or 1)
            self._learn(train, name, target, np.sort(chosen))

    def _learn(self, train: Rows, name: str, target: Target, chosen: np.ndarray) -> None:
        import torch
        from torch import nn
        from torch.nn import functional

        whole = nn.Sequential(self.body, self.head).train()
        batch = min(BATCH, len(chosen))
        steps = PASSES * (len(chosen) // batch)
        optimiser = torch.optim.Adam(whole.parameters(), RATE)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=max(2, steps))
        for _ in range(PASSES):
            order = torch.randperm(len(chosen)).numpy()
            for start in range(0, len(chosen) - batch + 1, batch):
                some = np.sort(chosen[order[start : start + batch]])
                told = whole(levels(torch.from_numpy(np.array(train.arrays[name][some]))))
                known = torch.from_numpy(np.array(train.target[some]))
                if target.kind == "class":
                    loss = functional.cross_entropy(told, known)
                elif target.kind == "tags":
                    loss = functional.binary_cross_entropy_with_logits(told, known.float())
                else:
                    loss = functional.mse_loss(told[:, 0], (known - target.mean) / target.std)
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                optimiser.step()
                schedule.step()
        whole.eval()

    def looks(self, pictures: np.ndarray, batch: int = 512) -> tuple[np.ndarray, np.ndarray]:
        """Of pictures uint8 `[rows, height, width, channels]`: features, probabilities of classes."""
        import torch

        features, probabilities = [], []
        with torch.inference_mode():
            for start in range(0, len(pictures), batch):
                some = torch.from_numpy(np.array(pictures[start : start + batch]))
                seen = self.body(levels(some))
                features.append(seen.numpy())
                probabilities.append(self.head(seen).softmax(1).numpy())
        return np.concatenate(features), np.concatenate(probabilities)


def distance(first: np.ndarray, second: np.ndarray) -> float:
    """Frechet distance of two sets of features `[rows, features]`, taken for normal ones."""
    (mean, spread), (other, wide) = (
        (each.mean(0), np.cov(each, rowvar=False))
        for each in (first.astype(np.float64), second.astype(np.float64))
    )
    values, vectors = np.linalg.eigh(spread)
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    both = np.sqrt(np.clip(np.linalg.eigvalsh(root @ wide @ root), 0, None)).sum()
    apart = float(((mean - other) ** 2).sum() + np.trace(spread) + np.trace(wide) - 2 * both)
    return max(0.0, apart)
