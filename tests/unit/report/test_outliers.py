"""Layers stand out by what is usual for their format, and by that alone."""

from nvfp4.report.outliers import standing_out


def errors(stored_as, *values):
    return [(f"{stored_as} {index}", stored_as, value) for index, value in enumerate(values)]


def test_a_layer_stands_out_in_its_own_format():
    fours = errors("NVFP4", 0.08, 0.081, 0.082, 0.083, 0.15)
    eights = errors("INT8", 0.01, 0.0101, 0.0102, 0.0099, 0.02)
    assert standing_out([*fours, *eights]) == {"NVFP4 4", "INT8 4"}


def test_usual_differences_do_not_stand_out():
    assert standing_out(errors("NVFP4", 0.08, 0.081, 0.08, 0.08, 0.095)) == set()
    assert standing_out(errors("NVFP4", 0.05, 0.07, 0.09, 0.11, 0.15)) == set()


def test_of_few_layers_none_stands_out():
    assert standing_out(errors("FP8", 0.02, 0.02, 0.02, 0.9)) == set()


def test_lossless_layers_tell_nothing_of_what_is_usual():
    assert standing_out(errors("NVFP4", *[0] * 9, 0.08, 0.08, 0.08, 0.081, 0.08)) == set()
