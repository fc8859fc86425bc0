"""Ask a ComfyUI what it makes of files: the program that runs in ComfyUI's own Python.

The package never imports this module: `ask` sends its text to the child, and the single file
carries it as text. It needs the standard library, torch and ComfyUI alone, and reads no file but
ComfyUI's own. A question has the names, dtypes and shapes of a file's tensors and the values of
small ones; all others are tensors on torch's meta device, which have no values and take no memory.
ComfyUI's own loading code runs unchanged over them, with its model on the meta device, too.
"""

from __future__ import annotations

import base64
import inspect
import json
import os
import re
import sys
from types import SimpleNamespace

# Events that Python tells its audit hooks before anything reaches the network.
NETWORK_EVENTS = (
    "socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto",
    "socket.sendmsg",
)  # fmt: skip
# How torch names the dtypes of safetensors; an older torch may lack the last.
TORCH_NAMES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64",
    "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "U16": "uint16", "U32": "uint32",
    "U64": "uint64", "BOOL": "bool", "C64": "complex64", "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu",
}  # fmt: skip
# How torch tells of a tensor that it refuses, and of the shape that the parameter has.
MISMATCH = re.compile(r"size mismatch for (.+?): .*current model is torch\.Size\((.*)\)")
# Parts of a layer that change no weight where ComfyUI does not read them.
HARMLESS_PARTS = ("bias", "input_scale", "scale_input", "comfy_quant", "comfy_attention")
# Tensors that say how others are stored: they are read before any module is loaded.
CONFIGURATIONS = ("comfy_quant", "scaled_fp8")
# Parameters of text encoders that ComfyUI itself does not miss (comfy/sd.py, class CLIP), and the
# head of language models, which makes text and no picture: many files leave it out.
NOT_MISSED = (".logit_scale", ".transformer.text_projection.weight", ".lm_head.weight")
# A UMT5, whose every block has this table, is a T5 to ComfyUI until Load CLIP's type says WAN.
UMT5_TABLE = "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight"
# Language models of which ComfyUI has another size where they are loaded alone: {words of the
# vocabulary: the type by which DualCLIPLoader loads it, and what tells it the other file}.
VOCABULARY = "model.embed_tokens.weight"
IN_PAIRS = {
    128320: ("HUNYUAN_VIDEO", {"text_model.encoder.layers.1.mlp.fc1.weight": (3072, 768)}),
    151669: ("ACE", {}),
    217204: ("ACE", {}),
}


def refuse_network(event: str, _: object) -> None:
    """Stop whatever would use the network, as an audit hook."""
    if event in NETWORK_EVENTS:
        raise OSError("ComfyUI is asked without network")


def import_comfyui(folder: str) -> None:
    """Import what loads models in the ComfyUI of a folder, on the CPU and without custom nodes.

    Raises ModuleNotFoundError for what its Python lacks, and whatever else an import raises.
    """
    sys.argv = ["main.py"]
    sys.path.insert(0, folder)
    from comfy.cli_args import args

    # Read when comfy.model_management is imported: no GPU is looked for, and none gets a context.
    args.cpu = True
    # Without comfy_kitchen, ComfyUI goes on, and fails at the first quantised layer.
    import comfy.quant_ops
    import comfy.sd  # noqa: F401
    import comfy_kitchen  # noqa: F401


def tensor_of(dtype: str, shape: list, values: str | None) -> object:
    """Make a tensor of base64 values, or one on the meta device where these are None.

    Raises LookupError for a dtype that torch, or this program, does not know.
    """
    import torch

    kind = getattr(torch, TORCH_NAMES.get(dtype, ""), None)
    if kind is None:
        raise LookupError(f"torch here has no tensors of dtype {dtype}")
    if not values:
        return torch.empty(shape, dtype=kind, device="cpu" if values == "" else "meta")
    data = torch.frombuffer(bytearray(base64.b64decode(values)), dtype=torch.uint8)
    return data.view(kind).reshape(shape)


class Load:
    """Hold one call of load_state_dict: the module, what it was given, and what it said.

    part: "" for the diffusion model, else what the module is; given: {key: tensor}.
    """

    def __init__(self, part: str, module: object, given: dict):
        self.part, self.module, self.given = part, module, dict(given)
        self.missing, self.unexpected, self.errors = [], [], []

    def run(self, load: object, state: dict, *args: object, **kwargs: object) -> tuple:
        """Load onto the meta device; what torch refuses is kept as `errors`, one for each tensor.

        Returns missing and unexpected keys, as torch does.
        """
        # Parts that ComfyUI made on the CPU could not take tensors without values.
        self.module.to("meta")
        state = dict(state)
        try:
            self.missing, self.unexpected = map(list, load(self.module, state, *args, **kwargs))
        except RuntimeError as error:
            # torch collects all that it refuses under one heading.
            heading, *lines = str(error).splitlines()
            self.errors = [line.strip() for line in lines] or [heading]
            # What is missing it tells only of a load that it does not refuse.
            refused = [found[1] for found in map(MISMATCH.match, self.errors) if found]
            if len(refused) == len(self.errors):
                rest = {key: value for key, value in state.items() if key not in refused}
                missing, self.unexpected = map(list, load(self.module, rest, *args, **kwargs))
                self.missing = [key for key in missing if key not in refused]
        return self.missing, self.unexpected

    def troubles(self, names: dict) -> list:
        """List what is wrong with a load: [kind, name in the file, what is there instead].

        names: {id of a tensor: its name in the file}. Parameters that the file lacks go by the
        names that they have in ComfyUI's model.
        """
        found, told = {}, set()
        for error in self.errors:
            key = MISMATCH.match(error)
            if key:
                told.add(key[1])
                error = f"{shown(self.given[key[1]])}, ComfyUI's is {key[2]}"
            found[key[1] if key else ""] = ["stops", error]
        modules = dict(self.module.named_modules())
        for key in self.given.keys() - told:
            path, _, leaf = key.rpartition(".")
            kind, detail = self.judge(modules.get(path), path, leaf, self.given[key])
            if kind:
                found[key] = [kind, detail]
                told.add(key)
        # What lies beside a weight that is told already needs no line of its own.
        beside = [key for key in self.unexpected if key.rpartition(".")[0] + ".weight" not in told]
        found |= {key: kind for key in beside if (kind := self.judge_unexpected(modules, key))}
        found |= {key: ["missing", ""] for key in self.lacking(modules)}
        return [
            [kind, names.get(id(self.given.get(key)), key), detail]
            for key, (kind, detail) in sorted(found.items())
        ]

    def modules_of(self, names: dict) -> dict:
        """Tell which module has each weight of two dimensions: {name in the file: class}.

        "" stands for a linear layer of ComfyUI's own operations, which alone takes packed weights.
        names: {id of a tensor: its name in the file}.
        """
        found, modules = {}, dict(self.module.named_modules())
        for key, tensor in self.given.items():
            path, _, leaf = key.rpartition(".")
            if leaf == "weight" and tensor.dim() == 2 and path in modules and id(tensor) in names:
                kind = type(modules[path])
                own = kind.__module__ == "comfy.ops"
                name = (
                    kind.__name__ if own else f"{kind.__module__.partition('.')[0]} {kind.__name__}"
                )
                found[names[id(tensor)]] = "" if own and name == "Linear" else name
        return found

    def judge_unexpected(self, modules: dict, key: str) -> list:
        """Tell what it means that no module took a tensor: kind and detail, [] for nothing."""
        path, _, leaf = key.rpartition(".")
        if hasattr(getattr(modules.get(path), "weight", None), "_qdata"):
            return [] if leaf in HARMLESS_PARTS else ["unread", ""]
        # Files of text encoders have a tokenizer's data and heads besides.
        return [] if self.part else ["unexpected", ""]

    def lacking(self, modules: dict) -> list:
        """List the parameters that the file lacks."""
        # Layers of quantised models without a weight are no missing keys: ComfyUI only logs them.
        empty = [
            f"{path}.weight" for path, module in modules.items()
            if hasattr(module, "_orig_shape") and getattr(module, "weight", 0) is None
        ]  # fmt: skip
        keys = [*self.missing, *empty]
        if not self.part:
            return keys
        # Some checkpoints have but a projection of an encoder, which is loaded with another file.
        is_whole = len(keys) < len(self.given)
        return [key for key in keys if is_whole and not f".{key}".endswith(NOT_MISSED)]

    def judge(self, module: object, path: str, leaf: str, tensor: object) -> tuple:
        """Tell how a tensor does not go with the parameter that it became: kind and detail.

        Codes in a plain parameter are "unpacked", as nothing scales them; "shape" is a weight that
        fits its own format, but not ComfyUI's layer. ("", "") for what is as it should be.
        """
        import torch

        held = getattr(module, leaf, None)
        if not isinstance(held, torch.Tensor):
            return "", ""
        layout = getattr(held, "_qdata", None)
        if layout is None and held.is_floating_point() and self.holds_codes(path, tensor):
            return "unpacked", f"{shown(tensor)} in {type(module).__name__}"
        wanted = tuple(getattr(module, "_orig_shape", held.shape))
        if leaf != "weight" or len(wanted) != 2 or not hasattr(module, "_orig_shape"):
            return "", ""
        there, known = tuple(tensor.shape), getattr(held, "layout_cls", None)
        if layout is not None and hasattr(known, "get_storage_shape"):
            wanted = tuple(known.get_storage_shape(wanted))
        elif layout is not None and not layout.is_floating_point():
            # Packed integers of other layouts have fewer columns than their layer: compare rows.
            there, wanted = there[:1], wanted[:1]
        same = there == wanted
        return ("", "") if same else ("shape", f"{shown(tensor)}, ComfyUI's is {list(wanted)}")

    def holds_codes(self, path: str, tensor: object) -> bool:
        """Tell whether a tensor of this module is packed: numbers only with a scale of its own.

        Plain FP8 has no scale, and its numbers are the weights.
        """
        kind = str(tensor.dtype)
        if "float8" not in kind:
            return kind in ("torch.uint8", "torch.int8")
        scales = ("weight_scale", "scale_weight", "comfy_quant")
        return any(f"{path}.{part}" in self.given for part in scales)


def shown(tensor: object) -> str:
    """Write dtype and shape of a tensor, as in "uint8 [16, 128]"."""
    return f"{str(tensor.dtype).replace('torch.', '')} {list(tensor.shape)}"


def unordered(value: object) -> object:
    """Sort a list of different numbers: ComfyUI collects numbers of blocks in the file's order."""
    if isinstance(value, list) and all(type(one) is int for one in value):
        return sorted(value) if len({*value}) == len(value) else value
    return value


class Watch:
    """Note what ComfyUI detects and loads, and have it build its models on the meta device.

    Functions of ComfyUI and torch are replaced for the rest of the process, which serves for this
    alone. loads: a Load for each state dict since `begin`; detected: the class, "" for
    none, and the fields of the last configuration that was read; untold: troubles with parts that
    could not be built.
    """

    def __init__(self):
        import comfy.model_base
        import comfy.model_detection
        import comfy.sd
        import torch

        self.begin()
        self.init, self.load = comfy.model_base.BaseModel.__init__, torch.nn.Module.load_state_dict
        self.detect = comfy.model_detection.model_config_from_unet_config
        watch, signature = self, inspect.signature(self.init)

        def init_on_meta(model: object, *args: object, **kwargs: object) -> None:
            bound = signature.bind(model, *args, **kwargs)
            bound.arguments["device"] = "meta"
            watch.init(*bound.args, **bound.kwargs)

        def load_watched(module: object, state: dict, *args: object, **kwargs: object) -> tuple:
            watch.loads.append(Load(watch.part, module, state))
            return watch.loads[-1].run(watch.load, state, *args, **kwargs)

        comfy.model_base.BaseModel.__init__ = init_on_meta
        torch.nn.Module.load_state_dict = load_watched
        comfy.model_detection.model_config_from_unet_config = self.detect_watched
        comfy.sd.CLIP = self.load_encoder

    def begin(self) -> None:
        """Forget what was noted of the file before."""
        self.part, self.loads, self.detected, self.untold = "", [], ("", {}), []

    def detect_watched(self, fields: dict, *args: object, **kwargs: object) -> object:
        """Find the class for a configuration as ComfyUI does, and note both."""
        # Noted first: the dtype to compute in, which the file does not decide, is added later.
        texts = {key: str(unordered(value)) for key, value in fields.items()}
        config = self.detect(fields, *args, **kwargs)
        self.detected = ("" if config is None else type(config).__name__, texts)
        return config

    def load_encoder(
        self, target: object, state_dict: object, model_options: dict, **_: object
    ) -> object:
        """Build and load a text encoder as comfy.sd.CLIP does, without its tokenizer.

        state_dict: of a checkpoint's encoders, or a list of state dicts, one of each file.
        """
        import torch

        self.part = "text encoder"
        made = {"dtype": torch.float16, "device": "meta", "model_options": model_options}
        try:
            model = target.clip(**{**target.params, **made})
        except Exception as error:  # noqa: BLE001  (it need not be fit for the meta device)
            self.untold.append(["partly", self.part, f"{type(error).__name__}: {error}"])
        else:
            if isinstance(state_dict, list):
                for state in state_dict:
                    model.load_sd(state)
            else:
                model.load_state_dict(state_dict, strict=False)
        return SimpleNamespace(patcher=SimpleNamespace())


def load_file(state: dict, metadata: dict) -> None:
    """Load a file as the node does that people take for it, into a watched ComfyUI.

    That is Load Diffusion Model, or Load Checkpoint where other things lie beside the model's
    prefix; the VAE of a checkpoint is not loaded.
    """
    import comfy.model_detection
    import comfy.sd

    prefix = comfy.model_detection.unet_prefix_from_state_dict(state)
    inside = sum(name.startswith(prefix) for name in state)
    if 0 < inside < len(state):
        comfy.sd.load_state_dict_guess_config(state, output_vae=False, metadata=metadata)
    else:
        comfy.sd.load_diffusion_model_state_dict(state, metadata=metadata)


def encoder_kind(state: dict) -> str:
    """Name the text encoder that ComfyUI takes a file for, "" for none."""
    import comfy.sd

    model = comfy.sd.detect_te_model(state)
    return model.name if model else ""


def load_encoder_file(state: dict, metadata: dict) -> None:
    """Load a text encoder's file as Load CLIP does, into a watched ComfyUI.

    One that ComfyUI takes beside another alone is loaded as DualCLIPLoader does, with next to
    nothing as the other file.
    """
    import comfy.sd
    import comfy.utils
    import torch

    words = state[VOCABULARY].shape[0] if VOCABULARY in state else 0
    kind, beside = IN_PAIRS.get(words, ("WAN" if UMT5_TABLE in state else "STABLE_DIFFUSION", None))
    files = {"FILE": (state, metadata)}
    if beside is not None:
        other = {name: torch.empty(shape, device="meta") for name, shape in beside.items()}
        files["OTHER"] = (other, {})

    def loaded(path: str, *_: object, return_metadata: bool = False, **__: object) -> object:
        return files[path] if return_metadata else files[path][0]

    comfy.utils.load_torch_file = loaded
    comfy.sd.load_clip([*files], clip_type=getattr(comfy.sd.CLIPType, kind))


def ask_about(watch: Watch, file: dict) -> dict:
    """Tell what ComfyUI makes of one file.

    file: "metadata", and "tensors" as {name: [dtype, shape, values]}. Returns the fields of a
    `Taken` (see `answers`). A file with a tensor that cannot be made here is left "unsure".
    """
    watch.begin()
    try:
        state = {name: tensor_of(*facts) for name, facts in file["tensors"].items()}
    except LookupError as error:
        nothing = {"recognised": "", "configuration": {}, "troubles": [], "unsure": error.args[0]}
        return nothing | {"tensors": len(file["tensors"]), "left": 0, "modules": {}}
    # The tensors stay alive here, so that no other gets the identity of one of them.
    names, kept = {id(tensor): name for name, tensor in state.items()}, [*state.values()]
    encoder = stopped = ""
    try:
        encoder = encoder_kind(state)
        (load_encoder_file if encoder else load_file)(state, file["metadata"])
    except Exception as error:  # noqa: BLE001  (whatever ComfyUI raises is the answer)
        stopped = f"{type(error).__name__}: {error}"
    troubles = [trouble for load in watch.loads for trouble in load.troubles(names)] + watch.untold
    troubles += [["stops", "", stopped]] if stopped else []
    taken = {id(tensor) for load in watch.loads for tensor in load.given.values()}
    left = [
        name for key, name in names.items()
        if key not in taken and name.rpartition(".")[2] not in CONFIGURATIONS
    ]  # fmt: skip
    # Whatever needs values fails on the meta device alone, and tells nothing of the file.
    unsure = [detail for kind, _, detail in troubles if kind == "stops" and "meta tensor" in detail]
    recognised, fields = watch.detected
    if encoder:
        recognised, fields = f"a text encoder ({encoder})", {"encoder": encoder}
    return {
        "recognised": recognised,
        "configuration": fields,
        "tensors": len(kept),
        "left": len(left),
        "troubles": troubles,
        "unsure": unsure[0] if unsure else "",
        "modules": {k: v for load in watch.loads for k, v in load.modules_of(names).items()},
    }


def answer(asked: dict) -> dict:
    """Answer a question: {"files": {key: what ComfyUI makes of it}}, or why ComfyUI is no help.

    asked: "folder" of ComfyUI, and "files". "absent" names a module that its Python lacks,
    "broken" is another error of the import.
    """
    try:
        import_comfyui(asked["folder"])
    except ModuleNotFoundError as error:
        return {"absent": error.name or str(error)}
    except (Exception, SystemExit) as error:  # noqa: BLE001  (its modules may raise anything)
        return {"broken": f"{type(error).__name__}: {error}"}
    watch = Watch()
    return {"files": {key: ask_about(watch, file) for key, file in asked["files"].items()}}


def run_asker(asked: dict) -> None:
    """Answer a question on stdout, where nothing else is printed, and end the process.

    What ComfyUI prints goes to stderr instead.
    """
    sys.stdout.flush()
    private = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.addaudithook(refuse_network)
    json.dump(answer(asked), private)
    private.close()
    sys.stderr.flush()
    # ComfyUI's threads and libraries are not waited for.
    os._exit(0)
