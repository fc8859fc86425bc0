"""The rooms of the package nvfp4/ by floor: who may import from whom, and what lives there.

A room is a folder or a module of the package. It may import from the rooms of lower floors and
from itself. tests/unit/test_rooms.py holds the package to it; docs/architecture.md shows it.
"""

# From the ground up: {room: what lives there}. Whoever adds a room gives it a floor.
FLOORS = (
    {
        "errors": "what goes wrong, and how names and sizes are told",
        "notes": "what a person is told beside a result, by rank: information to warning",
        "dtypes": "facts about numbers: ranges, block and tile sizes, safetensors dtypes",
        "reasons": "why something was decided: a kind for programs, a text for people",
        "progress": "what a person sees while it runs: phases, bars, lines of a log",
        "stages": "how a conversion tells a benchmark what it is busy with",
        "requirements": "what has to be installed",
        "virtual": "paths of files that lie on no disk of this machine, and are read as others are",
        "programs": "other programs that are started: none of the current folder, none for ever",
        "tokens": "how many tokens of a typical run each layer multiplies by, a row a family",
        "cards": "what each class of graphics cards multiplies fast, and how fast",
        "comfy_classes": "what ComfyUI's own classes say of weights: data that a script made",
        "comfy_memory": "what ComfyUI reserves on a card: data that a script made",
    },
    {
        "work": "the share of the multiply work by format, and the speed that may come of it",
        "files": "links, locks, writing whole or not at all, errors of the operating system",
        "ranks": "the processes of a torchrun",
        "modules": "which module of ComfyUI a weight's name belongs to, and what it reads of it",
    },
    {
        "model": "records of a checkpoint: tensors, names, prefixes, LoRAs",
        "hub": "files on the Hugging Face Hub, read by ranges",
    },
    {
        "numeric": "quantising and its inverse, scale search, rounding by statistics, kernels",
        "families": "known models, as rows",
        "names": "what the names of layers tell: their kind, their order",
        "quantisers": "other programs' quantised models, told by the names of their tensors",
        "file_kinds": "what a file is that is no diffusion model, as rows",
    },
    {
        "formats": "one file for each way in which a tensor is stored",
        "options": "one row for each option",
        "prefixes": "the names that ComfyUI has for tensors, where wrappers and prefixes hide them",
        "coverage": "whether a guide tells of the whole source, or of a part",
        "memory": "tensors in memory, read as a file",
    },
    {"read": "safetensors headers, indexes, shards, JSON within limits, a tensor's values"},
    {
        "stored": "a quantised file: its layers, the known defects, ComfyUI's contract",
        "guides": "files that steer a plan, each read once into one record",
        "fit": "what fits into a card's memory beside what ComfyUI reserves there, by estimate",
    },
    {
        "source": "what is converted: adopted layers, merged LoRAs",
        "plan": "each tensor's fate and why; opens no file",
    },
    {"layout": "the output to the byte"},
    {
        "asking": "what the user's own ComfyUI makes of a file",
        "encode": "devices, reading ahead, a layer encoded",
        "write": "journal, partial files, publishing",
    },
    {
        "doctor": "what conversions and ComfyUI need here, and what to do about what is missing",
        "verify": "a file against its source",
        "tune": "plans changed by measuring",
        "production": "a job rehearsed, or carried out: encoded, written and published",
    },
    {"report": "what was done: data, text, page"},
    {"conversion": "one conversion, as the list of its phases"},
    {"cli": "the command line"},
    {"logs": "the analyser of calibration logs", "compare": "two checkpoints side by side"},
    {"calibrate": "prompts sampled and recorded in a ComfyUI that is started for it"},
    {
        "__main__": "`python -m nvfp4`, and the template of the single file",
        "commands": "the commands of an installed package",
    },
)
