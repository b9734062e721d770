"""What `/metrics` says, read by Prometheus' own parsers."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families as parse_text

from serving.observability import cells, exposition, families
from serving.observability.exposition import Page, fill, wants_openmetrics
from serving.observability.metrics import Metrics

BUILD = {"version": "1.0", "python": "3.11.7", "onnxruntime": "1.31.1"}
INFO = {
    "model": "a",
    "version": "1",
    "digest": "d" * 64,
    "variant": "fp32",
    "provider_requested": "prefer",
    "provider": "CPUExecutionProvider",
}


def read(body: bytes, openmetrics: bool = False) -> dict[str, Metric]:
    parse = parse_openmetrics if openmetrics else parse_text
    return {metric.name: metric for metric in parse(body.decode())}


def scraped(metrics: Metrics, openmetrics: bool = False) -> dict[str, Metric]:
    page = Page(openmetrics)
    for _ in fill(page, metrics.ledger, [INFO], BUILD):
        pass
    return read(page.body(), openmetrics)


def value(found: dict[str, Metric], name: str, sample: str = "", **labels: str) -> float:
    (only,) = (
        one.value
        for one in found[name].samples
        if one.name == (sample or name) and labels.items() <= one.labels.items()
    )
    return float(only)


@pytest.fixture
def metrics() -> Metrics:
    metrics = Metrics()
    meter = metrics.meter("a", "1")
    meter.success(cells.HTTP, 3, 100, 50, 0.00004, 0.002, 0.003, 0.004, 0.01)
    meter.success(cells.GRPC, 1, 10, 5, 0.0002, 30.0, 0.003, 0.004, 31.0)
    meter.failure(cells.HTTP, cells.DEADLINE, 1, 2, 1.0)
    meter.batch(4, 0.002)
    meter.batch(2000, 0.002)
    meter.now("ready", 2, 20, True)
    metrics.nameless.failure(cells.GRPC, cells.INVALID, 1, 2, 0.1)
    metrics.answered(cells.HTTP, 200)
    metrics.answered(cells.HTTP, 404)
    metrics.connections(5)
    metrics.in_flight(cells.GRPC, 6)
    metrics.refused()
    metrics.dropped(3)
    metrics.sample_process()
    return metrics


@pytest.mark.parametrize("openmetrics", [False, True])
def test_everything_counted_is_told(metrics: Metrics, openmetrics: bool):
    found = scraped(metrics, openmetrics)
    assert set(found) == {family.name for family in families.FAMILIES}
    for family in families.FAMILIES:
        assert found[family.name].type == family.kind
        assert found[family.name].documentation == family.help
    requests = "slipway_requests_total"
    of = {"model": "a", "version": "1"}
    assert value(found, "slipway_requests", requests, door="http", outcome="success", **of) == 1
    assert value(found, "slipway_requests", requests, door="grpc", outcome="success", **of) == 1
    assert value(found, "slipway_requests", requests, door="http", outcome="deadline", **of) == 1
    assert value(found, "slipway_requests", requests, door="grpc", model="", outcome="invalid") == 1
    assert value(found, "slipway_rows", "slipway_rows_total", **of) == 4
    assert value(found, "slipway_received_bytes", "slipway_received_bytes_total", **of) == 111
    assert value(found, "slipway_sent_bytes", "slipway_sent_bytes_total", **of) == 57
    bucket = "slipway_queue_seconds_bucket"
    assert value(found, "slipway_queue_seconds", bucket, le="5e-05") == 1
    assert value(found, "slipway_queue_seconds", bucket, le="0.0001") == 1
    assert value(found, "slipway_queue_seconds", bucket, le="0.00025") == 2
    assert value(found, "slipway_run_seconds", "slipway_run_seconds_bucket", le="10.0") == 1
    assert value(found, "slipway_run_seconds", "slipway_run_seconds_bucket", le="+Inf") == 2
    assert value(found, "slipway_run_seconds", "slipway_run_seconds_sum") == pytest.approx(30.002)
    assert value(found, "slipway_request_seconds", "slipway_request_seconds_count") == 2
    assert value(found, "slipway_codec_seconds", "slipway_codec_seconds_sum") == pytest.approx(
        0.014
    )
    rows = "slipway_batch_rows_bucket"
    assert [value(found, "slipway_batch_rows", rows, le=le) for le in ("2.0", "4.0")] == [0, 1]
    assert [value(found, "slipway_batch_rows", rows, le=le) for le in ("1024.0", "+Inf")] == [1, 2]
    assert value(found, "slipway_batches", "slipway_batches_total", **of) == 2
    assert value(found, "slipway_queue_requests") == 2 and value(found, "slipway_queue_rows") == 20
    assert value(found, "slipway_model_state", state="ready") == 1
    assert value(found, "slipway_model_state", state="loading") == 0
    assert value(found, "slipway_cuda_fallback") == 1
    assert value(found, "slipway_model_info", **INFO) == 1
    assert value(found, "slipway_responses", "slipway_responses_total", code="404") == 1
    assert value(found, "slipway_open_connections") == 5
    assert value(found, "slipway_in_flight_requests", door="grpc") == 6
    dropped = "slipway_access_log_dropped"
    assert value(found, dropped, f"{dropped}_total") == 3
    assert value(found, "slipway_build_info", **BUILD) == 1
    assert value(found, "process_resident_memory_bytes", worker="0") > 1 << 20


def test_histograms_hold_together(metrics: Metrics):
    for metric in scraped(metrics).values():
        if metric.type != "histogram":
            continue
        counts = [one.value for one in metric.samples if one.name.endswith("_bucket")]
        assert counts == sorted(counts)
        assert counts[-1] == value({metric.name: metric}, metric.name, f"{metric.name}_count")


def test_batches_between_the_bounds_are_told_under_the_right_one():
    for rows in (0, 1, 2, 3, 5, 31, 33, 64, 65, 128, 129, 513, 1024):
        metrics = Metrics()
        metrics.meter("a", "1").batch(rows, 0.1)
        found = scraped(metrics)["slipway_batch_rows"]
        least = min(
            float(one.labels["le"])
            for one in found.samples
            if one.name.endswith("_bucket") and one.value
        )
        assert least == min(bound for bound in exposition.BATCH_BOUNDS if bound >= rows)


texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)
numbers = st.floats(0, 1e300) | st.integers(0, 1 << 53).map(float) | st.just(math.inf)


@given(
    st.dictionaries(st.tuples(texts, texts), numbers, max_size=8),
    st.dictionaries(
        st.tuples(texts, texts),
        st.tuples(st.lists(st.integers(0, 1 << 40), min_size=18, max_size=18), st.floats(0, 1e9)),
        max_size=4,
    ),
    st.booleans(),
)
def test_what_is_written_is_read_back(counters, histograms, openmetrics: bool):
    page = Page(openmetrics)
    for labels, number in counters.items():
        page.value(families.SENT, labels, number)
    for labels, (buckets, total) in histograms.items():
        page.histogram(families.RUN, labels, cells.SECONDS, buckets, total)
    found = read(page.body(), openmetrics)
    got = {
        (one.labels["model"], one.labels["version"]): one.value
        for one in (found["slipway_sent_bytes"].samples if counters else [])
    }
    assert got == counters
    for labels, (buckets, total) in histograms.items():
        of = {"model": labels[0], "version": labels[1]}
        samples = [
            one for one in found["slipway_run_seconds"].samples if of.items() <= one.labels.items()
        ]
        written = [one.value for one in samples if "le" in one.labels]
        assert written == [sum(buckets[: end + 1]) for end in range(18)]
        assert [one.value for one in samples if one.name.endswith("_sum")] == [total]


def test_a_model_costs_so_many_series_and_no_more(metrics: Metrics):
    found = scraped(metrics)
    assert sum(len(metric.samples) for metric in found.values()) <= 200
    one = {m.name: len(m.samples) for m in found.values()}
    metrics.meter("b", "1")
    two = {m.name: len(m.samples) for m in scraped(metrics).values()}
    assert sum(two.values()) - sum(one.values()) <= 130


def test_a_page_grows_part_by_part():
    """A scrape of many models gives the loop its turn in between."""
    metrics = Metrics()
    for number in range(30):
        metrics.meter(f"m{number}", "1")
    assert len(list(fill(Page(), metrics.ledger, [], BUILD))) == 30


def test_more_models_than_places_are_told_as_one():
    metrics = Metrics()
    for number in range(cells.MODELS + 5):
        metrics.meter(f"m{number}", "1").failure(cells.HTTP, cells.FAILED, 0, 0, 0)
    found = scraped(metrics)
    assert (
        value(
            found,
            "slipway_requests",
            model="_other",
            door="http",
            outcome="failed",
            sample="slipway_requests_total",
        )
        == 5
    )


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", False),
        ("*/*", False),
        ("text/plain", False),
        ("application/openmetrics-text", True),
        ("application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.2", True),
        ("text/plain, application/openmetrics-text; q=0.3", False),
        ("application/openmetrics-text;q=0", False),
        (";;q=,,=application/openmetrics-text", False),
    ],
)
def test_openmetrics_is_given_to_whom_prefers_it(accept: str, expected: bool):
    assert wants_openmetrics(accept) is expected


def test_names_follow_the_conventions():
    for family in families.FAMILIES:
        assert re.fullmatch(r"(slipway|process)_[a-z_]+", family.name)
        assert (family.help and family.help.endswith(".")) or family.name == "slipway_build_info"
        assert not family.name.endswith(("_total", "_count", "_sum", "_bucket"))


def test_the_manual_tells_of_every_metric():
    page = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| (.*?) \| (.*?) \|$", page, re.M)
    assert rows == [
        (f.full_name, f.kind, ", ".join(f"`{label}`" for label in f.labels), f.help)
        for f in families.FAMILIES
    ]
    values = re.findall(r"^\| `(\w+)` \| `(\w+)` \| (.*?) \|$", page, re.M)
    assert values == [
        (label, name, meaning)
        for label, meanings in families.VALUES.items()
        for name, meaning in meanings.items()
    ]
