"""The fault matrix: what every row's test shares, and the table in docs/faults.md, which is made from the tests.

`python tests/faults.py` writes the table; a test holds it to that. Each row is a test with the mark `fault`: its number and
what goes wrong; the first paragraph of its docstring says what happens then.
"""

import importlib
import inspect
import sys
from collections.abc import Mapping
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from ruamel.yaml import YAML
from webserver import Answer, Server, content, jpegs

from colorize import files
from colorize.data.shards import Crops
from pipeline import crop, download, paths
from pipeline.check import AllParams
from pipeline.params import checked

ROOT = Path(__file__).parent.parent
TABLE = ROOT / "docs/faults.md"
fault = pytest.mark.fault
"""Marks a test as a row of the matrix: its number, and what goes wrong."""


def table() -> str:
    """The matrix as Markdown, from every test that is marked."""
    rows = []
    for path in sorted((ROOT / "tests").glob("test_*.py")):
        try:
            module = importlib.import_module(path.stem)
        except pytest.skip.Exception:  # it needs a package that is not installed
            continue
        for name, test in inspect.getmembers(module, inspect.isfunction):
            for mark in getattr(test, "pytestmark", []):
                if mark.name == "fault" and test.__module__ == path.stem:
                    happens = " ".join(inspect.getdoc(test).split("\n\n")[0].split())
                    rows.append((*mark.args, happens, f"`{path.stem}.{name}`"))
    cells = pd.DataFrame(sorted(rows), columns=["", "what goes wrong", "what happens", "shown by"], dtype=str)
    escaped = cells.map(lambda cell: cell.replace("|", "\\|"))
    return f"{INTRODUCTION}{escaped.to_markdown(index=False, disable_numparse=True, stralign=None)}\n"


INTRODUCTION = """# What goes wrong, and what happens then

Made by `python tests/faults.py` from the tests named in the last column, which `make test` runs.

In the rows about photographs and addresses (1 to 31, tests of `test_faults`) the test also asserts that the run ends, that
every item stands in the log exactly once and with one reason, that nothing half-written is left, that a second run asks
only for what may have healed and gives the same bytes, and that the crops of all other photographs are, bit for bit, those
of a run without the fault.

"""


@dataclass
class Fate:
    """What became of a faulty photograph: the row of the stage that ended it, and its crop if there is one."""

    status: str
    reason: str
    note: str = ""
    retryable: bool = False
    pixels: np.ndarray | None = None


REMEMBERED = ("http_4", "not_image", "empty_file", "http_2")
"""Beginnings of the reasons that do not heal."""


class Album:
    """Good photographs on a web server, faulty ones between them, and the stages download and crop run over all."""

    def __init__(self, folder: Path, server: Server) -> None:
        self.folder, self.server = folder, server
        self.good = {f"/good{number}.jpg": body for number, body in enumerate(jpegs(4))}
        server.answers |= {path: content(body) for path, body in self.good.items()}

    def params(self, data: Mapping[str, Any], rule: Mapping[str, Any]) -> AllParams:
        block = YAML(typ="safe").load(ROOT / "params.yaml")
        block["data"] |= {
            "source": "urls",
            "path": "list.csv",
            "allow_private": True,
            "threads": 4,
            "attempts": 2,
        }
        block["data"] |= {"max_failed": 1.0, "timeout_seconds": 20} | data
        block["crop"] |= {"size": 16, "workers": 1} | rule
        return checked(AllParams, block)

    def run(self, folder: Path, rows: list[str], params: AllParams) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Both stages in a folder of their own; photos.csv and crops.csv by photo."""
        folder.mkdir(exist_ok=True)
        with chdir(folder):
            files.write_text(Path("list.csv"), "\n".join(rows) + "\n")
            download.main(params)
            crop.main(params)
            read = [
                pd.read_csv(path, dtype=str, keep_default_na=False)
                for path in (paths.PHOTOS_CSV, paths.CROPS_CSV)
            ]
        assert all(each["photo"].is_unique for each in read)
        return read[0].set_index("photo"), read[1].set_index("photo")

    def fates(
        self,
        faulty: Mapping[str, Answer | bytes],
        sha256: str = "",
        rule: Mapping[str, Any] | None = None,
        **data: Any,
    ) -> dict[str, Fate]:
        """What became of each faulty address (a path of the server, or a whole one), all invariants asserted.

        Args:
            faulty: how the server answers, or the bytes that it sends.
            sha256: what the list says that the faulty ones have.
            rule, data: changes to the blocks crop and data.
        """
        for path, answer in faulty.items():
            self.server.answers[path] = content(answer) if isinstance(answer, bytes) else answer
        params = self.params(data, rule or {})
        clean = self.folder / "clean"
        self.run(clean, ["url", *map(self.server.url, self.good)], self.params({}, rule or {}))
        expected = Crops(clean / paths.CROPS)[:]

        order = [path for pair in zip(self.good, list(faulty), strict=False) for path in pair]
        order += [*list(self.good)[len(faulty) :], *list(faulty)[len(self.good) :]]
        addresses = [self.server.url(path) if path.startswith("/") else path for path in order]
        rows = [
            "url,sha256",
            *(f'"{a}",{sha256 if o in faulty else ""}' for a, o in zip(addresses, order, strict=True)),
        ]
        folder = self.folder / "faulty"
        photos, crops = self.run(folder, rows, params)

        assert len(photos) == len(order), "every item is a row"
        assert ((photos["reason"] == "") == (photos["status"] == "ok")).all(), (
            "every failure has its reason, no success one"
        )
        assert list(crops.index) == list(photos.index[photos["status"] == "ok"]), (
            "every one that came is a row again"
        )
        assert ((crops["reason"] == "") == (crops["status"] == "ok")).all()
        assert not list(folder.rglob("*.partial")), "nothing half-written"
        pixels = Crops(folder / paths.CROPS)[:]
        named = dict(zip(order, photos.index, strict=True))
        for number, path in enumerate(self.good):
            row = crops.loc[named[path]]
            assert row["status"] == "ok" and np.array_equal(pixels[int(row["index"])], expected[number]), (
                "others are untouched"
            )

        before, asked = self.snapshot(folder), self.server.asked.copy()
        self.run(folder, rows, params)
        assert self.snapshot(folder) == before, "a rerun gives the same bytes"
        for path in order:
            row = photos.loc[named[path]]
            if row["status"] == "ok" or row["reason"].startswith(REMEMBERED) and row["retryable"] == "false":
                assert self.server.asked[path] == asked[path], f"{path} was asked for again"

        fates = {}
        for path in faulty:
            row = photos.loc[named[path]]
            fates[path] = Fate(row["status"], row["reason"], retryable=row["retryable"] == "true")
            if row["status"] == "ok":
                stage = crops.loc[named[path]]
                picture = pixels[int(stage["index"])] if stage["status"] == "ok" else None
                fates[path] = Fate(stage["status"], stage["reason"], stage["note"], False, picture)
        return fates

    def reasons(self, faulty: Mapping[str, Answer | bytes], **changes: Any) -> dict[str, str]:
        return {path: fate.reason for path, fate in self.fates(faulty, **changes).items()}

    def snapshot(self, folder: Path) -> dict[str, str]:
        return {
            p.relative_to(folder).as_posix(): files.sha256(p)
            for p in (folder / "data").rglob("*")
            if p.is_file()
        }


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    files.write_text(TABLE, table())
