"""Make the `huggingface_hub` of this process use a stand-in of the Hub, and a cache of its own."""

import sys
from pathlib import Path


def use_hub(monkeypatch, hub, home: Path) -> None:
    """Set what `huggingface_hub` took from the environment when it was imported.

    hub: a HubServer. home: the folder for its cache and its token; `HF_TOKEN` is unset.
    """
    from huggingface_hub import constants, file_download, hf_api  # noqa: F401, heavy and optional

    values = {
        "ENDPOINT": hub.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HOME": str(home),
        "HF_HUB_CACHE": str(home / "hub"),
        "HUGGINGFACE_HUB_CACHE": str(home / "hub"),
        "HF_TOKEN_PATH": str(home / "token"),
    }
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] == "huggingface_hub":
            for constant, value in values.items():
                if constant in vars(module):
                    monkeypatch.setattr(module, constant, value)
    api = hf_api.api
    monkeypatch.setattr(api, "endpoint", hub.url)
    for name, value in hub.environment(home).items():
        monkeypatch.setenv(name, value)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
