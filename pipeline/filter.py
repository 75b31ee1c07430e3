"""Filter and split the crops: data/crops -> data/splits.csv, data/removed.png.

Nothing is copied: splits.csv holds indices of crops.

Source: SPEC 2.4 and 2.5; document 000, section 2.2.3; classes as in document 002, table 2.
"""

import sys
from typing import Any

import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from tqdm import tqdm

from colorize.data.filtering import FilterConfig, duplicates, thumbnails, tone_rules
from colorize.data.manifest import DataConfig
from colorize.data.palette import chroma, listed_colors, main_colors, to_lab, weighted_lightness
from colorize.data.shards import Crops
from colorize.data.splits import SPLITS, split
from colorize.files import InputError, read_table, write_bytes, write_text
from colorize.scoring import sheets
from colorize.settings import suggest
from pipeline import paths
from pipeline.params import Params, stage

EXAMPLES = 8
PIXELS_AT_ONCE = 2**20
REMEDY = {
    "dark": "lower filter.dark",
    "bright": "lower filter.bright",
    "monotone": "raise filter.monotone",
    "grey": "lower filter.grey_max and filter.grey_mean",
}


def _measure(crops: Crops, rows: np.ndarray, method: str) -> tuple[np.ndarray, ...]:
    pixels = crops[rows]
    return *main_colors(pixels, method), *chroma(to_lab(pixels)), thumbnails(pixels)


def _measure_all(crops: Crops, method: str) -> list[np.ndarray]:
    """Compute colors, coverage, max(|a*|, |b*|), mean chroma and thumbnails of all crops."""
    size = crops[:1].shape[1]
    chunks = np.array_split(np.arange(len(crops)), -(-len(crops) * size**2 // PIXELS_AT_ONCE))
    measured = Parallel(n_jobs=-1, prefer="threads", return_as="generator")(
        delayed(_measure)(crops, chunk, method) for chunk in chunks
    )
    bar = tqdm(measured, total=len(chunks), desc="filter", unit="chunk", file=sys.stderr, disable=None)
    return [np.concatenate(parts) for parts in zip(*bar, strict=True)]


def _other_classes(table: pd.DataFrame, classes: tuple[str, ...]) -> np.ndarray:
    """Tell which photographs are not of the chosen classes: bool [n].

    Raises:
        InputError: the source does not have a chosen class.
    """
    known = sorted(set(table["class"]) - {""})
    for name in classes:
        if name not in known:
            remedy = suggest(name, known) if known else "it has none at all, so leave filter.classes empty"
            raise InputError(f"filter.classes: the source has no class {name!r}; {remedy}")
    return ~table["class"].isin(classes or [*known, ""]).to_numpy()


def _remove(masks: dict[str, np.ndarray], count: int) -> np.ndarray:
    """Join the reasons for which each photograph is removed by +; "" if it is kept."""
    joined = ["+".join(name for name in masks if masks[name][i]) for i in range(count)]
    reasons = np.array(joined, dtype=object)
    if (reasons != "").all():
        most = max((name for name in REMEDY if name in masks), key=lambda name: masks[name].sum())
        raise InputError(
            f"the filter removes all {count} photographs, {masks[most].sum()} of them by the rule {most!r}; "
            f"{REMEDY[most]} in params.yaml or take {most} out of filter.rules"
        )
    return reasons


def _draw(table: pd.DataFrame, hints: np.ndarray, small: np.ndarray, config: FilterConfig, seed: int) -> None:
    """Draw the splits; remove near-duplicates across splits, or only note them if that rule is off."""
    kept = np.flatnonzero(table.reason == "")
    drawn = split(table.group.to_numpy()[kept], hints[kept], config, seed, table["class"].to_numpy()[kept])
    removed, leaking = {"unused": drawn == ""}, duplicates(small[kept], drawn, config.duplicates)
    if "duplicates" in config.rules:
        removed["duplicate"] = leaking
    else:
        table.loc[kept[leaking], "note"] = "near_duplicate"
    for reason, mask in removed.items():
        table.loc[kept[mask], "reason"] = reason
    table.loc[kept, "split"] = drawn
    if config.stratify:
        _print_small_classes(table.loc[kept])
    table.loc[table.reason != "", "split"] = ""
    for name in SPLITS:
        if (drawn == name).any() and not (table.split == name).any():
            remedy = "lower filter.duplicates in params.yaml or take duplicates out of filter.rules"
            raise InputError(f"all photographs of {name} are near-duplicates of other splits'; {remedy}")


def _print_small_classes(kept: pd.DataFrame) -> None:
    """Print how many classes are too small for every split."""
    drawn = kept[kept.split != ""]
    classes = drawn.groupby("class").split
    small = drawn[classes.transform("nunique") < drawn.split.nunique()]
    print(
        f"filter: stratified over {classes.ngroups} classes, {small['class'].nunique()} of them too small "
        f"for every split: {len(small)} photographs, {(small.split == 'train').sum()} of them in train"
    )


def _sheet(crops: Crops, reasons: dict[str, np.ndarray]) -> bytes:
    rows = []
    for name, mask in reasons.items():
        removed = np.flatnonzero(mask)
        examples = removed[np.linspace(0, len(removed) - 1, min(EXAMPLES, len(removed))).astype(int)]
        rows.append((f"{name}: {len(removed)} of {len(crops)}", crops[examples]))
    return sheets.encode(sheets.examples(rows or [("nothing was removed", np.empty(0))]), "png")


class FilterParams(Params):
    data: DataConfig
    filter: FilterConfig


def main(params: FilterParams) -> None:
    """Filter and split the crops.

    Raises:
        InputError: a file is missing or damaged, a class is unknown, the filter removes everything, or too
            few photographs are left for the splits.
    """
    columns = ["photo", "group", "class", "split"]
    texts = dict.fromkeys(columns, str)
    photos = read_table(paths.PHOTOS_CSV, texts, unique="photo", remedy="run `dvc repro download`")
    kinds: dict[str, Any] = {"photo": str, "index": str, "status": ("ok", "failed", "skipped")}
    cropped = read_table(paths.CROPS_CSV, kinds, unique="photo", remedy="run `dvc repro crop`")
    table = cropped[cropped.status == "ok"][["index", "photo"]].merge(photos[columns], on="photo")
    crops = Crops(paths.CROPS)
    if list(table["index"]) != list(map(str, range(len(crops)))):
        raise InputError(f"{paths.CROPS_CSV} does not list the crops in {paths.CROPS}; run `dvc repro crop`")
    hints = table.split.to_numpy(str)
    config = params.filter

    colors, coverage, extreme, mean, small = _measure_all(crops, config.palette)
    if paths.COLORS_CSV.exists():
        names = ("photo", "red", "green", "blue", "coverage")
        listing = read_table(paths.COLORS_CSV, dict.fromkeys(names, str))
        listed, listed_coverage = listed_colors(listing, table.photo)
        known = listed_coverage.any(axis=1)
        colors[known], coverage[known] = listed[known], listed_coverage[known]
    table["weighted_lightness"] = weighted_lightness(colors, coverage)
    table["coverage"] = coverage.max(axis=1)

    # Shares in the rules are shares of the chosen classes, so only these are measured.
    others = _other_classes(table, config.classes)
    chosen, masks = table[~others], {"class": others}
    lightness, most = chosen.weighted_lightness.to_numpy(), chosen.coverage.to_numpy()
    for name, mask in tone_rules(lightness, most, extreme[~others], mean[~others], config).items():
        masks[name] = np.zeros(len(table), bool)
        masks[name][~others] = mask
    table["reason"], table["note"] = _remove(masks, len(table)), ""
    _draw(table, hints, small, config, params.data.seed)

    reasons = table.reason.str.split("+", regex=False)
    removed = {}
    for name in (*masks, "unused", "duplicate"):
        mask = np.array([name in names for names in reasons])
        if mask.any():
            removed[name] = mask
    table[["weighted_lightness", "coverage"]] = table[["weighted_lightness", "coverage"]].map("{:.4f}".format)
    order = [*["index", *columns[:3]], "weighted_lightness", "coverage", "split", "reason", "note"]
    write_text(paths.SPLITS_CSV, table[order].to_csv(index=False, lineterminator="\n"))
    write_bytes(paths.REMOVED_PNG, _sheet(crops, removed))

    print(f"{'removed because':16} count")
    for name, mask in removed.items():
        print(f"{name:16} {mask.sum():5}")
    print(f"{'any of these':16} {(table.reason != '').sum():5}")
    if leaking := (table.note != "").sum():
        print(
            f"filter: {leaking} photographs of val and test have near-duplicates in other splits and are "
            "kept, because duplicates is not in filter.rules; test scores will be too optimistic"
        )
    print("filter: kept " + ", ".join(f"{(table.split == name).sum()} {name}" for name in SPLITS))


if __name__ == "__main__":
    stage(FilterParams, main)
