"""Quantised files with one defect each: what verification must name, and ComfyUI's own answer.

A case is a function of a sound file's tensors and metadata, which it changes, and of its layers;
`CASES` says which defect that is. Usage: python tests/support/broken.py FILE FOLDER
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from nvfp4.numeric.codes import (
    decode_nvfp4,
    encode_nvfp4,
    largest_magnitude,
    nvfp4_global_scale,
    swizzle,
    unswizzle,
)

CASES: dict[str, tuple[str, Callable]] = {}


def case(defect: str) -> Callable:
    def add(change: Callable) -> Callable:
        CASES[change.__name__] = (defect, change)
        return change

    return add


class Stored:
    """A converted file in memory: its tensors, its header's layers, and two layers to break."""

    def __init__(self, path: Path):
        self.tensors = load_file(path)
        with safe_open(path, "pt") as file:
            self.metadata = dict(file.metadata())
        self.layers = json.loads(self.metadata["_quantization_metadata"])["layers"]
        packed = [name for name, config in self.layers.items() if config == {"format": "nvfp4"}]
        self.nvfp4 = next(name for name in packed if f"{name}.input_scale" in self.tensors)
        self.fp8s = [name for name, config in self.layers.items() if "float8" in config["format"]]
        self.fp8 = self.fp8s[0]

    def get(self, suffix: str, layer: str = "") -> torch.Tensor:
        return self.tensors[f"{layer or self.nvfp4}.{suffix}"]

    def put(self, suffix: str, tensor: torch.Tensor, layer: str = "") -> None:
        self.tensors[f"{layer or self.nvfp4}.{suffix}"] = tensor

    def drop(self, suffix: str, layer: str = "") -> None:
        self.tensors.pop(f"{layer or self.nvfp4}.{suffix}", None)

    def configure(self, layer: str, config: dict | None) -> None:
        """Set or, with None, remove a layer's configuration in both places."""
        self.layers.pop(layer, None)
        self.drop("comfy_quant", layer)
        if config is not None:
            self.layers[layer] = config
            text = json.dumps(config).encode()
            self.put("comfy_quant", torch.tensor(list(text), dtype=torch.uint8), layer)

    def make_legacy(self, marker: int | None) -> None:
        """FP8 layers as scaled FP8, NVFP4 ones decoded."""
        for layer in list(self.layers):
            self.configure(layer, None)
            if layer in self.fp8s:
                self.put("scale_weight", self.get("weight_scale", layer).reshape(1), layer)
                self.drop("weight_scale", layer)
            else:
                packed, tiles = self.get("weight", layer), self.get("weight_scale", layer)
                scales = unswizzle(tiles, len(packed), packed.shape[1] * 2 // 16)
                weight = decode_nvfp4(packed, scales, self.get("weight_scale_2", layer))
                self.put("weight", weight, layer)
                for suffix in ("weight_scale", "weight_scale_2"):
                    self.drop(suffix, layer)
            self.drop("input_scale", layer)
        del self.metadata["_quantization_metadata"]
        if marker is not None:
            self.tensors["scaled_fp8"] = torch.zeros(marker).to(torch.float8_e4m3fn)

    def save(self, path: Path) -> Path:
        if "{" in self.metadata.get("_quantization_metadata", ""):
            text = json.dumps({"format_version": "1.0", "layers": self.layers})
            self.metadata["_quantization_metadata"] = text
        save_file({name: t.contiguous() for name, t in self.tensors.items()}, path, self.metadata)
        return path


@case("unconfigured")
def packed_weight_without_configuration(file):
    file.configure(file.nvfp4, None)


@case("unconfigured")
def nothing_configured(file):
    for layer in list(file.layers):
        file.configure(layer, None)
    del file.metadata["_quantization_metadata"]


@case("unread scale")
def fp8_weight_without_configuration(file):
    file.configure(file.fp8, None)


@case("unread scale")
def legacy_scales_without_the_marker(file):
    file.make_legacy(None)


@case("unread scale")
def legacy_scales_beside_the_header(file):
    file.make_legacy(2)
    file.metadata["_quantization_metadata"] = json.dumps({"layers": {}})
    file.layers = {}


@case("unscaled")
def legacy_weight_without_its_scale(file):
    file.make_legacy(2)
    file.drop("scale_weight", file.fp8)


@case("one form")
def only_the_header(file):
    for layer in file.layers:
        file.drop("comfy_quant", layer)


@case("one form")
def only_the_tensors(file):
    del file.metadata["_quantization_metadata"]


@case("two forms")
def the_tensor_says_something_else(file):
    text = json.dumps({"format": "float8_e4m3fn"}).encode()
    file.put("comfy_quant", torch.tensor(list(text), dtype=torch.uint8))


@case("no weight")
def configuration_without_the_files_prefix(file):
    file.layers = {f"model.{layer}": config for layer, config in file.layers.items()}


@case("no weight")
def weight_is_gone(file):
    file.drop("weight")


@case("stray")
def configuration_of_no_layer(file):
    file.layers["blocks.99.x"] = {"format": "nvfp4"}


@case("shape")
def bias_of_two_dimensions(file):
    file.put("bias", file.get("bias").unsqueeze(1))


@case("no scale")
def no_global_scale(file):
    file.drop("weight_scale_2")


@case("no scale")
def no_block_scales(file):
    file.drop("weight_scale")


@case("no scale")
def fp8_without_scale(file):
    file.drop("weight_scale", file.fp8)


@case("float16 scale")
def global_scale_in_float16(file):
    file.put("weight_scale_2", file.get("weight_scale_2").half())


@case("float16 scale")
def input_scale_in_bfloat16(file):
    file.put("input_scale", file.get("input_scale").bfloat16())


@case("not scalar")
def global_scale_of_one_element(file):
    file.put("weight_scale_2", file.get("weight_scale_2").reshape(1))


@case("shape")
def global_scale_of_three_elements(file):
    file.put("weight_scale_2", file.get("weight_scale_2").repeat(3))


@case("dtype")
def block_scales_in_float16(file):
    file.put("weight_scale", file.get("weight_scale").half())


@case("same bits")
def block_scales_as_bytes(file):
    file.put("weight_scale", file.get("weight_scale").view(torch.uint8))


@case("same bits")
def codes_as_signed_bytes(file):
    file.put("weight", file.get("weight").view(torch.int8))


@case("shape")
def block_scales_without_their_padding(file):
    file.put("weight_scale", file.get("weight_scale")[:-4])


@case("shape")
def codes_without_their_last_rows(file):
    file.put("weight", file.get("weight")[:-3])


@case("shape")
def bias_of_another_layer(file):
    file.put("bias", torch.zeros(48))


@case("padding")
def padding_not_zero(file):
    narrow(file, file.nvfp4, rows=160)
    tiles = file.get("weight_scale").view(torch.uint8).clone()
    tiles[-1, -1] = 0x38
    file.put("weight_scale", tiles.view(torch.float8_e4m3fn))


@case("integers")
def int8_weight_without_configuration(file):
    shape = file.get("weight", "blocks.0.self_attn.q").shape
    file.put("weight", torch.full(shape, 5, dtype=torch.int8), "blocks.0.self_attn.q")


@case("weight dtype")
def float_weight_with_an_fp8_configuration(file):
    weight = file.get("weight", file.fp8).float() * 2**-12
    file.put("weight", weight.bfloat16(), file.fp8)


@case("weight dtype")
def legacy_weight_in_e5m2(file):
    file.make_legacy(2)
    weight = file.get("weight", file.fp8).float() * 300
    file.put("weight", weight.to(torch.float8_e5m2), file.fp8)


@case("other program")
def a_layer_packed_by_gptq(file):
    for suffix in ("weight", "weight_scale", "comfy_quant"):
        file.drop(suffix, file.fp8)
    file.layers.pop(file.fp8)
    file.put("qweight", torch.zeros(32, 256, dtype=torch.int32), file.fp8)
    file.put("qzeros", torch.zeros(2, 32, dtype=torch.int32), file.fp8)
    file.put("scales", torch.ones(2, 256).half(), file.fp8)
    file.put("g_idx", torch.arange(256, dtype=torch.int32), file.fp8)


@case("per row")
def fp8_scale_for_every_row(file):
    scale = file.get("weight_scale", file.fp8)
    file.put("weight_scale", scale.repeat(256, 1), file.fp8)


@case("not scalar")
def global_scale_in_float64(file):
    file.put("weight_scale_2", file.get("weight_scale_2").double())


@case("slow shape")
def columns_not_a_multiple_of_32(file):
    narrow(file, file.nvfp4, columns=240)


@case("bad scale")
def global_scale_not_a_number(file):
    file.put("weight_scale_2", torch.tensor(float("nan")))


@case("bad scale")
def global_scale_zero(file):
    file.put("weight_scale_2", torch.tensor(0.0))


@case("bad scale")
def input_scale_infinite(file):
    file.put("input_scale", torch.tensor(float("inf")))


@case("bad scale")
def a_block_scale_not_a_number(file):
    set_first_block_scale(file, 0x7F)


@case("bad scale")
def a_block_scale_negative(file):
    set_first_block_scale(file, 0xB8)


@case("clamped")
def fp8_input_without_scale(file):
    file.configure(file.fp8, {"format": "float8_e4m3fn"})
    file.drop("input_scale", file.fp8)


@case("clamped")
def legacy_fp8_matmul_without_input_scales(file):
    file.make_legacy(0)


@case("stray")
def scale_of_a_16_bit_layer(file):
    file.put("weight_scale", torch.tensor(1.0), "head.head")


@case("unknown format")
def a_format_of_the_future(file):
    file.configure(file.nvfp4, {"format": "nvfp5"})


@case("unknown format")
def configuration_not_json(file):
    del file.metadata["_quantization_metadata"]
    file.put("comfy_quant", torch.zeros(5, dtype=torch.uint8))


@case("header")
def header_not_json(file):
    file.metadata["_quantization_metadata"] = "nope"


@case("header")
def header_without_layers(file):
    file.metadata["_quantization_metadata"] = "[]"


@case("output layer")
def the_head_in_4_bits(file):
    pack(file, "head.head", file.get("weight", "head.head").float())
    file.configure("head.head", {"format": "nvfp4", "full_precision_matrix_mult": True})


@case("recognised by")
def feed_forward_rows_padded(file):
    """ComfyUI takes Wan's ffn_dim from blocks.0.ffn.0: 500 rows become 512."""
    for name in [name for name in file.tensors if ".ffn." in name]:
        layer = name.rpartition(".")[0]
        file.configure(layer, None)
        for suffix in ("weight_scale", "weight_scale_2", "input_scale"):
            file.drop(suffix, layer)
        if name.endswith("ffn.0.weight"):
            file.tensors[name] = torch.zeros(500, 256)
            file.put("bias", torch.zeros(500), layer)
        elif name.endswith("ffn.2.weight"):
            file.tensors[name] = torch.zeros(256, 500)
    pack(file, "blocks.0.ffn.0", torch.ones(500, 256))
    file.configure("blocks.0.ffn.0", {"format": "nvfp4", "full_precision_matrix_mult": True})


@case("recognised by")
def columns_that_comfyui_recognises_unets_by(file):
    add_packed(file, "label_emb.0.0")


@case("no linear layer")
def an_embedding_in_4_bits(file):
    add_packed(file, "trainable_cond_mask")


@case("scaled parameter")
def a_parameter_in_fp8(file):
    layer = "motion_encoder.enc.fc.0"
    for suffix in ("weight", "weight_scale"):
        file.put(suffix, file.get(suffix, file.fp8).clone(), layer)
    file.configure(layer, {"format": "float8_e4m3fn", "full_precision_matrix_mult": True})


def add_packed(file: Stored, layer: str) -> None:
    """A layer that Wan's text-to-video model does not have."""
    pack(file, layer, torch.ones(32, 256))
    file.configure(layer, {"format": "nvfp4", "full_precision_matrix_mult": True})


def set_first_block_scale(file: Stored, code: int) -> None:
    tiles = file.get("weight_scale").view(torch.uint8).clone()
    tiles[0, 0] = code
    file.put("weight_scale", tiles.view(torch.float8_e4m3fn))


def pack(file: Stored, layer: str, weight: torch.Tensor) -> None:
    scale = nvfp4_global_scale(largest_magnitude(weight))
    packed, block_scale = encode_nvfp4(weight, scale)
    file.put("weight", torch.nn.functional.pad(packed, (0, 0, 0, -len(packed) % 16)), layer)
    file.put("weight_scale", swizzle(block_scale), layer)
    file.put("weight_scale_2", scale, layer)


def narrow(file: Stored, layer: str, rows: int = 256, columns: int = 256) -> None:
    """The layer with fewer rows or columns, packed as it should be."""
    pack(file, layer, torch.ones(rows, columns))
    file.put("bias", torch.zeros(rows), layer)


OF_ANOTHER_SHAPE = (
    "padding_not_zero",
    "columns_not_a_multiple_of_32",
    "columns_that_comfyui_recognises_unets_by",
    "an_embedding_in_4_bits",
    "a_parameter_in_fp8",
)
"""Cases that the small Wan model has no layers or shapes for: not for ComfyUI."""


def write_case(name: str, sound: Path, path: Path) -> Path:
    file = Stored(sound)
    CASES[name][1](file)
    return file.save(path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("file", type=Path, help="a sound file, as examples/tiny_wan.py makes it")
    parser.add_argument("folder", type=Path, help="where to put the broken ones")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    for name in CASES:
        write_case(name, options.file, options.folder / f"{name}.safetensors")
    print(f"{len(CASES)} files in {options.folder}")
