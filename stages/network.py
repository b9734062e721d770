"""Settings and prepared data to a network and its task: where a stage looks both up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from pipeline import prepared
from pipeline.checkpoint import load_weights
from pipeline.network import Network, assemble
from stages.params import Experiment


def task(experiment: Experiment, manifest: prepared.Manifest) -> Any:
    """The experiment's task over the data set's target."""
    return experiment.task.module.Task(experiment.task.config, manifest.target, manifest.inputs)


def fresh(experiment: Experiment, manifest: prepared.Manifest) -> Network:
    """The network as it starts: weights drawn from torch's generator."""
    return _assembled(experiment, manifest, task(experiment, manifest).outputs)


def resized(experiment: Experiment, manifest: prepared.Manifest) -> Network:
    """The network for one more answer: what differs from `fresh` is the head. Draws nothing."""
    with torch.random.fork_rng(devices=[]):
        return _assembled(experiment, manifest, task(experiment, manifest).outputs + 1)


def _assembled(experiment: Experiment, manifest: prepared.Manifest, outputs: int) -> Network:
    model = experiment.model
    return assemble(manifest, model.module, model.config, outputs)


def trained(experiment: Experiment, manifest: prepared.Manifest, weights: Path) -> Network:
    """The whole network with the trained weights, on the CPU, in evaluation mode."""
    network = fresh(experiment, manifest)
    network.load_state_dict(load_weights(weights))
    return network.eval()
