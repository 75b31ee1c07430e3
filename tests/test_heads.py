"""Losses and decodings of the heads against dense, slow and hand-written references."""

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree
from torch.nn import functional as F

from colorize import bins
from colorize.bins import PriorConfig, Statistics
from colorize.data.dataset import to_light_ab
from colorize.models.heads import Classification, HeadConfig, Regression, build_head


@pytest.fixture
def truth(photographs) -> tuple[torch.Tensor, torch.Tensor]:
    return to_light_ab(torch.tensor(photographs(4, 32)))


@pytest.fixture
def head(photographs) -> Classification:
    statistics = Statistics.measure(photographs(8, 32, 5), PriorConfig())
    return build_head(HeadConfig("classification", weights="empirical"), statistics)


def dense_encoding(ab: torch.Tensor, neighbors: int = 5, sigma: float = 5) -> torch.Tensor:
    """Zhang et al.'s encoding by KD-tree: [B, 2, h, w] to [B, 313, h, w]."""
    points = ab.permute(0, 2, 3, 1).reshape(-1, 2).double().numpy()
    distance, index = cKDTree(bins.centers()).query(points, neighbors)
    weights = np.exp(-(distance**2) / (2 * sigma**2))
    dense = np.zeros((len(points), 313))
    np.put_along_axis(dense, index, weights / weights.sum(1, keepdims=True), axis=1)
    b, _, h, w = ab.shape
    return torch.tensor(dense.reshape(b, h, w, 313)).permute(0, 3, 1, 2)


GRID = np.array(
    [(5, 5), (5, -5), (-5, -5), (15, 5), (-75, 45), (95, 65), (95, 75)]
)  # occupied cells of a grid
SCATTERED = np.random.default_rng(3).integers(-110, 110, (40, 2))


@pytest.mark.parametrize("centers", [bins.centers(), GRID, SCATTERED], ids=["gamut", "grid", "scattered"])
@pytest.mark.parametrize("neighbors", [1, 5, 10])
def test_soft_encoding_equals_the_search_of_all_bins(centers, neighbors) -> None:
    """Any ab, also midway between bins, where the first is taken, and where no color is."""
    head = Classification(neighbors, 5, 0.38, torch.ones(len(centers)), torch.tensor(centers))
    steps = np.arange(-130, 130.1, 2.5)  # of the grid of bins all that is midway, and more
    midway = np.stack(np.meshgrid(steps, steps), -1).reshape(-1, 2)
    anywhere = np.random.default_rng(4).uniform(-130, 130, (10_000, 2)).astype(np.float32)
    for points, same in ((midway, 1), (anywhere, 0.999)):  # rounding decides between the nearly equal
        square = ((points[:, None] - head.centers.double().numpy()) ** 2).sum(-1)
        expected = np.argsort(square, axis=1, kind="stable")[:, :neighbors]
        share = np.exp((square.min(1, keepdims=True) - np.take_along_axis(square, expected, 1)) / 50)
        index, weight = (
            t[0, :, :, 0].T.numpy() for t in head.encode(torch.tensor(points.T[None, ..., None]).float())
        )
        assert np.allclose(weight, share / share.sum(1, keepdims=True), atol=1e-4)
        assert (index == expected).mean() >= same


def test_rebalanced_loss_and_gradient_equal_the_dense_form(head, truth) -> None:
    """Each pixel is weighted by its nearest bin (Zhang et al., equations 2 and 3)."""
    light, ab = truth
    logits = torch.randn(4, 313, 8, 8, requires_grad=True)
    losses = head.losses(logits, light, ab)
    losses["loss"].backward()
    ours, logits.grad = logits.grad.clone(), None

    target = dense_encoding(F.avg_pool2d(ab, 4)).float()
    rebalance = head.class_weights[target.argmax(1)]
    dense = -(rebalance * (target * F.log_softmax(logits, 1)).sum(1)).sum() / 4
    dense.backward()
    assert losses["loss"].item() == pytest.approx(dense.item(), rel=1e-5)
    assert losses["cross_entropy"].item() == pytest.approx(dense.item() / 64, rel=1e-5)
    assert (ours - logits.grad).abs().max() < 1e-5


def test_loss_of_bf16_logits_is_that_of_their_values(head, truth) -> None:
    """Computed in float32; a gradient asked for twice is the same twice."""
    light, ab = truth
    logits = torch.randn(4, 313, 8, 8).bfloat16().requires_grad_()
    exact = logits.detach().float().requires_grad_()
    loss, expected = (head.losses(values, light, ab)["loss"] for values in (logits, exact))
    once, twice = (torch.autograd.grad(3 * loss, logits, retain_graph=True)[0] for _ in range(2))
    assert loss.item() == expected.item() and once.dtype == torch.bfloat16 and torch.equal(once, twice)
    assert torch.equal(once, torch.autograd.grad(3 * expected, exact)[0].bfloat16())


def test_annealed_mean_runs_from_the_mode_to_the_mean(truth) -> None:
    """Temperature 1 is the expectation, towards 0 the likeliest bin (Zhang et al., equation 5)."""
    light, _ = truth
    logits = torch.randn(4, 313, 8, 8)
    logits.scatter_add_(
        1, logits.argmax(1, keepdim=True), torch.ones(4, 1, 8, 8)
    )  # no near-ties for the mode
    centers = torch.tensor(bins.centers(), dtype=torch.float32)
    share = logits.softmax(1)
    for temperature, expected in (
        (1.0, torch.einsum("bqhw,qc->bchw", share, centers)),
        (0.02, centers[share.argmax(1)].permute(0, 3, 1, 2)),
    ):
        decoded = Classification(5, 5, temperature, torch.ones(313)).decode(logits, light[..., :8, :8])
        assert (decoded - expected).abs().max() < 0.1
    annealed = share ** (1 / 0.38) / (share ** (1 / 0.38)).sum(1, keepdim=True)
    decoded = Classification(5, 5, 0.38, torch.ones(313)).decode(logits, light[..., :8, :8])
    assert (decoded - torch.einsum("bqhw,qc->bchw", annealed, centers)).abs().max() < 1e-3


def test_regression_speaks_lab_units_and_averages_targets_for_small_outputs(truth) -> None:
    """An output at half size is compared with the area mean of ab."""
    light, ab = truth
    head = Regression(128)
    target = F.avg_pool2d(ab, 2)
    out = torch.atanh(target / 128)
    assert head.losses(out, light, ab)["loss"].item() < 1e-10
    assert head.decode(out, light).shape == ab.shape
    assert torch.allclose(head.decode(torch.atanh(ab / 128), light), ab, atol=1e-3)


def test_euclidean_loss_of_a_hand_computed_case() -> None:
    """One pixel off by (3, 4), one right; a second photograph off by (0, 2) in both."""
    head = build_head(HeadConfig("euclidean"), None)
    light = torch.full((2, 1, 1, 2), 50.0)
    ab = torch.tensor([[[[3.0, 20.0]], [[4.0, -5.0]]], [[[0.0, 0.0]], [[2.0, 2.0]]]])
    out = torch.tensor([[[[0.0, 20.0]], [[0.0, -5.0]]], [[[0.0, 0.0]], [[0.0, 0.0]]]], requires_grad=True)
    losses = head.losses(out, light, ab)
    assert losses["loss"].item() == pytest.approx((25 / 2 + 8 / 2) / 2)
    assert losses["squared_error"].item() == pytest.approx((25 + 8) / 8)
    losses["loss"].backward()
    assert out.grad[0, :, 0, 0].tolist() == pytest.approx([-3 / 2, -4 / 2])
    assert torch.equal(head.decode(ab, light), ab) and head.decode(99 * ab, light).abs().max() == 128


def test_the_grids_one_hot_encoding_is_the_cell_of_the_color(photographs) -> None:
    """Of the photographs counted, every color's nearest center is that of floor(ab / 10)."""
    images = photographs(3, 16)
    statistics = Statistics.measure(images, PriorConfig())
    head = build_head(HeadConfig("classification", bins="grid", neighbors=1), statistics)
    _, ab = to_light_ab(torch.tensor(images))
    index, weight = head.encode(ab)
    cells = torch.floor(ab / 10) * 10 + 5
    inside = (
        (ab / 10).frac().abs() - 0.5
    ).abs() < 0.49  # float32 may put a color on an edge into the next cell
    found = head.centers[index[:, 0]].permute(0, 3, 1, 2)
    assert torch.equal(found[inside], cells[inside]) and (weight == 1).all()
    assert head.channels == len(statistics.arrays["grid_counts"]) < 313


def test_photographs_without_color_give_no_loss(truth) -> None:
    """As in the released code: the others' gradients and the divisor stay what they were."""
    light, ab = truth
    ab = ab.clone()
    ab[1] = 4.9 * ab[1] / ab[1].abs().max()
    logits = torch.randn(4, 313, 8, 8, requires_grad=True)
    masked = Classification(10, 5, 0.3837, torch.ones(313), grey_below=5)
    plain = Classification(10, 5, 0.3837, torch.ones(313))
    ours = torch.autograd.grad(masked.losses(logits, light, ab)["loss"], logits)[0]
    all_of_them = torch.autograd.grad(plain.losses(logits, light, ab)["loss"], logits)[0]
    others = [0, 2, 3]
    assert ours[1].abs().max() == 0 and all_of_them[1].abs().max() > 0
    assert torch.equal(ours[others], all_of_them[others])
    expected = plain.losses(logits[others], light[others], ab[others])["loss"] * 3 / 4
    assert masked.losses(logits, light, ab)["loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert masked.losses(logits, light, ab * 0)["loss"].item() == 0
