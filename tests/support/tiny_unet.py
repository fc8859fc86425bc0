"""Small UNets: a row for each."""

from support.tiny import Tiny

TINY_UNET: dict[str, Tiny] = {}
