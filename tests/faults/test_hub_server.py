"""The stand-in of the Hub answers `huggingface_hub` as the Hub itself does."""

import pytest

from support.hub_client import use_hub
from support.hub_server import Fault, HubServer

huggingface_hub = pytest.importorskip("huggingface_hub")
utils = pytest.importorskip("huggingface_hub.utils")
CONTENT = bytes(range(256)) * 4096


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with HubServer() as server:
        server.put("owner/model", {"model.safetensors": CONTENT, "sub/config.json": b"{}"})
        use_hub(monkeypatch, server, tmp_path)
        yield server


def metadata(repo, path, **more):
    return huggingface_hub.get_hf_file_metadata(huggingface_hub.hf_hub_url(repo, path), **more)


def test_lists_and_describes_a_repository(hub):
    api, commit = huggingface_hub.HfApi(), hub.repo("owner/model").refs["main"]
    assert api.model_info("owner/model").sha == commit
    hub.page = 1
    entries = list(api.list_repo_tree("owner/model", recursive=True))
    assert {entry.path for entry in entries} == {"model.safetensors", "sub", "sub/config.json"}
    found = api.get_paths_info("owner/model", ["model.safetensors", "absent"])
    assert [(file.path, file.size) for file in found] == [("model.safetensors", len(CONTENT))]


@pytest.mark.parametrize("path", ["model.safetensors", "sub/config.json"])
def test_serves_files_and_their_metadata(hub, path):
    found, blob = metadata("owner/model", path), hub.repo("owner/model").commits
    (tree,) = blob.values()
    assert (found.etag, found.size) == (tree[path].etag, tree[path].size)
    with open(huggingface_hub.hf_hub_download("owner/model", path), "rb") as file:  # noqa: PTH123
        assert file.read() == tree[path].content


def test_no_token_reaches_the_second_port(hub):
    hub.store.tokens["hf_good"] = set()
    huggingface_hub.hf_hub_download("owner/model", "model.safetensors", token="hf_good")
    assert {asked.token for asked in hub.of("hub")} == {"hf_good"}
    assert {asked.token for asked in hub.of("cdn")} == {None}


def test_old_names_lead_to_the_new(hub):
    hub.store.renamed["old/name"] = "owner/model"
    assert metadata("old/name", "sub/config.json").size == 2
    assert huggingface_hub.HfApi().model_info("old/name").id == "owner/model"


def test_closed_and_absent_are_told_apart_as_by_the_hub(hub):
    hub.put("owner/gated", {"model.safetensors": b""})
    hub.repo("owner/gated").gated = True
    hub.store.tokens |= {"hf_good": {"owner/gated"}, "hf_other": set()}
    assert metadata("owner/gated", "model.safetensors", token="hf_good").size == 0
    for token, status in ((False, 401), ("hf_other", 403)):
        with pytest.raises(utils.GatedRepoError) as caught:
            metadata("owner/gated", "model.safetensors", token=token)
        assert caught.value.response.status_code == status
    with pytest.raises(utils.RepositoryNotFoundError):
        metadata("owner/absent", "model.safetensors", token="hf_good")
    with pytest.raises(utils.EntryNotFoundError):
        metadata("owner/model", "absent.safetensors")
    with pytest.raises(utils.RevisionNotFoundError):
        huggingface_hub.HfApi().model_info("owner/model", revision="absent")


def get(**headers):
    session = utils.get_session()
    return session.get(metadata("owner/model", "model.safetensors").location, headers=headers)


@pytest.mark.parametrize(
    ("asked", "start", "stop"),
    [("bytes=10-19", 10, 20), ("bytes=1048570-", 1048570, None), ("bytes=-6", 1048570, None)],
)
@pytest.mark.usefixtures("hub")
def test_ranges(asked, start, stop):
    answer = get(Range=asked)
    assert answer.status_code == 206
    assert answer.content == CONTENT[start:stop]
    assert answer.headers["content-range"].startswith(f"bytes {start}-")


def test_faults_happen_as_often_as_they_say(hub):
    hub.faults.append(Fault(of="cdn", status=503, times=1))
    hub.faults.append(Fault(of="cdn", ignore_range=True, skip=1, times=1))
    hub.faults.append(Fault(of="cdn", lengthen=-2, skip=1))
    lengths = [len(get(Range="bytes=0-9").content) for _ in range(4)]
    assert [asked.status for asked in hub.of("cdn")] == [503, 206, 200, 206]
    assert lengths[1:] == [10, len(CONTENT), 8]


@pytest.mark.parametrize("reset", [True, False])
def test_cut_connections_fail(hub, reset):
    hub.faults.append(Fault(of="cdn", cut=1000, reset=reset))
    with pytest.raises(Exception, match=r"reset|closed|Incomplete|broken"):
        get(Range="bytes=0-99999")
    assert hub.sent() == 1000


def test_addresses_expire_and_cannot_be_forged(hub):
    hub.link_life = -1
    assert get().status_code == 403
    location = metadata("owner/model", "model.safetensors").location
    assert utils.get_session().get(location.split("?")[0]).status_code == 403
