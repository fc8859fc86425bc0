"""Load every way in which a tensor is stored: one file each.

Importing the room loads all its modules, found by being in this folder, and each creates its rows
(see `base.Format`). A new format is a new file here: nothing else lists them.
"""

import importlib
import pkgutil

for found in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{found.name}")
