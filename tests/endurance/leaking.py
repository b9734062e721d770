"""`slipway` with a fault on purpose: every request's body is kept for good. The soak must see it."""

from __future__ import annotations

from pipeline.cli import main
from serving.doors.http.exchange import Reply, Request
from serving.doors.http.rest import Rest
from serving.doors.offload import Cancellable

KEPT: list[bytes] = []
answer = Rest.__call__


def keeping(self: Rest, request: Request, reply: Reply) -> Cancellable | None:
    """Answer as ever, and let go of nothing."""
    KEPT.append(request.body)
    return answer(self, request, reply)


if __name__ == "__main__":
    Rest.__call__ = keeping
    main()
