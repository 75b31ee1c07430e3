"""Make the trained model the one that comes with the library: data/model -> src/colorize/shipped.

No stage: run it by hand after a training that is worth it, and measure what docs/model-card.md tells. Weights are kept in
half precision. How the model decodes is what params.yaml says now, since that takes no training.
"""

from colorize.models import HISTORY, SHIPPED_FOLDER, WEIGHTS, load_description, load_model, save_model
from colorize.settings import SHIPPED
from pipeline import paths
from pipeline.params import Params, stage


def main(params: Params) -> None:
    description = load_description(paths.MODEL)
    head = params.block(description["name"]).head
    description["block"]["head"] |= {"temperature": head.temperature, "saturation": head.saturation}
    history = (paths.MODEL / HISTORY).read_text(encoding="utf-8")
    save_model(SHIPPED_FOLDER, load_model(paths.MODEL).half(), description | {"name": SHIPPED}, history)
    print(f"{description['name']}: {(SHIPPED_FOLDER / WEIGHTS).stat().st_size / 1e6:.1f} MB in {SHIPPED_FOLDER}")


if __name__ == "__main__":
    stage(main)
