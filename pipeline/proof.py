"""Does the export answer as the trained network does? The comparison, and its verdict."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pipeline.bundle.manifest import Gate, Parity
from pipeline.evaluate import significant
from pipeline.metrics import METRICS

RELATIVE = 1e-5
"""Largest difference allowed, as a share of the largest absolute answer (at least of 1), save where a
frontend has a `RELATIVE` of its own."""

GOLDEN_SLACK = 10
"""A host's CPU may sum in another order; golden rows are held to this many times the tolerance."""

BEYOND = 1e30
"""What a certificate that fails anyway says for a difference without end."""

BATCH_SIZES = (64, 7, 1)
"""The whole split is run in the first size, its start (one batch of the first) in the others."""


@dataclass(frozen=True)
class Proof:
    """The certificate and the conditions it was judged by."""

    parity: Parity
    gates: tuple[Gate, ...]

    @property
    def holds(self) -> bool:
        return all(gate.passed for gate in self.gates)

    def failures(self) -> str:
        """The gates that do not hold, a line each."""
        return "\n".join(
            f"{gate.name}: measured {gate.measured:.6g}, must be {gate.rule} {gate.limit:.6g}"
            for gate in self.gates
            if not gate.passed
        )


def prove(
    reference: Mapping[str, np.ndarray],
    answers: Mapping[str, np.ndarray],
    target: np.ndarray,
    ranked: str | None,
    scores: tuple[Mapping[str, float], Mapping[str, float]],
    relative: float = RELATIVE,
) -> Proof:
    """Compare answers over the same rows: `reference` by torch, `answers` by the export.

    Arrays are `[rows, ...]` by output name. `ranked` names the output whose argmax is the answer;
    `scores` are the metrics computed from each side; `relative` is the largest difference allowed, as a
    share of the largest absolute answer.
    """
    difference = {name: _largest(answers[name], reference[name]) for name in reference}
    tolerance = {
        name: relative * max(1.0, _told(float(np.abs(r).max()), 1.0))
        for name, r in reference.items()
    }
    gates = [
        _at_most(f"largest difference of {name}", difference[name], tolerance[name])
        for name in reference
    ]
    agreement = ties = None
    if ranked is not None:
        agreement, ties = _agreement(reference[ranked], answers[ranked], tolerance[ranked])
        gates.append(
            Gate(
                name="argmax agreement outside ties",
                measured=significant(agreement, 3),
                limit=1.0,
                rule="at least",
                passed=agreement >= 1.0,
            )
        )
    by_torch, by_onnx = scores
    gates += [
        _at_most(
            f"difference in {name}", abs(value - by_onnx[name]), METRICS[name].tolerance(target)
        )
        for name, value in by_torch.items()
    ]
    parity = Parity(
        rows=len(target),
        batch_sizes=BATCH_SIZES,
        max_abs_difference={n: significant(_told(d), 3) for n, d in difference.items()},
        tolerance={n: significant(t) for n, t in tolerance.items()},
        argmax_agreement=agreement,
        ties=ties,
        metrics_torch={n: significant(_told(v)) for n, v in by_torch.items()},
        metrics_onnx={n: significant(_told(v)) for n, v in by_onnx.items()},
    )
    return Proof(parity, tuple(gates))


def _at_most(name: str, measured: float, limit: float) -> Gate:
    """A gate judged by the figures as they are, and told with those rounded."""
    return Gate(
        name=name,
        measured=significant(_told(measured), 3),
        limit=significant(limit),
        rule="at most",
        passed=measured <= limit,
    )


def _told(value: float, instead: float = BEYOND) -> float:
    """The value, or a number in its place: neither JSON nor a certificate holds NaN or infinity."""
    return value if math.isfinite(value) else instead


def _largest(answers: np.ndarray, reference: np.ndarray) -> float:
    if answers.shape != reference.shape:
        return float("inf")
    difference = np.abs(answers.astype(np.float64) - reference.astype(np.float64))
    return float(difference.max()) if np.isfinite(difference).all() else float("inf")


def _agreement(reference: np.ndarray, answers: np.ndarray, tolerance: float) -> tuple[float, int]:
    """Share of rows with the same argmax among those that are no ties, and the number of ties.

    A row is a tie when its two best answers lie closer than two tolerances can part. Answers of
    another shape agree nowhere.
    """
    if answers.shape != reference.shape:
        return 0.0, 0
    top = np.sort(reference, axis=1)[:, -2:]
    clear = (
        top[:, -1] - top[:, 0] >= 2 * tolerance
        if reference.shape[1] > 1
        else np.ones(len(reference), bool)
    )
    same = reference.argmax(1) == answers.argmax(1)
    return (float(same[clear].mean()) if clear.any() else 1.0), int((~clear).sum())
