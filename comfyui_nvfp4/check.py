"""The node that checks a quantised file, and compares it with the model it was made from."""

from __future__ import annotations

from comfy_api.latest import io

from .convert import written_for_node
from .files import NONE, find_lora, find_model, listed_in, model_names, page_name
from .made import changes, note_files
from .pages import page_file
from .runtime import converting
from .settings import LORAS, input_names, merges
from .wording import Words


class NVFP4CheckFile(io.ComfyNode):
    """Name every defect of a file that ComfyUI knows; with a source, measure each layer's error."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node."""
        names = model_names()
        return io.Schema(
            node_id="NVFP4CheckFile",
            display_name="Check Model File (NVFP4)",
            category="advanced/quantization",
            description=(
                "Names every defect of a quantised model (NVFP4, INT8, FP8 ..., made by any "
                "program), what ComfyUI does about it and what to do. With the model it was made "
                "from, every layer is decoded and its error measured."
            ),
            search_aliases=[
                "verify nvfp4", "nvfp4", "inspect model", "compare models", "quantization error",
                "check quantized", "validate safetensors", "precision map",
            ],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Combo.Input(
                    "model_file",
                    options=names,
                    tooltip="the file to check; or link what a converting node returns",
                ),
                io.Combo.Input(
                    "source",
                    options=[NONE, *names],
                    tooltip="the 16-bit model that it was made from, to measure each layer's "
                    "error; none: names, shapes and scales are checked alone",
                ),
                LORAS.Input(
                    "loras", optional=True, tooltip="the LoRAs that were merged into the source"
                ),
            ],
            outputs=[
                io.String.Output("summary", display_name="summary", tooltip="what was found"),
                io.Boolean.Output(
                    "good", display_name="good", tooltip="true where ComfyUI loads it as it should"
                ),
            ],
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, **values: object) -> tuple:
        """Tell ComfyUI whether a file has changed since it was checked."""
        return changes(cls.hidden.unique_id, values)

    @classmethod
    def execute(cls, model_file: str, source: str, loras: tuple = ()) -> io.NodeOutput:
        """Check the file; its defects are a result, and no error of the node."""
        with converting(cls.hidden.unique_id) as program:
            path, kind = find_model(model_file)
            task = program.Verification(
                file=path,
                source=None if source == NONE else find_model(source)[0],
                merge_lora=[*merges(loras)],
                quiet=True,
            )
            check = program.verify_file(task)
            page = page_file(page_name(path, "_check"))
            words, folder = Words(kind, input_names()), listed_in(path, kind)
            data = words.report(program.check_data(check), str(path.relative_to(folder)))
            program.write_text(program.render_check_page(check, data), page)
            text = written_for_node(program, program.render_check(check), words, folder)
        read = [path, task.source, *(find_lora(name) for name, _ in loras or ())]
        note_files(cls.hidden.unique_id, read)
        good = check.outcome <= program.Outcome.LOADS
        return io.NodeOutput(text, good, ui={"text": (text,), "nvfp4_page": (page.name,)})
