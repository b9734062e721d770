"""Pictures of a training and its result, as SVG or PNG bytes: the same bytes for the same numbers."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from pipeline.metrics import area, confusion, reliability, roc
from pipeline.prepared import Rows

BLUE, ORANGE, GREY = "#2b6cb0", "#dd6b20", "#718096"
MISTAKES = 24
SHOWN_OF_LABEL = 17
"""Characters of a label above a picture, eight beside one another."""
MAX_CURVES = 12
MAX_LABELS = 40


def curves(history: str) -> bytes:
    """Learning curves from the text of `history.csv`: loss, the other scores, the learning rate."""
    rows = list(csv.DictReader(io.StringIO(history)))
    epoch = [float(row["epoch"]) for row in rows]
    columns = {name: [float(row[name]) for row in rows] for name in rows[0] if name != "epoch"}
    scores = [n for n in columns if n.startswith("validation_") and n != "validation_loss"]

    def draw(axes: Any) -> None:
        for name, colour in (("train_loss", BLUE), ("validation_loss", ORANGE)):
            axes[0].plot(epoch, columns[name], color=colour, label=name.replace("_", " "))
        for name in scores:
            axes[1].plot(
                epoch, columns[name], label=name.removeprefix("validation_").replace("_", " ")
            )
        axes[2].plot(epoch, columns["lr"], color=GREY)
        for ax, title in zip(axes, ("loss", "validation scores", "learning rate"), strict=True):
            ax.set(title=title, xlabel="epoch")
            ax.grid(alpha=0.3)
        axes[0].legend()
        axes[1].legend()

    return _figure(draw, columns=3, width=12, height=3.6)


def classification(
    probabilities: np.ndarray, rows: Rows, labels: tuple[str, ...]
) -> dict[str, bytes]:
    """A classifier's pictures by file name: confusion, ROC, calibration and, where rows show, mistakes."""
    target = np.asarray(rows.target)
    drawn = {
        "confusion.svg": _confusion(confusion(probabilities, target), labels),
        "roc.svg": _roc(probabilities, target, labels),
        "calibration.svg": _calibration(probabilities, target),
    }
    if len(rows) and isinstance(rows.seen(0), np.ndarray):
        drawn["mistakes.png"] = _mistakes(probabilities, target, rows, labels)
    return drawn


def regression(predicted: np.ndarray, actual: np.ndarray, units: str) -> dict[str, bytes]:
    """A regression's pictures by file name: predicted against actual, and what is left over."""
    unit = f" ({units})" if units else ""
    ends = [min(predicted.min(), actual.min()), max(predicted.max(), actual.max())]

    def draw_predictions(axes: Any) -> None:
        axes[0].plot(ends, ends, color=GREY, lw=0.8, ls="--", label="right")
        axes[0].scatter(actual, predicted, s=6, color=BLUE, alpha=0.4, lw=0, label="rows")
        axes[0].set(
            xlabel=f"actual{unit}", ylabel=f"predicted{unit}", title="Predicted against actual"
        )
        axes[0].legend(loc="upper left")
        axes[0].grid(alpha=0.3)
        _plain(axes[0])

    def draw_residuals(axes: Any) -> None:
        residual = predicted - actual
        axes[0].axhline(0, color=GREY, lw=0.8, ls="--")
        axes[0].scatter(predicted, residual, s=6, color=BLUE, alpha=0.4, lw=0)
        axes[0].set(
            xlabel=f"predicted{unit}",
            ylabel=f"predicted - actual{unit}",
            title="Residuals against predicted",
        )
        axes[1].hist(residual, bins=50, color=BLUE)
        axes[1].set(xlabel=f"predicted - actual{unit}", ylabel="rows", title="Rows by residual")
        for ax in axes:
            ax.grid(alpha=0.3)
            _plain(ax)

    return {
        "predictions.png": _figure(draw_predictions, width=5.5, height=5, kind="png"),
        "residuals.png": _figure(draw_residuals, columns=2, width=10, height=4, kind="png"),
    }


def _plain(ax: Any) -> None:
    """Few ticks, with their numbers written out: 1,250,000 rather than 1.25 below a far-off 1e6."""
    ax.locator_params(nbins=5)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter("{x:,.10g}")


def multilabel(
    probabilities: np.ndarray, target: np.ndarray, labels: tuple[str, ...], threshold: float
) -> dict[str, bytes]:
    """A tagger's pictures by file name: precision and recall by label, and ROC."""
    curves = [(label, *roc(probabilities[:, i], target[:, i])) for i, label in enumerate(labels)]
    held = probabilities >= np.float32(threshold)
    found = (held & target).sum(0)
    precision, recall = found / np.maximum(1, held.sum(0)), found / np.maximum(1, target.sum(0))
    shown = np.argsort(recall, kind="stable")[:MAX_LABELS]

    def draw(axes: Any) -> None:
        place = np.arange(len(shown))
        axes[0].barh(place - 0.2, precision[shown], 0.4, color=BLUE, label="precision")
        axes[0].barh(place + 0.2, recall[shown], 0.4, color=ORANGE, label="recall")
        axes[0].set_yticks(place, [labels[i] for i in shown])
        axes[0].set(xlim=(0, 1), title=f"At threshold {threshold:g}")
        axes[0].legend(fontsize=8)
        axes[0].grid(alpha=0.3, axis="x")

    return {
        "labels.svg": _figure(draw, width=6, height=min(14.0, 2 + 0.4 * len(shown))),
        "roc.svg": _roc_of(curves),
    }


def _confusion(matrix: np.ndarray, labels: tuple[str, ...]) -> bytes:
    size = min(14.0, 2.4 + 0.42 * len(labels))

    def draw(axes: Any) -> None:
        ax = axes[0]
        # Shaded by share of the actual class: a rare class is seen as well as a common one.
        ax.imshow(
            matrix / np.maximum(1, matrix.sum(1, keepdims=True)), cmap="Blues", vmin=0, vmax=1
        )
        ax.set(xlabel="predicted", ylabel="actual", title="Confusion, rows of the test split")
        if len(labels) <= MAX_LABELS:
            ax.set_xticks(
                range(len(labels)), labels, rotation=90 if max(map(len, labels)) > 2 else 0
            )
            ax.set_yticks(range(len(labels)), labels)
            for a, p in zip(*np.nonzero(matrix), strict=True):
                dark = matrix[a, p] > 0.5 * matrix[a].sum()
                ax.text(
                    p, a, matrix[a, p], ha="center", va="center", color="w" if dark else "k", size=8
                )

    return _figure(draw, width=size, height=size)


def _roc(probabilities: np.ndarray, target: np.ndarray, labels: tuple[str, ...]) -> bytes:
    return _roc_of(
        [(label, *roc(probabilities[:, i], target == i)) for i, label in enumerate(labels)]
    )


def _roc_of(curves: list[tuple[str, np.ndarray, np.ndarray]]) -> bytes:
    """The worst of the curves: (label, false positive rate, true positive rate)."""
    worst = sorted(curves, key=lambda curve: area(curve[1], curve[2]))[:MAX_CURVES]

    def draw(axes: Any) -> None:
        for label, false, true in worst:
            axes[0].plot(false, true, label=f"{label} ({area(false, true):.4f})", lw=1.2)
        axes[0].plot([0, 1], [0, 1], color=GREY, lw=0.8, ls="--")
        axes[0].set(
            xlabel="false positive rate", ylabel="true positive rate", title="ROC, one against rest"
        )
        axes[0].legend(title="class (area)", fontsize=8, loc="lower right")
        axes[0].grid(alpha=0.3)

    return _figure(draw, width=5.5, height=5)


def _calibration(probabilities: np.ndarray, target: np.ndarray) -> bytes:
    bins = reliability(probabilities, target)

    def draw(axes: Any) -> None:
        axes[0].plot([0, 1], [0, 1], color=GREY, lw=0.8, ls="--", label="calibrated")
        axes[0].scatter(
            [sure for _, sure, _ in bins],
            [right for _, _, right in bins],
            s=[20 + 300 * share for share, _, _ in bins],
            color=BLUE,
            alpha=0.7,
            label="rows (size: share)",
        )
        axes[0].set(
            xlabel="confidence",
            ylabel="accuracy",
            title="Calibration",
            # So that no bubble is cut by the frame.
            xlim=(-0.05, 1.05),
            ylim=(-0.05, 1.05),
        )
        axes[0].legend(loc="upper left", markerscale=0.5)
        axes[0].grid(alpha=0.3)

    return _figure(draw, width=5.5, height=5)


def _mistakes(
    probabilities: np.ndarray, target: np.ndarray, rows: Rows, labels: tuple[str, ...]
) -> bytes:
    """The wrong rows that were surest, or, where fewer are wrong, then the right ones least sure."""
    sure = probabilities[np.arange(len(target)), target]
    shown = np.argsort(sure, kind="stable")[:MISTAKES]
    predicted = probabilities.argmax(1)

    def draw(axes: Any) -> None:
        for ax in axes:
            ax.axis("off")
        for ax, row in zip(axes, shown, strict=False):
            wrong = predicted[row] != target[row]
            seen = rows.seen(row)
            assert isinstance(seen, np.ndarray)
            # One that is long or tall, such as a spectrogram, is stretched to fill its place.
            stretched = max(seen.shape[:2]) > 2 * min(seen.shape[:2])
            aspect = "auto" if stretched else "equal"
            ax.imshow(seen, cmap="gray", vmin=0, vmax=255, aspect=aspect)
            verdict = f"\n→ {_short(labels[predicted[row]])}" if wrong else "\nok"
            ax.set_title(
                f"{_short(labels[target[row]])}{verdict}, p={probabilities[row].max():.2f}",
                color="#c53030" if wrong else GREY,
                size=8,
            )

    count = int((predicted != target).sum())
    title = (
        f"Worst answers of the test split: {count} of {len(target)} wrong (actual → predicted)"
        if count
        else f"All {len(target)} rows of the test split are right; these were least sure"
    )
    # A grid of squares needs no layout to be searched for, which would take as long as all the rest.
    room = {"left": 0.01, "right": 0.99, "bottom": 0.02, "top": 0.83, "wspace": 0.1, "hspace": 0.5}
    return _figure(draw, rows=3, columns=8, width=10, height=5, kind="png", title=title, room=room)


def _short(label: str) -> str:
    """As much of a label as fits above a small picture."""
    return label if len(label) <= SHOWN_OF_LABEL else f"{label[: SHOWN_OF_LABEL - 1]}…"


def _figure(
    draw: Callable[[Any], None],
    *,
    width: float,
    height: float,
    rows: int = 1,
    columns: int = 1,
    kind: str = "svg",
    title: str | None = None,
    room: dict[str, Any] | None = None,
) -> bytes:
    """Draw on a list of axes. Sizes are in inches.

    `room` is what the axes get, as shares of the figure; without it a layout is searched for.
    """

    def fill(figure: Any) -> None:
        draw(list(figure.subplots(rows, columns, squeeze=False, gridspec_kw=room).flat))
        if title:
            figure.suptitle(title)

    return saved(
        fill, width=width, height=height, kind=kind, layout=None if room else "constrained"
    )


def saved(
    fill: Callable[[Any], None],
    *,
    width: float,
    height: float,
    kind: str,
    layout: Literal["constrained"] | None,
) -> bytes:
    """A figure of so many inches without dates or random ids."""
    import matplotlib
    from matplotlib.figure import Figure

    # Labels come from the data: a '$' in one is a dollar, not mathematics.
    style: dict[Any, Any] = {"svg.hashsalt": "slipway", "svg.fonttype": "path"}
    with matplotlib.rc_context({**style, "text.parse_math": False, "font.size": 9}):
        figure = Figure(figsize=(width, height), layout=layout, dpi=110)
        fill(figure)
        buffer = io.BytesIO()
        empty = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
        figure.savefig(buffer, format=kind, metadata=empty)
    return buffer.getvalue()
