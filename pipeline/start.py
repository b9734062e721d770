"""Where a training's weights come from: drawn anew, or taken from an earlier run; what of it is held.

An earlier network is taken whole, the constants of its frontend included, so that what is held reads
what it learnt to read. Left new is only what the number of answers sizes (a head over other labels),
and what `init_except` names. Anything else that does not fit is refused by name.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from pipeline.bundle.manifest import MODEL_NAME, Input, canonical_json, sha256
from pipeline.config import ConfigError, Section, suggestion

if TYPE_CHECKING:
    import torch
    from torch import nn

NEW = "data/new-weights"
"""What `init_from` says where nothing is taken: DVC's loops have no conditionals, so a file is named."""

NOTES = "slipway"
"""The key of `Notes` in a safetensors file."""

EXCEPT = "model.init_except"

SHOWN = 20
"""Names or mistakes that a message shows; the rest are counted."""


class Start(Section):
    """Settings that every model has beside its own."""

    init_from: str = Field(
        NEW,
        description=f"`{NEW}`: drawn at random; or weights to start from, a file like "
        "`build/NAME/weights.safetensors`, NAME being another experiment. DVC needs it written down",
    )
    init_except: tuple[str, ...] = Field(
        (), description="patterns of names, `body.0.*`: what of that file is not taken"
    )
    freeze: tuple[str, ...] = Field(
        (),
        description="patterns of names that training leaves as they are; `!` lets go again, the last "
        'that fits decides: `["*", "!body.9.*"]`',
    )

    @property
    def path(self) -> Path | None:
        """The weights to start from; none where they are drawn."""
        return None if self.init_from == NEW else Path(self.init_from)

    @model_validator(mode="after")
    def _start_applicable(self) -> Start:
        if self.init_from == NEW:
            idle = [name for name in ("init_except", "freeze") if getattr(self, name)]
            if idle:
                raise ValueError(f"{idle[0]} needs weights to start from: init_from")
        elif not self.init_from.endswith(".safetensors"):
            hint = (
                f"; an experiment's weights are build/{self.init_from}/weights.safetensors"
                if MODEL_NAME.fullmatch(self.init_from)
                else ""
            )
            raise ValueError(
                f"init_from: expected {NEW} or a .safetensors file, got {self.init_from!r}{hint}"
            )
        return self


@dataclass(frozen=True)
class Origin:
    """What became of the weights that a training started from; names as the network has them."""

    file: str
    sha256: str
    taken: tuple[str, ...]
    new: tuple[str, ...]
    frozen: tuple[str, ...]

    def told(self) -> str:
        """In a sentence, names and all."""
        new, frozen = (", ".join(names) or "nothing" for names in (self.new, self.frozen))
        return (
            f"{len(self.taken)} tensors of {self.file} (SHA-256 {self.sha256[:12]}); "
            f"new: {new}; frozen: {frozen}"
        )


@dataclass(frozen=True)
class Notes:
    """What weights say of themselves, in their file.

    `numbering` is a digest of what ids and columns stand for, "" where the data has neither; `columns`
    are the names of the columns, in order.
    """

    numbering: str = ""
    columns: tuple[str, ...] = ()
    origin: Origin | None = None

    def packed(self) -> dict[str, str]:
        """As safetensors keep it: one key, since their order there is anyone's guess."""
        if self == Notes():
            return {}
        told = asdict(self)
        if not self.columns:
            del told["columns"]
        return {NOTES: json.dumps(told, sort_keys=True)}


def notes(path: Path) -> Notes:
    """What the weights in `path` say of themselves; nothing, where others wrote them.

    Raises `ConfigError` for notes of another shape.
    """
    from safetensors import safe_open

    with safe_open(path, framework="np") as file:
        packed = (file.metadata() or {}).get(NOTES, "{}")
    try:
        return TypeAdapter(Notes).validate_json(packed, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        place = "".join(f"{step}: " for step in first["loc"])
        raise ConfigError(
            f"{path}: its metadata {NOTES!r} is not what a training writes there ({place}{first['msg']}); "
            "train it again, or save its tensors without that key"
        ) from None


def numbered(inputs: Sequence[Input], files: Mapping[str, str]) -> Notes:
    """What the ids and columns of these inputs stand for; `files` are SHA-256 of what decoders read."""
    columns = [list(getattr(i.decoder, "columns", ())) for i in inputs]
    told = [
        [names, list(getattr(i.decoder, "values", ()))]
        for i, names in zip(inputs, columns, strict=True)
        if i.dtype == "int64" or names
    ]
    digest = sha256(canonical_json([told, dict(files)])) if told else ""
    return Notes(digest, tuple(name for names in columns for name in names))


def begin(
    network: nn.Module,
    other: nn.Module,
    own: Notes,
    path: Path,
    weights: Mapping[str, torch.Tensor],
    config: Start,
) -> Origin:
    """Start `network` from the weights that `path` holds, and hold what is to be frozen.

    `other` is the same network for another number of answers, `own` what its ids and columns stand
    for. Raises `ConfigError` naming what does not fit.
    """
    _check_meaning(network, own, path, weights, config)
    shapes = {name: tensor.shape for name, tensor in other.state_dict().items()}
    taken, new = take(network, shapes, weights, config)
    frozen = freeze(network, config.freeze, new)
    return Origin(str(path), sha256(path.read_bytes()), tuple(taken), tuple(new), tuple(frozen))


def _check_meaning(
    network: nn.Module, own: Notes, path: Path, weights: Iterable[str], config: Start
) -> None:
    """Raises `ConfigError` where what reads ids or columns was learnt of others, and is not spared."""
    theirs = notes(path)
    if not theirs.numbering or not own.numbering or theirs.numbering == own.numbering:
        return
    reading = readers(network)
    spared = chosen(config.init_except, sorted({*network.state_dict(), *weights}), EXCEPT)
    if spared.issuperset(reading):
        return
    if theirs.columns != own.columns:
        why = f"its columns are {_listed(theirs.columns)}, and this data's {_listed(own.columns)}"
    else:
        why = "its words or categories are numbered otherwise than this data's"
    missing = {name for name in reading if name not in spared}
    layers = {name for name in missing if not name.startswith("frontend.")}
    patterns = [*config.init_except, *["frontend.*"][: missing > layers], *_patterns(layers)]
    raise ConfigError(
        f"model.init_from: {path}: {why}; name what was learnt of them in {EXCEPT}: "
        f"{json.dumps(patterns)}"
    )


def readers(network: nn.Module) -> list[str]:
    """The names of what means something only by the ids and columns that it reads.

    That is the frontend; and the first layer, where it is given the columns themselves rather than
    vectors learnt of them.
    """
    from torch import nn

    straight = any(
        next(itertools.chain(part.parameters(False), part.buffers(False)), None) is not None
        and not any(isinstance(inner, nn.Embedding) for inner in part.modules())
        for name, part in network.named_modules()
        if name.split(".")[0] == "frontend"
    )
    layers = [
        name
        for name, parameter in network.named_parameters()
        if name.startswith("body.") and parameter.ndim > 1
    ]
    frontend = [name for name in network.state_dict() if name.startswith("frontend.")]
    return frontend + (layers[:1] if straight else [])


def _patterns(names: Iterable[str]) -> list[str]:
    """Patterns that choose all these names, each by the layer that it is of."""
    return sorted({f"{name.rpartition('.')[0] or name}.*" for name in names})


def _listed(names: Sequence[str]) -> str:
    rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return (", ".join(names[:SHOWN]) or "none") + rest


def take(
    network: nn.Module,
    other: Mapping[str, torch.Size],
    weights: Mapping[str, torch.Tensor],
    config: Start,
) -> tuple[list[str], list[str]]:
    """Put `weights` into the network; the names that were taken, and those left new.

    `other` are the shapes of the same network for another number of answers: what differs there is
    the head. Raises `ConfigError` with a line for each tensor that does not fit.
    """
    own = network.state_dict()
    spared = chosen(config.init_except, sorted({*own, *weights}), EXCEPT)
    taken, new, mistakes = [], [], []
    for name, tensor in own.items():
        came = weights.get(name)
        if name in spared:
            new.append(name)
        elif came is None:
            mistakes.append(f"{name} {list(tensor.shape)} is not in the file")
        elif came.shape == tensor.shape:
            taken.append(name)
        elif _head(tensor.shape, other[name], came.shape):
            new.append(name)
        else:
            mistakes.append(f"{name}: expected {list(tensor.shape)}, got {list(came.shape)}")
    mistakes += [
        f"{name} {list(tensor.shape)} of the file is not in this network"
        for name, tensor in weights.items()
        if name not in own and name not in spared
    ]
    if mistakes:
        rest = [f"... and {len(mistakes) - SHOWN} more"] if len(mistakes) > SHOWN else []
        first = (
            f"model.init_from: {config.init_from} does not fit; model and data.frontend must be as they "
            "were in that run, or name in model.init_except what to leave new"
        )
        raise ConfigError("\n".join([first, *(f"  {line}" for line in (*mistakes[:SHOWN], *rest))]))
    network.load_state_dict({name: weights[name] for name in taken}, strict=False)
    return taken, new


def _head(own: Sequence[int], other: Sequence[int], came: Sequence[int]) -> bool:
    """Whether two shapes differ only where the number of answers counts."""
    return len(own) == len(came) and all(
        a == c or a != b for a, b, c in zip(own, other, came, strict=True)
    )


def freeze(network: nn.Module, patterns: Sequence[str], new: Sequence[str]) -> list[str]:
    """Hold the parameters that the patterns choose; their names.

    Raises `ConfigError` for a pattern that fits none, and for a parameter in `new`, which would stay
    as it was drawn.
    """
    parameters = dict(network.named_parameters())
    held = chosen(patterns, list(parameters), "model.freeze")
    if drawn := sorted(held & set(new)):
        again = ", ".join(json.dumps(f"!{pattern}") for pattern in _patterns(drawn))
        raise ConfigError(
            f"model.freeze: {', '.join(drawn)} would stay as drawn at random: not taken from "
            f"model.init_from; add {again}"
        )
    for name in held:
        parameters[name].requires_grad_(False)
    return [name for name in parameters if name in held]


def settle(network: nn.Module) -> None:
    """After `network.train()`: what is frozen keeps the statistics that it gathered.

    That is batch normalisation, and the vectors of spectral normalisation. Dropout goes on.
    """
    for part in network.modules():
        parameters = list(part.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            for inner in part.modules():
                if next(inner.buffers(recurse=False), None) is not None:
                    inner.training = False


def chosen(patterns: Sequence[str], names: Sequence[str], path: str) -> set[str]:
    """The names that the patterns choose, the last that fits deciding.

    Raises `ConfigError` for a pattern that fits no name.
    """
    found: set[str] = set()
    for place, pattern in enumerate(patterns):
        glob = pattern.removeprefix("!")
        fitting = {name for name in names if fnmatchcase(name, glob)}
        if not fitting:
            near = suggestion(glob, list(names)).partition(";")[0]
            raise ConfigError(
                f"{path}.{place}: nothing fits {glob!r}{near}; there are {_listed(names)}"
            )
        found = found - fitting if pattern.startswith("!") else found | fitting
    return found
