"""The report page, from made-up results."""

import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from colorize import files
from colorize.bins import centers
from colorize.files import InputError
from colorize.scoring.metrics import METRICS
from pipeline import paths, report
from pipeline.check import AllParams

VOID = {"meta", "img", "br", "input", "hr"}


class Page(HTMLParser):
    """Balanced tags, the text, and every address the page refers to."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.text += " "
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def params(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_params: Callable[..., AllParams]
) -> AllParams:
    """All that the stage reads. The model gains 1 [0.5, 1.5] over grey, 0.1 [-0.2, 0.4] over mean."""
    monkeypatch.chdir(tmp_path)
    gains = (1, 0.5, 1.5, 0.1, -0.2, 0.4)
    systems = ("model", "grey", "mean_color")
    rows = [
        (metric, system, 20.125 + i, 19.5 + i, 21.5 + i, *gains)
        for i, metric in enumerate(METRICS)
        for system in systems
    ]
    ends = ("", "_low", "_high")
    over = [f"over_{baseline}{end}" for baseline in systems[1:] for end in ends]
    columns = ["metric", "system", "mean", "low", "high", *over]
    files.write_text(
        paths.METRICS / "comparison.csv", pd.DataFrame(rows, columns=columns).to_csv(index=False)
    )
    files.write_json(paths.METRICS / "metrics.json", {"images": 12, "grey_truths": 3})
    losses = ["train_loss", "train_eval_loss", "val_loss"]
    names = ["epoch", *losses, *(f"{name}_ma20" for name in losses)]
    history = pd.DataFrame([[epoch, *[1 / epoch] * 6] for epoch in range(1, 6)], columns=names)
    files.write_text(paths.METRICS / "loss.csv", history.to_csv(index=False))
    block = {"arch": "zhang", "network": {"variant": "<b>bold</b>"}, "recipe": {"lr": 3.16e-05}}
    about = {
        "name": "some_model",
        "seed": 1,
        "size": 48,
        "parameters": 15387513,
        "epochs": 5,
        "best_epoch": 4,
        "notes": ["learned <by> heart", "works at 48 pixels, not 256, because crop.size is 48"],
        "recipe": {"size": {"asked": 256, "in_force": 48}, "precision": "fp32"},
    }
    files.write_json(paths.MODEL / "model.json", about | {"block": block})
    splits = [("train", "", "")] * 40 + [("val", "", "")] * 5 + [("test", "", "")] * 12
    splits += [("", "dark", "")] * 2 + [("", "dark+grey", "")] + [("", "duplicate", "")]
    table = pd.DataFrame(splits, columns=["split", "reason", "note"])
    table["group"] = [f"photo{row // 2}" for row in table.index]
    files.write_text(paths.SPLITS_CSV, table.to_csv(index=False))
    flat = {name: np.full(313, 1 / 313) for name in ("empirical", "smoothed")}
    weights = {f"weights_{name}": np.ones(313) for name in flat}
    mean = np.array([-1.5, 8.25])
    files.write_arrays(paths.PRIOR, {"bins": centers(), "mean_ab": mean} | flat | weights)
    noise = np.random.default_rng(0).integers(0, 255, (60, 50, 4), np.uint8)
    scores = [
        {
            "index": i,
            "photo": f"{i}</script>.png",
            "group": f"{i}</script>.png",
            "class": "ab"[i % 2],
            "grey_truth": False,
            "psnr": 20.0 + i,
            "system": system,
        }
        for system in systems
        for i in range(12)
    ]
    files.write_text(paths.METRICS / "per_image.csv", pd.DataFrame(scores).to_csv(index=False))
    pictures = {system: np.full((5, 16, 16, 3), 90, np.uint8) for system in ("truth", *systems)}
    files.write_arrays(paths.PICTURES, {"index": np.arange(5)} | pictures)
    Image.fromarray(noise[..., :3]).save(paths.REMOVED_PNG)
    return make_params()


@pytest.fixture
def page(params: AllParams) -> Page:
    report.main(params)
    return Page((paths.METRICS / "report.html").read_text(encoding="utf-8"))


def test_the_page_is_balanced_html_that_loads_nothing(page: Page) -> None:
    """Every tag is closed, nothing comes from elsewhere, and a file's name ends no script."""
    assert page.open == []
    assert not {"link", "iframe", "object"} & set(page.tags) and page.tags.count("script") == 2


def test_the_page_refers_to_nothing_outside_itself(page: Page) -> None:
    """Every address is a data: address, in tags and in styles, and no http address occurs anywhere."""
    html = (paths.METRICS / "report.html").read_text(encoding="utf-8")
    assert len(page.addresses) == 5 and all(address.startswith("data:image/") for address in page.addresses)
    assert not re.search(r"https?://|@import|url\((?!\$|#)", html)


def test_the_page_holds_the_numbers(page: Page) -> None:
    """Means, intervals, splits, reasons, parameters and the mean color, as a reader sees them."""
    text = " ".join(page.text.split())
    for expected in (
        "On 12 photographs at 128 × 128 pixels it reaches 20.12 dB PSNR, 95 % interval 19.50 to 21.50",
        "better than that of grey (+1.00 dB, +0.50 to +1.50)",
        "not distinguishable from that of mean_color (+0.10 dB, −0.20 to +0.40)",
        "left out of the PSNR rows: 0",
        "15,387,513",
        "3.16e-05",
        "some_model: learned <by> heart.",
        "some_model: works at 48 pixels, not 256, because crop.size is 48.",
        "size.asked 256 size.in_force 48 precision fp32",
        "a* −1.50, b* 8.25",
        "No photograph of val or test has a near-duplicate in another split.",
    ):
        assert expected in text
    for row in (
        r"train\s+40\s+20",
        r"val\s+5\s+3",
        r"test\s+12\s+7",
        r"removed\s+4\s+3",
        r"all\s+61\s+31",
        r"dark\s+3",
        r"grey\s+1",
        r"duplicate\s+1",
    ):
        assert re.search(row, page.text)


def test_the_page_says_which_scores_flatter(params: AllParams) -> None:
    """Near-duplicates across splits that the filter was told to leave are told to the reader too."""
    splits = pd.read_csv(paths.SPLITS_CSV, keep_default_na=False)
    splits.loc[splits["split"] == "test", "note"] = "near_duplicate"
    files.write_text(paths.SPLITS_CSV, splits.to_csv(index=False))
    report.main(params)
    text = " ".join(Page((paths.METRICS / "report.html").read_text(encoding="utf-8")).text.split())
    assert "12 of val and test have near-duplicates in other splits and stay" in text


def test_parameters_are_text_not_markup(page: Page) -> None:
    """A parameter that looks like HTML is shown, not obeyed."""
    assert "<b>bold</b>" in page.text


@pytest.mark.parametrize(
    ("name", "low", "high", "expected"),
    [
        ("psnr", 0.1, 0.9, "better"),
        ("psnr", -0.9, -0.1, "worse"),
        ("rmse", 0.1, 0.9, "worse"),
        ("rmse", -0.9, -0.1, "better"),
        ("rmse", -0.1, 0.1, ""),
        ("rmse", np.nan, np.nan, ""),
        ("colorfulness", 0.1, 0.9, ""),
    ],
)
def test_a_difference_is_judged_by_its_interval_and_direction(
    name: str, low: float, high: float, expected: str
) -> None:
    """Zero inside the interval is no judgement; lower errors are better; more color is neither."""
    assert report.mark(METRICS[name], low, high) == expected


def test_the_same_inputs_give_the_same_bytes(params: AllParams) -> None:
    """Twice the stage: the page and prior.png are equal."""
    written = []
    for _ in range(2):
        report.main(params)
        written.append([(paths.METRICS / name).read_bytes() for name in ("report.html", "prior.png")])
    assert written[0] == written[1]


def test_a_model_without_training_has_no_curves(params: AllParams) -> None:
    """A history that is only a header; the page then says so instead."""
    files.write_text(paths.METRICS / "loss.csv", "epoch,train_loss,train_eval_loss,val_loss\n")
    report.main(params)
    html = (paths.METRICS / "report.html").read_text(encoding="utf-8")
    assert "Nothing on this page was trained." in html and "<svg" not in html


def test_the_stage_ends_with_the_scores_and_where_the_pictures_are(
    params: AllParams, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three systems, three metrics with intervals, two files."""
    report.main(params)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["psnr", "dB", "ssim", "rmse"]
    assert [line.split()[0] for line in lines[1:4]] == ["some_model", "grey", "mean_color"]
    assert "20.12 [19.50, 21.50]" in lines[1]
    assert lines[4].startswith(
        "Means at 128 × 128 pixels over 12 photographs, with 95 % intervals from 1000 bootstrap"
    )
    assert lines[5] == "pictures: metrics/samples.png, metrics/report.html"


def test_tiles_of_one_photograph_are_called_that_and_have_no_interval(
    params: AllParams, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the page and on the screen; no difference is called better, worse or none."""
    table = pd.read_csv(paths.METRICS / "per_image.csv").assign(group="astronaut")
    files.write_text(paths.METRICS / "per_image.csv", table.to_csv(index=False))
    comparison = pd.read_csv(paths.METRICS / "comparison.csv")
    comparison[[name for name in comparison if name.endswith(("low", "high"))]] = np.nan
    files.write_text(paths.METRICS / "comparison.csv", comparison.to_csv(index=False))
    report.main(params)
    html = (paths.METRICS / "report.html").read_text(encoding="utf-8")
    text = " ".join(Page(html).text.split())
    said = capsys.readouterr().out
    assert (
        "On 12 tiles of 1 photograph at 128 × 128 pixels it reaches 20.12 dB PSNR. Its PSNR differs" in text
    )
    assert "from that of grey by +1.00 dB and from that of mean_color by +0.10 dB" in text
    for words in (text, said):
        assert "12 tiles of 1 photograph: too few for an interval" in words and "nan" not in words.split()
    for claim in (
        "95 %",
        "interval excludes",
        "distinguishable",
        "better than",
        'class="worse"',
        "test photographs",
    ):
        assert claim not in html, claim
    assert "20.12  " in said and "[" not in said


def test_a_metric_that_is_empty_is_an_empty_cell(
    params: AllParams, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of every system, and no verdict; the intervals of the others are there."""
    path = paths.METRICS / "comparison.csv"
    table = pd.read_csv(path)
    table.iloc[table["metric"] == "kid", 2:] = np.nan
    files.write_text(path, table.to_csv(index=False))
    report.main(params)
    html = (paths.METRICS / "report.html").read_text(encoding="utf-8")
    row = html[html.index('<th scope="row">kid') :].partition("</tr>")[0]
    assert row.count("<td><small></small></td>") == 5
    assert ">nan" not in html
    for words in (html, capsys.readouterr().out):
        assert "with 95 % intervals" in words


def test_a_model_with_one_coloring_has_no_rows_about_several(params: AllParams) -> None:
    """Its best is its only one and its spread is 0; a model that has several shows both."""
    path = paths.METRICS / "comparison.csv"
    table = pd.read_csv(path)
    assert {"psnr_best", "ab_spread"} <= {row["name"] for row in report.results(table)}
    table.loc[(table["metric"] == "ab_spread") & (table["system"] == "model"), "mean"] = 0.0
    assert {row["name"] for row in report.results(table)} == set(METRICS) - {"psnr_best", "ab_spread"}


@pytest.mark.parametrize(
    "path", ["metrics/comparison.csv", "data/prior.npz", "data/removed.png", "data/pictures.npz"]
)
def test_a_missing_result_is_one_sentence(params: AllParams, path: str) -> None:
    """It names the file and the command."""
    Path(path).unlink()
    with pytest.raises(InputError, match=f"{path} is missing; run `dvc repro`"):
        report.main(params)


@pytest.mark.slow
def test_a_person_looks_through_the_page(params: AllParams, browser) -> None:
    """Order by the worst, go on, move the slider, all by keyboard and without any network."""
    report.main(params)
    page = browser.new_page(viewport={"width": 375, "height": 800})
    problems, asked = [], []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto((paths.METRICS / "report.html").resolve().as_uri())
    assert page.locator("#thumbs button").count() == 5
    page.select_option("#order", "worst:some_model")
    assert (
        page.locator("#caption")
        .inner_text()
        .startswith("0</script>.png: grey 20.00 dB | some_model 20.00 dB")
    )
    page.locator("#next").press("Enter")
    assert page.locator("#caption").inner_text().startswith("1</script>.png:")
    page.locator("#slider").press("ArrowLeft")
    assert "51%" in page.locator("#viewer > div").first.get_attribute("style")
    drawn = page.locator("#curves svg").inner_text()
    assert "validation" in drawn and "mean of 20 epochs" in drawn
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    assert not problems and all(url.startswith(("file:", "data:")) for url in asked)
