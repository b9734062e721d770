"""What every kind of decoder is."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class DecodeError(ValueError):
    """The bytes are not what the model reads: the sender's fault, and the message says why."""


class DecoderMissing(RuntimeError):
    """This machine lacks what reads such files: the operator's affair, and the message says what."""


class DecoderSettings(BaseModel):
    """A decoder as a manifest records it; `kind` names the file that carries it out."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str

    @property
    def row(self) -> tuple[int | str, ...]:
        """The shape of what it gives, with a name for an axis of any length."""
        raise NotImplementedError

    @property
    def gapped(self) -> bool:
        """Whether a number may be missing from a row, and is NaN then."""
        return False

    @property
    def reads(self) -> tuple[str, ...]:
        """Files of the bundle that decoding needs."""
        return ()
