"""The local page: what the server answers, and what a person sees in a real browser."""

import io
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import requests
from conftest import _photographs
from PIL import Image
from test_cli import TEMPERATURE, call, make_model

uvicorn = pytest.importorskip("uvicorn", reason="the page is an extra: pip install -e '.[app]'")
pytest.importorskip("starlette", reason="the page is an extra: pip install -e '.[app]'")
pytestmark = pytest.mark.xdist_group("app")  # one server for all of these tests


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where the page is, of a model that has a temperature and one that has none, with a limit of 1 MB."""
    from colorize.apply.app import create_app

    folder = tmp_path_factory.mktemp("models")
    models = {
        "classes": make_model(folder / "classes", "cae", TEMPERATURE, channels=[4, 8]),
        "cae": make_model(folder / "cae", "cae", channels=[4, 8]),
    }
    server = uvicorn.Server(uvicorn.Config(create_app(models, 1), port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


def photo(size: int = 48) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(_photographs(1, size)[0][: size * 3 // 4]).save(buffer, "jpeg")
    return buffer.getvalue()


def ask(address: str, content: bytes, **query: object) -> requests.Response:
    return requests.post(f"{address}/color", params=query, data=content, timeout=60)


def test_a_photograph_comes_back_in_color_at_its_own_size(address: str) -> None:
    """As it was sent, for download; nothing may be kept."""
    answer = ask(address, photo(), model="cae", full=1)
    assert answer.status_code == 200 and answer.headers["x-suffix"] == ".jpg"
    assert answer.headers["cache-control"] == "no-store"
    assert Image.open(io.BytesIO(answer.content)).size == (48, 36)


@pytest.mark.parametrize(
    ("model", "mine", "other"),
    [("classes", "temperature", "saturation"), ("cae", "saturation", "temperature")],
)
def test_each_model_has_its_own_knob(address: str, model: str, mine: str, other: str) -> None:
    """A question with it changes the colors of that answer only; the other model's knob changes nothing."""
    own = ask(address, photo(), model=model).content
    assert ask(address, photo(), model=model, **{mine: 0}).content != own
    assert ask(address, photo(), model=model, **{other: 0}).content == own


def test_grey_has_no_color_left_and_the_original_has(address: str) -> None:
    """Both are shown without a model."""
    answers = [ask(address, photo(), model=name).content for name in ("grey", "original")]
    grey, original = (np.asarray(Image.open(io.BytesIO(each)).convert("RGB")).astype(int) for each in answers)
    assert np.ptp(grey, axis=2).max() <= 8 < np.ptp(original, axis=2).max()


@pytest.mark.parametrize(
    ("content", "query", "status", "words"),
    [
        (b"text", {"model": "cae"}, 422, "no photograph"),
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
    color = f"{address}/color?model=cae"
    assert requests.post(color, headers={"origin": "http://evil.example"}, timeout=60).status_code == 403
    assert requests.get(address, headers={"host": "evil.example"}, timeout=60).status_code == 400


def test_the_command_says_where_the_page_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It serves the models that are named."""
    monkeypatch.setattr(uvicorn.Server, "run", lambda *_, **__: None)
    folder = make_model(tmp_path / "cae", "cae", channels=[4, 8])
    said = call("app", "--model", folder, "--port", 0, "--no-show")
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+ \(Ctrl-C stops\)\n", said)


@pytest.mark.slow
@pytest.mark.parametrize("width", [1200, 375])
def test_a_person_colors_and_downloads_a_photograph(
    address: str, browser, width: int, tmp_path: Path
) -> None:
    """Choose a file, compare two models, move temperature and slider, download; then a broken file."""
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
    assert page.locator("#right").input_value() == "classes"
    page.check("#model-cae")
    page.wait_for_selector("#right option[value=cae]", state="attached")
    page.select_option("#right", "classes")
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
    assert download.value.suggested_filename == f"{name}-classes.jpg"
    assert Image.open(download.value.path()).size == (96, 72)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.set_input_files("#file", tmp_path / "broken.jpg")
    expect(page.locator("#status")).to_contain_text("no photograph")
    assert not problems
