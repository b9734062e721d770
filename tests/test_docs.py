"""The README's commands run as written, and every setting and file it names is there."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.distribution import HERE, LONGEST, TOGETHER
from tests.project import QUICK, ROOT, Project
from tests.serving.live import Live

README = (ROOT / "README.md").read_text()
SHOWN = "digits-cnn"
"""The experiment of the pages' examples, in whose place the quick one answers."""

ELSEWHERE = {
    "make run": "benchmarks/bench_first_run.py",
    "make test": "this is it",
    "make serve": "the target's own command is run by tests/test_journey.py",
    "make ui": "tests/stages/test_register_pull.py starts the same server",
    "pip install": "benchmarks/bench_serving_install.py",
    "MLFLOW_TRACKING_URI=": "tests/stages/test_register_pull.py pulls from a real server",
    "slipway pull models:": "tests/stages/test_register_pull.py pulls from a real server",
    "slipway serve repository": "a server does not end by itself; run below on a free port",
    "dvc exp run": "tests/stages/test_repro.py runs experiments and the queue",
    "dvc repro": "tests/stages/test_repro.py",
}


def commands() -> list[str]:
    """Every line of the README's `sh` blocks, comments off and continued lines joined."""
    blocks = re.findall(r"```sh\n(.*?)```", README, re.S)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line for raw in lines if (line := re.sub(r"\s+#.*", "", raw).strip())]


def runnable() -> list[str]:
    return [line for line in commands() if not line.startswith(tuple(ELSEWHERE))]


def test_every_command_is_run_here_or_somewhere_named() -> None:
    assert len(runnable()) >= 8
    for start in ELSEWHERE:
        assert (
            any(line.startswith(start) for line in commands()) or start == "slipway pull models:"
        ), start


@pytest.fixture(scope="module")
def project(finished: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A finished project with what the README's commands name."""
    project = finished.copy(tmp_path_factory.mktemp("readme") / "slipway")
    from PIL import Image, ImageOps

    sample = Image.open(project.folder / "reports" / QUICK / "samples" / "3.png")
    ImageOps.invert(sample.resize((200, 200))).save(project.folder / "my-digit.png")
    (project.folder / "path" / "to").mkdir(parents=True)
    _write_idx(project.folder / "path" / "to" / "folder")
    for number in range(20):
        noise = Image.effect_noise((40, 30 + number), 60)
        place = project.folder / "path" / "to" / "pictures" / ("cats", "dogs")[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        noise.save(place / f"{number}.jpg")
    _write_others(project.folder / "path" / "to")
    return project


@pytest.fixture(scope="module")
def server(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    live = Live(project.folder / "bundles" / QUICK, tmp_path_factory.mktemp("logs"))
    yield live
    live.process.terminate()
    assert live.process.wait(15) == 0


def here(shown: str, server: Live) -> str:
    """A page's command or program for this server and experiment."""
    address = f"http://127.0.0.1:{server.port}"
    return shown.replace("http://127.0.0.1:8000", address).replace(SHOWN, QUICK)


@pytest.mark.slow
@pytest.mark.parametrize("command", runnable())
def test_readme_command(command: str, project: Project, server: Live) -> None:
    done = subprocess.run(
        ["bash", "-ec", here(command, server)],
        cwd=project.folder,
        env=project.environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_readme_python(project: Project, server: Live) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", README, re.S)
    done = project.run(sys.executable, "-c", here(program, server))
    assert len(eval(done.stdout, {"__builtins__": {}})) == 10


@pytest.mark.slow
@pytest.mark.parametrize(
    "program", re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "client.md").read_text(), re.S)
)
def test_client_page_examples_work(program: str, project: Project, server: Live) -> None:
    program = here(program, server)
    done = project.run(sys.executable, "-W", "error", "-c", program, PYTHONPATH=str(ROOT))
    assert "Traceback" not in done.stderr
    for told in re.findall(r"^ *print\(.*\)  # (.*)$", program, re.M):
        for part in told.split("..."):
            assert part.strip() in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    re.findall(
        r"^slipway .*?(?= *#|$)",
        "".join(re.findall(r"```sh\n(.*?)```", (ROOT / "docs" / "bench.md").read_text(), re.S)),
        re.M,
    ),
)
def test_bench_page_commands_work(command: str, project: Project, server: Live) -> None:
    command = here(command, server).replace("--seconds 10", "--seconds 0.3 --warm-up 0.1")
    done = project.run("bash", "-ec", command, PYTHONPATH=str(ROOT))
    assert "Traceback" not in done.stderr and "200: " in done.stdout


def test_files_that_take_longest_are_there() -> None:
    assert not [name for name in LONGEST if not (HERE / name).exists()]
    assert all(list(HERE.glob(f"{start}*")) for some in TOGETHER.values() for start in some)


def test_settings_reference_is_up_to_date() -> None:
    from stages.commands.settings import reference

    assert (ROOT / "docs" / "settings.md").read_text() == reference(), (
        "run: slipway settings > docs/settings.md"
    )


def test_every_setting_says_what_it_means() -> None:
    from stages.commands.settings import reference

    assert not [line for line in reference().splitlines() if line.endswith("|  |")]


def test_settings_reference_of_the_server_is_up_to_date() -> None:
    from serving.commands.reference import reference

    assert (ROOT / "docs" / "serving-settings.md").read_text() == reference(), (
        "run: slipway serve --settings > docs/serving-settings.md"
    )
    assert not [line for line in reference().splitlines() if line.endswith("|  |")]


DEPLOY = (ROOT / "docs" / "deploy.md").read_text()


def deploy_blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", DEPLOY, re.S)


def test_deploy_page_names_what_there_is() -> None:
    from serving.commands.reference import reference
    from serving.observability.cells import OUTCOMES, STATES
    from serving.observability.families import FAMILIES

    metrics = set(re.findall(r"\b(slipway_\w+)", DEPLOY))
    assert metrics and metrics <= {family.full_name for family in FAMILIES}
    (outcomes,) = re.findall(r'outcome=~"([^"]*)"', DEPLOY)
    assert set(outcomes.split("|")) <= set(OUTCOMES)
    assert set(re.findall(r'state="([^"]*)"', DEPLOY)) <= set(STATES)
    settings = set(re.findall(r"^\| `([^`]*)`", reference(), re.M))
    sections = {name.partition(".")[0] for name in settings if "." in name}
    named = set(re.findall(rf"`((?:{'|'.join(sections)})\.\w+)`", DEPLOY))
    named |= set(re.findall(r"`(\w+_seconds)`", DEPLOY))
    assert len(named) > 5 and named <= settings
    protocol = (ROOT / "docs" / "protocol.md").read_text().replace("/M/", "/NAME/")
    assert all(path in protocol for path in re.findall(r"/v2/[\w/]+", DEPLOY))


def test_deploy_page_files_fit_each_other(tmp_path: Path) -> None:
    """The settings load, each command is understood, and who stops the server waits long enough."""
    from ruamel.yaml import YAML

    from pipeline.cli import main
    from serving.config import check_address, load

    file = tmp_path / "server.toml"
    file.write_text(deploy_blocks("toml")[0])
    settings = load(file)
    check_address(settings)
    leaving = settings.notice_seconds + settings.drain_seconds + 5

    yaml = YAML(typ="safe")
    yaml.version = (1, 1)  # Kubernetes' own, in which 0440 is octal
    documents = [part for block in deploy_blocks("yaml") for part in yaml.load_all(block)]
    deployment, service, _, scrape, rules = documents
    pod = deployment["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] > leaving
    secrets = [volume["secret"] for volume in pod["volumes"] if "secret" in volume]
    assert [secret["defaultMode"] for secret in secrets] == [0o440, 0o440]
    (container,) = pod["containers"]
    assert {port["targetPort"] for port in service["spec"]["ports"]} == {"http", "grpc"}
    assert [port["containerPort"] for port in container["ports"]] == [
        settings.http.port,
        settings.grpc.port,
    ]
    assert scrape["scrape_configs"] and len(rules["groups"][0]["rules"]) == 3

    (unit,) = deploy_blocks("ini")
    assert float(re.findall(r"^TimeoutStopSec=(.*)", unit, re.M)[0]) > leaving
    (started,) = re.findall(r"^ExecStart=\S*/slipway (.*)", unit, re.M)
    (image,) = deploy_blocks("dockerfile")
    (in_image,) = re.findall(r"^CMD (\[.*\])", image, re.M)
    assert f"USER {pod['securityContext']['runAsUser']}\n" in image
    for arguments in (
        started.split(),
        json.loads(in_image),
        container["args"],
        pod["initContainers"][0]["args"],
    ):
        with main.make_context("slipway", list(arguments)) as context:
            command = main.get_command(context, arguments[0])  # type: ignore[attr-defined]
            command.make_context(arguments[0], list(arguments[1:]), parent=context)


@pytest.mark.parametrize(
    "page",
    sorted(
        p.relative_to(ROOT).as_posix() for p in [ROOT / "README.md", *ROOT.glob("docs/**/*.md")]
    ),
)
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text()
    for target, heading in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", text):
        place = (ROOT / page).parent / target if target else ROOT / page
        assert place.exists(), f"{page}: {target}"
        if heading:
            assert heading in headings(place.read_text()), f"{page}: {target}#{heading}"


def headings(text: str) -> set[str]:
    """What links to a page's headings are called, as GitHub and others make them."""
    titles = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}


@pytest.mark.parametrize(
    "block", re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "adding.md").read_text(), re.S)
)
def test_adding_page_examples_work(block: str, tmp_path: Path) -> None:
    """The data set of the page loads real pictures; its model builds."""
    program = block
    if "def load" in block:
        program += (
            "\nfrom PIL import Image\n"
            f"root = Path({str(tmp_path)!r})\n"
            "for label in ('cat', 'dog'):\n"
            "    (root / 'pets' / label).mkdir(parents=True)\n"
            "    Image.new('RGB', (50, 40), 'red').save(root / 'pets' / label / 'a.png')\n"
            "raw = load(Config(name='x', path='pets'), root)\n"
            "assert raw.rows.arrays['image'].shape == (2, 32, 32, 3) and raw.labels == ('cat', 'dog')\n"
        )
    else:
        program += (
            "\nimport torch\nmodel = build(Config(name='x'), (64,), 10)\n"
            "assert model(torch.zeros(2, 64)).shape == (2, 10)\n"
        )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


def _write_others(folder: Path) -> None:
    """Sounds, texts and a table, few of each."""
    import numpy as np
    import soundfile

    draw = np.random.default_rng(0)
    reviews, houses = ["review,stars"], ["rooms,town,price"]
    for number in range(40):
        word, label = (("fine", "good"), ("dull", "bad"))[number % 2]
        place = folder / "sounds" / label
        place.mkdir(parents=True, exist_ok=True)
        soundfile.write(place / f"{number}.wav", draw.normal(0, 0.1, 4000), 8000)
        reviews.append(f"a {word} film number {number} of many,{label}")
        houses.append(f"{number % 7},{('Bath', 'York')[number % 2]},{100 + 10.5 * number}")
    (folder / "reviews.csv").write_text("\n".join(reviews) + "\n")
    (folder / "houses.csv").write_text("\n".join(houses) + "\n")


def _write_idx(folder: Path) -> None:
    """The digits as four idx files."""
    import numpy as np
    from sklearn.datasets import load_digits

    digits = load_digits()
    image, target = (digits.images * 15).astype(np.uint8), digits.target.astype(np.uint8)
    folder.mkdir()
    for part, chosen in (("train", slice(0, 1400)), ("t10k", slice(1400, None))):
        for name, array in (
            (f"{part}-images-idx3-ubyte", image[chosen]),
            (f"{part}-labels-idx1-ubyte", target[chosen]),
        ):
            head = bytes([0, 0, 8, array.ndim]) + b"".join(
                n.to_bytes(4, "big") for n in array.shape
            )
            (folder / name).write_bytes(head + array.tobytes())
