"""Derive from the rows of a conversion what other rooms ask for."""

from __future__ import annotations

from pathlib import Path

from nvfp4.model import Model
from nvfp4.options.formats import DEFAULT_FORMATS, RECIPES, formats_of_card
from nvfp4.options.goals import GOALS, in_flags
from nvfp4.options.header import recorded_values
from nvfp4.options.option import options_of, paths_of

# Encoded bytes that may wait for the writer, unless --low-mem is given. Encoding goes on meanwhile
# when the disk is slow; the bytes count towards the peak of memory.
WRITE_AHEAD = 96 << 20


class DerivedOptions:
    """Hold the properties of `Options`, whose fields are the rows of the table."""

    __slots__ = ()

    def target(self, model: Model) -> int:
        """Tell how many bytes OUTPUT may have by --target-size or --target-ratio; 0 without these.

        model: the source, of whose tensors the ratio is a share, headers left out.
        """
        return self.target_size or int((self.target_ratio or 0) * model.nbytes)

    @property
    def is_sized(self) -> bool:
        """Tell whether a size of OUTPUT decides on formats, given or by --fit."""
        return bool(self.target_size or self.target_ratio or self.fit)

    @property
    def expanded(self) -> dict[str, str]:
        """Tell which options --goal stands for: {flag: value as one types it}; {} without."""
        values = GOALS[self.goal].values if self.goal else {}
        kept = {name: value for name, value in values.items() if getattr(self, name) == value}
        return in_flags(kept)

    @property
    def allowed(self) -> tuple[str, ...]:
        """List the words of the formats that may be chosen: by --formats, else by --card.

        A recipe leaves of them those that it writes.
        """
        words = self.formats or (formats_of_card(self.card) if self.card else DEFAULT_FORMATS)
        written = RECIPES[self.recipe].formats
        return tuple(word for word in words if word in written) if written else words

    @property
    def has_family(self) -> bool:
        """Tell whether a family's rows decide: not with a GGUF, nor with preset all or none."""
        return self.preset not in (None, "all", "none")

    @property
    def eight_bits(self) -> tuple[str, ...]:
        """List the 8-bit formats by their words, that first which layers get for 8 bits.

        That is FP8 beside a GGUF, unless --use-int8 asks for INT8. Not all of them may be allowed.
        """
        is_fp8 = self.gguf and not self.use_int8
        return ("fp8", "int8", "mxfp8") if is_fp8 else ("int8", "mxfp8", "fp8")

    @property
    def written(self) -> Path:
        """Name the file that a person loads: OUTPUT, or the index of its shards beside it."""
        return self.written_as(self.output)

    def written_as(self, output: Path) -> Path:
        """Name the file that a person would load if OUTPUT were this."""
        index = output.with_name(output.name + ".index.json")
        return index if self.output_sharded else output

    @property
    def buffers(self) -> int:
        """Count the read buffers: one that is worked on, and one that is filled meanwhile.

        With --low-mem there is one, and nothing is read ahead.
        """
        return 1 if self.low_mem else 2

    @property
    def ahead(self) -> int:
        """Tell how many encoded bytes may wait to be written; none with --low-mem."""
        return 0 if self.low_mem else WRITE_AHEAD

    @property
    def inputs(self) -> tuple[Path, ...]:
        """List the files that options name as inputs, which OUTPUT must not overwrite.

        They are in the order of the rows. Of SOURCE, this is the path as given: an index's shards
        are in the model's `files`.
        """
        rows = [row for row in options_of(type(self)) if row.reads]
        return tuple(path for row in rows for path in paths_of(getattr(self, row.name)))

    @property
    def texts(self) -> tuple[Path, ...]:
        """List the text files to write beside the model: the report, the layer config."""
        rows = [row for row in options_of(type(self)) if row.writes]
        return tuple(path for row in rows for path in paths_of(getattr(self, row.name)))

    @property
    def recorded(self) -> dict[str, object]:
        """Tell what the header of OUTPUT records of the options: {field: value for JSON}."""
        return recorded_values(self)
