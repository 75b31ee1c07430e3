"""Draw the splits: train, val and test.

Groups (the tiles of a photograph, say) are never divided. If requested, each class is split in the same
proportions (document 002 has classes of landscapes). The result depends only on the arrays and the seed; ties
are broken by index.
"""

from dataclasses import replace
from fractions import Fraction

import numpy as np
from scipy import sparse
from scipy.optimize import linprog

from colorize.data.filtering import FilterConfig
from colorize.files import InputError
from colorize.settings import count_of

SPLITS = ("train", "val", "test")


def split(
    groups: np.ndarray, hints: np.ndarray, config: FilterConfig, seed: int, classes: np.ndarray | None = None
) -> np.ndarray:
    """Draw train, val and test by group, and within every class if `config.stratify`.

    Groups of one photograph give exact counts. Larger groups give the nearest counts that fit, but at least
    one group to every requested split. Shares that add up to 1 use all photographs. If stratified, each split
    gets its part of every class to within one photograph; a class with fewer groups than splits goes to
    train.

    Args:
        groups: [n], names
        hints: [n], the source's own split: train (then train or val), test (then only test) or empty
        classes: [n], names, needed to stratify; a group has the class of its first photograph

    Returns:
        [n] of train, val, test, or empty for photographs that are not needed.

    Raises:
        InputError: there are too few photographs or groups, the hints contradict the requested counts, or
            there are no classes to stratify by.
    """
    names, first, group_of, sizes = np.unique(
        groups, return_index=True, return_inverse=True, return_counts=True
    )
    hint = np.asarray(hints)[first]
    if (torn := hint[group_of] != hints).any():
        raise InputError(
            f"the source puts photographs of group {str(groups[torn][0])!r} into more than one split; "
            "give each split groups of its own"
        )
    wanted, uses_all = _wanted(config, len(groups))
    needed = sum(count > 0 for count in wanted.values())
    if len(names) < needed:
        raise InputError(
            f"only {len(groups)} photographs in {len(names)} groups survive the filter, but at least "
            f"{needed} groups are needed; add photographs, or take rules out of filter.rules"
        )
    order = np.random.default_rng(seed).permutation(len(names))
    drawn = np.full(len(names), "", dtype="<U5")
    if not config.stratify:
        drawn[order] = _draw(sizes[order], hint[order], wanted, uses_all)
        return drawn[group_of]
    if classes is None or not (classes != "").any():
        raise InputError(
            "filter.stratify is true, but the source gives no classes; put the photographs into one folder "
            "per class, or set filter.stratify to false"
        )
    labels, class_of, groups_in = np.unique(classes[first], return_inverse=True, return_counts=True)
    if groups_in.max() < needed:
        problem = f"no class has photographs of {needed} groups, one for each split"
        raise InputError(f"filter.stratify is true, but {problem}; set it to false")
    small = (groups_in < needed)[class_of]
    drawn[small] = np.where(hint[small] == "test", "test", "train")
    large = np.flatnonzero(groups_in >= needed)
    photographs = np.bincount(class_of, sizes)[large].astype(int)
    rows = _apportion(_wanted(_less(config, sizes[small].sum()), photographs.sum())[0], photographs)
    for number, row in zip(large, rows, strict=True):
        members = order[class_of[order] == number]
        where = f" of class {str(labels[number])!r}"
        drawn[members] = _draw(sizes[members], hint[members], row, uses_all, where)
    return drawn[group_of]


def _less(config: FilterConfig, small: int) -> FilterConfig:
    """Subtract the photographs of small classes, which are all in train, from a count `train`."""
    train = Fraction(str(config.train))
    if 1 <= train <= small:
        raise InputError(
            f"filter.train asks for {train} photographs, but classes with fewer groups than there are splits "
            f"already give it {small}; raise filter.train, or set filter.stratify to false"
        )
    return replace(config, train=int(train) - small) if train >= 1 else config


def _apportion(wanted: dict[str, int], photographs: np.ndarray) -> list[dict[str, int]]:
    """Divide the splits over classes of `photographs` [C]: whole numbers, within 1 of the proportional parts.

    Largest remainders over the whole table of classes and splits: split by split, a class could lose one
        photograph
    to val and another one to test. This is a transportation problem. All its corners are whole numbers, and
    the simplex method returns a corner.
    """
    splits = np.array([*wanted.values(), photographs.sum() - sum(wanted.values())])  # the last: not needed
    floors, remainders = np.divmod(np.outer(photographs, splits), photographs.sum())
    rows, columns = floors.shape
    in_class = sparse.kron(sparse.eye(rows), np.ones((1, columns)))
    in_split = sparse.kron(np.ones((1, rows)), sparse.eye(columns))
    extra = linprog(  # type: ignore[call-overload]  # its stubs lack sparse matrices
        -remainders.ravel() / photographs.sum(),
        A_eq=sparse.vstack((in_class, in_split)),
        b_eq=np.concatenate((photographs - floors.sum(axis=1), splits - floors.sum(axis=0))),
        bounds=np.stack((np.zeros(floors.size), remainders.ravel() > 0), axis=1),
        method="highs-ds",
    )
    parts = floors + np.rint(extra.x).reshape(rows, columns).astype(int)
    return [dict(zip(wanted, map(int, row), strict=False)) for row in parts]


def _draw(
    sizes: np.ndarray, hint: np.ndarray, wanted: dict[str, int], uses_all: bool, where: str = ""
) -> np.ndarray:
    """Return the split of each group; groups are drawn in the given order."""
    only_test = hint == "test"
    allowed = {"train": ~only_test, "val": ~only_test, "test": hint != "train"}
    available = {name: sizes[allowed[name]].sum() for name in SPLITS}
    available["train"] -= wanted["val"]
    names = [name for name in reversed(SPLITS) if wanted[name]]
    # Groups that can only be test come first, so that test leaves the others to train and val.
    order = np.argsort(~only_test, kind="stable")
    drawn = np.full(len(sizes), "", dtype="<U5")
    for position, name in enumerate(names):
        spare = ((drawn == "") & ~only_test).sum() - (len(names) - position - 1)
        free = [i for i in order if drawn[i] == "" and allowed[name][i] and (only_test[i] or spare > 0)]
        if not free or (available[name] < wanted[name] and not uses_all):
            raise InputError(
                f"filter.{name} asks for {wanted[name]} photographs{where}, but the source's own split "
                f"leaves {available[name] if free else 0}; lower filter.{name} or add photographs"
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
    return drawn


def _wanted(config: FilterConfig, total: int) -> tuple[dict[str, int], bool]:
    """Return how many photographs each split should get, and whether shares add up to 1."""
    amounts = {name: Fraction(str(getattr(config, name))) for name in SPLITS}
    wanted = {
        name: int(amount) if amount >= 1 else max(count_of(str(amount), total), amount > 0)
        for name, amount in amounts.items()
    }
    shares = all(amount < 1 for amount in amounts.values())
    uses_all = shares and abs(sum(amounts.values(), Fraction(-1))) <= Fraction(1, 1000)
    if uses_all:
        wanted["train"] = max(total - wanted["val"] - wanted["test"], 1)
    elif sum(wanted.values()) > total:
        counts = " + ".join(map(str, wanted.values()))
        raise InputError(
            f"filter.train, filter.val and filter.test ask for {counts} photographs, but only {total} "
            "survive the filter; lower them or add photographs"
        )
    if not wanted["train"]:
        raise InputError("filter.train asks for no photographs; give it a count or a share above 0")
    return wanted, uses_all
