"""What keys and compression cost: microseconds of a request, and bytes a second.

python benchmarks/bench_access.py
"""

from __future__ import annotations

import gzip
import tempfile
import time
import timeit
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import orjson

from serving.doors.access import Access, Scope, generated
from serving.doors.http.compression import Inflation, accepted, deflated, worthwhile
from serving.doors.http.middleware import scope_of


def seconds(work: Callable[[], object]) -> float:
    """CPU seconds of one call, the best of five rounds."""
    timer = timeit.Timer(work, timer=time.process_time)
    calls, _ = timer.autorange()
    return min(timer.repeat(5, calls)) / calls


def keys() -> None:
    print("a key checked, microseconds")
    for count in (1, 10, 100, 1000):
        made = [generated(f"key-{number}", [Scope.INFER]) for number in range(count)]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "keys.txt")
            path.write_text("".join(f"{key.line()}\n" for _, key in made))
            path.chmod(0o600)
            doors = Access(path)
            text = made[-1][0]
            print(
                f"  {count:>5} keys  {1e6 * seconds(partial(doors.allow, Scope.INFER, text)):8.2f}"
            )
    path = "/v2/models/digits/infer"
    print(f"  a path's scope {1e6 * seconds(lambda: scope_of(path)):.2f}")
    print(f"  Accept-Encoding {1e6 * seconds(lambda: accepted('gzip, deflate')):.2f}")


def compression() -> None:
    floats = np.random.default_rng(0).normal(size=(4096, 64)).astype("f4")
    bodies = {
        "JSON numbers": orjson.dumps(floats.reshape(-1), option=orjson.OPT_SERIALIZE_NUMPY),
        "float32": floats.tobytes(),
    }
    print("answers compressed: level, MB a second, share that is left, whether it is done")
    for name, body in bodies.items():
        for level in (1, 6):
            size = sum(map(len, deflated([body], "gzip", level)))
            rate = len(body) / seconds(partial(deflated, [body], "gzip", level)) / 1e6
            done = "yes" if worthwhile([body], level) else "no"
            print(f"  {name:<13}{level}{rate:7.0f}{size / len(body):7.2f}  {done}")
    packed = gzip.compress(bodies["JSON numbers"], 1)
    took = seconds(lambda: Inflation(packed, "gzip", 64 << 20).run())
    print(f"requests inflated: {len(bodies['JSON numbers']) / took / 1e6:.0f} MB a second")


if __name__ == "__main__":
    keys()
    compression()
