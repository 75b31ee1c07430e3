"""Rank every model of params.yaml by PSNR on the test split: metrics/leaderboard.csv, .json, .md, .jpg and .html.

Reads what the zoo trained and scored, data/zoo/<name>/. Differences from the baselines are paired, photograph by
photograph, with 95 % bootstrap intervals where there are photographs enough. Below the models and the baselines
stand the oracles, which are given the truth. Seconds differ from run to run, so they are in no file: `--cost` prints
the table with the training seconds that runs/ holds, and writes nothing.
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

COLUMNS = (
    "psnr_best",
    "ssim",
    "rmse",
    "rmse_ab",
    "colorfulness",
    "colorfulness_difference",
    "ab_spread",
    "ciede2000",
    "kid",
    "raw_mse",
    "raw_mae",
)
"""The metrics that stand beside PSNR."""
ENDS = ("", "_low", "_high")
"""Of the names of a figure and of its interval."""
PER_IMAGE = set(metrics.METRICS) - {"psnr_pooled"}
"""Metrics that are known photograph by photograph."""
ZOO = "run `make zoo`"
SHOWN = 4
"""Photographs of each system on the JPEG."""


def read_zoo(names: list[str]) -> tuple[dict[str, dict[str, Any]], dict[str, pd.DataFrame]]:
    """What each model is, and its scores per photograph.

    Raises:
        InputError: a model is not trained or not scored, or was scored on other photographs than the rest.
    """
    descriptions, tables = {}, {}
    for name in names:
        folder = paths.ZOO / name
        kinds = {"parameters": int, "epochs": int, "notes": list, "fingerprint": str}
        descriptions[name] = files.read_json(folder / "model.json", kinds, ZOO)
        tables[name] = page.read_scores(folder / "per_image.csv", PER_IMAGE, ZOO)
        same = ["index", "photo", "group"]
        if not tables[name][same].equals(tables[names[0]][same]):
            raise InputError(
                f"{folder / 'per_image.csv'} holds other photographs than {names[0]}'s; run `make zoo`"
            )
    return descriptions, tables


def rank(descriptions: dict[str, dict[str, Any]], scores: pd.DataFrame) -> pd.DataFrame:
    """One row per system, best PSNR first and equal ones by name; the oracles below all others.

    Args:
        scores: of `metrics.compare`.
    """
    rows = []
    for name in descriptions:
        own = scores[scores["system"] == name].set_index("metric")
        psnr = own.loc["psnr"]
        row = {
            "model": name,
            "kind": "oracle"
            if name in oracles.ORACLES
            else "baseline"
            if name in metrics.BASELINES
            else "model",
            "parameters": descriptions[name]["parameters"],
            "epochs": descriptions[name]["epochs"],
        }
        row |= {"psnr": psnr["mean"], "psnr_low": psnr["low"], "psnr_high": psnr["high"]}
        row |= {metric: own.loc[metric, "mean"] for metric in COLUMNS}
        row |= {f"psnr_{key}": psnr[key] for key in own.columns if key.startswith("over_")}
        rows.append({key: float(f"{x:.6g}") if isinstance(x, float) else x for key, x in row.items()})
        rows[-1]["notes"] = descriptions[name]["notes"]
    board = pd.DataFrame(rows).sort_values(["psnr", "model"], ascending=[False, True])
    return board.sort_values("kind", key=lambda kind: kind == "oracle", kind="stable", ignore_index=True)


def warn(board: pd.DataFrame, painted: dict[str, dict[int, np.ndarray]]) -> list[list[str]]:
    """The notes of each system, with what makes a model suspicious: not better than grey, the same color everywhere."""
    found = []
    for row in board.to_dict("records"):
        said = list(row["notes"])
        if row["kind"] == "model":
            if row["psnr_over_grey_low"] <= 0:  # never without an interval
                said.append("not shown to be better than grey")
            if metrics.is_one_color(np.stack(list(painted[row["model"]].values()))):
                said.append("paints everything in one color")
        found.append(said)
    return found


def markdown(board: pd.DataFrame, seconds: dict[str, str] | None = None) -> str:
    """The board as a markdown table, with a column of training seconds if they are given, and the notes below it."""
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
    """The measured training time of a model, "-" where this machine did not train it."""
    timing = paths.run_folder(name, fingerprint) / paths.TIMING
    return f"{files.read_table(timing, {'seconds': float})['seconds'].sum():.1f}" if timing.exists() else "-"


def read_pictures(names: list[str], common: list[int]) -> dict[str, dict[int, np.ndarray]]:
    """What each model paints, by the photographs' indices; its own best and worst, and those that all have in `common`.

    Raises:
        InputError: a model's pictures are missing, or of other photographs.
    """
    found = {}
    for name in names:
        path = paths.ZOO / name / paths.PICTURES.name
        with files.reading(path, ZOO):
            pictures = files.read_arrays(path, remedy=ZOO)
            found[name] = dict(zip(map(int, pictures["index"]), pictures["model"], strict=True))
        if missing := set(common) - set(found[name]):
            raise InputError(
                f"{path} lacks photograph {min(missing)}, which evaluate.gallery asks for; run `make zoo`"
            )
    return found


def draw(
    board: pd.DataFrame, painted: dict[str, dict[int, np.ndarray]], truths: dict[int, np.ndarray]
) -> bytes:
    """A JPEG of the same few test photographs as every system of the board colors them.

    Args:
        painted: pictures by system and index.
        truths: photographs of which there is a picture of every system, by their indices.
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
    """The zoo's page: every system of the board, best first."""
    position = {int(index): place for place, index in enumerate(tables["grey"]["index"])}
    shown = []
    for row in board.to_dict("records"):
        name = row["model"]
        columns = {"epoch": float}
        curves = paths.ZOO / name / HISTORY
        history = files.read_table(curves, columns, float, remedy=ZOO) if row["kind"] == "model" else None
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
    wanted = sorted({place for system in shown for place in system.pictures})
    truth = dict(zip(wanted, crops[np.array(wanted)], strict=True))
    best = next(system for system in shown if system.kind != "oracle")
    side = crops.side
    lead = (
        f"On {metrics.scored(tables['grey'])} at {side} × {side} pixels the best PSNR is that of {best.name}. Oracles are "
        "given the truth: they are no models, but what a kind of model would score if it made no mistake."
    )
    basis = page.basis(tables["grey"], scores, side, params.evaluate.bootstrap)
    return page.render("page.html.j2", "Leaderboard", lead, shown, truth, basis, side, extra={})


def main(params: LeaderboardParams, cost: bool = False) -> None:
    names = list(params.models)
    for baseline in metrics.BASELINES:
        if baseline not in names:
            raise InputError(
                f"{paths.PARAMS}: models.{baseline} is missing; the leaderboard compares with it, restore it"
            )
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
    records = [
        {key: value for key, value in row.items() if value == value} for row in board.to_dict("records")
    ]
    files.write_json(paths.METRICS / "leaderboard.json", records)  # JSON has no NaN
    basis = page.basis(photos, scores, crops.side, params.evaluate.bootstrap)
    text = (
        f"{basis}. Photographs that are grey in truth, left out of PSNR: {int(photos['grey_truth'].sum())}. Oracles are "
        "given the truth: they are no models, but what a kind of model would score if it made no mistake."
        f"\n\n{markdown(board)}"
    )
    files.write_text(paths.METRICS / "leaderboard.md", text)
    files.write_bytes(paths.METRICS / "leaderboard.jpg", picture)
    files.write_text(paths.METRICS / "leaderboard.html", html)
    print(f"{markdown(board)}{basis}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.leaderboard", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--cost", action="store_true", help="print the table with training seconds; write nothing"
    )
    stage(LeaderboardParams, partial(main, cost=parser.parse_args().cost))
