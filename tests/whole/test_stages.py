"""Whoever asks is told what a conversion is busy with."""

import contextlib
import threading
from collections import Counter

import convert_nvfp4 as c
from support.conversions import RECIPE

STAGES = {"read", "encode", "write", "sync", "verify"}


def test_stages_are_observed_one_piece_at_a_time(tiny, tmp_path):
    seen, busy = Counter(), dict.fromkeys(STAGES, 0)
    threads = {stage: set() for stage in STAGES}

    @contextlib.contextmanager
    def observe(stage):
        assert busy[stage] == 0
        busy[stage] += 1
        yield
        busy[stage] -= 1
        seen[stage] += 1
        threads[stage].add(threading.current_thread())

    paths = [tmp_path / "observed.safetensors", tmp_path / "plain.safetensors"]
    for path, given in zip(paths, [(observe,), ()], strict=True):
        gguf = ["--gguf", str(tiny / "model.gguf")]
        c.convert(c.parse_options([str(tiny), str(path), *gguf, *RECIPE, "--quiet"]), *given)
    assert seen.keys() == STAGES
    assert seen["encode"] == seen["read"] > 100
    assert seen["verify"] == 1
    assert not threads["read"] & threads["write"]
    assert threading.current_thread() in threads["encode"] - threads["read"]
    assert paths[0].read_bytes() == paths[1].read_bytes()
