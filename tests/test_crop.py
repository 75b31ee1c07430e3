"""The crop stage on a hand-made data/photos: every row accounted for, bytes verified, repeatable."""

import hashlib
import io
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from faults import fault
from imagefiles import encoded
from PIL import Image
from skimage import data

from colorize.data.images import CropConfig
from colorize.data.shards import Crops
from colorize.files import InputError
from pipeline import crop, paths
from pipeline.check import AllParams
from pipeline.params import load

DEFAULTS = load(AllParams, Path(__file__).parents[1] / "params.yaml")
PARAMS = DEFAULTS.model_copy(
    update={
        "crop": CropConfig(size=16, workers=1),
        "data": replace(DEFAULTS.data, source="folder", path="pictures"),
    }
)


@pytest.fixture
def contents(tmp_path, monkeypatch) -> dict[str, bytes]:
    """A working folder with photographs, some in a tar shard and some in place, four of which are no use."""
    monkeypatch.chdir(tmp_path)
    picture = data.astronaut()
    pictures = {f"tile{i}": picture[40 * i : 40 * i + 30, 90:130] for i in range(6)} | {
        "tiny": picture[:9, :20]
    }
    contents = {name: encoded(Image.fromarray(pixels), "PNG") for name, pixels in pictures.items()}
    contents |= {"text": b"no picture", "cut": contents["tile0"][:900], "changed": b"1"}
    rows = []
    paths.PHOTOS.mkdir(parents=True)
    Path("pictures").mkdir()
    with tarfile.open(paths.PHOTOS / "photos-00000.tar", "w") as tar:
        for name, content in contents.items():
            in_place = name in ("tile1", "tile4")
            row = {"photo": name, "group": name, "status": "ok", "reason": "", "member": f"{name}.jpg"}
            row |= {
                "sha256": hashlib.sha256(content).hexdigest(),
                "shard": "" if in_place else "photos-00000.tar",
            }
            rows.append(row | dict.fromkeys(("class", "split", "retryable", "url"), "") | {"bytes": 1})
            if in_place:
                Path("pictures", row["member"]).write_bytes(content)
            else:
                info = tarfile.TarInfo(row["member"])
                info.size = len(content)
                tar.addfile(info, io.BytesIO(b"2" if name == "changed" else content))
    rows += [
        rows[0] | {"photo": "404", "status": "failed"},
        rows[1] | {"photo": "gone", "member": "gone.jpg"},
    ]
    pd.DataFrame(rows).to_csv(paths.PHOTOS_CSV, index=False, lineterminator="\n")
    return contents


def table() -> pd.DataFrame:
    return pd.read_csv(paths.CROPS_CSV, dtype=str, keep_default_na=False).set_index("photo")


@fault(
    18,
    "bytes that change within a photograph",
    "`corrupt` where the decoder notices; what rots after it was fetched is `hash_mismatch`.",
)
def test_every_fetched_photograph_has_one_row_with_what_became_of_it(contents, capsys) -> None:
    """In the order of photos.csv; those that were not fetched have none."""
    crop.main(PARAMS)
    rows = table()
    assert list(rows.index) == [*contents, "gone"]
    failed = {"text": "not_image", "cut": "truncated", "changed": "hash_mismatch", "gone": "missing"}
    assert rows.reason.to_dict() == dict.fromkeys(contents, "") | failed
    assert (rows.status == "ok").sum() == 7 and (rows.status[rows.reason != ""] == "failed").all()
    assert list(rows["index"]) == [*"0123456", "", "", "", ""]
    assert rows.loc["tile0", ["width", "height", "small"]].tolist() == ["40", "30", "False"]
    assert rows.loc["tiny", ["width", "height", "small"]].tolist() == ["20", "9", "True"]
    assert "7 of 11 photographs at 16 pixels, 1 enlarged" in capsys.readouterr().out


def test_crops_lie_at_their_index(contents) -> None:
    """Each is the resampled central square of its photograph; small ones can be dropped."""
    crop.main(PARAMS.model_copy(update={"crop": CropConfig(size=16, workers=1, small="drop")}))
    assert table().loc["tiny", ["status", "reason", "index"]].tolist() == ["skipped", "too_small", ""]
    crops = Crops(paths.CROPS)[:]
    assert crops.shape == (6, 16, 16, 3) and crops.dtype == np.uint8
    for i in range(6):
        source = Image.open(io.BytesIO(contents[f"tile{i}"]))
        expected = source.resize((16, 16), Image.Resampling.LANCZOS, (5, 0, 35, 30))
        assert np.array_equal(crops[int(table().loc[f"tile{i}", "index"])], np.asarray(expected))


@pytest.mark.slow
def test_a_second_run_and_two_workers_write_the_same_bytes(contents) -> None:
    """What an earlier run left behind, finished or half-written, is gone."""
    crop.main(PARAMS)
    first = {path.name: path.read_bytes() for path in paths.CROPS.iterdir()}
    (paths.CROPS / "crops-00099.npy").write_bytes(b"of a larger data set")
    (paths.CROPS / ".crops-00000.npy.123.partial").write_bytes(b"half")
    crop.main(PARAMS.model_copy(update={"crop": CropConfig(size=16, workers=2)}))
    assert {path.name: path.read_bytes() for path in paths.CROPS.iterdir()} == first


def test_not_one_readable_photograph_is_refused_with_the_reasons_and_what_to_do(contents, capsys) -> None:
    small = PARAMS.model_copy(update={"crop": CropConfig(size=16, workers=1, max_megapixels=0.0005)})
    crop.main(small)
    assert table().reason["tile0"] == "too_many_pixels" and table().status["tiny"] == "ok"
    assert "unreadable (7 too_many_pixels, " in capsys.readouterr().out
    photos = pd.read_csv(paths.PHOTOS_CSV)
    for kept, words in (
        ("tile", r"6 too_many_pixels.*crop\.max_megapixels"),
        ("te|c", "1 not_image, .*give JPEG"),
    ):
        photos[photos.photo.str.match(kept)].to_csv(paths.PHOTOS_CSV, index=False)
        with pytest.raises(InputError, match=f"none of the . photographs .*{words}"):
            crop.main(small)
    paths.PHOTOS_CSV.unlink()
    with pytest.raises(InputError, match="photos.csv is missing; run `dvc repro download`"):
        crop.main(PARAMS)
