"""The filter stage on hand-made crops: reasons, splits, the contact sheet, and what it refuses."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from faults import fault
from PIL import Image
from skimage.color import rgb2lab

from colorize.data.filtering import FilterConfig
from colorize.files import InputError, write_array
from pipeline import filter as stage
from pipeline import paths
from pipeline.check import AllParams
from pipeline.params import load

DEFAULTS = load(AllParams, Path(__file__).parents[1] / "params.yaml")
SIZE = 16
RULE = FilterConfig(dark=1, bright=1, train=0.6, val=0.2, test=0.2)


def run(**rule) -> pd.DataFrame:
    """Run the stage and read splits.csv."""
    stage.main(DEFAULTS.model_copy(update={"filter": replace(RULE, **rule)}))
    return pd.read_csv(paths.SPLITS_CSV, dtype=str, keep_default_na=False).set_index("photo")


def lay_out(crops: dict[str, np.ndarray], **columns: list[str]) -> None:
    """Write photos.csv, crops.csv and two shards; one photograph could not be cropped."""
    names = list(crops)
    table = {"photo": names, "group": names, "class": "x", "split": "", "status": "ok"} | columns
    rows = {"photo": ["unreadable", *names], "status": ["failed"] + ["ok"] * len(names)}
    rows["index"] = ["", *map(str, range(len(names)))]
    paths.PHOTOS.mkdir(parents=True)
    paths.CROPS.mkdir()
    pd.DataFrame(table).to_csv(paths.PHOTOS_CSV, index=False)
    pd.DataFrame(rows).to_csv(paths.CROPS_CSV, index=False)
    pixels = np.stack(list(crops.values()))
    write_array(paths.CROPS / "crops-00000.npy", pixels[:3])
    write_array(paths.CROPS / "crops-00001.npy", pixels[3:])


def colorful(seed: int) -> np.ndarray:
    """Blocks of five saturated colors: kept by every rule."""
    rng = np.random.default_rng(seed)
    colors = np.array([(200, 40, 40), *rng.choice([40, 120, 200], (4, 3))])
    return np.kron(colors[rng.integers(0, 5, (4, 4))], np.ones((SIZE // 4, SIZE // 4, 1))).astype(np.uint8)


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def photos() -> dict[str, np.ndarray]:
    """Twenty colorful photographs and one for each rule."""
    photos = {f"photo{i}": colorful(i) for i in range(20)}
    photos["black"] = np.zeros((SIZE, SIZE, 3), np.uint8)
    photos["white"] = np.random.default_rng(0).integers(235, 256, (SIZE, SIZE, 3), np.uint8)
    photos["blue"] = np.full((SIZE, SIZE, 3), (30, 60, 190), np.uint8)
    photos["grey"] = colorful(99)[..., :1].repeat(3, axis=2)
    lay_out(photos)
    return photos


@fault(
    24, "grey photographs: one channel, or three equal ones", "Cropped like any other, then removed: `grey`."
)
def test_every_crop_has_one_row_with_its_split_or_its_reasons(photos, opened, monkeypatch, capsys) -> None:
    """Several reasons are joined; every shard is opened once, however many chunks are measured."""
    monkeypatch.setattr(stage, "PIXELS_AT_ONCE", SIZE**2)
    rows = run()
    assert opened == {"crops-00000.npy": 1, "crops-00001.npy": 1}
    assert list(rows.index) == list(photos) and list(rows["index"]) == [str(i) for i in range(len(photos))]
    assert rows.reason[20:].to_dict() == {
        "black": "dark+monotone+grey",
        "white": "bright",
        "blue": "monotone",
        "grey": "grey",
    }
    assert (rows.reason[:20] == "").all() and (rows.split[20:] == "").all()
    assert rows.split[:20].value_counts().to_dict() == {"train": 12, "val": 4, "test": 4}
    printed = capsys.readouterr().out
    assert "kept 12 train, 4 val, 4 test" in printed and ["monotone", "2"] in map(
        str.split, printed.splitlines()
    )
    rows = run(train=5, val=2, test=3)
    assert rows.split.value_counts().to_dict() == {"": 14, "train": 5, "test": 3, "val": 2}
    assert (rows.reason == "unused").sum() == 10


def test_lightness_and_coverage_are_those_of_the_pixels(photos):
    """One color: its own L*, coverage 1. Few colors: the mean L* of all pixels, as a quantizer sees it."""
    rows = run()
    lightness = {name: rgb2lab(pixels)[..., 0].mean() for name, pixels in photos.items()}
    assert float(rows.weighted_lightness["blue"]) == pytest.approx(lightness["blue"], abs=1e-4)
    assert rows.coverage["blue"] == rows.coverage["black"] == "1.0000"
    assert rows.weighted_lightness["black"] == "0.0000"
    for name in list(photos)[:20]:
        assert float(rows.weighted_lightness[name]) == pytest.approx(lightness[name], abs=3)


def test_colors_of_the_data_set_take_precedence(photos):
    """A photograph listed as white is bright whatever its pixels; the others are measured."""
    listing = pd.DataFrame(
        {"photo": ["photo7"], "red": [255], "green": [255], "blue": [255], "coverage": [0.99]}
    )
    listing.to_csv(paths.COLORS_CSV, index=False)
    rows = run()
    assert rows.reason["photo7"] == "bright+monotone"
    assert rows.weighted_lightness["photo7"] == "99.0000" and rows.coverage["photo7"] == "0.9900"
    assert rows.reason["white"] == ""


def test_groups_and_hints_come_from_photos_csv() -> None:
    """Tiles of one photograph share a split; rows that the source marks test are test."""
    groups, hints = [f"g{i // 4}" for i in range(24)], ["test"] * 4 + ["train"] * 20
    lay_out({f"photo{i}": colorful(i) for i in range(24)}, group=groups, split=hints)
    rows = run(rules=())
    assert (rows.groupby("group").split.nunique() == 1).all()
    assert set(rows.split[:4]) == {"test"} and set(rows.split[4:]) == {"train", "val"}


def test_near_duplicates_are_removed_from_val_and_test_or_told(capsys) -> None:
    """Ten of thirty photographs are there twice, almost."""
    lay_out({f"{copy}{i}": colorful(i) + copy for copy, count in ((0, 30), (1, 10)) for i in range(count)})
    rows = run(rules=())
    twins = rows.index.str[1:]
    torn = rows.groupby(twins).split.transform("nunique") == 2
    noted = rows[rows.note == "near_duplicate"]
    assert (rows.reason == "").all() and torn.any() and set(noted.split) <= {"val", "test"}
    assert (torn.groupby(twins).sum() == 2 * (rows.note != "").groupby(twins).sum()).all()
    assert f"{len(noted)} photographs of val and test have near-duplicates" in capsys.readouterr().out
    rows = run(rules=("duplicates",))
    removed, kept = rows[rows.reason == "duplicate"], rows[rows.reason == ""]
    assert 0 < len(removed) < 10 and (removed.split == "").all() and (rows.note == "").all()
    assert (kept.groupby(kept.index.str[1:]).split.nunique() == 1).all()
    assert "near-duplicates" not in capsys.readouterr().out


LANDSCAPES = {"coast": 20, "forest": 10, "ruin": 2}


@pytest.fixture
def landscapes() -> None:
    """Photographs of three classes, and one of none."""
    classes = [*np.repeat(list(LANDSCAPES), list(LANDSCAPES.values())), ""]
    lay_out({f"photo{i}": colorful(i) for i in range(len(classes))}, **{"class": classes})


def test_classes_are_split_alike_and_small_ones_are_told(landscapes, capsys):
    """60, 20 and 20 % of 20 and of 10; the ruins and the photograph outside any class are too few."""
    rows = run(rules=(), stratify=True)
    found = pd.crosstab(rows["class"], rows.split)[["train", "val", "test"]]
    assert {name: tuple(row) for name, row in found.T.items()} == {
        "": (1, 0, 0),
        "coast": (12, 4, 4),
        "forest": (6, 2, 2),
        "ruin": (2, 0, 0),
    }
    said = "stratified over 4 classes, 2 of them too small for every split: 3 photographs, 3 of them in train"
    assert said in capsys.readouterr().out


def test_only_the_classes_that_are_named_are_kept(landscapes, capsys):
    """The others are removed and counted; the rules take their shares of what is left: 2 of 20 are dark."""
    rows = run(rules=("dark",), dark=0.1, classes=("coast",))
    assert (rows.reason[rows["class"] != "coast"] == "class").all()
    assert rows.reason[rows["class"] == "coast"].value_counts().to_dict() == {"": 18, "dark": 2}
    assert (rows.split[rows["class"] == "coast"] != "").sum() == 18
    assert ["class", "13"] in [line.split() for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize(
    ("rule", "sentence"),
    [
        ({"classes": ("coast", "forrest")}, "no class 'forrest'; did you mean 'forest'.*coast, forest, ruin"),
        ({"classes": ("harbor",)}, "no class 'harbor'; choose among coast, forest, ruin"),
    ],
)
def test_a_class_that_is_not_there_is_refused_with_those_that_are(landscapes, rule, sentence) -> None:
    with pytest.raises(InputError, match=sentence):
        run(rules=(), **rule)
    assert not paths.SPLITS_CSV.exists()


@pytest.mark.parametrize(
    ("rule", "sentence"),
    [
        ({"classes": ("coast",)}, "no class 'coast'; it has none"),
        ({"stratify": True}, "the source gives no classes"),
    ],
)
def test_a_source_without_classes_is_told_so(rule, sentence) -> None:
    lay_out({f"photo{i}": colorful(i) for i in range(12)}, **{"class": [""] * 12})
    with pytest.raises(InputError, match=sentence):
        run(rules=(), **rule)


def test_only_the_seed_of_the_data_changes_the_split(photos) -> None:
    """The same inputs give the same bytes, whatever the seed of training."""
    run()
    first = paths.SPLITS_CSV.read_bytes(), paths.REMOVED_PNG.read_bytes()
    stage.main(DEFAULTS.model_copy(update={"filter": RULE, "seed": 9}))
    assert (paths.SPLITS_CSV.read_bytes(), paths.REMOVED_PNG.read_bytes()) == first
    stage.main(DEFAULTS.model_copy(update={"filter": RULE, "data": replace(DEFAULTS.data, seed=9)}))
    assert paths.SPLITS_CSV.read_bytes() != first[0]


def test_the_contact_sheet_shows_examples_of_every_reason(photos):
    """The blue photograph is on it; without anything removed it is a line of text."""
    run()
    sheet = np.asarray(Image.open(paths.REMOVED_PNG))
    assert (sheet == (30, 60, 190)).all(axis=2).sum() >= 90 * 90
    run(rules=())
    assert Image.open(paths.REMOVED_PNG).height < 40


@fault(41, "nothing, or too little, left after filtering")
@pytest.mark.parametrize(
    ("rule", "sentence"),
    [
        (
            {"monotone": 0},
            "removes all 24 photographs, 24 of them by the rule 'monotone'; raise filter.monotone",
        ),
        ({"dark": 30}, "removes all 24 photographs, 24 of them by the rule 'dark'; lower filter.dark"),
        ({"dark": 22, "rules": ("dark",)}, "only 2 photographs in 2 groups survive"),
        ({"train": 100}, "ask for 100 .* only 20 survive"),
        ({"duplicates": 300}, "near-duplicates .* lower filter.duplicates"),
    ],
)
def test_a_filter_that_leaves_too_little_is_refused(photos, rule, sentence) -> None:
    """The sentence names the rule and the parameter, and nothing is written."""
    with pytest.raises(InputError, match=sentence):
        run(**rule)
    assert not paths.SPLITS_CSV.exists()
