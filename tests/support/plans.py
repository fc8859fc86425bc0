"""Plans of small models made in a test, by the options as they are typed."""

import torch
from safetensors.torch import save_file

from nvfp4.cli.parse import parse_options
from nvfp4.guides.read import read_guides
from nvfp4.plan.make import make_plans, shape_notes
from nvfp4.read.checkpoint import open_model


def plan_of(tmp_path, tensors, *arguments):
    """{name: TensorPlan} of a single-file source with these tensors."""
    source = tmp_path / "m.safetensors"
    save_file(tensors, source)
    options = parse_options([str(source), str(tmp_path / "o.safetensors"), *arguments])
    model = open_model(source)
    plans, notes = make_plans(options, model, read_guides(options, model))
    return {plan.ref.name: plan for plan in plans}, (*notes, *shape_notes(options, plans))


def plans_of(tiny, *arguments):
    """{layer: plan} of the documented 5-bit mix with these options."""
    base = ["--gguf", str(tiny / "model.gguf"), "--gguf-nvfp4-max-bitdepth", "5", "--use-fp8"]
    options = parse_options([str(tiny), "o.safetensors", *base, *arguments])
    model = open_model(tiny)
    plans, notes = make_plans(options, model, read_guides(options, model))
    return {plan.ref.layer: plan for plan in plans}, notes


ALL = ("--preset", "none", "--include", ".")


def weight(rows=32, columns=64, dtype=torch.float32):
    return torch.ones(rows, columns, dtype=dtype)


BLOCK = {
    "blocks.0.ffn.0.weight": weight(),
    "blocks.0.ffn.2.weight": weight(),
    "blocks.0.self_attn.v.weight": weight(),
}
