"""Serve a local page that colors photographs: `colorize app`.

The server keeps only the models. The browser keeps the photograph and sends it with every request, so nothing
is written to disk. The server listens on the loopback address, answers only its own page, and limits the
upload size.
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
from colorize.models import load_description

PREVIEW = 1280
"""Longest side in pixels of a shown image; downloads have the photograph's own size."""
LOADED = 3
"""Models kept in memory."""
WITHOUT_MODEL = ("original", "grey")
KNOBS = {"temperature": 1.0, "saturation": 4.0}
"""Decoding options and their upper limits; the lower limit is 0."""
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
"""Content security policy: load nothing from other origins."""


class Refusal(Exception):
    """An HTTP error: status and sentence."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


async def body(request: Request, limit: int) -> bytes:
    """Read the body of a request.

    Raises:
        Refusal: the body is longer than `limit` bytes.
    """
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > limit:
            raise Refusal(413, f"The file is larger than {limit // 1_000_000} MB; scale it down.")
    return bytes(content)


def reduced(photograph: fullsize.Photograph) -> fullsize.Photograph:
    """Scale a photograph down to the size of a preview, upright."""
    picture = photograph.rgb.copy()
    picture.thumbnail((PREVIEW, PREVIEW), Image.Resampling.BICUBIC, reducing_gap=3)
    return fullsize.Photograph(fullsize.upright(photograph, picture), None, 1, ".webp", b"", b"", None, ())


def create_app(
    folders: Mapping[str, Path],
    max_megabytes: int = 50,
    device: str = "cpu",
    max_megapixels: float = CropConfig.max_megapixels,
) -> Starlette:
    """Build the application.

    Args:
        folders: trained models by name.
        max_megabytes, max_megapixels: limits of an uploaded photograph.
    """
    turn = threading.Lock()  # one photograph at a time, to limit memory

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
                chosen = system(name)
                light = fullsize.small_light(whole, chosen.model, chosen.size)
                defaults = own_decoding(folders[name])
                chosen.decode(**{knob: decoding.get(knob, value) for knob, value in defaults.items()})
                ab = fullsize.colorings(chosen.model, light)[0]
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

    def route(path: str, call: Callable[[Request], Any], method: str) -> Route:
        async def endpoint(request: Request) -> Response:
            """Refuse requests from other origins, and forbid the browser to cache."""
            origin = request.headers.get("origin")
            if origin and origin != f"{request.url.scheme}://{request.headers['host']}":
                return JSONResponse({"error": "Only this server's own page may ask."}, 403)
            response = await call(request)
            response.headers["cache-control"] = "no-store"
            response.headers["content-security-policy"] = POLICY
            return response

        return Route(path, endpoint, methods=[method])

    hosts = Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])
    routes = [route("/", page, "GET"), route("/models", models, "GET"), route("/color", color, "POST")]
    return Starlette(routes=routes, middleware=[hosts])


def own_decoding(folder: Path) -> dict[str, float]:
    """A trained model's default decoding: a classifier's temperature, a regression's saturation."""
    head = load_description(folder)["block"]["head"]
    knob = {"classification": "temperature", "regression": "saturation"}.get(head["kind"])
    return {knob: head[knob]} if knob else {}
