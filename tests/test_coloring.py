"""coloring.py: what a second, a third and a half-finished run do to the files of the user, and to names."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import _photographs
from PIL import Image

from colorize import files
from colorize.apply import coloring
from colorize.apply.coloring import System, color_all, find
from colorize.bins import Statistics
from colorize.data.album import COLUMNS
from colorize.files import InputError, name_of
from colorize.models import build_baseline


def one_color(name: str, a: float, b: float) -> System:
    """A model that paints everything in one color."""
    model = build_baseline("mean_color", Statistics({"mean_ab": np.array([a, b])}))
    return System(name, model, 16, f"the sha256 of {name}", (a, b))


BROWN, BLUE = one_color("brown", 9, 9), one_color("blue", 0, -20)
PIXELS = _photographs(1, 24)[0]


def photo(path: Path, pixels: np.ndarray = PIXELS, kind: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, kind)
    return path


def apply(given: Path | list[Path], output: Path, *systems: System, **how: object) -> dict[str, str]:
    """What `colorize apply` does: reason or status of each photograph."""
    album = find(given if isinstance(given, list) else [given], output)
    rows = color_all(album, systems or [BROWN], output, **how)
    return {row.photo: row.reason or row.status for row in rows}


def contents(folder: Path) -> dict[str, bytes | str]:
    """Every file and link below a folder."""
    return {
        path.relative_to(folder).as_posix(): os.readlink(path) if path.is_symlink() else path.read_bytes()
        for path in folder.rglob("*")
        if path.is_symlink() or path.is_file()
    }


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with a photograph, and another one in a folder of it."""
    photo(tmp_path / "photos/a.jpg")
    photo(tmp_path / "photos/1950/b.png", PIXELS[::-1])
    return tmp_path / "photos"


@pytest.mark.parametrize("what", ["file", "folder", "link", "broken link", "copy", "file in the way"])
def test_what_is_not_ours_is_refused_and_nothing_is_written(photos: Path, tmp_path: Path, what: str) -> None:
    """Not even the log, nor the other photograph's result, which would come first."""
    out, precious = tmp_path / "out", tmp_path / "precious.jpg"
    precious.write_bytes(b"someone's only copy")
    out.mkdir()
    if what == "folder":
        (out / "a.jpg").mkdir()
    elif what == "file in the way":
        (photos / "a.jpg").unlink()
        (out / "1950").write_bytes(b"notes")
    elif what.endswith("link"):
        (out / "a.jpg").symlink_to(precious if what == "link" else tmp_path / "nothing")
    else:
        (out / "a.jpg").write_bytes((photos / "a.jpg").read_bytes() if what == "copy" else b"another")
    before = contents(tmp_path)
    for _ in range(2):
        with pytest.raises(InputError, match="out/(a.jpg|1950) would be overwritten"):
            apply(photos, out)
    assert contents(tmp_path) == before


def test_a_result_that_was_edited_is_the_users(photos: Path, tmp_path: Path) -> None:
    """The same command leaves it and goes on with the rest; another one would replace it and is refused."""
    out = tmp_path / "out"
    apply(photos, out)
    photo(out / "a.jpg", 255 - PIXELS)
    edited = (out / "a.jpg").read_bytes()
    photo(photos / "new.jpg")
    assert apply(photos, out) == {"1950/b.png": "kept", "a.jpg": "kept", "new.jpg": "done"}
    with pytest.raises(InputError, match="a.jpg would be overwritten, and is not ours or was changed"):
        apply(photos, out, BLUE)
    assert (out / "a.jpg").read_bytes() == edited
    photo(photos / "later.jpg")
    (out / "later.jpg").write_bytes(b"put there by the user")
    with pytest.raises(InputError, match="later.jpg would be overwritten"):
        apply(photos, out)
    assert (out / "later.jpg").read_bytes() == b"put there by the user"


def test_one_command_after_another_replaces_its_own_results(photos: Path, tmp_path: Path) -> None:
    """Other models, sheets, folders of each model, and back: what was written by any of them stays ours."""
    out = tmp_path / "out"
    apply(photos, out)
    first = (out / "a.jpg").read_bytes()
    both = (BROWN, BLUE)
    for systems, compare in (((BLUE,), False), (both, True), (both, False), ((BROWN,), False)):
        assert set(apply(photos, out, *systems, compare=compare).values()) == {"done"}
        assert set(apply(photos, out, *systems, compare=compare).values()) == {"kept"}
    assert (out / "a.jpg").read_bytes() == first
    assert {"a.jpg", "a.jpg-compared.jpg", "blue/1950/b.png"} <= set(contents(out))


def test_a_changed_photograph_is_colored_anew_but_not_another_one_of_its_name(
    photos: Path, tmp_path: Path
) -> None:
    """The first replaces its own result; the second would replace the result of another photograph."""
    out, other = tmp_path / "out", photo(tmp_path / "other/a.jpg", 255 - PIXELS)
    apply(photos, out)
    photo(photos / "a.jpg", PIXELS[::2])
    assert apply(photos, out)["a.jpg"] == "done" and Image.open(out / "a.jpg").height == 12
    before = contents(out)
    with pytest.raises(InputError, match="a.jpg would be overwritten"):
        apply(other, out)
    assert contents(out) == before
    photos.rename(tmp_path / "moved")
    assert set(apply(tmp_path / "moved", out).values()) == {"kept"}
    assert apply(tmp_path / "moved", out, BLUE)["a.jpg"] == "done"


def test_a_photograph_that_is_broken_for_a_while_keeps_its_result(photos: Path, tmp_path: Path) -> None:
    """Its row fails; once it is mended, it is colored over the result of before."""
    out, whole = tmp_path / "out", (photos / "a.jpg").read_bytes()
    apply(photos, out)
    (photos / "a.jpg").write_bytes(whole[:300])
    assert apply(photos, out)["a.jpg"] == "truncated" and (out / "a.jpg").exists()
    (photos / "a.jpg").write_bytes(whole)
    assert apply(photos, out)["a.jpg"] == "done"


def test_results_are_never_photographs(photos: Path) -> None:
    """Neither those of this command nor those of others in the album; the user's own files among them are."""
    assert len(apply(photos, photos / "first")) == 2
    assert set(apply(photos, photos / "second")) == {"1950/b.png", "a.jpg"}
    photo(photos / "first/mine.jpg")
    assert set(apply(photos, photos / "first")) == {"1950/b.png", "a.jpg"}
    photo(photos / "first/a.jpg", 255 - PIXELS)  # edited, so it is the user's
    assert set(apply(photos, photos / "third")) == {"1950/b.png", "a.jpg", "first/a.jpg", "first/mine.jpg"}


def test_results_may_lie_among_the_photographs_under_other_names(photos: Path) -> None:
    """The next run knows sheets beside the originals as such; results of the same names are refused."""
    for told in ("done", "kept"):
        assert apply(photos, photos, BROWN, compare=True) == {"1950/b.png": told, "a.jpg": told}
    for given in (photos, photos / "1950"):
        with pytest.raises(InputError, match=r"b.png would be overwritten|a.jpg would be overwritten"):
            apply(given, given)


def test_two_photographs_never_become_one_file(photos: Path, tmp_path: Path) -> None:
    """A GIF becomes a PNG of another one's name; a file is where another needs a folder; so is the log."""
    photo(photos / "c.gif")
    photo(photos / "c.gif.png")
    with pytest.raises(InputError, match="c.gif and c.gif.png would both become .*c.gif.png"):
        apply(photos, tmp_path / "out")
    tree = photo(tmp_path / "tree/a.jpg/b.jpg").parent.parent
    with pytest.raises(InputError, match="needs a folder where a.jpg would be"):
        apply([photos / "a.jpg", tree], tmp_path / "out")
    with pytest.raises(InputError, match="needs a folder where colorize.csv would be"):
        apply(photo(tmp_path / "odd/colorize.csv/b.jpg").parent.parent, tmp_path / "out")
    assert not (tmp_path / "out").exists()


TWINS = ("x.jpg", "X.jpg", "\u00e9.jpg", "e\u0301.jpg")


@pytest.mark.skipif(
    os.path.lexists(__file__.upper()), reason="needs a file system that tells names' cases apart"
)
def test_names_that_differ_in_case_or_form_are_two_where_the_file_system_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All four are colored here; on a memory card, which takes two of them for one, nothing is written."""
    for number, name in enumerate(TWINS):
        photo(tmp_path / "photos" / name, PIXELS[number:])
    assert set(apply(tmp_path / "photos", tmp_path / "out").values()) == {"done"}
    assert len(list((tmp_path / "out").glob("*.jpg"))) == 4

    def lexists(path: Path) -> bool:
        path = Path(path)
        return path.parent.is_dir() and path.name.casefold() in {
            each.casefold() for each in os.listdir(path.parent)
        }

    monkeypatch.setattr(os.path, "lexists", lexists)
    with pytest.raises(InputError, match="X.jpg and x.jpg would both become"):
        apply(tmp_path / "photos", tmp_path / "card")
    assert not (tmp_path / "card").exists()


ODD = [
    b"caf\xe9.jpg", b"caf\\xe9.jpg", "Scan\u00a01.jpg", "3.04.05\u202fPM.jpg", "\u30ad\u30e3\u3000001.jpg",
    "\u0639\u06a9\u0633\u200c\u0647\u0627.jpg", "\U0001f468\u200d\U0001f469.jpg", "two\nlines.jpg",
    "tab\t.jpg", "a|b.jpg", "q\"u,o;t'e.jpg", " blank .jpg", "--help.jpg", "=cmd.jpg", "back\\slash.jpg",
    "*?.jpg", "\u202egnp.jpg", "\x1b[31m.jpg",
]  # fmt: skip


def test_a_name_is_bytes(tmp_path: Path) -> None:
    """Whichever they are, the photograph is colored, stands in the log, and is done in the next run."""
    names = [name if isinstance(name, bytes) else name.encode() for name in ODD]
    (tmp_path / "photos").mkdir()
    for number, name in enumerate(names):
        content = photo(tmp_path / "1.jpg", PIXELS[: number + 1]).read_bytes()
        (tmp_path / "photos" / os.fsdecode(name)).write_bytes(content)
    for told in ("done", "kept"):
        found = apply(tmp_path / "photos", tmp_path / "out")
        assert set(found.values()) == {told}
        assert {os.fsencode(name_of(text)) for text in found} == set(names)
        assert not any("\u202e" in text or text.isascii() and not text.isprintable() for text in found)
    assert len((tmp_path / "out/colorize.csv").read_text().splitlines()) == 1 + len(names)
    assert {os.fsencode(p.name) for p in (tmp_path / "out").iterdir()} == {*names, b"colorize.csv"}


def test_a_name_may_be_as_long_as_the_file_system_allows(tmp_path: Path) -> None:
    """255 bytes and no more: what does not fit is a row that says so, and costs nothing else."""
    fits, too_long = f"{'x' * 251}.jpg", f"{'y' * 251}.jpx"
    for name in (fits, too_long, "z.jpg"):
        photo(tmp_path / "photos" / name, kind="jpeg")
    told = {fits: "done", too_long: "name_too_long", "z.jpg": "done"}
    assert apply(tmp_path / "photos", tmp_path / "out") == told
    assert set(contents(tmp_path / "out")) == {fits, "z.jpg", "colorize.csv"}


def test_a_sheet_is_no_wider_than_a_jpeg_can_be(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Three pictures of a panorama that alone is as wide as that; libjpeg says nothing."""
    photo(tmp_path / "wide.jpg", np.tile(PIXELS[:8], (1, 2700, 1)))
    assert apply(tmp_path / "wide.jpg", tmp_path / "out", BROWN, BLUE, compare=True) == {"wide.jpg": "done"}
    assert Image.open(tmp_path / "out/wide.jpg-compared.jpg").width <= 65_500
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("text", ["date,amount\n1,2\n", "", "\0", "{header}\nx,y\n", '{header}\n"x,y\n'])
def test_a_table_that_is_not_our_log_is_left_alone(photos: Path, tmp_path: Path, text: str) -> None:
    path = tmp_path / "out/colorize.csv"
    files.write_text(path, text.replace("{header}", ",".join(COLUMNS)))
    before = contents(tmp_path)
    with pytest.raises(InputError, match="colorize.csv is not our log"):
        apply(photos, path.parent)
    assert contents(tmp_path) == before


def test_a_log_that_a_spreadsheet_saved_is_read(photos: Path, tmp_path: Path) -> None:
    """With a byte order mark, CRLF and quotation marks everywhere; and one whose last line a kill cut off."""
    apply(photos, tmp_path / "out")
    path = tmp_path / "out/colorize.csv"
    whole = path.read_text()
    quoted = ['"' + line.replace(",", '","') + '"' for line in whole.splitlines()]
    for text in ("\ufeff" + "\r\n".join(quoted) + "\r\n", whole + 'c.jpg,"c'):
        path.write_text(text, newline="")
        assert set(apply(photos, tmp_path / "out").values()) == {"kept"}
        assert path.read_text().replace("kept", "done") == whole


def killed_at(step: int, run: Callable[[], object]) -> bool:
    """Whether a process that is killed after `step` calls that make something durable was killed."""
    if not (child := os.fork()):
        count = 0

        def counting(call: Callable[..., object]) -> Callable[..., object]:
            def counted(*arguments: object) -> object:
                nonlocal count
                count += 1
                if count > step:
                    os.kill(os.getpid(), signal.SIGKILL)
                return call(*arguments)

            return counted

        os.replace, os.fsync = counting(os.replace), counting(os.fsync)  # type: ignore[assignment]
        run()
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on_and_refuses_nothing_of_its_own(photos: Path, tmp_path: Path) -> None:
    """At any moment, over a fresh folder or over older results; by the same command, or by another one."""
    expected = {}
    for system in (BROWN, BLUE):
        apply(photos, tmp_path / system.name, system)
        expected[system.name] = contents(tmp_path / system.name)
    results = ("a.jpg", "1950/b.png")
    step = 0
    while True:
        out = tmp_path / f"out{step}"
        if step % 2:
            apply(photos, out, BLUE)
        if not killed_at(step, lambda out=out: apply(photos, out)):  # type: ignore[misc]
            break
        for system in (BLUE, BROWN) if step % 3 else (BROWN, BLUE):
            apply(photos, out, system)
            assert all(contents(out)[name] == expected[system.name][name] for name in results), step
        assert set(apply(photos, out, system).values()) == {"kept"}
        assert set(contents(out)) == {*results, "colorize.csv"}
        step += 1
    assert step > 6


def test_what_is_stopped_while_it_works_stays_as_it_was(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in the middle of a photograph that was colored before: its result and its row stand."""
    apply(photos, tmp_path / "out")
    before = contents(tmp_path / "out")

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(coloring.fullsize, "encode", stopped)
    with pytest.raises(KeyboardInterrupt):
        apply(photos, tmp_path / "out", BLUE)
    assert contents(tmp_path / "out") == before


def test_a_full_disk_is_one_sentence_and_the_same_command_goes_on(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The older result stands until the new one is whole."""
    out = tmp_path / "out"
    apply(photos, out, BLUE)
    before = contents(out)

    def full(source: str, target: Path) -> None:
        raise OSError(28, "No space left on device", source, None, str(target))

    with monkeypatch.context() as patched:
        patched.setattr(coloring, "write_log", lambda *_: None)
        patched.setattr(os, "replace", full)
        with pytest.raises(InputError, match="b.png: No space left on device; make the folder writable"):
            apply(photos, out)
    after = contents(out)
    assert after.pop("colorize.csv") != before.pop("colorize.csv") and after == before
    assert set(apply(photos, out).values()) == {"done"}
