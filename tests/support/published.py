"""What the tables of published models say of each: those of models_image.py and its like."""

import json
from typing import NamedTuple

# Where shapes come from if nothing else is said.
CLASS = "ComfyUI's class"


class Published(NamedTuple):
    """A published model, of which names and shapes stand in tests/families.

    title: for people. path: its class in comfy.ldm. arguments: of the class, where they differ from
    its defaults; where ComfyUI's detection has them itself, the name of a tensor that it tells such
    a model by. detected: the class in comfy.supported_models that ComfyUI must find. recognised:
    what we say that it is, "" for a model that no preset is for (in the folder `others`).
    comfyui: the first version that knows it, of those that were looked at: 0.29, 0.33 and 0.38.
    source: where the shapes come from.
    header: what its header's metadata say of the transformer, where ComfyUI needs that, too.
    """

    title: str
    path: str
    arguments: dict | str
    detected: str
    recognised: str = ""
    comfyui: str = "0.29"
    source: str = CLASS
    header: dict | None = None

    @property
    def metadata(self) -> dict[str, str] | None:
        """The metadata of its file, as ComfyUI reads them."""
        return self.header and {"config": json.dumps({"transformer": self.header})}

    def facts(self, name: str) -> str:
        """The first line of its file, of whose fields the docs' list of models is made."""
        return (
            f"# {name}: BF16; title: {self.title}; class: {self.path}; "
            f"detected as: {self.detected}; ComfyUI: {self.comfyui}; source: {self.source}"
        )
