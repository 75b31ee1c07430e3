"""The local page: what the server answers, and what a person sees in a real browser."""

import io
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import requests
from conftest import ROOT, _photographs
from PIL import Image
from test_cli import make_model

pytest.importorskip("starlette", reason="the page is an extra: pip install -e '.[app]'")
pytest.importorskip("uvicorn", reason="the page is an extra: pip install -e '.[app]'")
pytestmark = pytest.mark.xdist_group("app")  # one server for all of these tests


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The command, running, with a model that has a temperature and one that has none, and a limit of 1 MB."""
    folder = tmp_path_factory.mktemp("models")
    models = [
        make_model(folder / "zhang_simplified", "zhang_simplified"),
        make_model(folder / "cae", "cae", channels=[4, 8]),
    ]
    chosen = [part for model in models for part in ("--model", str(model))]
    command = [
        sys.executable,
        "-m",
        "colorize.apply.cli",
        "app",
        *chosen,
        "--port",
        "0",
        "--no-show",
        "--max-megabytes",
        "1",
    ]
    server = subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE)
    assert server.stdout
    found = re.match(r"(http://127\.0\.0\.1:\d+) ", server.stdout.readline())
    assert found
    yield found[1]
    server.terminate()
    assert server.wait(20) is not None


def photo(size: int = 48, kind: str = "jpeg") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(_photographs(1, size)[0][: size * 3 // 4]).save(buffer, kind)
    return buffer.getvalue()


def ask(address: str, content: bytes, **query: object) -> requests.Response:
    return requests.post(f"{address}/color", params=query, data=content, timeout=60)


def test_a_photograph_comes_back_in_color_at_its_own_size(address: str) -> None:
    """As it was sent, for download; nothing may be kept."""
    answer = ask(address, photo(), model="cae", full=1)
    assert answer.status_code == 200 and answer.headers["x-suffix"] == ".jpg"
    assert answer.headers["cache-control"] == "no-store"
    assert Image.open(io.BytesIO(answer.content)).size == (48, 36)


def test_each_model_has_its_own_knob(address: str) -> None:
    """The temperature moves a classifier, the saturation a regression; unturned they stand where the model has them."""
    content = photo()
    for model, mine, other in (
        ("zhang_simplified", "temperature", "saturation"),
        ("cae", "saturation", "temperature"),
    ):
        own = ask(address, content, model=model).content
        assert ask(address, content, model=model, **{mine: 0}).content != own
        assert ask(address, content, model=model, **{other: 0}).content == own
        assert ask(address, content, model=model).content == own


def test_grey_and_the_original_are_shown_without_a_model(address: str) -> None:
    """Grey has no color left."""
    grey, original = (
        np.asarray(Image.open(io.BytesIO(ask(address, photo(), model=name).content)).convert("RGB")).astype(
            int
        )
        for name in ("grey", "original")
    )
    assert np.ptp(grey, axis=2).max() <= 8 < np.ptp(original, axis=2).max()


@pytest.mark.parametrize(
    ("content", "query", "status", "words"),
    [
        (b"text", {"model": "cae"}, 422, "no photograph"),
        (photo()[:600], {"model": "cae"}, 422, "ends in the middle"),
        (b"x" * 1_000_001, {"model": "cae"}, 413, "larger than 1 MB"),
        (b"", {"model": "vae"}, 404, "no model vae"),
        (b"", {"model": "cae", "temperature": "hot"}, 400, "0 to 1"),
    ],
)
def test_what_cannot_be_colored_is_said_in_a_sentence(
    address: str, content: bytes, query: dict[str, str], status: int, words: str
) -> None:
    answer = ask(address, content, **query)
    assert answer.status_code == status and words in answer.json()["error"]


def test_other_pages_and_other_hosts_are_refused(address: str) -> None:
    """A page of another origin cannot use the server, nor can a name that was pointed at it."""
    assert (
        requests.post(
            f"{address}/color?model=cae", headers={"origin": "http://evil.example"}, timeout=9
        ).status_code
        == 403
    )
    assert requests.get(address, headers={"host": "evil.example"}, timeout=9).status_code == 400


@pytest.mark.parametrize("width", [1200, 375])
def test_a_person_colors_and_downloads_a_photograph(
    address: str, browser, width: int, tmp_path: Path
) -> None:
    """Choose a file, compare two models, move temperature and slider, download; then a broken file; also on a phone."""
    from playwright.sync_api import expect

    page = browser.new_page(viewport={"width": width, "height": 800})
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(address)
    name = "grandma_" + "and_her_sisters_" * 4  # too long for a phone's line
    (tmp_path / f"{name}.jpg").write_bytes(photo(96))
    (tmp_path / "broken.jpg").write_text("text")
    page.set_input_files("#file", tmp_path / f"{name}.jpg")
    page.wait_for_selector("#result:not([hidden])")
    assert page.locator("#right").input_value() == "zhang_simplified"
    page.check("#model-cae")
    page.wait_for_selector("#right option[value=cae]", state="attached")
    page.select_option("#right", "zhang_simplified")
    before = page.locator("#under").get_attribute("src")
    assert page.locator("[data-knob=temperature] output").inner_text() == "0.38"
    page.locator("[data-knob=temperature] input").fill("1")
    page.locator("[data-knob=temperature] input").dispatch_event("change")
    expect(page.locator("#under")).not_to_have_attribute("src", before)
    page.locator("#slider").focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("#slider").input_value() == "51"
    with page.expect_download() as download:
        page.click("#download")
    assert download.value.suggested_filename == f"{name}-zhang_simplified.jpg"
    assert Image.open(download.value.path()).size == (96, 72)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.set_input_files("#file", tmp_path / "broken.jpg")
    expect(page.locator("#status")).to_contain_text("no photograph")
    assert not problems
