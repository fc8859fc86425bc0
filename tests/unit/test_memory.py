"""Tensors in memory, read as a safetensors file: its bytes, and conversions that equal a file's."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from nvfp4.conversion import convert
from nvfp4.errors import ConvertError
from nvfp4.memory import MemoryTensor, memory_file
from nvfp4.model import Lora
from nvfp4.options import Options
from nvfp4.read.checkpoint import read_header
from nvfp4.read.tensors import load_bytes
from nvfp4.source.lora_names import layer_names, locate
from support.make_families import read_headers
from support.paths import FAMILIES
from support.tiny_models import tiny_model

EVERY = {
    "a.weight": torch.randn(6, 4).bfloat16(),
    "b": torch.tensor(3.5),
    "c.empty": torch.empty(0, dtype=torch.float16),
    "d": torch.arange(5),
    "e": torch.tensor([True, False]),
    "f.transposed": torch.randn(4, 6).t(),
    "g": torch.ones(3).to(torch.float8_e4m3fn),
    "h.empty": torch.empty(3, 0),
}


def shown(tensors):
    return {name: MemoryTensor.of(tensor) for name, tensor in tensors.items()}


def as_stored(tensor):
    return tensor.reshape(-1).view(torch.uint8)


@pytest.fixture(scope="module")
def wan(tmp_path_factory):
    return tiny_model("wan_t2v", tmp_path_factory.mktemp("wan") / "wan.safetensors")


def same(path, other):
    """Whether two files hold the same tensors, to the byte; their headers may differ."""
    first, second = load_file(path), load_file(other)
    return first.keys() == second.keys() and all(
        first[key].dtype == second[key].dtype
        and torch.equal(as_stored(first[key]), as_stored(second[key]))
        for key in first
    )


def test_the_library_reads_what_is_shown(tmp_path):
    with memory_file("m.safetensors", shown(EVERY), {"format": "pt"}) as path:
        data = path.read_bytes()
        assert path.stat().st_size == len(data)
        # From a file, as old versions of `load` refuse tensors without values.
        (tmp_path / "m.safetensors").write_bytes(data)
        read = load_file(tmp_path / "m.safetensors")
        assert read.keys() == EVERY.keys()
        for name, tensor in EVERY.items():
            assert read[name].dtype == tensor.dtype
            assert read[name].shape == tensor.shape
            assert torch.equal(as_stored(read[name]), as_stored(tensor))
        refs, metadata = read_header(path)
        assert metadata == {"format": "pt"}
        assert refs.keys() == EVERY.keys()
    assert not path.exists()
    with pytest.raises(ConvertError, match=r"memory://\d+/m.safetensors: No such file|is no file"):
        load_bytes(refs["a.weight"])


def test_values_are_asked_for_when_they_are_read_and_for_the_tensor_read_alone():
    asked = []

    def tensor(name):
        def values():
            asked.append(name)
            return torch.full((4,), float(len(name)))

        return MemoryTensor("F32", (4,), values)

    with memory_file("m.safetensors", {name: tensor(name) for name in ("x", "yy")}) as path:
        refs, _ = read_header(path)
        assert not asked
        assert torch.equal(load_bytes(refs["yy"]).view(torch.float32), torch.full((4,), 2.0))
        assert asked == ["yy"]


def test_two_files_of_one_name_are_two():
    with (
        memory_file("m", shown({"x": torch.zeros(1)})) as one,
        memory_file("m", shown({"x": torch.ones(2)})) as two,
    ):
        assert one != two
        assert one.name == two.name == "m"
        assert two.stat().st_size - one.stat().st_size == 4


def test_what_no_file_can_hold_is_refused():
    with pytest.raises(ConvertError, match="complex128, which safetensors files cannot hold"):
        MemoryTensor.of(torch.zeros(2, dtype=torch.complex128))


def test_a_conversion_from_memory_gives_the_bytes_of_one_from_a_file(tmp_path, wan):
    options = {"preset": "wan", "quiet": True}
    convert(Options(source=wan, output=tmp_path / "file.safetensors", **options))
    with memory_file(wan.name, shown(load_file(wan))) as path:
        convert(Options(source=path, output=tmp_path / "memory.safetensors", **options))
    assert same(tmp_path / "file.safetensors", tmp_path / "memory.safetensors")


def test_set_weights_are_rounded_once_and_kept_layers_keep_their_dtype(tmp_path, wan):
    """Merged values are shown as a LoRA's in float32: none becomes float32 in the output."""
    state = load_file(wan)
    generator = torch.Generator().manual_seed(3)
    changed = {
        name: value.float() + 0.1 * torch.randn(value.shape, generator=generator)
        for name, value in state.items()
        if name.endswith((".weight", ".bias", "modulation"))
    }
    keys = {f"{name.removesuffix('.weight')}.set_weight": v for name, v in changed.items()}
    save_file(keys, tmp_path / "style.safetensors")
    outputs = tmp_path / "file.safetensors", tmp_path / "memory.safetensors"
    options = {"preset": "wan", "quiet": True}
    lora = Lora(tmp_path / "style.safetensors", 0.5)
    convert(Options(source=wan, output=outputs[0], merge_lora=lora, **options))
    with (
        memory_file(wan.name, shown(state)) as path,
        memory_file("style.safetensors", shown(keys)) as style,
    ):
        lora = Lora(style, 0.5)
        report = convert(Options(source=path, output=outputs[1], merge_lora=lora, **options))
    assert same(*outputs)
    assert report.origin["options"]["merge_lora"] == [["style.safetensors", 0.5]]
    kept = load_file(outputs[1])
    for name in changed.keys() & kept.keys():
        if kept[name].is_floating_point() and kept[name].dtype.itemsize > 1:
            assert kept[name].dtype == state[name].dtype
            assert torch.equal(kept[name], changed[name].to(state[name].dtype))


@pytest.mark.parametrize("family", sorted(path.stem for path in FAMILIES.glob("*.txt")))
def test_a_tensor_is_found_by_its_own_name(family):
    """What is merged in memory goes by the names of tensors themselves, whatever family has them.

    A name that another tensor's would be taken for would put merged values into that one.
    """
    shapes = read_headers(FAMILIES / f"{family}.txt")
    names = layer_names(list(shapes))
    lost = [
        name for name in shapes if (locate(name.removesuffix(".weight"), names) or ("",))[0] != name
    ]
    assert not lost
