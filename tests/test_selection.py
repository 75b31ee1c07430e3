"""Rules of the filter against independent computations, splits without shared groups, near-duplicates."""

import numpy as np
import pandas as pd
import pytest
from skimage import data
from skimage.color import rgb2lab
from skimage.transform import downscale_local_mean

from colorize.data.filtering import FilterConfig, duplicates, near_any, thumbnails, tone_rules
from colorize.data.palette import weighted_lightness
from colorize.data.splits import split
from colorize.files import InputError

PHOTOS = 24_996


@pytest.fixture(scope="module")
def unsplash() -> tuple[np.ndarray, np.ndarray]:
    """Main colors and coverage of as many photographs as document 000 has; the three rules overlap."""
    rng = np.random.default_rng(2021)
    base = rng.integers(0, 256, (PHOTOS, 1, 1)) + rng.integers(-60, 61, (PHOTOS, 10, 3))
    coverage = rng.dirichlet(np.full(10, 2), PHOTOS)
    flat = rng.choice(PHOTOS, 700, replace=False)
    coverage[flat] = [0.901, *[0.011] * 9]
    coverage[flat[:50]] = [0.9, *[0.1 / 9] * 9]
    extreme = rng.choice(PHOTOS, 900, replace=False)
    base[extreme] = rng.choice([2, 253], (900, 1, 1))
    return np.clip(base, 0, 255).astype(np.uint8), coverage


@pytest.mark.parametrize(
    ("dark", "bright"), [(1000, 500), ("1000/24996", "500/24996"), (1000 / 24996, 500 / 24996)]
)
def test_the_three_rules_of_document_000_on_24996_photographs(unsplash, dark, bright) -> None:
    """The 1,000 darkest, the 500 brightest, coverage over 0.9, by count and by fraction."""
    colors, coverage = unsplash
    # Weighted L* by scikit-image, of what pandas picks the extremes.
    lightness = pd.Series((rgb2lab(colors)[..., 0] * coverage).sum(axis=1))
    everything = np.full(PHOTOS, 99.0)
    masks = tone_rules(
        weighted_lightness(colors, coverage),
        coverage.max(axis=1),
        everything,
        everything,
        FilterConfig(dark=dark, bright=bright),
    )
    expected = {
        "dark": set(lightness.nsmallest(1000).index),
        "bright": set(lightness.nlargest(500).index),
        "monotone": set(np.flatnonzero((coverage > 0.9).any(axis=1))),
        "grey": set(),
    }
    assert {name: set(np.flatnonzero(mask)) for name, mask in masks.items()} == expected
    assert [len(chosen) for chosen in expected.values()] == [1000, 500, 650, 0]
    assert len(set().union(*expected.values())) < 1000 + 500 + 650, "each is evaluated on the full set"


def test_ties_go_to_the_lower_index() -> None:
    nines = np.full(10, 9.0)
    masks = tone_rules(nines, np.zeros(10), nines, nines, FilterConfig(dark=2, bright=0.3))
    assert np.flatnonzero(masks["dark"]).tolist() == [0, 1]
    assert np.flatnonzero(masks["bright"]).tolist() == [0, 1, 2]


def test_thresholds_are_strict() -> None:
    """Exactly 0.9 is not over 0.9; exactly 5 and 2 are not below; only the rules named are evaluated."""
    coverage, extreme, mean = np.array([0.9, 0.9001, 0]), np.array([5, 4.999, 9]), np.array([2, 2.0, 1.999])
    masks = tone_rules(np.zeros(3), coverage, extreme, mean, FilterConfig(rules=("monotone", "grey")))
    assert {name: mask.tolist() for name, mask in masks.items()} == {
        "monotone": [False, True, False],
        "grey": [False, True, True],
    }


# ---- splits ----


def sizes(drawn: np.ndarray) -> dict[str, int]:
    return {name: int((drawn == name).sum()) for name in ("train", "val", "test", "")}


def alone(n: int) -> np.ndarray:
    return np.array([f"photo{i:05d}" for i in range(n)])


def no_hints(n: int) -> np.ndarray:
    return np.full(n, "")


@pytest.mark.parametrize(
    ("n", "amounts", "expected"),
    [
        (999, (0.8, 0.1, 0.1), (799, 100, 100, 0)),
        (3, (0.8, 0.1, 0.1), (1, 1, 1, 0)),
        (7, (0.333, 0.333, 0.333), (3, 2, 2, 0)),
        (9000, (5000, 500, 1000), (5000, 500, 1000, 2500)),
        (2048, (0.9, 0.1, 0), (1843, 205, 0, 0)),
        (100, ("1/2", "1/4", 10), (50, 25, 10, 15)),
    ],
)
def test_single_photographs_give_exact_counts(n, amounts, expected) -> None:
    """Counts and shares; shares that add up to 1 leave nothing unused."""
    rule = FilterConfig(train=amounts[0], val=amounts[1], test=amounts[2])
    assert tuple(sizes(split(alone(n), no_hints(n), rule, 1)).values()) == expected


@pytest.mark.parametrize(
    "counts", [(100, 1, 2), (40, 3, 2, 2, 1), np.random.default_rng(1).integers(1, 41, 15)]
)
def test_no_group_is_in_two_splits_and_every_split_has_one(counts) -> None:
    """However unequal the groups are; nothing is left out, and train gets the largest of three."""
    names = [f"g{i}" for i in range(len(counts))]
    for seed in range(5):
        groups = np.random.default_rng(seed).permutation(np.repeat(names, counts))
        drawn = split(groups, no_hints(len(groups)), FilterConfig(), seed)
        assert (pd.Series(drawn).groupby(groups).nunique() == 1).all()
        assert set(drawn) == {"train", "val", "test"}
        assert len(counts) > 3 or set(drawn[groups == "g0"]) == {"train"}


def test_the_split_follows_the_seed_and_not_the_order_of_the_rows():
    """Same seed, same split, also for shuffled rows; another seed, another split."""
    groups = alone(200)
    first = split(groups, no_hints(200), FilterConfig(), 1)
    assert np.array_equal(first, split(groups, no_hints(200), FilterConfig(), 1))
    assert not np.array_equal(first, split(groups, no_hints(200), FilterConfig(), 2))
    order = np.random.default_rng(0).permutation(200)
    assert np.array_equal(first[order], split(groups[order], no_hints(200), FilterConfig(), 1))


@pytest.mark.parametrize(
    ("marked", "amounts", "expected"),
    [
        ((80, 20), (50, 5, 10), (50, 5, 10, 35)),
        ((80, 20), (0.8, 0.1, 0.1), (70, 10, 20, 0)),
        ((0, 5), (0.8, 0.1, 0.1), (80, 10, 10, 0)),  # what is not marked fills what the marked ones leave
    ],
)
def test_the_sources_own_split_is_kept(marked, amounts, expected) -> None:
    """Rows marked test are only ever test, rows marked train only train or val."""
    train, test = marked
    hints = np.array(["train"] * train + ["test"] * test + [""] * (100 - train - test))
    drawn = split(alone(100), hints, FilterConfig(train=amounts[0], val=amounts[1], test=amounts[2]), 3)
    assert set(drawn[hints == "test"]) <= {"test", ""}
    assert set(drawn[hints == "train"]) <= {"train", "val", ""}
    assert tuple(sizes(drawn).values()) == expected


@pytest.mark.parametrize(
    ("groups", "hints", "rule", "sentence"),
    [
        (alone(2), "", {}, "only 2 photographs in 2 groups .* at least 3"),
        (np.full(50, "a"), "", {}, "only 50 photographs in 1 groups"),
        (alone(90), "", {"train": 80, "val": 10, "test": 10}, r"80 \+ 10 \+ 10 .* only 90 survive"),
        (alone(90), "", {"train": 0.8, "val": 0.2, "test": 0.2}, "only 90 survive"),
        (alone(90), "", {"train": 0}, "filter.train asks for no photographs"),
        (alone(90), "train", {}, "filter.test asks for 9 .* leaves 0"),
        (np.array([*"aabc"]), ["train", "test", "", ""], {}, "group 'a' into more"),
    ],
)
def test_what_cannot_be_split_is_refused_with_the_numbers(groups, hints, rule, sentence) -> None:
    with pytest.raises(InputError, match=sentence):
        split(groups, np.broadcast_to(np.array(hints), len(groups)), FilterConfig(**rule), 1)


# ---- splits within every class ----


def stratified(classes: np.ndarray, seed: int = 1, **amounts) -> pd.DataFrame:
    """Photographs of each class and split, every photograph a group of its own."""
    n = len(classes)
    drawn = split(alone(n), no_hints(n), FilterConfig(stratify=True, **amounts), seed, classes)
    return pd.crosstab(classes, drawn).reindex(columns=["train", "val", "test", ""], fill_value=0)


@pytest.mark.parametrize(
    ("counts", "amounts", "expected"),
    [
        # In proportion: a 3.04 0.91 0.61 2.43, b 4.78 1.43 0.96 3.83, c 2.17 0.65 0.43 1.74. The largest
        # remainders are b's of train, a's and c's of val, a's and b's of test, b's and c's of the unused.
        ((7, 11, 5), (10, 3, 2), [(3, 1, 1, 2), (5, 1, 1, 4), (2, 1, 0, 2)]),
        # Two photographs cannot go to three splits; the other classes are split as if they were not there.
        ((100, 50, 2), (0.8, 0.1, 0.1), [(80, 10, 10, 0), (40, 5, 5, 0), (2, 0, 0, 0)]),
        # Of 20 for training 2 are taken by the small class: 18, 6 and 3 of 60 and 30.
        ((60, 30, 2), (20, 6, 3), [(12, 4, 2, 42), (6, 2, 1, 21), (2, 0, 0, 0)]),
    ],
)
def test_every_class_is_split_in_the_same_proportions(counts, amounts, expected) -> None:
    """Against tables made by hand."""
    classes = np.random.default_rng(0).permutation(np.repeat([*"abc"], counts))
    found = stratified(classes, **dict(zip(("train", "val", "test"), amounts, strict=True)))
    assert [tuple(row) for row in found.to_numpy()] == expected


DOCUMENT_002 = [2410, 1801, 2198, 1903, 5226, 2781]


@pytest.mark.parametrize(
    ("counts", "amounts"),
    [
        (DOCUMENT_002, (1843, 205, 0)),  # its table 2: 2,048 of 16,319 photographs of six classes
        ([14] * 20, (224, 28, 28)),  # 11.2, 1.4 and 1.4 of each; rounded split by split, some train on 10
        *[(np.random.default_rng(seed).integers(3, 60, 9 * seed), None) for seed in (1, 2, 3)],
    ],
)
def test_parts_of_classes_are_less_than_one_photograph_from_what_is_asked(counts, amounts) -> None:
    """The splits have exactly the sizes asked for."""
    total = sum(counts)
    amounts = amounts or (int(total * 0.5) + 1, int(total * 0.1), int(total * 0.15))
    classes = np.repeat([f"c{i:02d}" for i in range(len(counts))], counts)
    found = stratified(classes, **dict(zip(("train", "val", "test"), amounts, strict=True)))
    assert found.sum().tolist() == [*amounts, total - sum(amounts)]
    assert np.abs(found - np.outer(counts, found.sum()) / total).to_numpy().max() < 1


@pytest.mark.parametrize("seed", range(3))
def test_stratified_groups_stay_whole_and_the_sources_split_is_kept(seed):
    """Groups of 1 to 4 photographs in two classes, some of them marked test; the split follows the seed."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 5, 120)
    number = np.repeat(np.arange(120), counts)
    groups = np.array([f"g{i}" for i in number])
    classes, hints = np.where(number % 2, "sea", "land"), np.where(number % 6 == 0, "test", "train")
    hints[number % 6 == 1] = "test"
    drawn = split(groups, hints, FilterConfig(stratify=True), seed, classes)
    assert (pd.Series(drawn).groupby(groups).nunique() == 1).all()
    assert set(drawn[hints == "test"]) == {"test"} and set(drawn[hints == "train"]) == {"train", "val"}
    val = pd.crosstab(classes, drawn)["val"] / pd.Series(classes).value_counts().sort_index()
    assert (abs(val - 0.1) < 0.02).all()
    assert np.array_equal(drawn, split(groups, hints, FilterConfig(stratify=True), seed, classes))
    assert not np.array_equal(drawn, split(groups, hints, FilterConfig(stratify=True), seed + 1, classes))


@pytest.mark.parametrize(
    ("classes", "hints", "amounts", "sentence"),
    [
        (None, no_hints(90), {}, "filter.stratify is true, but the source gives no classes; put .* or set"),
        (np.full(90, ""), no_hints(90), {}, "the source gives no classes"),
        (alone(90), no_hints(90), {}, "no class has photographs of 3 groups"),
        (np.repeat([*"abc"], [86, 2, 2]), no_hints(90), {"train": 4}, "asks for 4 .* already give it 4"),
        (
            np.repeat(["land", "sea"], 45),
            np.repeat(["train", "test"], 45),
            {"train": 40, "val": 10, "test": 10},
            "filter.test asks for 5 photographs of class 'land', but .* leaves 0",
        ),
    ],
)
def test_what_cannot_be_stratified_is_refused(classes, hints, amounts, sentence) -> None:
    with pytest.raises(InputError, match=sentence):
        split(alone(90), hints, FilterConfig(stratify=True, **amounts), 1, classes)


# ---- near-duplicates ----


def test_thumbnails_are_area_means():
    """Against scikit-image's block means, to one level (Pillow rounds after each direction)."""
    crops = np.stack([data.astronaut()[i * 60 : i * 60 + 64, 100:164] for i in range(4)])
    expected = np.stack([downscale_local_mean(crop, (8, 8, 1)) for crop in crops])
    assert np.abs(thumbnails(crops) - expected.reshape(4, -1)).max() <= 1


def test_nearness_is_the_rms_difference_below_the_threshold() -> None:
    """Exact over more rows than one block, down to the strict bound, up to the largest sums there are."""
    rng = np.random.default_rng(8)
    candidates, others = (
        rng.integers(0, 256, (30, 192), np.uint8),
        rng.integers(0, 256, (5000, 192), np.uint8),
    )
    others[4999] = np.clip(candidates[3].astype(int) + rng.integers(-3, 4, 192), 0, 255)
    others[10] = np.where(candidates[20] < 128, candidates[20] + 4, candidates[20] - 4)
    assert np.flatnonzero(near_any(candidates, others, 4)).tolist() == [3]
    assert np.flatnonzero(near_any(candidates, others, 4.001)).tolist() == [3, 20]
    left, right = rng.integers(0, 256, (2, 20, 256), np.uint8)
    left[0], right[0], left[1] = 255, 255, 0
    squared = ((left[:, None].astype(int) - right) ** 2).sum(axis=2).min(axis=1)
    for threshold in np.sqrt(squared / 256):
        assert near_any(left, right, threshold).tolist() == (squared < threshold**2 * 256).tolist()


def test_duplicates_across_splits_are_found_and_those_within_one_stay() -> None:
    """val against train, then test against train and what is left of val."""
    base = np.random.default_rng(9).integers(0, 200, (6, 192), np.uint8)
    small = np.concatenate([base, base + 1])
    first, second = (
        ["train", "train", "val", "test", "val", ""],
        ["train", "val", "test", "test", "val", "test"],
    )
    splits = np.array(first + second)
    assert np.flatnonzero(duplicates(small, splits, 2)).tolist() == [7, 8]
    assert not duplicates(small, splits, 0.5).any() and not duplicates(small * 0, splits, 0).any()


def test_a_removed_val_photograph_does_not_remove_test_photographs():
    """train - val - test in a chain of small steps: val goes, so test is no longer near anything."""
    small = np.stack([np.full(192, level, np.uint8) for level in (100, 103, 106)])
    assert duplicates(small, np.array(["train", "val", "test"]), 4).tolist() == [False, True, False]
