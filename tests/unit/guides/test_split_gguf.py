"""A GGUF in several files is read whole, or refused."""

import gguf
import numpy as np
import pytest

from nvfp4.errors import ConvertError
from nvfp4.guides.gguf import open_gguf

NAMES = [f"blocks.{block}.q.weight" for block in range(6)]


def write_part(path, names, *split):
    """One file of a GGUF; `split` are its number, the count of parts, and of all tensors."""
    writer = gguf.GGUFWriter(path, arch="wan")
    if split:
        number, count, tensors = split
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", count)
        writer.add_int32("split.tensors.count", tensors)
    for name in names:
        writer.add_tensor(name, np.zeros((4, 32), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_parts(folder, name="m-{:05}-of-00003.gguf", first=1):
    """Six tensors in three files of two each."""
    return [
        write_part(folder / name.format(first + i), NAMES[2 * i : 2 * i + 2], i, 3, 6)
        for i in range(3)
    ]


@pytest.mark.parametrize("given", range(3))
@pytest.mark.parametrize(
    ("name", "first"),
    [("m-{:05}-of-00003.gguf", 1), ("M-{:05}-OF-00003.GGUF", 1), ("m_{}_of_3.gguf", 1),
     ("m-{:05}-of-00003.gguf", 0), ("best-2-of-4 m.part{}of3.gguf", 1)],
)  # fmt: skip
def test_any_part_stands_for_all(tmp_path, given, name, first):
    paths = write_parts(tmp_path, name, first)
    model = open_gguf(paths[given])
    assert [*model.tensors] == NAMES
    assert model.files == tuple(paths)
    assert model.tensors[NAMES[4]].path == paths[2]


def test_a_first_part_may_have_no_tensors(tmp_path):
    write_part(tmp_path / "m-00002-of-00002.gguf", NAMES, 1, 2, 6)
    path = write_part(tmp_path / "m-00001-of-00002.gguf", [], 0, 2, 6)
    assert [*open_gguf(path).tensors] == NAMES


def test_parts_are_told_by_their_names_alone(tmp_path):
    write_part(tmp_path / "m-00002-of-00002.gguf", NAMES[3:])
    path = write_part(tmp_path / "m-00001-of-00002.gguf", NAMES[:3])
    assert [*open_gguf(path).tensors] == NAMES


def test_the_only_one_of_one_is_whole(tmp_path):
    path = write_part(tmp_path / "m-00001-of-00001.gguf", NAMES, 0, 1, 6)
    assert [*open_gguf(path).tensors] == NAMES


def lose_two(paths):
    paths[0].unlink()
    paths[2].unlink()
    return paths[1]


def rename(paths):
    return paths[1].rename(paths[1].with_name("wan-Q5_K_M.gguf"))


def take_of_four(paths):
    return write_part(paths[0].with_name("m-00001-of-00004.gguf"), NAMES[:2], 0, 3, 6)


def swap_names(paths):
    paths[0].rename(paths[0].with_name("x"))
    paths[1].rename(paths[0])
    paths[0].with_name("x").rename(paths[1])
    return paths[2]


def mix(paths):
    write_part(paths[1], NAMES[2:4], 1, 3, 9)
    return paths[0]


def repeat(paths):
    write_part(paths[1], NAMES[:2], 1, 3, 6)
    return paths[0]


def cut_short(paths):
    for index, path in enumerate(paths):
        write_part(path, NAMES[index : index + 1], index, 3, 6)
    return paths[0]


def unnumbered(paths):
    write_part(paths[1], NAMES[2:4])
    return paths[0]


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lose_two, r"-of-00003\.gguf: is one of 3 parts .* m-00001-of-00003\.gguf, "
                   r"m-00003-of-00003\.gguf is missing beside it"),
        (rename, r"Q5_K_M\.gguf: is part 1 of 3 of a GGUF, counted from 0, and its name does not"),
        (take_of_four, r"00004\.gguf: is one of 3 parts of a GGUF, and not of 4"),
        (swap_names, r"m-00001-of-00003\.gguf: is no part of the same GGUF as m-00001-of-00003"),
        (mix, r"m-00002-of-00003\.gguf: is no part of the same GGUF as m-00001-of-00003"),
        (unnumbered, r"m-00002-of-00003\.gguf: is no part of the same GGUF as m-00001-of-00003"),
        (repeat, r"m-00002-of-00003\.gguf: blocks\.0\.q\.weight, .* is in an earlier part"),
        (cut_short, r"m-00001-of-00003\.gguf: its 3 parts have 3 tensors, and not 6"),
    ],
)  # fmt: skip
def test_parts_that_are_not_one_whole_are_refused(tmp_path, broken, message):
    with pytest.raises(ConvertError, match=message):
        open_gguf(broken(write_parts(tmp_path)))
