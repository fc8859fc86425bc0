"""Ask the Hub, through the library `huggingface_hub`: what a repository holds, where a file is.

The library is optional, and loaded when something is asked. What differs between its versions is
here: 0.2x and 0.3x speak HTTP by `requests`, later ones by `httpx`. Addresses and headers of
requests hold secrets, a token or a signature: no message has any of them.
"""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from nvfp4.errors import ConvertError
from nvfp4.hub.listing import COMMIT, HubPlace, ListedFile, RemoteListing, checked_listing
from nvfp4.progress import GLANCE, holding_up, tell_watcher

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
LOG_IN_ANEW = "log in anew with `hf auth login`, or change HF_TOKEN"
NO_REPOSITORY = "no such repository, or a private one: check its name, or"
# What is told of a branch, a tag or a commit that is not there.
NO_REVISION = "the repository has no such revision"
# Why bytes are not taken that were on their way without TLS.
NOT_ENCRYPTED = "the Hub leads from https to http, where anybody could change what comes"


class Passing(Exception):
    """Report what may be over when it is tried again.

    shown: what was asked for. why: what went wrong. wait: the seconds that the server asked for.
    """

    def __init__(self, shown: str, why: str, wait: float | None = None):
        super().__init__(f"{shown}: {why}")
        self.why, self.wait = why, wait


class RangeAnswer(NamedTuple):
    """Hold the answer to a request for bytes: status, headers, and the body in chunks.

    is_open: whether it, or an address that led to it, was asked without TLS.
    """

    status: int
    headers: Mapping[str, str]
    chunks: Iterable[bytes]
    is_open: bool = False


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
        what = "hf:// needs the package huggingface_hub, 0.34 or newer"
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
    seconds = min(LONGEST_ASKED, max(problem.wait or 0.0, WAITS[tries - 1]))
    end = time.monotonic() + seconds
    why = problem.why.replace("HTTP", "answered")
    with holding_up(f"waiting for the Hub ({why})", seconds):
        # In steps, as nothing else lets a person interrupt or cancel it on every system.
        while (left := end - time.monotonic()) > 0 and not stop.wait(min(GLANCE, left)):
            tell_watcher()


def asked_wait(headers: Mapping[str, str]) -> float | None:
    """Read for how many seconds a server asks to wait, by Retry-After or the Hub's RateLimit."""
    limit = re.search(r"\bt=(\d{1,6})", headers.get("ratelimit") or "")
    after = re.fullmatch(r"\s*(\d{1,6})(\.\d+)?\s*", headers.get("retry-after") or "")
    found = after or limit
    return float(found[1]) if found else None


def reason_of(error: BaseException) -> str:
    """Tell why a request failed, without its address: by the system's words, or by the kind."""
    causes = causes_of(error)
    told = [one.strerror for one in causes if isinstance(one, OSError) and one.strerror]
    if told:
        return told[-1]
    names = " ".join(type(one).__name__ for one in causes)
    return next((text for name, text in REASONS.items() if re.search(name, names)), names)


def causes_of(error: BaseException) -> list[BaseException]:
    """List an error, and what it came of, innermost last."""
    causes = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) and cause not in causes:
        causes.append(cause)
    return causes


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
            problem = passing_problem(shown, error, "cannot reach the Hub: ")
        tries += 1
        wait_for(tries, problem, stop)


def passing_problem(shown: str, error: Exception, what: str = "") -> Passing:
    """Make of a request's error what may pass. Raises ConvertError for one that will not.

    what: what failed, where there was no answer.
    """
    refusal = refusal_of(error)
    if text := refused(refusal):
        raise ConvertError(f"{shown}: {text.format(page=page_of(shown))}") from None
    status = refusal.status
    what = f"HTTP {status}" if status else f"{what}{reason_of(error)}"
    return Passing(shown, what, asked_wait(refusal.headers))


def offline_problem() -> str:
    """Say that a file would have to be fetched, and that the environment forbids it."""
    return "is not in the Hub's cache, and HF_HUB_OFFLINE forbids to fetch it"


class Refusal(NamedTuple):
    """Hold what is known of a request that failed.

    status, headers: of the answer, 0 and {} without one. kinds: the names of the error's class, of
    its bases, and of those of what it came of, between blanks.
    """

    status: int
    headers: Mapping[str, str]
    kinds: str

    def is_kind(self, *names: str) -> bool:
        """Tell whether it is of one of some kinds, by the names that libraries have for them."""
        return any(f" {name} " in self.kinds for name in names)

    def is_code(self, code: str) -> bool:
        """Tell whether the Hub gives this code, or the library made an error of it."""
        return self.headers.get("x-error-code") == code or self.is_kind(f"{code}Error")

    def says(self, text: str) -> bool:
        """Tell whether the Hub's message has this text."""
        return text in (self.headers.get("x-error-message") or "")


def refusal_of(error: BaseException) -> Refusal:
    """Gather what is known of a request that failed."""
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", 0)
    classes = [kind for cause in causes_of(error) for kind in type(cause).__mro__]
    kinds = f" {' '.join(kind.__name__ for kind in classes)} "
    return Refusal(status, response.headers if status else {}, kinds)


def has_token() -> bool:
    """Tell whether the library finds a token, whose value is nobody else's business."""
    return bool(library().get_token())


def has_plain_token() -> bool:
    """Tell whether the token, where there is one, has only what a header can hold."""
    return re.fullmatch("[!-~]*", library().get_token() or "") is not None


# What will not change by itself, and what to do; the first row that fits is told, and "" stands for
# what may pass. {page} is the repository's on the Hub.
REFUSALS: tuple[tuple[Callable[[Refusal], bool], str], ...] = (
    (lambda it: it.is_kind("OfflineModeIsEnabled"), offline_problem()),
    (
        lambda it: not it.status and not has_plain_token(),
        f"the token has characters that none has: {LOG_IN_ANEW}",
    ),
    (
        lambda it: not it.status and it.is_kind("HFValidationError"),
        "the Hub has no repository of such a name",
    ),
    (
        lambda it: it.is_kind("JSONDecodeError"),
        "what answered is not the Hub: look whether this network wants a login in a browser",
    ),
    (lambda it: it.is_kind("TooManyRedirects"), "the Hub leads from one address to another"),
    (
        lambda it: it.is_kind(
            "InvalidURL", "UnsupportedProtocol", "MissingSchema", "InvalidSchema"
        ),
        "HF_ENDPOINT, or where it leads to, is no address of the web",
    ),
    (
        lambda it: it.is_kind("SSLCertVerificationError"),
        "the certificate is not trusted here: a proxy may have put in its own",
    ),
    (
        lambda it: (
            not it.status
            and it.is_kind("AttributeError", "LookupError", "TypeError", "ValueError")
            and not it.is_kind("OSError", "HTTPError")
        ),
        "the Hub's answer is broken, or one that the installed huggingface_hub cannot read",
    ),
    (lambda it: it.status in (0, *PASSING_STATUSES), ""),
    (
        lambda it: it.is_code("GatedRepo") and it.status == 401,
        f"is gated: accept its licence at {{page}}, then {LOG_IN}",
    ),
    (
        lambda it: it.is_code("GatedRepo"),
        "is gated, and your account has no access: accept its licence at {page} (a fine-grained "
        "token has to allow gated repositories)",
    ),
    (lambda it: it.says("disabled"), "access to the repository is disabled by the Hub"),
    (lambda it: it.is_code("RevisionNotFound"), NO_REVISION),
    (lambda it: it.is_code("EntryNotFound"), "the repository has no such file"),
    (lambda it: it.says("Invalid credentials"), f"the Hub does not know the token: {LOG_IN_ANEW}"),
    (
        lambda it: it.status in (401, 404) and has_token(),
        f"{NO_REPOSITORY} what your token may read",
    ),
    (lambda it: it.status in (401, 404), f"{NO_REPOSITORY} {LOG_IN}"),
)


def refused(refusal: Refusal) -> str:
    """Tell what an answer means that will not change by itself, and what to do; "" for others."""
    found = (text for fits, text in REFUSALS if fits(refusal))
    return next(found, f"the Hub refuses it: HTTP {refusal.status}")


def page_of(shown: str) -> str:
    """Name the page of the repository of `hf://owner/repo@main/path`, without a password."""
    kind, places = "", shown.removeprefix("hf://").split("/")
    if places[0] in ("datasets", "spaces"):
        kind, *places = places
    repository = "/".join(filter(None, [kind, *places[:2]])).partition("@")[0]
    return f"{'://'.join(server_of(constants_of_hub().ENDPOINT))}/{repository}"


def list_repository(place: HubPlace, revision: str | None) -> RemoteListing:
    """Ask what a repository holds at a revision, the default branch if None: one request.

    Raises ConvertError.
    """
    api, shown = library().HfApi(library_name=CLIENT), place.repository
    how = {"repo_type": place.kind, "files_metadata": True, "timeout": LONGEST_SILENCE}
    info = asking(shown, lambda: api.repo_info(place.name, revision=revision, **how))
    return checked_listing(shown, info.id, info.sha, info.siblings or ())


def locate_file(shown: str, place: HubPlace) -> RemoteAddress:
    """Ask where a file's bytes are; the address may hold for minutes only. Raises ConvertError.

    place: the file at a commit.
    """
    endpoint = constants_of_hub().ENDPOINT
    how = {"repo_type": place.kind, "revision": place.revision, "endpoint": endpoint}
    url = library().hf_hub_url(place.name, place.path, **how)
    return asking(shown, lambda: address_of(shown, url))


def address_of(shown: str, url: str) -> RemoteAddress:
    """Ask the Hub's address of a file where its bytes are; raises what the library does."""
    how = {"timeout": LONGEST_SILENCE, "library_name": CLIENT}
    found = library().get_hf_file_metadata(url, **how)
    headers = {"Accept-Encoding": "identity"}
    if is_encrypted(url) and not is_encrypted(found.location):
        raise ConvertError(f"{shown}: {NOT_ENCRYPTED}")
    # Who stores large files must not see the token: its addresses are signed.
    if server_of(found.location) == server_of(url):
        headers |= utilities().build_hf_headers(library_name=CLIENT)
    return RemoteAddress(found.location, headers, found.etag or "", found.size)


def server_of(url: str) -> tuple[str, str]:
    """Take scheme and host, with its port, from an address, without a user's name and password."""
    scheme, host, *_ = urlsplit(url)
    return scheme, host.rpartition("@")[2]


def is_encrypted(url: str) -> bool:
    """Tell whether an address is asked by TLS."""
    return server_of(url)[0] == "https"


@contextlib.contextmanager
def requested(url: str, headers: dict[str, str]) -> Iterator[RangeAnswer]:
    """Ask for bytes of an address, and give the RangeAnswer to the `with` block as it comes in."""
    session = utilities().get_session()
    # A session of `requests` has a setting by the name of httpx's method.
    is_httpx = callable(getattr(session, "stream", None))
    how = {"headers": headers, "timeout": LONGEST_SILENCE}
    asked = session.stream("GET", url, **how) if is_httpx else session.get(url, stream=True, **how)
    with asked as got:
        chunks = got.iter_raw() if is_httpx else got.iter_content(1 << 18)
        is_open = not all(is_encrypted(str(one.url)) for one in (*got.history, got))
        yield RangeAnswer(got.status_code, got.headers, chunks, is_open)


def cache_folder(place: HubPlace) -> Path:
    """Name the folder that the library's cache has for a repository."""
    constants = constants_of_hub()
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=place.name, repo_type=place.kind))


def cached_file(place: HubPlace, listing: RemoteListing) -> Path | None:
    """Find a file of a commit in the library's cache, by its path or its hash; None without it.

    One that has not the size of the listing is passed over.
    """
    folder, listed = cache_folder(place._replace(name=listing.name)), listing.files[place.path]
    places = [folder / "snapshots" / listing.commit / place.path]
    if listed.etag:
        places.append(folder / "blobs" / listed.etag)
    # On Windows a name with a colon may lead to another disk.
    inside = (one for one in places if one.is_relative_to(folder))
    found = (one for one in inside if one.is_file() and one.stat().st_size == listed.size)
    return next(found, None)


def cached_listing(place: HubPlace, revision: str | None) -> RemoteListing:
    """Tell what the cache holds of a repository. Raises ConvertError where it has nothing of it."""
    folder = cache_folder(place)
    noted = folder / "refs" / (revision or "main")
    commit = noted.read_text().strip() if noted.is_file() else revision or ""
    snapshot = folder / "snapshots" / commit
    if not COMMIT.fullmatch(commit) or not snapshot.is_dir():
        raise ConvertError(f"{place.repository}: {offline_problem()}")
    there = {path.relative_to(snapshot).as_posix(): path for path in snapshot.rglob("*")}
    sizes = {path: file.stat().st_size for path, file in there.items() if file.is_file()}
    files = {path: ListedFile(size) for path, size in sizes.items()}
    return RemoteListing(place.name, commit, files)
