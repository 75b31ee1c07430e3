"""A local page on which one drops a photograph and sees it in color: `colorize app`.

The server holds no state but the models: the browser keeps the photograph and sends it with every question, so nothing is
written anywhere and nothing is left when the page is closed. It listens on the loopback address, answers only pages that it
served itself, and takes no more than so many megabytes.
"""

import threading
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from colorize.apply import fullsize
from colorize.apply.coloring import System
from colorize.data.images import SENTENCES, CropConfig, Refused
from colorize.files import InputError

PREVIEW = 1280
"""Longest side in pixels of what is shown; what is downloaded has the photograph's own size."""
LOADED = 3
"""Models that are kept in memory at a time."""
WITHOUT_MODEL = ("original", "grey")
KNOBS = {"temperature": 1.0, "saturation": 4.0}
"""How a model may be asked to decode, from 0 to this."""
TYPES = {
    ".jpg": "image/jpeg",
    ".png": "image/png",
    ".webp": "image/webp",
    ".tif": "image/tiff",
    ".avif": "image/avif",
}
POLICY = (
    "default-src 'none'; img-src 'self' blob:; connect-src 'self'; "
    "style-src 'unsafe-inline'; script-src 'unsafe-inline'; frame-ancestors 'none'"
)
"""What the page may load: nothing from elsewhere."""


class Refusal(Exception):
    """What is answered instead: status and sentence."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


async def body(request: Request, limit: int) -> bytes:
    """The request's body.

    Raises:
        Refusal: it is longer than `limit` bytes.
    """
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > limit:
            raise Refusal(413, f"The file is larger than {limit // 1_000_000} MB; scale it down.")
    return bytes(content)


def reduced(photograph: fullsize.Photograph) -> fullsize.Photograph:
    """The photograph at the size at which it is shown, upright."""
    picture = photograph.rgb.copy()
    picture.thumbnail((PREVIEW, PREVIEW), Image.Resampling.BICUBIC, reducing_gap=3)
    return fullsize.Photograph(fullsize.upright(photograph, picture), None, 1, ".webp", b"", b"", None, ())


def create_app(
    folders: Mapping[str, Path],
    max_megabytes: int = 50,
    device: str = "cpu",
    max_megapixels: float = CropConfig.max_megapixels,
) -> Starlette:
    """The application.

    Args:
        folders: trained models by name.
        max_megabytes, max_megapixels: of an uploaded photograph.
    """
    turn = threading.Lock()  # one photograph at a time: memory stays that of one

    @lru_cache(maxsize=LOADED)
    def system(name: str) -> System:
        return System.load(folders[name], device)

    def paint(content: bytes, name: str, decoding: Mapping[str, float], full: bool) -> tuple[bytes, str]:
        with turn:
            photograph = fullsize.read(content, max_megapixels)
            whole = photograph
            if not full:
                photograph = reduced(photograph)
            if name == "original":
                return fullsize.encode(photograph, photograph.rgb), photograph.suffix
            if name == "grey":
                light = torch.zeros(1, 1, 8, 8)
                ab = torch.zeros(2, 8, 8)
            else:
                found = system(name)
                light = fullsize.small_light(whole, found.model, found.size)
                found.decode(
                    **{knob: decoding.get(knob, own) for knob, own in own_decoding(folders[name]).items()}
                )
                ab = fullsize.colorings(found.model, light)[0]
            return fullsize.encode(photograph, fullsize.paint(photograph, light, ab)), photograph.suffix

    async def page(request: Request) -> Response:
        return HTMLResponse(Path(__file__).with_name("app.html").read_text(encoding="utf-8"))

    async def models(request: Request) -> Response:
        names = [{"name": name, "decoding": own_decoding(folder)} for name, folder in folders.items()]
        return JSONResponse({"models": names, "megabytes": max_megabytes})

    async def color(request: Request) -> Response:
        try:
            name = request.query_params.get("model", "")
            if name not in folders and name not in WITHOUT_MODEL:
                raise Refusal(404, f"There is no model {name}.")
            decoding = {}
            for knob in KNOBS.keys() & request.query_params.keys():
                try:
                    decoding[knob] = min(KNOBS[knob], max(0.0, float(request.query_params[knob])))
                except ValueError as error:
                    raise Refusal(400, f"The {knob} is a number from 0 to {KNOBS[knob]:g}.") from error
            content = await body(request, max_megabytes * 1_000_000)
            full = request.query_params.get("full") == "1"
            picture, suffix = await run_in_threadpool(paint, content, name, decoding, full)
            return Response(picture, media_type=TYPES[suffix], headers={"x-suffix": suffix})
        except Refusal as refusal:
            return JSONResponse({"error": str(refusal)}, refusal.status)
        except Refused as refused:
            return JSONResponse({"error": SENTENCES[str(refused)]}, 422)
        except InputError as error:
            return JSONResponse({"error": str(error)}, 500)

    async def guarded(request: Request, call: Callable[[Request], Any]) -> Response:
        """Pages of other origins may not ask, and nothing may be kept by the browser."""
        origin = request.headers.get("origin")
        if origin and origin != f"{request.url.scheme}://{request.headers['host']}":
            return JSONResponse({"error": "Only this server's own page may ask."}, 403)
        response = await call(request)
        response.headers["cache-control"] = "no-store"
        response.headers["content-security-policy"] = POLICY
        return response

    def route(path: str, call: Callable[[Request], Any], method: str) -> Route:
        async def endpoint(request: Request) -> Response:
            return await guarded(request, call)

        return Route(path, endpoint, methods=[method])

    hosts = Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])
    routes = [route("/", page, "GET"), route("/models", models, "GET"), route("/color", color, "POST")]
    return Starlette(routes=routes, middleware=[hosts])


def own_decoding(folder: Path) -> dict[str, float]:
    """How a trained model decodes unless asked: the temperature of a classifier, the saturation of a regression."""
    from colorize.models import load_description

    head = load_description(folder)["block"]["head"]
    knob = {"classification": "temperature", "regression": "saturation"}.get(head["kind"])
    return {knob: head[knob]} if knob else {}
