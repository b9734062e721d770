"""The layout of what is counted: which float64 cell of a worker's row means what.

A row is its head, then for each model version, and two places more, one *account* of equal shape.
A histogram is its buckets, each counted for itself, then one cell with the sum.
"""

from __future__ import annotations

DOORS = ("http", "grpc")
HTTP, GRPC = range(2)

OUTCOMES = ("success", "invalid", "overloaded", "deadline", "failed", "cancelled", "unready")
SUCCESS, INVALID, OVERLOADED, DEADLINE, FAILED, CANCELLED, UNREADY = range(7)

STATES = (
    *("loading", "verifying", "warming", "ready"),
    *("draining", "unloading", "unloaded", "failed"),
)
"""What a model version can be; a cell holds the position plus one, 0 where there is none."""

HTTP_CODES = (
    *("200", "400", "401", "403", "404", "405", "408", "413", "415", "417", "429", "431"),
    *("499", "500", "501", "503", "504", "505", "other"),
)
GRPC_CODES = (
    *("OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND"),
    *("ALREADY_EXISTS", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION"),
    *("ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"),
    *("UNAUTHENTICATED", "other"),
)

SECONDS = (
    *(0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025),
    *(0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
"""Upper bounds of the histograms of durations; one bucket more holds what is above."""
BUCKETS = len(SECONDS) + 1

EXACT_ROWS = 64
BATCH_SIZES = (*range(EXACT_ROWS + 1), 128, 256, 512, 1024)
"""Rows of a batch as they are told apart: each number to 64, then up to these."""
BATCH_PLACES = len(BATCH_SIZES) + 1

MODELS = 256
"""Model versions counted by name in the life of a server; what comes after shares one account."""
NAMELESS, OVERFLOW = 0, MODELS + 1
OTHER = "_other"
"""The name of the shared account. No model can have it: theirs begin with a letter or a digit."""

# The head of a row. `ANSWERED` is by door and code.
STARTS = 0
STARTED = 1
CPU_SECONDS = 2
REFUSED = 3
DROPPED = REFUSED + 1
ANSWERED = (DROPPED + 1, DROPPED + 1 + len(HTTP_CODES))
MEMORY = ANSWERED[GRPC] + len(GRPC_CODES)
FILES = MEMORY + 1
CONNECTIONS = FILES + 1
IN_FLIGHT = CONNECTIONS + 1  # by door
HEAD_CELLS = IN_FLIGHT + len(DOORS)
HEAD_GAUGES = range(MEMORY, HEAD_CELLS)
"""What a worker that died no longer has."""

# An account.
REQUESTS = 0  # by door and outcome
ROWS = REQUESTS + len(DOORS) * len(OUTCOMES)
RECEIVED = ROWS + 1
SENT = RECEIVED + 1
FAILED_SECONDS = SENT + 1
DECODE_SECONDS = FAILED_SECONDS + 1
LAST = DECODE_SECONDS + 1  # Unix time of the last batch
QUEUE = LAST + 1
QUEUE_SUM = QUEUE + BUCKETS
RUN = QUEUE_SUM + 1
RUN_SUM = RUN + BUCKETS
CODEC = RUN_SUM + 1
CODEC_SUM = CODEC + BUCKETS
TOTAL = CODEC_SUM + 1
TOTAL_SUM = TOTAL + BUCKETS
BATCHES = TOTAL_SUM + 1  # by size
BATCH_SECONDS = BATCHES + BATCH_PLACES  # by size
BATCH_ROWS = BATCH_SECONDS + BATCH_PLACES
WAITING = BATCH_ROWS + 1
WAITING_ROWS = WAITING + 1
STATE = WAITING_ROWS + 1
FALLBACK = STATE + 1
ACCOUNT_CELLS = FALLBACK + 1
ACCOUNT_GAUGES = range(WAITING, ACCOUNT_CELLS)

ROW_CELLS = HEAD_CELLS + (MODELS + 2) * ACCOUNT_CELLS


def batch_place(rows: int) -> int:
    """Which of `BATCH_PLACES` a batch of so many rows is counted in."""
    if rows <= EXACT_ROWS:
        return rows
    return min(EXACT_ROWS - 6 + (rows - 1).bit_length(), len(BATCH_SIZES))


def account(slot: int) -> slice:
    """The cells of a row that belong to one slot."""
    start = HEAD_CELLS + slot * ACCOUNT_CELLS
    return slice(start, start + ACCOUNT_CELLS)
