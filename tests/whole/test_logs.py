"""From a log to a conversion."""

import convert_nvfp4 as c
from support.conversions import RECIPE
from support.logs import run


def test_the_converter_takes_the_summary_and_the_list(tiny, tmp_path, capsys, wan_log):
    out, listed = tmp_path / "summary.json", tmp_path / "layers.txt"
    chosen = ("--cv-threshold", "0.2", "--cross-attn", "--sensitive-layers", listed)
    assert run("--input", wan_log, "--json", out, *chosen, capsys=capsys)[0] == 0
    command = [str(tiny), str(tmp_path / "o.safetensors"), "--gguf", str(tiny / "model.gguf")]
    mine = ["--input-scale-summary-json", str(out), "--full-precision-mm-layers", str(listed)]
    assert c.main([*command, *RECIPE, *mine, "--input-scale-layer-summary", "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "blocks.2.self_attn.q  0.00" in text
    assert "summary p99.9 x 1.08" in text
    assert "layers.txt" in text
    assert "names match nothing" not in text
