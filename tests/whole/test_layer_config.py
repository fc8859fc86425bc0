"""Layer configs: written, replayed, mixed with options, refused."""

import json

import pytest
import torch

import convert_nvfp4 as c
from support.conversions import convert_tiny


def test_a_report_or_plan_never_costs_another_file(tiny, tmp_path, capsys):
    out, source = tmp_path / "o.safetensors", tmp_path / "m.json"
    for dry in ([], ["--dry-run"]):
        for given in (
            ["--report", str(tmp_path / "r.json"), "--layer-config-out", str(tmp_path / "r.json")],
            ["--layer-config-out", str(source), "--layer-config", str(source)],
        ):
            source.write_text("{}", encoding="utf-8")
            assert c.main([str(tiny), str(out), *given, *dry, "--quiet"]) == 1
            assert "is another input or output of this conversion" in capsys.readouterr().err
            assert [*tmp_path.iterdir()] == [source]
    with pytest.raises(SystemExit):
        c.main([str(tiny), str(out), "--layer-config-out", str(out)])
    missing = str(tmp_path / "no" / "x.json")
    assert c.main([str(tiny), str(out), "--layer-config-out", missing, "--dry-run"]) == 1
    assert "no such folder; create it first" in capsys.readouterr().err


def test_a_plan_written_down_is_replayed_exactly(tiny, converted, tmp_path):
    """From a GGUF, a summary and layer lists to a config alone: the same bytes."""
    config, out = tmp_path / "plan.json", tmp_path / "o.safetensors"
    convert_tiny(tiny, tmp_path / "x.safetensors", "--dry-run", "--layer-config-out", str(config))
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]
    assert c.main([str(tiny), str(out), "--layer-config", str(config), "--quiet"]) == 0
    (found, about), (expected, meant) = (c.read_header(path) for path in (out, converted))
    assert found.keys() == expected.keys()
    for name, ref in found.items():
        assert ref.dtype == expected[name].dtype
        assert torch.equal(c.load_bytes(ref), c.load_bytes(expected[name])), name
    key = "_quantization_metadata"
    assert json.loads(about[key]) == json.loads(meant[key])
    again = tmp_path / "again.json"
    command = [str(tiny), str(tmp_path / "x.safetensors"), "--layer-config", str(config)]
    assert c.main([*command, "--dry-run", "--quiet", "--layer-config-out", str(again)]) == 0
    assert again.read_bytes() == config.read_bytes()


def planned(tiny, tmp_path, config, *arguments):
    (tmp_path / "c.json").write_text(json.dumps(config), encoding="utf-8")
    command = [str(tiny), str(tmp_path / "o.safetensors"), *arguments, "--quiet", "--dry-run"]
    command += ["--layer-config", str(tmp_path / "c.json")]
    return {p.ref.layer: p for p in c.convert(c.parse_options(command)).plans}


def test_exact_names_go_before_patterns_and_options_before_both(tiny, tmp_path):
    config = {
        r"blocks\.\d\.ffn\.[02]": {"format": "float8_e4m3fn", "input_scale": 0.5},
        "blocks.3.ffn.0": {"format": "nvfp4", "full_precision_matrix_mult": True},
        "blocks.4.ffn.0": {"format": "float32"},
        "patch_embedding.weight": {"format": "source"},
    }
    plans = planned(tiny, tmp_path, config, "--exclude", r"blocks\.5\.ffn\.2")
    fp8 = plans["blocks.2.ffn.2"]
    assert (fp8.precision, fp8.input_scale, fp8.full_precision) == (c.FP8, 0.5, None)
    packed = plans["blocks.3.ffn.0"]
    assert (packed.precision, str(packed.full_precision)) == (c.NVFP4, "--layer-config")
    assert plans["blocks.4.ffn.0"].precision is c.FP32
    assert plans["blocks.5.ffn.2"].precision is c.HALF
    assert plans["patch_embedding"].dtype == "F32"
    assert plans["blocks.4.self_attn.q"].reason.text == "--preset wan"


def test_a_config_lifts_the_presets_mark(tiny, tmp_path):
    """Wan's preset marks cross-attention for full-precision matmul; an entry need not."""
    config = {"blocks.3.cross_attn.q": {"format": "nvfp4"}}
    plans = planned(tiny, tmp_path, config, "--sensitive-as", "w4a16")
    assert plans["blocks.3.cross_attn.q"].full_precision is None
    assert plans["blocks.4.cross_attn.q"].full_precision.text == "--preset wan"


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({"blocks.3.ffn.9": {"format": "nvfp4"}}, "blocks.3.ffn.9: matches nothing of the source"),
        ({"(": {"format": "nvfp4"}}, r"\(: missing \), unterminated"),
        ({"head.head": {"format": "int4"}}, "format 'int4' is none of nvfp4, asym_w4a8_int8, w"),
        ({"head.head": "nvfp4"}, "needs an object like"),
        ({"head.head": {}}, "format None is none of"),
        ({}, "the layer config is empty"),
        ({"head.head": {"format": "nvfp4", "scale": 1}}, "has scale; known are format, full_p"),
        ({"head.head": {"format": "nvfp4", "input_scale": "1"}}, "input_scale '1' is no float"),
        ({"head.head": {"format": "nvfp4", "input_scale": 0}}, "is not a positive number"),
        ({"head.head": {"format": "bfloat16", "input_scale": 1}}, "bfloat16 takes nothing else"),
        ({"head.head.bias": {"format": "nvfp4"}}, "head.head.bias is no linear layer"),
        ({r".*\.bias": {"format": "nvfp4"}}, "matches nothing of the source: keys are"),
        (
            {"head.head": {"format": "nvfp4", "full_precision_matrix_mult": 1}},
            "full_precision_matrix_mult 1 is no bool",
        ),
        ([], "must be a JSON object"),
    ],
)
def test_a_wrong_config_is_an_error(tiny, tmp_path, config, problem):
    with pytest.raises(c.ConvertError, match=rf"c\.json: .*{problem}"):
        planned(tiny, tmp_path, config)
