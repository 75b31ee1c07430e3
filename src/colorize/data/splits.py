"""Which photographs are kept, and in which split.

The three tone rules are those of document 000, section 2.2.3, each evaluated on the full set; grey photographs and
near-duplicates across splits are ours. Splits are drawn by group, so that two pictures of one group (the tiles of
a photograph, say) are never on two sides, and within every class if asked (document 002 has classes of landscapes).
Everything is a function of the arrays and the seed; ties go by index.
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
    groups: np.ndarray, hints: np.ndarray, rule: FilterConfig, seed: int, classes: np.ndarray | None = None
) -> np.ndarray:
    """Draw train, val and test by group; where the rule stratifies, within every class.

    Groups of one photograph give exact counts; larger ones the nearest that fits, but at least one group for every
    split that is asked for. Shares that add up to 1 leave nothing unused. Stratified, every class gives each split
    its part to within one photograph, and a class of fewer groups than there are splits gives all to train.

    Args:
        groups: [n], names
        hints: [n], the source's own split: train (then train or val), test (then test only) or empty
        classes: [n], names; needed to stratify, a group being of its first photograph's class

    Returns:
        [n] of train, val, test, or empty where the photograph is not needed.

    Raises:
        InputError: there are too few photographs or groups, the hints contradict what is asked for, or there are no
            classes to stratify by.
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
    wanted, uses_all = _wanted(rule, len(groups))
    asked = sum(count > 0 for count in wanted.values())
    if len(names) < asked:
        raise InputError(
            f"only {len(groups)} photographs in {len(names)} groups survive the filter, but at least {asked} "
            "groups are needed; add photographs, or take rules out of filter.rules"
        )
    order = np.random.default_rng(seed).permutation(len(names))
    drawn = np.full(len(names), "", dtype="<U5")
    if not rule.stratify:
        drawn[order] = _draw(sizes[order], hint[order], wanted, uses_all)
        return drawn[group_of]
    if classes is None or not (classes != "").any():
        raise InputError(
            "filter.stratify is true, but the source gives no classes; put the photographs into one folder per class, "
            "or set filter.stratify to false"
        )
    labels, class_of, groups_in = np.unique(classes[first], return_inverse=True, return_counts=True)
    if groups_in.max() < asked:
        raise InputError(
            f"filter.stratify is true, but no class has photographs of {asked} groups, one for each split; set it to false"
        )
    small = (groups_in < asked)[class_of]
    drawn[small] = np.where(hint[small] == "test", "test", "train")
    large = np.flatnonzero(groups_in >= asked)
    photographs = np.bincount(class_of, sizes)[large].astype(int)
    rows = _apportion(_wanted(_less(rule, sizes[small].sum()), photographs.sum())[0], photographs)
    for number, row in zip(large, rows, strict=True):
        members = order[class_of[order] == number]
        drawn[members] = _draw(
            sizes[members], hint[members], row, uses_all, f" of class {str(labels[number])!r}"
        )
    return drawn[group_of]


def _less(rule: FilterConfig, small: int) -> FilterConfig:
    """The rule for the other classes, once the photographs of small ones are in train: a count has fewer to go."""
    train = Fraction(str(rule.train))
    if 1 <= train <= small:
        raise InputError(
            f"filter.train asks for {train} photographs, but classes with fewer groups than there are splits already "
            f"give it {small}; raise filter.train, or set filter.stratify to false"
        )
    return replace(rule, train=int(train) - small) if train >= 1 else rule


def _apportion(wanted: dict[str, int], photographs: np.ndarray) -> list[dict[str, int]]:
    """Each class's part of every split: whole numbers, less than 1 from the proportional part, that add up.

    Largest remainders, over all cells of the table of classes and splits at once: taken split by split, a class
    could lose a photograph of train to val and another one to test. That is a transportation problem, whose corners,
    and so the one that the simplex method ends in, are whole.

    Args:
        photographs: [C], of each class
    """
    splits = np.array([*wanted.values(), photographs.sum() - sum(wanted.values())])  # the last: not needed
    floors, remainders = np.divmod(np.outer(photographs, splits), photographs.sum())
    rows, columns = floors.shape
    in_class = sparse.kron(sparse.eye(rows), np.ones((1, columns)))
    in_split = sparse.kron(np.ones((1, rows)), sparse.eye(columns))
    extra = linprog(  # type: ignore[call-overload]  # its stubs know no sparse matrices
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
    """The split of each group; the groups come in the order in which they are drawn."""
    only_test = hint == "test"
    allowed = {"train": ~only_test, "val": ~only_test, "test": hint != "train"}
    most = {name: sizes[allowed[name]].sum() for name in SPLITS}
    most["train"] -= wanted["val"]
    asked = [name for name in reversed(SPLITS) if wanted[name]]
    # Groups that can only be test come first, so that test leaves the others to train and val.
    order = np.argsort(~only_test, kind="stable")
    drawn = np.full(len(sizes), "", dtype="<U5")
    for position, name in enumerate(asked):
        spare = ((drawn == "") & ~only_test).sum() - (len(asked) - position - 1)
        free = [i for i in order if drawn[i] == "" and allowed[name][i] and (only_test[i] or spare > 0)]
        if not free or (most[name] < wanted[name] and not uses_all):
            raise InputError(
                f"filter.{name} asks for {wanted[name]} photographs{where}, but the source's own split leaves "
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
    return drawn


def _wanted(rule: FilterConfig, total: int) -> tuple[dict[str, int], bool]:
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
