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
    ab = rgb2lab(crops[:7])[..., 1:].reshape(-1, 2)
    expected = np.bincount(cKDTree(bins.centers()).query(ab)[1], minlength=313)
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
