"""Serve a stand-in of the Hugging Face Hub on the loopback, with faults that can be switched on.

It speaks what `huggingface_hub` 0.2x, 1.x and 2.x ask for when they read models, as the Hub answers
it: information, trees and paths of a repository, and files that are redirected to a second port by
signed addresses that expire, as the Hub does to its storage. `HubServer.asked` notes every request.

By hand: python tests/support/hub_server.py FOLDER [--repo owner/name] [--rate MB] [--each MB]
serves a folder as a repository until Ctrl-C; then HF_ENDPOINT=… makes any client of the Hub use it.

Standard library only, Python 3.10.
"""

import argparse
import contextlib
import hashlib
import hmac
import json
import re
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlencode, urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support.hub_faults import Asked, Fault, Pace
from support.hub_store import Blob, Repo, Store, tree_of

SECRET = b"signs the addresses of the second port"
REPO = r"(?P<repo>[^/]+(?:/[^/]+)?)"


class Refused(Exception):
    """An answer that is an error, as the Hub puts it."""

    def __init__(self, status: int, message: str, code: str | None = None):
        super().__init__(message)
        self.status, self.code = status, code


class Moved(Exception):
    """A repository has another name now; the argument is the path by that name."""


class HubServer:
    """The stand-in: `with HubServer() as hub:`, files by `hub.put`, faults by `hub.faults.append`.

    rate: bytes per second of all connections together; each: of every single one. link_life: the
    seconds for which a signed address holds. page: the most entries of a listing's page. spoil:
    makes another answer of what is told of a repository.
    """

    def __init__(self, *, rate: float | None = None, each: float | None = None, port: int = 0):
        self.store = Store()
        self.put, self.swap = self.store.put, self.store.swap
        self.faults: list[Fault] = []
        self.asked: list[Asked] = []
        self.lock = threading.Lock()
        self.link_life, self.page, self.each = 3600.0, 1000, each
        self.pace = Pace(rate)
        self.spoil = dict
        self.busy = self.busiest = 0
        self.ports = {name: Port(("127.0.0.1", port * (name == "hub")), name, self)
                      for name in ("hub", "cdn")}  # fmt: skip

    def __enter__(self) -> "HubServer":
        for port in self.ports.values():
            threading.Thread(target=port.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        for port in self.ports.values():
            port.shutdown()
            port.server_close()

    @property
    def url(self) -> str:
        return self.ports["hub"].url

    def environment(self, home: Path) -> dict[str, str]:
        """Variables that make a client's process use this server, with a cache of its own."""
        return {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1,localhost",
                "HF_HUB_DISABLE_TELEMETRY": "1"}  # fmt: skip

    def repo(self, name: str) -> Repo:
        return self.store.repos[name]

    def of(self, port: str = "", path: str = "", method: str = "") -> list[Asked]:
        """Return the requests that came to a port, with a path that holds a pattern."""
        return [asked for asked in self.asked
                if asked.of.startswith(port) and re.search(path, asked.path)
                and asked.method.startswith(method)]  # fmt: skip

    def sent(self, path: str = "") -> int:
        """Return the bytes of file content that went out."""
        return sum(asked.sent for asked in self.of(path=path))

    def sign(self, blob: Blob, name: str) -> str:
        """Return an address of the second port at which a large file is read for a while."""
        expires = str(time.time() + self.link_life)
        query = {"Expires": expires, "Signature": signature(blob.sha256, expires),
                 "response-content-disposition": f'inline; filename="{name}";'}  # fmt: skip
        return f"{self.ports['cdn'].url}/repos/{blob.sha256}?{urlencode(query)}"


def signature(sha256: str, expires: str) -> str:
    return hmac.new(SECRET, f"{sha256} {expires}".encode(), "sha256").hexdigest()


class Port(ThreadingHTTPServer):
    """One of the two ports, a thread for each connection."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], of: str, hub: HubServer):
        super().__init__(address, Handler)
        self.of, self.hub = of, hub
        # The storage is another host: some versions of the library look at no port.
        host = {"hub": "127.0.0.1", "cdn": "localhost"}[of]
        self.url = f"http://{host}:{self.server_address[1]}"

    def handle_error(self, *_) -> None:
        """Say nothing of clients that hang up."""


class Handler(BaseHTTPRequestHandler):
    """Answer requests of one connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Port

    def log_message(self, *_) -> None:
        """Print nothing: `asked` has it."""

    def do_GET(self) -> None:
        hub, parts = self.server.hub, urlsplit(self.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        length = int(headers.get("content-length") or 0)
        self.body = self.rfile.read(length)
        self.asked = Asked(
            self.server.of, headers.get("host", ""), self.command, parts.path, headers
        )
        self.query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        with hub.lock:
            hub.asked.append(self.asked)
            self.fault = next((fault for fault in hub.faults if fault.meets(self.asked)), Fault())
        if self.fault.first:
            self.fault.first(hub)
        time.sleep(self.fault.wait)
        try:
            if self.fault.status:
                raise Refused(self.fault.status, "As the test wants it")
            for of, method, pattern, answer in ROUTES:
                found = re.fullmatch(pattern, parts.path)
                if of == self.asked.of and self.command in method and found:
                    given = {name: unquote(part or "") for name, part in found.groupdict().items()}
                    return answer(self, **given)
            raise Refused(404, "Sorry, we can't find the page you are looking for.")
        except Refused as error:
            self.refuse(error)
        except Moved as moved:
            self.redirect(str(moved), 307)

    do_HEAD = do_POST = do_GET

    def refuse(self, error: Refused) -> None:
        headers = {"X-Error-Message": str(error)}
        if error.code:
            headers["X-Error-Code"] = error.code
        self.json({"error": str(error)}, error.status, headers)

    def json(self, content, status: int = 200, headers: dict | None = None) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.begin(status, {"Content-Type": "application/json", "Content-Length": str(len(body)),
                            **(headers or {}), **self.fault.headers})  # fmt: skip
        if self.command != "HEAD":
            self.wfile.write(body)

    def begin(self, status: int, headers: dict[str, str]) -> None:
        """Send status and headers; `asked` has the status before the client has it."""
        self.asked.status = status
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    # Who may read what

    def reach(self, repo: str, rest: str = "") -> Repo:
        """Return a repository, or refuse as the Hub does where it is absent or closed."""
        store, token = self.server.hub.store, self.asked.token
        if token is not None and token not in store.tokens:
            raise Refused(401, "Invalid credentials in Authorization header")
        found = store.repos.get(repo)
        if repo in store.renamed:
            raise Moved(self.path.replace(quote(repo), quote(store.renamed[repo]), 1))
        if found is None or (found.private and not store.opens(token, found)):
            if token is None:
                raise Refused(401, "Invalid username or password.")
            raise Refused(404, "Repository not found", "RepoNotFound")
        if found.disabled:
            raise Refused(403, "Access to this resource is disabled.")
        if rest and found.gated and not rest.endswith("README.md"):
            self.admit(found)
        return found

    def admit(self, repo: Repo) -> None:
        """Refuse those who were not let into a gated repository."""
        if self.asked.token is None:
            raise Refused(
                401,
                f"Access to model {repo.name} is restricted. You must have access to it and be "
                "authenticated to access it. Please log in.",
                "GatedRepo",
            )
        if not self.server.hub.store.opens(self.asked.token, repo):
            raise Refused(
                403,
                f"Access to model {repo.name} is restricted and you are not in the authorized "
                f"list. Visit https://huggingface.co/{repo.name} to ask for access.",
                "GatedRepo",
            )

    def commit(self, repo: Repo, revision: str) -> str:
        found = repo.resolve(revision or "main")
        if found is None:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return found

    # The Hub's paths

    def whoami(self) -> None:
        if self.asked.token not in self.server.hub.store.tokens:
            raise Refused(401, "Invalid username or password.")
        self.json({"type": "user", "name": "somebody", "auth": {}})

    def info(self, repo: str, revision: str = "") -> None:
        found = self.reach(repo)
        sha = self.commit(found, revision)
        blobs = self.query.get("blobs", "").lower() in ("true", "1")
        siblings = []
        for path, blob in found.commits[sha].items():
            told = {"rfilename": path}
            if blobs:
                told |= {"size": blob.size, "blobId": blob.oid}
                told |= {"lfs": {"sha256": blob.sha256, "size": blob.size, "pointerSize": 134}
                         } if blob.large else {}  # fmt: skip
            siblings.append(told)
        self.json(self.server.hub.spoil({
            "_id": "1", "id": found.name, "modelId": found.name, "sha": sha, "siblings": siblings,
            "private": found.private, "gated": "auto" if found.gated else False,
            "disabled": found.disabled, "tags": [], "downloads": 0, "likes": 0,
            "lastModified": "2026-01-01T00:00:00.000Z", "createdAt": "2026-01-01T00:00:00.000Z",
        }))  # fmt: skip

    def refs(self, repo: str) -> None:
        branches = [{"name": name, "ref": f"refs/heads/{name}", "targetCommit": sha}
                    for name, sha in self.reach(repo).refs.items()]  # fmt: skip
        self.json({"branches": branches, "converts": [], "tags": []})

    def tree(self, repo: str, revision: str, folder: str = "") -> None:
        found = self.reach(repo)
        files = found.commits[self.commit(found, revision)]
        recursive = self.query.get("recursive", "").lower() in ("true", "1")
        entries = tree_of(files, folder, recursive)
        if entries is None:
            raise Refused(404, f"{folder} does not exist on {revision}", "EntryNotFound")
        start, page = int(self.query.get("cursor") or 0), self.server.hub.page
        headers = {}
        if start + page < len(entries):
            query = urlencode({**self.query, "cursor": start + page})
            address = f"{self.server.url}{urlsplit(self.path).path}?{query}"
            headers["Link"] = f'<{address}>; rel="next"'
        self.json(entries[start : start + page], headers=headers)

    def paths_info(self, repo: str, revision: str) -> None:
        found = self.reach(repo)
        files = found.commits[self.commit(found, revision)]
        if "json" in self.headers.get("content-type", ""):
            wanted = json.loads(self.body)["paths"]
        else:
            wanted = parse_qs(self.body.decode()).get("paths", [])
        folders = {entry["path"]: entry for entry in tree_of(files, "", True) or ()}
        self.json([folders[path] for path in wanted if path in folders])

    def resolve(self, repo: str, revision: str, path: str) -> None:
        found = self.reach(repo, path)
        sha = self.commit(found, revision)
        blob = found.commits[sha].get(path)
        if blob is None:
            raise Refused(404, "Entry not found", "EntryNotFound")
        headers = {
            "X-Repo-Commit": sha, "X-Linked-Size": str(blob.size + self.fault.size_error),
            "X-Linked-ETag": f'"{blob.etag}"', "Accept-Ranges": "bytes",
        }  # fmt: skip
        if blob.large:
            return self.redirect(self.server.hub.sign(blob, path.split("/")[-1]), 302, headers)
        where = (
            f"/api/resolve-cache/models/{quote(repo)}/{sha}/{quote(path)}?etag=%22{blob.etag}%22"
        )
        return self.redirect(where, 307, headers)

    def small(self, repo: str, revision: str, path: str) -> None:
        found = self.reach(repo, path)
        blob = found.commits[self.commit(found, revision)][path]
        self.send_blob(blob, {"X-Repo-Commit": revision, "ETag": f'"{blob.etag}"'})

    def redirect(self, address: str, status: int, headers: dict | None = None) -> None:
        self.begin(status, {"Location": address, "Content-Length": "0", "Vary": "Origin, Accept",
                            **(headers or {}), **self.fault.headers})  # fmt: skip

    # The storage's

    def stored(self, sha256: str) -> None:
        if "authorization" in self.headers:
            raise Refused(400, "Only one auth mechanism allowed")
        expires = self.query.get("Expires", "0")
        if self.query.get("Signature") != signature(sha256, expires):
            raise Refused(403, "SignatureDoesNotMatch")
        if time.time() > float(expires):
            raise Refused(403, "Request has expired")
        etag = self.fault.etag or hashlib.md5(sha256.encode()).hexdigest()
        self.send_blob(self.server.hub.store.large[sha256], {"ETag": f'"{etag}"'})

    def send_blob(self, blob: Blob, headers: dict[str, str]) -> None:
        """Send a file, or the range of it that was asked for, with this request's fault."""
        wanted = None if self.fault.ignore_range else ranged(self.asked.range, blob.size)
        start, stop = wanted or (0, blob.size)
        if start >= stop and wanted:
            return self.begin(416, {"Content-Range": f"bytes */{blob.size}", "Content-Length": "0"})
        start, stop = start + self.fault.shift, stop + self.fault.shift
        stop = max(start, min(stop + self.fault.lengthen, blob.size))
        headers = {"Content-Type": "binary/octet-stream", "Content-Length": str(stop - start),
                   "Accept-Ranges": "bytes", **headers, **self.fault.headers}  # fmt: skip
        if wanted:
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{blob.size}"
        self.begin(206 if wanted else 200, headers)
        if self.command != "HEAD":
            with self.counted():
                self.send_bytes(blob, start, stop)

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        """Count the bodies that are under way at once."""
        hub = self.server.hub
        with hub.lock:
            hub.busy += 1
            hub.busiest = max(hub.busiest, hub.busy)
        try:
            yield
        finally:
            with hub.lock:
                hub.busy -= 1

    def send_bytes(self, blob: Blob, start: int, stop: int) -> None:
        hub, fault = self.server.hub, self.fault
        end = stop if fault.cut is None else min(stop, start + fault.cut)
        slowest = min(hub.each or 1e12, hub.pace.rate or 1e12)
        step, each = max(1024, min(1 << 20, int(slowest / 100))), Pace(hub.each)
        stalls = [start + fault.stall_at] if fault.stall else []
        with opened(blob.content) as send:
            at = start
            while at < end:
                if stalls and at >= stalls[0]:
                    time.sleep(fault.stall)
                    stalls.clear()
                count = min([step, end - at, *(place - at for place in stalls)])
                hub.pace.take(count)
                each.take(count)
                send(self.connection, at, count)
                at += count
                self.asked.sent += count
        if fault.cut is not None:
            self.hang_up()

    def hang_up(self) -> None:
        """End the connection in the middle of a body."""
        self.close_connection = True
        if self.fault.reset:
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.rfile.close()
            self.connection.close()


@contextlib.contextmanager
def opened(content: bytes | Path) -> Iterator[Callable[[socket.socket, int, int], object]]:
    """Open a content; give a function that sends a part of it: socket, first byte, count."""
    if isinstance(content, bytes):
        yield lambda to, at, count: to.sendall(content[at : at + count])
        return
    with content.open("rb") as file:
        yield lambda to, at, count: to.sendfile(file, at, count)


def ranged(text: str | None, size: int) -> tuple[int, int] | None:
    """Read a Range header: its first byte, and one past its last; None where it asks for all."""
    found = re.fullmatch(r"bytes=(\d*)-(\d*)", text or "")
    if not found or not any(found.groups()):
        return None
    first, last = found.groups()
    if not first:
        return max(0, size - int(last)), size
    return int(first), min(size, int(last) + 1 if last else size)


API, REV = rf"/api/models/{REPO}", r"(?P<revision>[^/]+)"
# Which port, which methods, which path, and what answers; the first that fits.
ROUTES = (
    ("hub", ("GET",), "/api/whoami-v2", Handler.whoami),
    ("hub", ("GET",), rf"{API}/revision/{REV}", Handler.info),
    ("hub", ("GET",), rf"{API}/refs", Handler.refs),
    ("hub", ("GET",), rf"{API}/tree/{REV}(?:/(?P<folder>.+))?", Handler.tree),
    ("hub", ("POST",), rf"{API}/paths-info/{REV}", Handler.paths_info),
    ("hub", ("GET",), API, Handler.info),
    (
        "hub",
        ("GET", "HEAD"),
        rf"/api/resolve-cache/models/{REPO}/{REV}/(?P<path>.+)",
        Handler.small,
    ),
    ("hub", ("GET", "HEAD"), rf"/{REPO}/resolve/{REV}/(?P<path>.+)", Handler.resolve),
    ("cdn", ("GET", "HEAD"), r"/repos/(?P<sha256>[0-9a-f]+)", Handler.stored),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--repo", default="owner/model")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--rate", type=float, help="MB per second, all connections together")
    parser.add_argument("--each", type=float, help="MB per second of each connection")
    given = parser.parse_args()
    rate, each = (value and value * 1e6 for value in (given.rate, given.each))
    with HubServer(rate=rate, each=each, port=given.port) as hub:
        hub.put(given.repo, given.folder)
        print(f"HF_ENDPOINT={hub.url}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    main()
