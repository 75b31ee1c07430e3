"""Ship the trained model with the library: data/model -> src/colorize/shipped.

This is no stage: run it by hand after a good training, then measure the numbers of docs/model-card.md again.
Weights are stored in half precision. Decoding follows the present params.yaml, and --size is the side in
pixels at which the model will see photographs; neither needs a new training.
"""

import argparse

from colorize.models import (
    HISTORY,
    SHIPPED_FOLDER,
    WEIGHTS,
    ModelConfig,
    block_of,
    load_description,
    load_model,
    save_model,
)
from colorize.settings import SHIPPED
from pipeline import paths
from pipeline.params import Params, stage


class ShipParams(Params):
    models: dict[str, ModelConfig]


def main(params: ShipParams) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, help="side in pixels; without it the one at which it was trained")
    description = load_description(paths.MODEL)
    head = block_of(params.models, description["name"]).head
    description["block"]["head"] |= {"temperature": head.temperature, "saturation": head.saturation}
    about = description | {"name": SHIPPED, "size": parser.parse_args().size or description["size"]}
    history = (paths.MODEL / HISTORY).read_text(encoding="utf-8")
    save_model(SHIPPED_FOLDER, load_model(paths.MODEL).half(), about, history)
    megabytes = (SHIPPED_FOLDER / WEIGHTS).stat().st_size / 1e6
    print(f"{description['name']}: {megabytes:.1f} MB in {SHIPPED_FOLDER}")


if __name__ == "__main__":
    stage(ShipParams, main)
