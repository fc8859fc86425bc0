"""Ask the Hub, through the library `huggingface_hub`: what a repository holds, where a file is.

The library is optional, and loaded when something is asked. What differs between its versions is
here: 0.2x and 0.3x speak HTTP by `requests`, later ones by `httpx`. Addresses and headers of
requests hold secrets, a token or a signature: no message has any of them.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from nvfp4.errors import ConvertError

# What the Hub learns of who asks.
CLIENT = "convert_nvfp4"
# Seconds without a byte after which a connection is given up, and opened again.
LONGEST_SILENCE = 20.0
# A request is made again after these waits in seconds, as long as each brings nothing new.
WAITS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
# The longest wait in seconds that a server may ask for; a rate limit of the Hub is 5 minutes long.
LONGEST_ASKED = 310.0
# Answers after which the same request may well succeed.
PASSING_STATUSES = (408, 425, 429, 500, 502, 503, 504, 520, 522, 524)
# What the libraries' errors mean, by their names: of those that the system has no words for.
REASONS = {
    "Timeout": "no answer came in time",
    "Protocol|Chunked|Incomplete|ReadError|Disconnected": "the connection ended too early",
    "Connect": "no connection",
}
# What to do without a token, or with one that does not open a repository.
LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"


class Passing(Exception):
    """Report what may be over when it is tried again; `wait` is what the server asked for."""

    def __init__(self, text: str, wait: float | None = None):
        super().__init__(text)
        self.wait = wait


class RangeAnswer(NamedTuple):
    """Hold the answer to a request for bytes: status, headers, and the body in chunks."""

    status: int
    headers: Mapping[str, str]
    chunks: Iterable[bytes]


class ListedFile(NamedTuple):
    """Tell a file's size in bytes, and the name of its content: a hash, "" where none is known."""

    size: int
    etag: str = ""


class RemoteListing(NamedTuple):
    """Hold what a repository is: its name today, its commit, {path: its file}."""

    name: str
    commit: str
    files: dict[str, ListedFile]


class RemoteAddress(NamedTuple):
    """Tell where the bytes of a file are for a while, and what the Hub says of the file.

    headers: those of a request for it, which have the token only where it is the Hub itself.
    """

    url: str
    headers: dict[str, str]
    etag: str
    size: int | None


def library() -> Any:
    """Import `huggingface_hub`. Raises ConvertError where it is not installed."""
    try:
        import huggingface_hub
    except ImportError as error:
        what = "hf:// needs the package huggingface_hub"
        raise ConvertError(f"{what}: python -m pip install huggingface_hub") from error
    return huggingface_hub


def utilities() -> Any:
    """Import the library's functions for requests."""
    library()
    from huggingface_hub import utils

    return utils


def constants_of_hub() -> Any:
    """Import what the library took from the environment: endpoint, cache, offline mode."""
    library()
    from huggingface_hub import constants

    return constants


def is_offline() -> bool:
    """Tell whether HF_HUB_OFFLINE keeps the library from any request."""
    return bool(constants_of_hub().HF_HUB_OFFLINE)


def wait_for(tries: int, problem: Passing, stop: threading.Event) -> None:
    """Wait before a request is made again. Raises ConvertError after the last of WAITS.

    tries: how many brought nothing. A `stop` that is set ends the wait.
    """
    if tries > len(WAITS):
        kept = "what a run with --resume wrote is kept"
        raise ConvertError(f"{problem}; {tries} tries brought nothing: try again later ({kept})")
    stop.wait(min(LONGEST_ASKED, max(problem.wait or 0.0, WAITS[tries - 1])))


def asked_wait(headers: Mapping[str, str]) -> float | None:
    """Read for how many seconds a server asks to wait, by Retry-After or the Hub's RateLimit."""
    limit = re.search(r"\bt=(\d{1,6})", headers.get("ratelimit") or "")
    after = re.fullmatch(r"\s*(\d{1,6})(\.\d+)?\s*", headers.get("retry-after") or "")
    found = after or limit
    return float(found[1]) if found else None


def reason_of(error: BaseException) -> str:
    """Tell why a request failed, without its address: by the system's words, or by the kind."""
    causes = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) and cause not in causes:
        causes.append(cause)
    told = [one.strerror for one in causes if isinstance(one, OSError) and one.strerror]
    if told:
        return told[-1]
    names = " ".join(type(one).__name__ for one in causes)
    return next((text for name, text in REASONS.items() if re.search(name, names)), names)


def status_of(error: BaseException) -> tuple[int, Mapping[str, str]]:
    """Take status and headers of the answer that an error is about; 0 and {} without one."""
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", 0)
    return (status, response.headers) if status else (0, {})


def asking(shown: str, ask: Any) -> Any:
    """Call what asks the Hub, again where that may help, and return what it returns.

    shown: what is asked about, which messages begin with. Raises ConvertError.
    """
    tries, stop = 0, threading.Event()
    while True:
        try:
            return ask()
        except ConvertError:
            raise
        except Exception as error:  # noqa: BLE001, each version has another client's
            status, headers = status_of(error)
            if type(error).__name__ == "OfflineModeIsEnabled":
                raise ConvertError(f"{shown}: {offline_problem()}") from None
            if refusal := refused(shown, status, headers, error):
                raise ConvertError(refusal) from None
            what = f"HTTP {status}" if status else f"cannot reach the Hub: {reason_of(error)}"
            problem = Passing(f"{shown}: {what}", asked_wait(headers))
        tries += 1
        wait_for(tries, problem, stop)


def offline_problem() -> str:
    """Say that a file would have to be fetched, and that the environment forbids it."""
    return "is not in the Hub's cache, and HF_HUB_OFFLINE forbids to fetch it"


def refused(shown: str, status: int, headers: Mapping[str, str], error: BaseException) -> str:
    """Tell what an answer means that will not change by itself, and what to do; "" for others."""
    code, kind = headers.get("x-error-code") or "", type(error).__name__
    if not status and kind in ("HFValidationError", "ValueError", "TypeError"):
        return f"{shown}: {error}"
    if status in (0, *PASSING_STATUSES):
        return ""
    page = f"{constants_of_hub().ENDPOINT}/{repository_in(shown)}"
    if code == "GatedRepo" or kind == "GatedRepoError":
        if status == 401:
            return f"{shown}: is gated: accept its licence at {page}, then {LOG_IN}"
        return (
            f"{shown}: is gated, and your account has no access: accept its licence at {page} (a "
            "fine-grained token has to allow gated repositories)"
        )
    if "disabled" in (headers.get("x-error-message") or ""):
        return f"{shown}: access to the repository is disabled by the Hub"
    if code == "RevisionNotFound" or kind == "RevisionNotFoundError":
        return f"{shown}: the repository has no such revision"
    if code == "EntryNotFound" or kind.endswith("EntryNotFoundError"):
        return f"{shown}: the repository has no such file"
    if "Invalid credentials" in (headers.get("x-error-message") or ""):
        how = "log in anew with `hf auth login`, or change HF_TOKEN"
        return f"{shown}: the Hub does not know the token: {how}"
    if status in (401, 404):
        why = "what your token may read" if has_token() else LOG_IN
        return f"{shown}: no such repository, or a private one: check its name, or {why}"
    return f"{shown}: the Hub refuses it: HTTP {status}"


def has_token() -> bool:
    """Tell whether the library finds a token, whose value is nobody else's business."""
    return bool(library().get_token())


def repository_in(shown: str) -> str:
    """Take from `hf://owner/repo@main/path` what follows the Hub's address on its page."""
    kind, places = "", shown.removeprefix("hf://").split("/")
    if places[0] in ("datasets", "spaces"):
        kind, *places = places
    return "/".join(filter(None, [kind, *places[:2]])).partition("@")[0]


def list_repository(shown: str, kind: str, name: str, revision: str | None) -> RemoteListing:
    """Ask what a repository holds at a revision, the default branch if None: one request.

    kind: "model", "dataset" or "space"; name: "owner/repo". Raises ConvertError.
    """
    api = library().HfApi(library_name=CLIENT)
    info = asking(
        shown,
        lambda: api.repo_info(
            name, repo_type=kind, revision=revision, files_metadata=True, timeout=LONGEST_SILENCE
        ),
    )
    files = {one.rfilename: listed_file(one) for one in info.siblings or ()}
    return RemoteListing(getattr(info, "id", None) or name, info.sha, files)


def listed_file(sibling: Any) -> ListedFile:
    """Read a file's size and hash from a listing; of Git LFS they are not those of the pointer."""
    lfs = sibling.lfs or {}
    # A dict, or an object of its own in some versions.
    lfs = lfs if isinstance(lfs, Mapping) else vars(lfs)
    size = lfs.get("size", sibling.size)
    return ListedFile(int(size or 0), lfs.get("sha256") or sibling.blob_id or "")


def locate_file(shown: str, kind: str, name: str, commit: str, path: str) -> RemoteAddress:
    """Ask where a file's bytes are; the address may hold for minutes only. Raises ConvertError."""
    hub, utils = library(), utilities()
    url = hub.hf_hub_url(
        name, path, repo_type=kind, revision=commit, endpoint=constants_of_hub().ENDPOINT
    )
    found = asking(
        shown, lambda: hub.get_hf_file_metadata(url, timeout=LONGEST_SILENCE, library_name=CLIENT)
    )
    headers = {"Accept-Encoding": "identity"}
    # Who stores large files must not see the token: its addresses are signed.
    if urlsplit(found.location)[:2] == urlsplit(url)[:2]:
        headers |= utils.build_hf_headers(library_name=CLIENT)
    return RemoteAddress(found.location, headers, found.etag or "", found.size)


@contextlib.contextmanager
def requested(url: str, headers: dict[str, str]) -> Iterator[RangeAnswer]:
    """Ask for bytes of an address, and give the RangeAnswer to the `with` block as it comes in."""
    session = utilities().get_session()
    # A session of `requests` has a setting by the name of httpx's method.
    if callable(getattr(session, "stream", None)):
        with session.stream("GET", url, headers=headers, timeout=LONGEST_SILENCE) as got:
            yield RangeAnswer(got.status_code, got.headers, got.iter_raw())
    else:
        with session.get(url, headers=headers, timeout=LONGEST_SILENCE, stream=True) as got:
            yield RangeAnswer(got.status_code, got.headers, got.iter_content(1 << 18))


def cache_folder(kind: str, name: str) -> Path:
    """Name the folder that the library's cache has for a repository."""
    constants = constants_of_hub()
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=name, repo_type=kind))


def cached_file(kind: str, listing: RemoteListing, path: str) -> Path | None:
    """Find a file of a commit in the library's cache, by its path or its hash; None without it.

    One that has not the size of the listing is passed over.
    """
    name, commit, files = listing
    found = library().try_to_load_from_cache(name, path, revision=commit, repo_type=kind)
    places = [Path(found)] if isinstance(found, str) else []
    if etag := files[path].etag:
        places.append(cache_folder(kind, name) / "blobs" / etag)
    size = files[path].size
    return next((one for one in places if one.is_file() and one.stat().st_size == size), None)


def cached_listing(shown: str, kind: str, name: str, revision: str | None) -> RemoteListing:
    """Tell what the cache holds of a repository. Raises ConvertError where it has nothing of it."""
    folder = cache_folder(kind, name)
    noted = folder / "refs" / (revision or "main")
    commit = noted.read_text().strip() if noted.is_file() else revision or ""
    snapshot = folder / "snapshots" / commit
    if not commit or not snapshot.is_dir():
        raise ConvertError(f"{shown}: {offline_problem()}")
    there = {path.relative_to(snapshot).as_posix(): path for path in snapshot.rglob("*")}
    sizes = {path: file.stat().st_size for path, file in there.items() if file.is_file()}
    return RemoteListing(name, commit, {path: ListedFile(size) for path, size in sizes.items()})
