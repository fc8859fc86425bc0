"""Fuzz one reader as coverage tells (atheris, which is libFuzzer), for runs longer than fuzz.py's.

New inputs go into the corpus, so that the next run starts from them. The first find ends the run
with its traceback and is saved as crash-*. Needs `pip install atheris` (Linux).

Usage: python tests/fuzz/guided.py READER CORPUS [libFuzzer's options, as -max_total_time=600]
"""

import contextlib
import random
import sys
import tempfile
import warnings
from pathlib import Path

import atheris

sys.path.append(str(Path(__file__).resolve().parent))

with atheris.instrument_imports(include=["convert_nvfp4", "nvfp4"]):
    import convert_nvfp4 as c
    import fuzz
    from support import hostile


def main() -> None:
    if len(sys.argv) < 3 or sys.argv[1] not in fuzz.READERS:
        sys.exit(f"{__doc__}\nREADER is one of: {', '.join(fuzz.READERS)}")
    sample, read = fuzz.READERS[sys.argv[1]]
    reader, corpus = fuzz.Reader(*fuzz.SAMPLES[sample], read), Path(sys.argv[2])
    corpus.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(reader.samples):
        (corpus / f"sample-{number}").write_bytes(data)
    folder = hostile.sound(Path(tempfile.mkdtemp()))

    def read_one(data: bytes) -> None:
        (folder / reader.file).write_bytes(data)
        with contextlib.suppress(c.ConvertError), warnings.catch_warnings():
            warnings.simplefilter("error")
            reader.read(folder / reader.file)

    def change(data: bytes, limit: int, seed: int) -> bytes:
        """In turn with libFuzzer's own changes, those that keep lengths and JSON right."""
        draw = random.Random(seed)
        if draw.random() < 0.5:
            return atheris.Mutate(data, limit)
        return draw.choice(reader.changes)(draw, data)[:limit]

    c.torch.set_num_threads(1)
    for data in reader.samples:  # what is imported at the first use takes seconds
        read_one(data)
    atheris.Setup([sys.argv[0], *sys.argv[2:]], read_one, custom_mutator=change)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
