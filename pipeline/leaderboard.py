"""Rank every model of params.yaml by PSNR on the test split; write metrics/leaderboard.*.

Reads the trained and scored models of the zoo, data/zoo/NAME/. Differences from the baselines are paired,
with 95 % bootstrap intervals if there are enough photographs. The oracles, which see the truth, are below
models and baselines. Training seconds are not reproducible, so no file holds them; `--cost` prints the table
with the seconds in runs/ and writes nothing.
"""

import argparse
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from colorize import files
from colorize.data.shards import Crops
from colorize.files import InputError
from colorize.models import HISTORY, ModelConfig
from colorize.scoring import metrics, oracles, plausibility, sheets
from colorize.scoring.evaluation import EvaluateConfig
from colorize.training.device import TrainConfig
from pipeline import page, paths
from pipeline.page import Shown
from pipeline.params import Params, stage

COLUMNS = tuple(name for name in metrics.METRICS if name not in ("psnr", "psnr_pooled", "mae"))
"""Metrics beside PSNR."""
ENDS = ("", "_low", "_high")
"""Suffixes of the columns of a mean and of its interval."""
PER_IMAGE = set(metrics.METRICS) - {"psnr_pooled"}
"""Metrics of single photographs."""
ZOO = "run `make zoo`"
SHOWN = 4
"""Photographs per system on the JPEG."""
ORACLES = "Oracles are given the truth: they show what a kind of model would score if it made no mistake."


def read_zoo(names: list[str]) -> tuple[dict[str, dict[str, Any]], dict[str, pd.DataFrame]]:
    """Read the description and the scores per photograph of each model.

    Raises:
        InputError: a model is not trained or not scored, or was scored on other photographs than the first.
    """
    descriptions, tables = {}, {}
    kinds = {"parameters": int, "epochs": int, "notes": list, "fingerprint": str}
    same = ["index", "photo", "group"]
    for name in names:
        descriptions[name] = files.read_json(paths.ZOO / name / "model.json", kinds, ZOO)
        path = paths.ZOO / name / "per_image.csv"
        tables[name] = page.read_scores(path, PER_IMAGE, ZOO)
        if not tables[name][same].equals(tables[names[0]][same]):
            raise InputError(f"{path} holds other photographs than {names[0]}'s; {ZOO}")
    return descriptions, tables


def rank(descriptions: dict[str, dict[str, Any]], scores: pd.DataFrame) -> pd.DataFrame:
    """Make one row per system, by falling PSNR, then by name; the oracles last.

    Args:
        scores: of `metrics.compare`.
    """
    kinds = dict.fromkeys(metrics.BASELINES, "baseline") | dict.fromkeys(oracles.ORACLES, "oracle")
    rows = []
    for name, description in descriptions.items():
        by_metric = scores[scores["system"] == name].set_index("metric")
        psnr = by_metric.loc["psnr"]
        row: dict[str, Any] = {"model": name, "kind": kinds.get(name, "model")}
        row |= {key: description[key] for key in ("parameters", "epochs")}
        row |= {"psnr": psnr["mean"], "psnr_low": psnr["low"], "psnr_high": psnr["high"]}
        row |= {metric: by_metric.loc[metric, "mean"] for metric in COLUMNS}
        row |= {f"psnr_{key}": psnr[key] for key in by_metric.columns if key.startswith("over_")}
        rows.append({key: float(f"{x:.6g}") if isinstance(x, float) else x for key, x in row.items()})
        rows[-1]["notes"] = description["notes"]
    board = pd.DataFrame(rows).sort_values(["psnr", "model"], ascending=[False, True])
    return board.sort_values("kind", key=lambda kind: kind == "oracle", kind="stable", ignore_index=True)


def warn(board: pd.DataFrame, painted: dict[str, dict[int, np.ndarray]]) -> list[list[str]]:
    """Extend the notes of each system: a model may be no better than grey, or paint a single color."""
    all_notes = []
    for row in board.to_dict("records"):
        notes = list(row["notes"])
        if row["kind"] == "model":
            if row["psnr_over_grey_low"] <= 0:  # false without an interval, which is NaN
                notes.append("not shown to be better than grey")
            if metrics.is_one_color(np.stack(list(painted[row["model"]].values()))):
                notes.append("paints everything in one color")
        all_notes.append(notes)
    return all_notes


def markdown(board: pd.DataFrame, seconds: dict[str, str] | None = None) -> str:
    """Format the board as a markdown table with the notes below, and with training seconds if given."""
    rows = []
    for row in board.to_dict("records"):
        cells = {"model": row["model"], "kind": row["kind"]}
        cells |= {"parameters": f"{row['parameters']:,}", "epochs": str(row["epochs"])}
        cells["psnr dB"] = metrics.with_interval([row[f"psnr{end}"] for end in ENDS], ".2f")
        for metric in COLUMNS:
            cells[metric] = metrics.with_interval([row[metric]], f".{metrics.METRICS[metric].decimals}f")
        for baseline in metrics.BASELINES:
            ends = [row[f"psnr_over_{baseline}{end}"] for end in ENDS]
            cells[f"psnr over {baseline}"] = metrics.with_interval(ends, "+.2f")
        rows.append(cells | ({"training s": seconds.get(row["model"], "-")} if seconds is not None else {}))
    table = pd.DataFrame(rows)
    sides = ["left", "left", *["right"] * (len(table.columns) - 2)]
    lines = [table.to_markdown(index=False, disable_numparse=True, colalign=sides)]
    remarks = page.remarks(dict(zip(board["model"], board["notes"], strict=True)))
    notes = [f"- {', '.join(names)}: {note}" for note, names in remarks.items()]
    return "\n".join([*lines, *([""] if notes else []), *notes]) + "\n"


def training_seconds(name: str, fingerprint: str) -> str:
    """The measured training time of a model; "-" if this machine did not train it."""
    timing = paths.run_folder(name, fingerprint) / paths.TIMING
    return f"{files.read_table(timing, {'seconds': float})['seconds'].sum():.1f}" if timing.exists() else "-"


def read_pictures(names: list[str], common: list[int]) -> dict[str, dict[int, np.ndarray]]:
    """Read each model's predictions by index of the photograph: those in `common`, its best and its worst.

    Raises:
        InputError: predictions are missing.
    """
    painted = {}
    for name in names:
        path = paths.ZOO / name / paths.PICTURES.name
        with files.reading(path, ZOO):
            pictures = files.read_arrays(path, remedy=ZOO)
            painted[name] = dict(zip(map(int, pictures["index"]), pictures["model"], strict=True))
        if missing := set(common) - set(painted[name]):
            raise InputError(
                f"{path} lacks photograph {min(missing)}, which evaluate.gallery asks for; {ZOO}"
            )
    return painted


def draw(
    board: pd.DataFrame, painted: dict[str, dict[int, np.ndarray]], truths: dict[int, np.ndarray]
) -> bytes:
    """Draw the same few test photographs for every system of the board, as JPEG.

    Args:
        painted: predictions by system and index.
        truths: true photographs by index; `painted` holds all of them for every system.
    """
    shown = [list(truths)[place] for place in sheets.spread(len(truths), SHOWN)]
    strips = {"truth": np.stack([truths[index] for index in shown])}
    for name, psnr in zip(board["model"], board["psnr"], strict=True):
        strips[f"{name}  {psnr:.2f} dB"] = np.stack([painted[name][index] for index in shown])
    return sheets.encode(sheets.strips(strips), "jpeg")


class LeaderboardParams(Params):
    train: TrainConfig
    evaluate: EvaluateConfig
    models: dict[str, ModelConfig]


def build(
    params: LeaderboardParams,
    board: pd.DataFrame,
    tables: dict[str, pd.DataFrame],
    scores: pd.DataFrame,
    painted: dict[str, dict[int, np.ndarray]],
    crops: Crops,
) -> str:
    """Build the page of the zoo, with every system of the board."""
    position = {int(index): place for place, index in enumerate(tables["grey"]["index"])}
    shown = []
    for row in board.to_dict("records"):
        name, history = row["model"], None
        if row["kind"] == "model":
            history = files.read_table(paths.ZOO / name / HISTORY, {"epoch": float}, float, remedy=ZOO)
        over = {
            baseline: [row[f"psnr_over_{baseline}{end}"] for end in ENDS]
            for baseline in metrics.BASELINES
            if baseline != name
        }
        facts = {"parameters": f"{row['parameters']:,}", "epochs": str(row["epochs"])}
        pictures = {position[index]: picture for index, picture in painted[name].items()}
        summary = page.summary_of(scores, name)
        shown.append(
            Shown(name, row["kind"], tables[name], summary, over, pictures, facts, history, row["notes"])
        )
    places = sorted({place for system in shown for place in system.pictures})
    truth = dict(zip(places, crops[np.array(places)], strict=True))
    best = next(system for system in shown if system.kind != "oracle")
    side = crops.side
    where = f"On {metrics.scored(tables['grey'])} at {side} × {side} pixels"
    lead = f"{where} the best PSNR is that of {best.name}. {ORACLES}"
    basis = page.basis(tables["grey"], scores, side, params.evaluate.bootstrap)
    return page.render("page.html.j2", "Leaderboard", lead, shown, truth, basis, side, extra={})


def main(params: LeaderboardParams, cost: bool = False) -> None:
    names = list(params.models)
    for baseline in metrics.BASELINES:
        if baseline not in names:
            missing = f"{paths.PARAMS}: models.{baseline} is missing"
            raise InputError(f"{missing}; the leaderboard compares with it, restore it")
    if taken := sorted(set(names) & set(oracles.ORACLES)):
        raise InputError(
            f"{paths.PARAMS}: models.{taken[0]} has the name of an oracle; give the model another"
        )
    descriptions, tables = read_zoo(names)
    photos = tables["grey"]
    crops = Crops(paths.CROPS, photos["index"].to_numpy())
    batch, threads = params.evaluate.batch, params.train.threads
    critic = plausibility.critic(crops, batch, threads=threads)
    for name in oracles.ORACLES:
        descriptions[name] = {"parameters": 0, "epochs": 0, "notes": []}
        tables[name] = oracles.score(name, crops, batch, threads=threads, critic=critic)
        tables[name]["group"] = photos["group"]
    scores = metrics.compare(tables, params.evaluate.bootstrap)
    board = rank(descriptions, scores)
    if cost:
        seconds = {name: training_seconds(name, descriptions[name]["fingerprint"]) for name in names}
        print(markdown(board, seconds), end="")
        return
    gallery = sheets.spread(len(photos), params.evaluate.gallery)
    common = photos["index"].to_numpy()[gallery].tolist()
    painted, truths = read_pictures(names, common), crops[gallery]
    for name in oracles.ORACLES:
        painted[name] = dict(zip(common, oracles.color(name, truths)[0], strict=True))
    board["notes"] = warn(board, painted)
    picture = draw(board, painted, dict(zip(common, truths, strict=True)))
    html = build(params, board, tables, scores, painted, crops)
    listed = board.assign(notes=board["notes"].map("; ".join))
    files.write_text(paths.METRICS / "leaderboard.csv", listed.to_csv(index=False, lineterminator="\n"))
    rows = board.to_dict("records")
    known = [{key: value for key, value in row.items() if value == value} for row in rows]  # JSON has no NaN
    files.write_json(paths.METRICS / "leaderboard.json", known)
    basis = page.basis(photos, scores, crops.side, params.evaluate.bootstrap)
    grey = f"Photographs that are grey in truth, left out of PSNR: {int(photos['grey_truth'].sum())}."
    text = f"{basis}. {grey} {ORACLES}\n\n{markdown(board)}"
    files.write_text(paths.METRICS / "leaderboard.md", text)
    files.write_bytes(paths.METRICS / "leaderboard.jpg", picture)
    files.write_text(paths.METRICS / "leaderboard.html", html)
    print(f"{markdown(board)}{basis}")


if __name__ == "__main__":
    about = __doc__.splitlines()[0]
    parser = argparse.ArgumentParser(prog="python -m pipeline.leaderboard", description=about)
    parser.add_argument("--cost", action="store_true", help="print the training seconds; write nothing")
    stage(LeaderboardParams, partial(main, cost=parser.parse_args().cost))
