"""What an option's text may be."""

import argparse

import pytest

from nvfp4.options.kinds import input_path, lora_file, size_in_bytes


@pytest.mark.parametrize(
    ("text", "size"),
    [("5GB", 5 * 10**9), ("4GiB", 4 << 30), ("1.5 mb", 1500000), ("7", 7), ("2T", 2 * 10**12)],
)
def test_sizes(text, size):
    assert size_in_bytes(text) == size


@pytest.mark.parametrize(
    ("text", "file", "strength"),
    [
        ("x.safetensors", "x.safetensors", 1.0),
        ("x.safetensors:0.8", "x.safetensors", 0.8),
        ("x.safetensors:-1", "x.safetensors", -1.0),
        ("x.safetensors:+.5", "x.safetensors", 0.5),
        ("x:1e-2", "x", 0.01),
        (r"C:\x\y.safetensors:0.8", r"C:\x\y.safetensors", 0.8),
        (r"C:\x\y.safetensors", r"C:\x\y.safetensors", 1.0),
        ("C:/1:2", "C:/1", 2.0),
        ("a:b.safetensors", "a:b.safetensors", 1.0),
        ("x.safetensors:strong", "x.safetensors:strong", 1.0),
    ],
)
def test_file_and_strength(text, file, strength):
    assert lora_file(text) == (input_path(file), strength)


@pytest.mark.parametrize("text", ["", "x:0", "x:-0.0", "x:1e999", "x:1e39", "x:-1e308"])
def test_no_file_or_no_strength(text):
    with pytest.raises(argparse.ArgumentTypeError):
        lora_file(text)
