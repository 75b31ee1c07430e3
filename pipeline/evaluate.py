"""Score the model and the baselines `grey` and `mean_color` on the test split; write metrics/.

`python -m pipeline.evaluate --model NAME` scores one model of the zoo alone, into data/zoo/NAME/; the
leaderboard compares it with the others. colorize.scoring defines what is measured.
"""

import argparse
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from colorize import files
from colorize.bins import Statistics
from colorize.data.shards import Crops
from colorize.files import InputError
from colorize.models import HISTORY, build_baseline, load_description, load_model
from colorize.models.base import Colorizer
from colorize.scoring import evaluation, metrics, plausibility, sheets
from colorize.scoring.evaluation import EvaluateConfig
from colorize.training.device import TrainConfig, select_device
from pipeline import paths
from pipeline.params import Params, stage


def read_test() -> pd.DataFrame:
    """Read the test photographs: index, photo, group, class.

    Raises:
        InputError: the table is missing or damaged, or lists no test photograph.
    """
    columns = paths.SPLIT | {"photo": str, "group": str, "class": str}
    splits = files.read_table(paths.SPLITS_CSV, columns, unique="index")
    test = splits.loc[splits["split"] == "test", ["index", "photo", "group", "class"]]
    if not len(test):
        raise InputError(f"{paths.SPLITS_CSV} lists no test photograph; raise filter.test")
    return test.reset_index(drop=True)


def significant(table: pd.DataFrame) -> str:
    """Format a table as CSV with 6 significant digits."""
    return table.to_csv(index=False, lineterminator="\n", float_format="%.6g")


def describe(table: pd.DataFrame, scores: pd.DataFrame) -> dict[str, float | int]:
    """Collect one system's known numbers for metrics.json, its PSNR over grey first."""
    rows = scores.set_index("metric")
    gain = rows.filter(like="over_grey").loc["psnr"].add_prefix("psnr_")
    known = pd.concat([gain, rows["mean"]]).dropna()
    numbers = {str(name): float(f"{value:.6g}") for name, value in known.items()}
    return numbers | {"images": len(table), "grey_truths": int(table["grey_truth"].sum())}


class EvaluateParams(Params):
    train: TrainConfig
    evaluate: EvaluateConfig


def main(params: EvaluateParams, name: str | None = None) -> None:
    config, test = params.evaluate, read_test()
    device = select_device(params.train)
    crops, photos = Crops(paths.CROPS, test["index"].to_numpy()), test["photo"].to_list()
    folder = paths.MODEL if name is None else paths.ZOO / name
    description = load_description(folder)
    systems: dict[str, tuple[Colorizer, int]] = {
        "model": (load_model(folder, device.type), description["size"])
    }
    if name is None:
        statistics, side = Statistics.read(paths.PRIOR), crops.side
        systems |= {baseline: (build_baseline(baseline, statistics), side) for baseline in metrics.BASELINES}

    critic = plausibility.critic(crops, config.batch, device, params.train.threads)
    tables = {}
    for system, (model, size) in systems.items():
        label = description["name"] if system == "model" else system
        options = config.batch, config.samples, device, params.train.threads, critic
        tables[system] = test.join(evaluation.score(label, model, size, photos, crops, *options))
    comparison = metrics.compare(tables, config.bootstrap)
    out: Path = paths.METRICS if name is None else folder
    numbers = describe(tables["model"], comparison[comparison["system"] == "model"])
    files.write_json(out / "metrics.json", numbers)
    listed = pd.concat([table.assign(system=system) for system, table in tables.items()])
    files.write_text(out / "per_image.csv", significant(listed))

    shown = sheets.spread(len(test), config.gallery)
    positions = evaluation.notable(tables["model"], shown)
    painted = {"index": test["index"].to_numpy()[positions]}
    for system, (model, size) in systems.items():
        painted[system] = evaluation.pictures(model, size, positions, crops, config.batch, device)
    if name is not None:
        files.write_arrays(folder / paths.PICTURES.name, painted)
        return
    painted["truth"] = crops[positions]
    files.write_arrays(paths.PICTURES, painted)
    files.write_text(out / "comparison.csv", significant(comparison))
    files.write_bytes(out / "loss.csv", (folder / HISTORY).read_bytes())
    sampled = np.searchsorted(positions, shown[sheets.spread(len(shown), config.sheet_size)])
    columns = {"grey input": "grey", "truth": "truth", description["name"]: "model"}
    sheet = sheets.sheet({title: painted[system][sampled] for title, system in columns.items()})
    files.write_bytes(out / "samples.png", sheets.encode(sheet, "png"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m pipeline.evaluate", description=__doc__.splitlines()[0])
    parser.add_argument("--model", metavar="NAME", help="score this model of the zoo, into data/zoo/NAME/")
    stage(EvaluateParams, partial(main, name=parser.parse_args().model))
