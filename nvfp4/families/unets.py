"""Families of UNets: a row for each.

What a row says is told in `records`, and in which order rows are looked at in `table`.
"""

from __future__ import annotations

from nvfp4.families.records import Family

UNET_FAMILIES: dict[str, Family] = {}
