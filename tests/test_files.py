"""Writing is atomic and reading is checked."""

import io
import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from colorize import files
from colorize.files import InputError


def test_a_write_that_ends_half_way_leaves_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    files.write_text(path, "old")
    with pytest.raises(RuntimeError), files.atomic(path) as file:
        file.write(b"new, but half")
        raise RuntimeError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    if not os.fork():  # a process that is killed within the block
        try:
            with files.atomic(path) as file:
                file.write(b"new, but half")
                file.flush()
                os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.wait()[1]) == signal.SIGKILL
    assert path.read_text() == "old" and len(list(tmp_path.iterdir())) == 2
    files.remove_partial(tmp_path)
    assert list(tmp_path.iterdir()) == [path]


def test_state_comes_back_and_damage_is_noticed(tmp_path: Path) -> None:
    """One flipped byte, which torch.load alone does not notice."""
    path = tmp_path / "state.pt"
    files.write_state(path, {"weights": torch.arange(1000.0), "epoch": 3})
    assert files.read_state(path)["weights"].sum() == 499500
    content = bytearray(path.read_bytes())
    content[2000] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="state.pt is damaged"):
        files.read_state(path)


def test_json_refuses_what_is_not_a_number(tmp_path: Path) -> None:
    """NaN never reaches a metrics file."""
    with pytest.raises(ValueError):
        files.write_json(tmp_path / "a.json", {"psnr": float("nan")})
    files.write_json(tmp_path / "a.json", {"psnr": 1.5})
    assert json.loads((tmp_path / "a.json").read_text()) == {"psnr": 1.5}


def test_arrays_written_twice_have_equal_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also much later: no time is inside."""
    arrays = {"a": np.arange(5), "b": np.ones((2, 3))}
    files.write_arrays(tmp_path / "one.npz", arrays)
    monkeypatch.setattr(time, "time", lambda: 2_000_000_000.0)
    files.write_arrays(tmp_path / "two.npz", arrays)
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()


def test_what_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    """A folder that is a file, one that nobody can make, a name of more than 255 bytes."""
    files.write_text(tmp_path / ("x" * 255), "x")
    for path, words in (
        (tmp_path / ("x" * 255) / "a.txt", "x/a.txt"),
        (Path("/proc/nowhere/a.txt"), "/proc/nowhere/a.txt"),
        (tmp_path / ("y" * 256), "y{256}: File name too long; change its name"),
    ):
        with pytest.raises(InputError, match=f"cannot write .*{words}"):
            files.write_text(path, "x")
    assert [path.name for path in tmp_path.iterdir()] == ["x" * 255]


@given(st.binary(max_size=12) | st.text(max_size=6).map(str.encode))
@example(b"caf\xe9.jpg")
@example(b"caf\\xe9.jpg")
@example(b"a\\x5cxe9|\n\x00\xe2\x80\xae")
def test_any_name_becomes_text_and_is_itself_again(name: bytes) -> None:
    """One line of valid UTF-8 without the |, also in the sentence of an error."""
    text = files.text_of(os.fsdecode(name))
    assert os.fsencode(files.name_of(text)) == name
    assert len(text.splitlines()) <= 1 and "|" not in text and text.encode().decode() == text
    said = str(InputError(f"{os.fsdecode(name)}, \x1b[31m or two\nlines"))
    assert len(said.splitlines()) == 1 and "\x1b" not in said and said.encode()


def pickled(value: object, **options: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)  # noqa: TID251
    return buffer.getvalue()


TENSORS = {"conv1.weight": torch.arange(6.0).reshape(2, 3), "n": torch.tensor(3)}


@pytest.mark.parametrize("zipped", [True, False, None])
def test_tensors_are_told_apart_by_their_bytes(zipped: bool | None) -> None:
    """Of torch.save, zipped and legacy, and of safetensors; the name of the file plays no part."""
    legacy = {"_use_new_zipfile_serialization": bool(zipped)}
    found = files.parse_tensors(
        "x", safetensors.torch.save(TENSORS) if zipped is None else pickled(TENSORS, **legacy)
    )
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[name], TENSORS[name]) for name in TENSORS)


class Trap:
    """Unpickling it would leave a file behind."""

    def __reduce__(self) -> tuple:
        return os.mkdir, ("sprung",)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "w.pth is no weights file; give a state dict"),
        (bytes(8) + b"{}", "w.pth is no weights file"),
        (pickled({"a": torch.ones(9)})[:-9], "w.pth is no weights file"),
        (pickled(Trap()), "w.pth is no weights file"),
        (pickled({"state_dict": TENSORS}), "w.pth holds more than named tensors; give a plain state dict"),
        (pickled([torch.ones(1)]), "w.pth holds more than named tensors"),
    ],
)
def test_what_holds_no_named_tensors_is_refused(content, words, tmp_path, monkeypatch) -> None:
    """And nothing in it is run."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=words):
        files.parse_tensors("w.pth", content)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("index,name\n0,a\n-1,b\n", r"t\.csv, row 2 \(line 3\): index cannot be '-1'; run `dvc repro`"),
        ("index,name\n0,a\n1.0,b\n", "row 2 .*index cannot be '1.0'"),
        ("index,name\n0,a\n0,b\n", "row 2 .*index 0 stands twice"),
        ("index,name\n0,c\n", "row 1 .*name cannot be 'c'"),
        ("index,name\n0,a,\n", "row 1 .*3 fields, the header 2"),
        ("index,name,more\n0,a,x\n", "row 1 .*more cannot be 'x'"),
        ("index\n0\n", "has no column 'name'; it has index"),
    ],
)
def test_an_edited_table_is_refused_with_the_row(tmp_path: Path, text: str, words: str) -> None:
    """A number below 0 would be another photograph, one that stands twice in two splits."""
    table, rule = tmp_path / "t.csv", {"index": int, "name": ("a", "b")}
    with pytest.raises(InputError, match="is missing; run `dvc repro`"):
        files.read_table(table, rule)
    table.write_text(text)
    with pytest.raises(InputError, match=words):
        files.read_table(table, rule, others=float, unique="index")


def test_a_table_comes_back_as_pandas_wrote_it(tmp_path: Path) -> None:
    """Any name, empty numbers, no row at all."""
    names = [" a", 'b,"c"', "d\ne", "", "é\u3000"]
    table = pd.DataFrame(
        {"name": names, "n": range(5), "x": [1.5, np.nan, np.inf, -2, 1e-9], "b": [True, False] * 2 + [True]}
    )
    for rows in (5, 0):
        table[:rows].to_csv(tmp_path / "t.csv", index=False)
        found = files.read_table(tmp_path / "t.csv", {"name": str, "n": int, "x": float, "b": bool})
        pd.testing.assert_frame_equal(found, table[:rows], check_dtype=bool(rows), check_index_type=False)


def test_content_is_on_the_disk_before_it_takes_its_name(tmp_path, monkeypatch) -> None:
    """Otherwise a power cut could leave a file under the right name without its bytes."""
    order: list[object] = []
    rename = os.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: order.append(os.fstat(descriptor).st_size))
    monkeypatch.setattr(os, "replace", lambda *names: (order.append("renamed"), rename(*names)))
    files.write_bytes(tmp_path / "a", b"four")
    assert order == [4, "renamed"]
