"""`slipway inspect`: what a bundle says of itself, for people or as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

import click

from pipeline.bundle.manifest import Bundle, BundleError, Tensor, Variant, read
from serving.commands.folders import fail, resolve_bundle

LABELS_SHOWN = 20


@click.command()
@click.argument("bundle")
@click.option("--json", "as_json", is_flag=True, help="Print digest, manifest and lineage as JSON.")
def command(bundle: str, as_json: bool) -> None:
    """Show what BUNDLE is: its tensors, labels, variants, metrics, proof and files.

    BUNDLE is a bundle's folder or the bare name of one in ./bundles. Every file is hashed on the
    way; nothing is run.
    """
    try:
        found = read(resolve_bundle(bundle))
    except BundleError as error:
        fail(error)
    if as_json:
        told = {
            "digest": found.digest,
            "manifest": found.manifest.model_dump(mode="json"),
            "lineage": found.lineage,
        }
        click.echo(json.dumps(told, indent=1, ensure_ascii=False, default=str))
    else:
        click.echo("\n".join(table(found)))


def table(bundle: Bundle) -> Iterator[str]:
    """The lines that people read."""
    manifest = bundle.manifest
    yield from _columns(
        [("name", manifest.name), ("digest", bundle.digest), ("task", manifest.task)]
    )
    yield from _section("inputs", (_tensor(tensor) for tensor in manifest.inputs))
    for source in manifest.inputs:
        if source.decoder:
            settings = source.decoder.model_dump(mode="json")
            told = ", ".join(f"{key} {value}" for key, value in settings.items() if key != "kind")
            yield f"  {source.name} from a file: {source.decoder.kind}, {told}"
    yield from _section("outputs", (_tensor(tensor) for tensor in manifest.outputs))
    labels = next((output.labels for output in manifest.outputs if output.labels), None)
    if labels:
        more = f", ... ({len(labels)} in all)" if len(labels) > LABELS_SHOWN else ""
        yield from ("", f"labels  {', '.join(labels[:LABELS_SHOWN])}{more}")
    for name, variant in manifest.variants.items():
        yield from _variant(name, variant)
    metrics = [(name, f"{value:.6g}") for name, value in sorted(manifest.metrics.items())]
    yield from _section("metrics", _columns(metrics))
    yield from _section(
        "golden", [f"{manifest.golden.rows} rows, replayed before this model is ever served"]
    )
    versions = [(name, version) for name, version in sorted(manifest.versions.items())]
    yield from _section("built with", _columns(versions))
    files = [(name, f"{e.size:>10,} bytes  {e.sha256}") for name, e in manifest.files.items()]
    yield from _section("files", _columns(files))
    if bundle.lineage:
        facts = [(str(key), json.dumps(value)) for key, value in sorted(bundle.lineage.items())]
        yield from _section("lineage", _columns(facts))


def _variant(name: str, variant: Variant) -> Iterator[str]:
    verdict = "admitted" if variant.admitted else "NOT admitted"
    yield from ("", f"variant {name}: {variant.file}, opset {variant.opset}, {verdict}")
    parity = variant.parity
    batches = ", ".join(map(str, parity.batch_sizes))
    yield f"  proven over {parity.rows} rows in batches of {batches}"
    for output, difference in parity.max_abs_difference.items():
        limit = parity.tolerance.get(output)
        told = f", at most {limit:.3g} tolerated" if limit is not None else ""
        yield f"  {output}: differs from torch by at most {difference:.3g}{told}"
    for gate in variant.gates:
        mark = "held" if gate.passed else "FAILED"
        yield f"  {mark:<6}  {gate.name}: {gate.measured:.6g}, {gate.rule} {gate.limit:.6g}"


def _tensor(tensor: Tensor) -> str:
    units = getattr(tensor, "units", "")
    shape = ", ".join(str(axis) for axis in tensor.shape)
    return f"{tensor.name}  {tensor.dtype} [{shape}]  {units}".rstrip()


def _section(title: str, lines: Iterable[str]) -> Iterator[str]:
    yield from ("", title)
    for line in lines:
        yield f"  {line}"


def _columns(rows: list[tuple[str, str]]) -> Iterator[str]:
    width = max((len(name) for name, _ in rows), default=0)
    for name, value in rows:
        yield f"{name:<{width}}  {value}"
