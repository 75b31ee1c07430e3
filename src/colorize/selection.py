"""Which photographs are kept, and in which split.

The three tone rules are those of document 000, section 2.2.3, each evaluated on the full set; grey photographs and
near-duplicates across splits are ours. Splits are drawn by group, so that two pictures of one group (the tiles of
a photograph, say) are never on two sides. Everything is a function of the arrays and the seed; ties go by index.
"""

from fractions import Fraction

import numpy as np
from PIL import Image

from colorize.files import InputError
from colorize.settings import FilterRule, count_of

SPLITS = ("train", "val", "test")
THUMBNAIL = 8
_BLOCK = 4096


def tone_rules(
    lightness: np.ndarray, coverage: np.ndarray, extreme: np.ndarray, mean: np.ndarray, rule: FilterRule
) -> dict[str, np.ndarray]:
    """The photographs that each rule removes, all rules evaluated on the full set.

    Args:
        lightness: [n], weighted L*
        coverage: [n], of the main color, 0..1
        extreme: [n], largest |a*| or |b*|
        mean: [n], mean chroma in Lab units

    Returns:
        a bool mask [n] for each of dark, bright, monotone and grey that is switched on, in this order.
    """
    n = len(lightness)
    order = np.argsort(lightness, kind="stable")
    falling = np.argsort(-lightness, kind="stable")
    everyone = np.arange(n)
    masks = {
        "dark": np.isin(everyone, order[: count_of(rule.dark, n)]),
        "bright": np.isin(everyone, falling[: count_of(rule.bright, n)]),
        "monotone": coverage > rule.monotone,
        "grey": (extreme < rule.grey_max) | (mean < rule.grey_mean),
    }
    return {name: mask for name, mask in masks.items() if name in rule.rules}


def split(groups: np.ndarray, hints: np.ndarray, rule: FilterRule, seed: int) -> np.ndarray:
    """Draw train, val and test by group.

    Groups of one photograph give exact counts; larger ones the nearest that fits, but at least one group for every
    split that is asked for. Shares that add up to 1 leave nothing unused.

    Args:
        groups: [n], names
        hints: [n], the source's own split: train (then train or val), test (then test only) or empty

    Returns:
        [n] of train, val, test, or empty where the photograph is not needed.

    Raises:
        InputError: there are too few photographs or groups, or the hints contradict what is asked for.
    """
    names, first, group_of, sizes = np.unique(groups, return_index=True, return_inverse=True, return_counts=True)
    hint = np.asarray(hints)[first]
    if (torn := hint[group_of] != hints).any():
        raise InputError(
            f"the source puts photographs of group {str(groups[torn][0])!r} into more than one split; "
            "give each split groups of its own"
        )
    only_test = hint == "test"
    allowed = {"train": ~only_test, "val": ~only_test, "test": hint != "train"}
    wanted, uses_all = _wanted(rule, len(groups))
    most = {name: sizes[allowed[name]].sum() for name in SPLITS}
    most["train"] -= wanted["val"]
    asked = [name for name in reversed(SPLITS) if wanted[name]]
    if len(names) < len(asked):
        raise InputError(
            f"only {len(groups)} photographs in {len(names)} groups survive the filter, but at least {len(asked)} "
            "groups are needed; add photographs, or take rules out of filter.rules"
        )
    # Groups that can only be test come first, so that test leaves the others to train and val.
    order = np.random.default_rng(seed).permutation(len(names))
    order = order[np.argsort(~only_test[order], kind="stable")]
    drawn = np.full(len(names), "", dtype="<U5")
    for position, name in enumerate(asked):
        spare = ((drawn == "") & ~only_test).sum() - (len(asked) - position - 1)
        free = [i for i in order if drawn[i] == "" and allowed[name][i] and (only_test[i] or spare > 0)]
        if not free or (most[name] < wanted[name] and not uses_all):
            raise InputError(
                f"filter.{name} asks for {wanted[name]} photographs, but the source's own split leaves "
                f"{most[name] if free else 0}; lower filter.{name} or add photographs"
            )
        missing = wanted[name]
        for i in free:
            if sizes[i] < 2 * missing and (only_test[i] or spare > 0):
                drawn[i] = name
                missing -= sizes[i]
                spare -= not only_test[i]
        if missing == wanted[name]:
            drawn[min(free, key=lambda i: sizes[i])] = name
    if uses_all:
        drawn[(drawn == "") & only_test] = "test"
        drawn[drawn == ""] = "train"
    return drawn[group_of]


def _wanted(rule: FilterRule, total: int) -> tuple[dict[str, int], bool]:
    """How many photographs each split is to have, and whether the shares add up to the whole."""
    amounts = {name: Fraction(str(getattr(rule, name))) for name in SPLITS}
    wanted = {
        name: int(amount) if amount >= 1 else max(count_of(str(amount), total), amount > 0)
        for name, amount in amounts.items()
    }
    shares = all(amount < 1 for amount in amounts.values())
    uses_all = shares and abs(sum(amounts.values(), Fraction(-1))) <= Fraction(1, 1000)
    if uses_all:
        wanted["train"] = max(total - wanted["val"] - wanted["test"], 1)
    elif sum(wanted.values()) > total:
        raise InputError(
            f"filter.train, filter.val and filter.test ask for {wanted['train']} + {wanted['val']} + {wanted['test']} "
            f"photographs, but only {total} survive the filter; lower them or add photographs"
        )
    if not wanted["train"]:
        raise InputError("filter.train asks for no photographs; give it a count or a share above 0")
    return wanted, uses_all


def thumbnails(crops: np.ndarray) -> np.ndarray:
    """Area-averaged thumbnails: uint8 [n, S, S, 3] to uint8 [n, 8 * 8 * 3]."""
    small = np.empty((len(crops), THUMBNAIL, THUMBNAIL, 3), np.uint8)
    for i, pixels in enumerate(crops):
        thumbnail = Image.fromarray(pixels).resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
        small[i] = np.asarray(thumbnail)
    return small.reshape(len(crops), -1)


def near_any(candidates: np.ndarray, others: np.ndarray, threshold: float) -> np.ndarray:
    """Which of `candidates` differ from one of `others` by an RMS below `threshold`, in levels of 0..255.

    Args:
        candidates: uint8 [m, d], thumbnails; d at most 256
        others: uint8 [n, d]

    Returns:
        bool [m]
    """
    near = np.zeros(len(candidates), bool)
    limit = threshold**2 * candidates.shape[1]
    for start in range(0, len(candidates), _BLOCK):
        # Sums of at most 256 products of bytes are whole numbers below 2**24: exact in float32, in any order.
        left = candidates[start : start + _BLOCK].astype(np.float32)
        for other in range(0, len(others), _BLOCK):
            right = others[other : other + _BLOCK].astype(np.float32)
            squared = (left**2).sum(axis=1, dtype=np.float64)[:, None] + (right**2).sum(axis=1, dtype=np.float64)
            squared -= 2 * (left @ right.T).astype(np.float64)
            near[start : start + _BLOCK] |= (squared < limit).any(axis=1)
    return near


def duplicates(small: np.ndarray, splits: np.ndarray, threshold: float) -> np.ndarray:
    """Near-duplicates across splits: those of val and test near one of train, then those of test near one of val.

    Args:
        small: uint8 [n, 192], thumbnails
        splits: [n], train, val, test or empty
        threshold: RMS difference in levels of 0..255

    Returns:
        bool [n]; nothing in train is marked, and duplicates within one split stay.
    """
    marked = np.zeros(len(small), bool)
    for name, against in (("val", "train"), ("test", "train"), ("test", "val")):
        places = np.flatnonzero((splits == name) & ~marked)
        others = (splits == against) & ~marked
        marked[places] = near_any(small[places], small[others], threshold)
    return marked
