"""Collect the photographs of the chosen source in data/photos, with one row and one status per item.

A failed item is a row with a reason. The stage fails only if the share of failures exceeds `data.max_failed`,
or no photograph is left; then nothing is written but the cache of downloads. Nothing is decoded here.
"""

import sys
from collections import Counter
from contextlib import closing

from tqdm import tqdm

from colorize import files
from colorize.data import manifest, sources
from colorize.data.album import counts
from colorize.data.fetch import fetch_all
from colorize.data.formats import UNREAD, why_no_image
from colorize.data.manifest import DataConfig, Item
from colorize.files import InputError
from pipeline import paths
from pipeline.params import Params, stage


class DownloadParams(Params):
    data: DataConfig


def main(params: DownloadParams) -> None:
    data = params.data
    photos, colors = sources.list_items(data, data.seed)
    _fetch(photos, data)
    _check(photos, data)

    _clear()
    manifest.pack(tqdm(photos, desc="pack", unit="photo", file=sys.stderr, disable=None), paths.PHOTOS)
    if colors is not None:
        kept = colors[colors["photo"].isin([photo.photo for photo in photos if photo.status == "ok"])]
        files.write_text(paths.COLORS_CSV, kept.to_csv(index=False, lineterminator="\n"))
    manifest.write_manifest(paths.PHOTOS_CSV, photos)
    print(f"download: {_summary(photos)}")


def _clear() -> None:
    """Remove an earlier run's files; photos.csv goes first and comes last: it marks a complete folder."""
    try:
        for old in [paths.PHOTOS_CSV, paths.COLORS_CSV, *paths.PHOTOS.glob("photos-*.tar")]:
            old.unlink(missing_ok=True)
        files.remove_partial(paths.PHOTOS)
    except OSError as error:
        raise InputError(f"cannot clear {paths.PHOTOS} ({error.strerror}); make it writable") from error


def _fetch(photos: list[Item], data: DataConfig) -> None:
    """Download the items with a URL; stop early once too many have failed."""
    wanted = {photo.url: photo for photo in photos if photo.url and photo.status == "ok"}
    if not wanted:
        return
    failures = 0
    with closing(fetch_all(wanted, paths.DOWNLOADS, data, why_no_image)) as results:
        for fetched in tqdm(results, "fetch", len(wanted), unit="photo", file=sys.stderr, disable=None):
            photo = wanted[fetched.url]
            if fetched.reason:
                photo.end("failed", fetched.reason, fetched.retryable)
            elif photo.sha256 not in ("", fetched.sha256):
                photo.end("failed", "hash_mismatch")
            else:
                photo.content = fetched.path.read_bytes
            failures += photo.status == "failed"
            if failures > data.max_failed * len(wanted):
                return


def _check(photos: list[Item], data: DataConfig) -> None:
    tried = sum(photo.status in ("ok", "failed") for photo in photos)
    failed = Counter(photo.reason for photo in photos if photo.status == "failed")
    unread = sorted({photo.reason for photo in photos} & UNREAD.keys())
    advice = "".join(f"{reason} is {UNREAD[reason]}: export it as JPEG, PNG or TIFF; " for reason in unread)
    if failed.total() == tried:
        problem = f"not one photograph of {data.path} can be used: {_summary(photos)}"
        raise InputError(f"{problem}; {advice}choose another data.path")
    if failed.total() > data.max_failed * tried:
        reason, count = failed.most_common(1)[0]
        if data.source in ("urls", "unsplash"):
            advice += f"run this again (downloads and permanent failures are kept in {paths.DOWNLOADS}/), or "
        raise InputError(
            f"{failed.total()} of {tried} items of {data.path} failed, a larger share than data.max_failed "
            f"({data.max_failed:g}), most often with {reason} ({count}); {advice}mend the list or raise "
            "data.max_failed"
        )


def _summary(photos: list[Item]) -> str:
    parts = []
    for status in ("ok", "failed", "skipped", "ignored"):
        reasons = [photo.reason for photo in photos if photo.status == status]
        listed = counts(reasons)
        if reasons or status == "ok":
            parts.append(f"{len(reasons)} {status}" + (f" ({listed})" if listed else ""))
    return ", ".join(parts)


if __name__ == "__main__":
    stage(DownloadParams, main)
