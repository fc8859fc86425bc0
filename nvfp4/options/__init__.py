"""The options of a conversion, one row each, and all that follows.

Import from here what other rooms need; `table` has the rows of a conversion, `tasks` those of other
tasks, `option` what a row is and the checks between rows, `kinds` the values that options take,
`formats` the words of formats and what recipes and cards leave of them, `header` what a converted
file records. Nothing here needs torch.
"""

from nvfp4.options.formats import RECIPES, UNQUANTISED
from nvfp4.options.option import (
    Alias,
    LayerSwitch,
    Option,
    Other,
    all_options,
    contradictions,
    option,
    options_of,
)
from nvfp4.options.parts import part_options
from nvfp4.options.switches import FULL_PRECISION_OPTIONS, MINIMUM_OPTIONS
from nvfp4.options.table import (
    ACTIVATION_GROUPS,
    LEGACY_RECIPE,
    REPORT_KINDS,
    TARGET,
    Options,
    __version__,
)
from nvfp4.options.tasks import (
    OPTIONS,
    OTHER_TASKS,
    CalibrationRun,
    CommandLine,
    Doctor,
    Verification,
)

__all__ = [
    "ACTIVATION_GROUPS",
    "FULL_PRECISION_OPTIONS",
    "LEGACY_RECIPE",
    "MINIMUM_OPTIONS",
    "OPTIONS",
    "OTHER_TASKS",
    "RECIPES",
    "REPORT_KINDS",
    "TARGET",
    "UNQUANTISED",
    "Alias",
    "CalibrationRun",
    "CommandLine",
    "Doctor",
    "LayerSwitch",
    "Option",
    "Options",
    "Other",
    "Verification",
    "__version__",
    "all_options",
    "contradictions",
    "option",
    "options_of",
    "part_options",
]
