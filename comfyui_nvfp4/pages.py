"""Keep the pages of reports in ComfyUI's output folder, and serve them to its page.

ComfyUI's own /view sends HTML as a download. These pages have no script; the headers forbid one all
the same, and the browser treats them as of no origin.
"""

from __future__ import annotations

import re
from pathlib import Path

import folder_paths
from aiohttp import web
from server import PromptServer

ROUTE = "/nvfp4/page/"
PAGE_NAME = re.compile(r"[^/\\:\x00]+\.html")
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; sandbox",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


def pages_folder() -> Path:
    """Return the folder of the pages; it is made."""
    folder = Path(folder_paths.get_output_directory()) / "nvfp4_reports"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def page_file(name: str) -> Path:
    """Return where the page of a report is kept."""
    return pages_folder() / name


def find_page(name: str) -> Path | None:
    """Find a page by its name, None where there is none or it lies elsewhere."""
    if not PAGE_NAME.fullmatch(name):
        return None
    path = page_file(name)
    is_there = path.is_file() and path.resolve().parent == pages_folder().resolve()
    return path if is_there else None


async def send_page(request: web.Request) -> web.Response:
    """Answer ComfyUI's page with a report."""
    path = find_page(request.match_info["name"])
    if path is None:
        return web.Response(status=404)
    return web.Response(
        body=path.read_bytes(), content_type="text/html", charset="utf-8", headers=HEADERS
    )


def serve_pages(server: PromptServer) -> None:
    """Have a server answer with pages. A second route of this name would keep it from starting."""
    path = ROUTE + "{name}"
    if path not in (getattr(route, "path", "") for route in server.routes):
        server.routes.get(path)(send_page)


# Tests load the nodes without a server.
if getattr(PromptServer, "instance", None) is not None:
    serve_pages(PromptServer.instance)
