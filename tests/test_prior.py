"""The prior stage: training pixels only, released prior checked."""

import hashlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.spatial import cKDTree
from skimage.color import rgb2lab

from colorize import bins, files
from colorize.bins import Statistics
from colorize.files import InputError
from pipeline import paths, prior


@pytest.fixture
def crops(monkeypatch, tmp_path: Path, photographs) -> np.ndarray:
    monkeypatch.chdir(tmp_path)
    images = photographs(10, 16)
    files.write_array(paths.CROPS / "crops-00000.npy", images)
    splits = pd.DataFrame(
        {"index": range(10), "photo": list("abcdefghij"), "split": ["train"] * 7 + ["val", "test", ""]}
    )
    files.write_text(paths.SPLITS_CSV, splits.to_csv(index=False))
    return images


def test_only_the_training_split_is_counted(crops, make_params) -> None:
    """Against a KD-tree over exactly the first seven photographs."""
    prior.main(make_params())
    expected = np.bincount(
        cKDTree(bins.centers()).query(rgb2lab(crops[:7])[..., 1:].reshape(-1, 2))[1], minlength=313
    )
    assert np.array_equal(Statistics.read(paths.PRIOR).arrays["counts"], expected)


def test_a_released_prior_is_taken_by_its_checksum(crops, make_params) -> None:
    """The right file joins the others; another file of the same name is refused."""
    files.write_array(Path("prior_probs.npy"), np.full(313, 1 / 313))
    digits = hashlib.sha256(Path("prior_probs.npy").read_bytes()).hexdigest()
    prior.main(make_params({"prior.released": "prior_probs.npy", "prior.sha256": digits}))
    assert np.allclose(Statistics.read(paths.PRIOR).weights("released"), 1)
    with pytest.raises(InputError, match="prior.released: prior_probs.npy has sha256"):
        prior.main(make_params({"prior.released": "prior_probs.npy"}))
    with pytest.raises(InputError, match="cannot read nowhere.npy"):
        prior.main(make_params({"prior.released": "nowhere.npy"}))


def test_the_published_prior_gives_the_published_weights(crops, make_params) -> None:
    """0.0965 to 6.175, through the stage."""
    published = Path(__file__).parents[2] / "shared/data/zhang2016/prior_probs.npy"
    if not published.exists():
        pytest.skip("the published prior_probs.npy is not on this machine")
    prior.main(make_params({"prior.released": str(published)}))
    weights = Statistics.read(paths.PRIOR).weights("released")
    assert (weights.min(), weights.max()) == (pytest.approx(0.0965, abs=5e-5), pytest.approx(6.175, abs=5e-4))
