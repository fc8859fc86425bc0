"""Sources that are refused: the lines that are printed."""

import pytest
import torch
from safetensors.torch import save_file

import convert_nvfp4 as c


@pytest.mark.parametrize("name", ["a\x1b[2Jb", "a\nerror: all is well", "a\u202eb", "\0"])
def test_a_name_that_could_forge_output_is_refused(name, tmp_path, capsys):
    save_file({name: torch.zeros(1)}, tmp_path / "m.safetensors")
    command = [str(tmp_path / "m.safetensors"), str(tmp_path / "o.safetensors"), "--include", "a"]
    assert c.main(command) == 1
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert name not in error


def test_one_shard_alone_is_refused(tiny, tmp_path, capsys):
    shard = min(tiny.glob("*-00001-of-*.safetensors"))
    command = [str(shard), str(tmp_path / "o.safetensors"), "--include", "ffn"]
    assert c.main(command) == 1
    assert "is one shard of several; give the *.safetensors.index.json" in capsys.readouterr().err
