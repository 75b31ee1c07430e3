"""The whole graph under DVC, on a clone of this project with a few small photographs."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from copy import deepcopy
from pathlib import Path

import pandas as pd
import psutil
import pytest
from conftest import ROOT, _photographs
from faults import fault
from kills import torture
from PIL import Image
from ruamel.yaml import YAML

from colorize import files
from colorize.settings import inherited
from pipeline import leaderboard
from pipeline.check import AllParams
from pipeline.params import load

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("pipeline")]  # one project for all of these tests
STEPS_ASIDE = ("DVC_ROOT", "PYTHONPATH")


def environment(folder: Path) -> dict[str, str]:
    """This interpreter first on the path, no network services, DVC's caches inside the temporary folder."""
    kept = {name: value for name, value in os.environ.items() if name not in STEPS_ASIDE}
    return kept | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(folder / "src"),
        "DVC_NO_ANALYTICS": "1",
        "DVC_SITE_CACHE_DIR": str(folder.parent / "site-cache"),
        "DVC_GLOBAL_CONFIG_DIR": str(folder.parent / "config"),
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_AUTHOR_NAME": "a",
        "GIT_AUTHOR_EMAIL": "a@example.org",
        "GIT_COMMITTER_NAME": "a",
        "GIT_COMMITTER_EMAIL": "a@example.org",
        "CI": "1",
    }


def run(folder: Path, *command: str, status: int | None = 0) -> str:
    """A command's output, standard error included."""
    result = subprocess.run(
        command,
        cwd=folder,
        env=environment(folder),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    if status is not None:
        assert result.returncode == status, result.stdout
    return result.stdout


def clone(folder: Path, photos: Path) -> Path:
    """The project's tracked and new files, a git repository of its own, small parameters, 30 photographs."""
    listing = run(ROOT, "git", "ls-files", "--cached", "--others", "--exclude-standard").split("\n")
    for name in filter(None, listing):
        if (
            not name.startswith(("metrics/", "tests/", "benchmarks/"))
            and name != "dvc.lock"
            and (ROOT / name).exists()
        ):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    yaml = YAML()
    params = yaml.load((folder / "params.yaml").read_text())
    params["model"] = "cae"
    params["data"].update(source="folder", path=str(photos))
    params["crop"].update(size=16, workers=1)
    params["train"].update(max_epochs=2, threads=1)
    params["evaluate"].update(samples=3, bootstrap=50)
    models = inherited(params["models"], "params.yaml")
    params["models"] = {name: models[name] for name in ("grey", "mean_color", "cae", "vae")}
    params["models"]["cae"]["network"].update(channels=[4, 8], l1=0)
    params["models"]["cae_tuned"] = deepcopy(params["models"]["cae"]) | {"init_from": "cae"}
    with (folder / "params.yaml").open("w") as file:
        yaml.dump(params, file)
    run(folder, "git", "init", "-q", "-b", "main")
    run(folder, "git", "add", "-A")
    run(folder, "git", "commit", "-qm", "start")
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for index, image in enumerate(_photographs(30, 40)):
        Image.fromarray(image).save(folder / f"{index:02}.png")
    files.write_text(folder / "broken.jpg", "this is text, not a photograph")
    return folder


@pytest.fixture(scope="module")
def committed(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> tuple[Path, float]:
    """A clone in which `dvc repro` has run and its results are committed; and the seconds that it ran."""
    folder = clone(tmp_path_factory.mktemp("work") / "project", photos)
    started = time.monotonic()
    run(folder, "dvc", "repro")
    seconds = time.monotonic() - started
    run(folder, "git", "add", "-A")
    run(folder, "git", "commit", "-qm", "results")
    return folder, seconds


@pytest.fixture
def project(committed: tuple[Path, float]) -> Iterator[Path]:
    """That clone; whatever a test does there, the next one finds it as it was."""
    folder, _ = committed
    before = files.sha256_of([folder / "data"])
    yield folder
    run(folder, "git", "reset", "-q", "--hard")
    run(folder, "git", "clean", "-qfd")
    shutil.rmtree(folder / "data/zoo", ignore_errors=True)  # git ignores it, and DVC does not know it
    if files.sha256_of([folder / "data"]) != before:
        run(folder, "dvc", "checkout")
        assert files.sha256_of([folder / "data"]) == before


def snapshot(folder: Path) -> dict[str, str]:
    return files.sha256_of([folder / "dvc.lock", folder / "metrics"])


def test_repro_writes_metrics_curves_pictures_and_a_page(project: Path) -> None:
    """Flat numbers for DVC; the broken photograph is a row, not a crash."""
    metrics = json.loads((project / "metrics/metrics.json").read_text())
    assert {"psnr", "ssim", "rmse", "images"} <= metrics.keys()
    for name in ("loss.csv", "comparison.csv", "per_image.csv", "samples.png", "prior.png", "report.html"):
        assert (project / "metrics" / name).stat().st_size > 0
    row = next(
        line for line in (project / "data/photos/photos.csv").read_text().splitlines() if "broken.jpg" in line
    )
    assert "failed" in row and "not_image" in row
    assert run(project, "git", "status", "--porcelain") == ""


def test_a_second_repro_does_nothing(project: Path) -> None:
    """And says so."""
    before = snapshot(project)
    assert "Data and pipelines are up to date" in run(project, "dvc", "repro")
    assert snapshot(project) == before


@fault(33, "SIGKILL, a power cut, at any moment of `make repro`")
def test_a_pipeline_that_is_killed_ends_with_the_same_bytes(
    project: Path, committed: tuple[Path, float], photos: Path, tmp_path: Path
) -> None:
    """The same command goes on; lock, weights and metrics end as those of a run in one go, byte for byte.

    It runs in another clone, in a path with spaces and umlauts. This seed's kills hit a single run thrice.
    """
    other = clone(tmp_path / "ein anderer Weg für Bilder", photos)
    found = torture(other, project, committed[1], kills=3, seed=214)
    assert found["kills"] == 3 and found["runs that got through and were compared"] >= 1
    assert found["identical lock, weights and metrics, nothing left over"]


def test_an_experiment_changes_the_metrics_line_by_line(project: Path) -> None:
    """`dvc exp run -S model=vae` changes one line of params.yaml and gives a readable diff."""
    before = (project / "params.yaml").read_text().splitlines()
    run(project, "dvc", "exp", "run", "-S", "model=vae")
    after = (project / "params.yaml").read_text().splitlines()
    assert [new for old, new in zip(before, after, strict=True) if old != new] == ["model: vae"]
    diff = run(project, "dvc", "metrics", "diff")
    assert all(metric in diff for metric in ("psnr", "ssim", "rmse")) and "metrics/metrics.json" in diff
    assert "vae" in run(project, "dvc", "exp", "show", "--no-pager", "--md")
    run(project, "dvc", "plots", "diff", "HEAD")
    assert (project / "dvc_plots/index.html").stat().st_size > 0
    run(project, "git", "reset", "-q", "--hard")
    run(project, "dvc", "checkout")
    assert "up to date" in run(project, "dvc", "repro")


def test_the_zoo_trains_every_model_and_ranks_them(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One row per block, oracles below; the chosen model is not trained twice."""
    text = (project / "params.yaml").read_text()
    (project / "params.yaml").write_text(re.sub(r"(?m)^  vae:\n(    .*\n)+", "", text))
    run(project, "dvc", "repro", "pipeline/zoo/dvc.yaml")
    rows = (project / "metrics/leaderboard.csv").read_text().splitlines()
    assert {row.split(",")[0] for row in rows[1:5]} == {"grey", "mean_color", "cae", "cae_tuned"}
    assert [row.split(",")[1] for row in rows[5:]] == ["oracle"] * 3
    psnr = [float(row.split(",")[rows[0].split(",").index("psnr")]) for row in rows[1:5]]
    assert psnr == sorted(psnr, reverse=True)
    assert (project / "metrics/leaderboard.md").exists() and (project / "metrics/leaderboard.jpg").exists()
    assert len(list((project / "runs").glob("cae-*"))) == 1
    monkeypatch.chdir(project)
    leaderboard.main(load(AllParams), cost=True)
    cost = capsys.readouterr().out
    assert "training s" in cost and "cae" in cost


def test_a_revision_colors_and_a_changed_file_is_named(project: Path, photos: Path, tmp_path: Path) -> None:
    """`colorize apply -m HEAD` finds a commit's model; `colorize verify` finds what differs from dvc.lock."""
    output = run(project, "colorize", "apply", str(photos / "00.png"), "-m", "HEAD", "-o", str(tmp_path))
    assert "1 colored" in output and (tmp_path / "00.png").exists()
    assert "outs are what dvc.lock says" in run(project, "colorize", "verify")
    scores = project / "metrics/metrics.json"
    scores.write_text(scores.read_text().replace("psnr", "pnsr", 1))
    assert run(project, "colorize", "verify", status=1).startswith("metrics/metrics.json: differs")


def test_a_study_runs_as_experiments_and_is_written_from_what_they_measured(
    project: Path, photos: Path
) -> None:
    """Two at a time, one of them failing: the others count, and the same command tries it again."""
    path = project / "studies/009.yaml"
    text = (
        "title: D\npaths: {photos: a folder}\nused: {cpu: Small., cuda: Small.}\n"
        "seeds: {cpu: [1], cuda: [1]}\n"
        "settings: {cpu: ['data.path=@photos'], cuda: ['data.path=@photos']}\n"
        "runs: {plain: [], deeper: ['models.cae.network.channels=[4,CHANNELS]']}\n"
        "tables: [{title: T, columns: {test: psnr}, order: test, "
        "rows: [{label: A, run: deeper, printed: [1]}]}]\n"
        "figures: [{name: sheet, title: S, kind: sheet, runs: [plain, deeper], count: 2}]\n"
    )
    path.write_text(text.replace("CHANNELS", "-8"))
    command = (
        sys.executable,
        "-m",
        "studies.run",
        "studies/009.yaml",
        "--path",
        f"photos={photos}",
        "--jobs",
        "2",
    )
    output = run(project, *command, status=1)
    assert "1 of 2 runs failed, first deeper" in output and "Traceback" not in output
    assert [each["run"] for each in json.loads(path.with_suffix(".json").read_text()).values()] == ["plain"]
    path.write_text(text.replace("CHANNELS", "8"))
    output = run(project, *command)
    assert "2 runs on cpu, 1 of them done" in output
    measured = json.loads(path.with_suffix(".json").read_text())
    assert {each["run"] for each in measured.values()} == {"plain", "deeper"}
    for each in measured.values():
        assert len(each["curves"]["val_loss"]) == len(each["curves"]["seconds"]) == 2
        assert set(each["metrics"]) == {"model", "grey", "mean_color"}
    psnr = next(each for each in measured.values() if each["run"] == "deeper")["metrics"]["model"]["psnr"][0]
    [row] = [line for line in path.with_suffix(".md").read_text().splitlines() if line.startswith("| A ")]
    assert [cell.strip() for cell in row.split("|")[2:4]] == ["1", f"{psnr:.2f}"]
    assert Image.open(path.with_name("009-sheet.webp")).size[0] > 200
    assert "No experiment tasks" in run(project, "dvc", "queue", "status")


def until(happened: Callable[[], bool], otherwise: str, seconds: float = 120) -> None:
    """Wait for something that another process does."""
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, otherwise
        time.sleep(0.5)


def at_work(project: Path) -> list[str]:
    """The commands that run inside the project's folder."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if Path(process.cwd()).is_relative_to(project):
                found.append(" ".join(process.cmdline()))
    return found


def test_a_study_that_is_interrupted_keeps_what_is_done_and_leaves_nothing_running(
    project: Path, photos: Path
) -> None:
    """Each run is written as soon as it ends. Ctrl-C ends the training, the worker and the queue."""
    path = project / "studies/009.yaml"
    path.write_text(
        "title: D\npaths: {photos: a folder}\nused: {cpu: Endless., cuda: Endless.}\n"
        "seeds: {cpu: [1, 2], cuda: [1, 2]}\n"
        "settings: {cpu: &all ['data.path=@photos'], cuda: *all}\n"
        "runs: {quick: [], endless: [train.max_epochs=0, "
        "models.cae.recipe.epochs=1000000, models.cae.recipe.patience=0]}\n"
        "tables: []\n"
    )
    command = (
        sys.executable,
        "-m",
        "studies.run",
        "studies/009.yaml",
        "--path",
        f"photos={photos}",
        "--jobs",
        "1",
    )
    study = subprocess.Popen(
        command,
        cwd=project,
        env=environment(project),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.SIG_DFL
        ),  # ignored in what a script started with &
    )
    store = path.with_suffix(".json")
    until(store.exists, "the first run is not in the .json while the second one goes on")
    until(
        lambda: any("pipeline.train" in each for each in at_work(project)),
        "the second training has not begun",
    )
    study.send_signal(signal.SIGINT)
    output, _ = study.communicate(timeout=120)
    assert study.returncode == 130 and output.endswith("stopped; the same command continues\n"), output
    until(lambda: not at_work(project), "something goes on")
    assert [each["run"] for each in json.loads(store.read_text()).values()] == ["quick"]
    assert "Running" not in run(project, "dvc", "queue", "status")
    run(project, "dvc", "queue", "remove", "--all")


def test_queued_experiments_share_what_is_equal_and_keep_their_own_results(project: Path) -> None:
    """Two workers: equal stages and trainings run once, and results are those of a run alone.

    The first two want the very same weights at the same time; the two workers start with them.
    """
    before = snapshot(project)
    training = ("train.max_epochs=0", "models.cae.recipe.epochs=300", "models.cae.recipe.patience=0")
    queued = {
        "cae": ["model=cae", "seed=2", *training],
        "cae-sheet": ["model=cae", "seed=2", "evaluate.sheet_size=2", *training],
        "vae": ["model=vae", "seed=2"],
    }
    for name, settings in queued.items():
        run(
            project, "dvc", "exp", "run", "--queue", "--name", name, *(f"-S{setting}" for setting in settings)
        )
    run(
        project, "dvc", "queue", "start", "--jobs", "2"
    )  # the workers keep its output open: it ends with them
    logs = {name: run(project, "dvc", "queue", "logs", name) for name in queued}
    status = run(project, "dvc", "queue", "status")
    assert status.count("Success") == len(queued), status + "".join(logs.values())

    for stage in ("download", "crop", "filter", "prior"):  # whatever the seed
        assert all(f"Stage '{stage}' didn't change, skipping" in log for log in logs.values())
    assert sum("cae  epoch 1 " in log for log in logs.values()) == 1
    table = pd.read_csv(io.StringIO(run(project, "dvc", "exp", "show", "--csv"))).set_index("Experiment")
    assert table.loc["cae", "data/model"] == table.loc["cae-sheet", "data/model"]
    assert table.loc[list(queued), ["data/model", "psnr"]].nunique().tolist() == [2, 2]

    assert run(project, "git", "status", "--porcelain") == "" and snapshot(project) == before
    assert "up to date" in run(project, "dvc", "repro")
    run(project, "dvc", "exp", "apply", "vae")
    parallel = snapshot(project)
    assert parallel != before
    shutil.rmtree(project / "runs")
    run(project, "dvc", "repro", "--force", "--single-item", "train", "evaluate")
    assert snapshot(project) == parallel
    run(project, "dvc", "queue", "remove", "--all")


def test_ci_shows_what_a_changed_parameter_changed(project: Path) -> None:
    """The script that CI calls, in the clone, after `train.max_epochs` went from 2 to 1."""
    params = project / "params.yaml"
    text = params.read_text()
    params.write_text(text.replace("max_epochs: 2", "max_epochs: 1"))
    (project / ".venv/bin").mkdir(parents=True, exist_ok=True)
    output = run(project, ".ci/pipeline", "HEAD")
    assert "### Metrics, compared with HEAD" in output
    assert "| metrics/metrics.json | psnr" in output


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("model=vea", "there is no model 'vea' in params.yaml; did you mean 'vae'?"),
        ("+crop.sise=64", "params.yaml: there is no parameter crop.sise; did you mean 'size'?"),
        ("filter.train=1000", "1000"),
        ("data.path=EMPTY", "EMPTY"),
    ],
)
def test_what_cannot_work_is_one_sentence_and_keeps_what_was_made(
    project: Path, tmp_path: Path, change: str, words: str
) -> None:
    """A typo, an unknown parameter, too few photographs, an empty folder: the trained model stays."""
    (tmp_path / "EMPTY").mkdir()
    run(project, "git", "checkout", "params.yaml")  # what an earlier case changed
    change = change.replace("EMPTY", str(tmp_path / "EMPTY"))
    output = run(project, "dvc", "exp", "run", "-S", change, status=255)
    errors = [line for line in output.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and words in errors[0], output
    assert "Traceback" not in output
    assert (project / "data/model/weights.safetensors").exists() and (
        project / "metrics/metrics.json"
    ).exists()
