"""Notes on a whole plan."""

import pytest
import torch
from safetensors.torch import save_file

from nvfp4.cli.parse import parse_options
from nvfp4.conversion import convert
from nvfp4.families import FAMILIES
from nvfp4.plan.make import card_notes
from support.plans import ALL, BLOCK, plan_of, weight


def test_plans_that_will_be_regretted_are_noted(tmp_path):
    names = ["txt_norm.weight", *(f"transformer_blocks.{i}.img_mod.1.weight" for i in range(8))]
    tensors = {name: torch.ones(32, 64) for name in names} | {"odd.weight": torch.ones(32, 40)}
    # What every whole model has; vectors are no linear layers, and leave the shares as they are.
    tensors |= {f"{name}.weight": torch.ones(64) for name in FAMILIES["qwen-image"].outside}
    save_file(tensors, tmp_path / "m.safetensors")
    command = [str(tmp_path / "m.safetensors"), str(tmp_path / "o.safetensors"), "--dry-run"]
    command += ["--preset", "all", "--full-precision-mm", "--formats", "nvfp4,fp8,16bit"]
    notes = "\n".join(convert(parse_options(command)).notes)
    assert "94 % of the linear weights are NVFP4: image models are known to give noise" in notes
    assert "no layer is W4A4: the file saves memory, and no time over 16-bit" in notes
    assert "1 layer is FP8 for its shape: odd" in notes


@pytest.mark.parametrize(
    ("capability", "said", "hinted"),
    [
        ((8, 9), (), "3 layers are in formats that the card here decodes to 16 bits; --card ada"),
        ((7, 5), ("--recipe", "int8"), None),
        ((12, 0), (), None),
        (None, (), None),
        ((8, 9), ("--card", "blackwell"), None),
        ((8, 9), ("--full-precision-mm",), None),
    ],
)
def test_whoever_names_no_card_is_told_what_the_one_here_multiplies(
    tmp_path, capability, said, hinted
):
    tensors = {name: weight(256, 256) for name in BLOCK}
    plans, _ = plan_of(tmp_path, tensors, *ALL, *said)
    given = parse_options([str(tmp_path / "m.safetensors"), str(tmp_path / "o.safetensors"), *said])
    notes = card_notes(given, list(plans.values()), capability)
    assert [note[: len(hinted or "")] for note in notes] == ([hinted] if hinted else [])
