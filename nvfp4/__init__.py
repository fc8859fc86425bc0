"""Convert diffusion models to mixed-precision NVFP4, and check them.

This package is the only source: the script convert_nvfp4.py at the root of the repository is built
from it by `python tools/single_file.py`. Rooms stand on floors, and each imports from lower ones
alone. The data goes from `options` and `read` over `source`, `guides` and `plan` to `encode` and
`write`, then to `verify` and `report`; `conversion` calls them in that order, and `cli` calls
`conversion`.
"""
