"""What colours look like: contrast by WCAG 2, distances by OKLab, to people with and without a
colour deficiency.

Simulations are those of Machado, Oliveira and Fernandes (2009) at full severity, on linear RGB;
OKLab is Björn Ottosson's (2020).
"""

import numpy as np

TO_LMS = np.array(
    [[0.4122214708, 0.5363325363, 0.0514459929],
     [0.2119034982, 0.6806995451, 0.1073969566],
     [0.0883024619, 0.2817188376, 0.6299787005]]
)  # fmt: skip
TO_LAB = np.array(
    [[0.2104542553, 0.7936177850, -0.0040720468],
     [1.9779984951, -2.4285922050, 0.4505937099],
     [0.0259040371, 0.7827717662, -0.8086757660]]
)  # fmt: skip
# fmt: off
VISION = {
    "usual": np.eye(3),
    "protanopia": np.array([[0.152286, 1.052583, -0.204868],
                            [0.114503, 0.786281, 0.099216],
                            [-0.003882, -0.048116, 1.051998]]),
    "deuteranopia": np.array([[0.367322, 0.860646, -0.227968],
                              [0.280085, 0.672501, 0.047413],
                              [-0.011820, 0.042940, 0.968881]]),
    "tritanopia": np.array([[1.255528, -0.076749, -0.178779],
                            [-0.078411, 0.930809, 0.147602],
                            [0.004733, 0.691367, 0.303900]]),
}
# fmt: on


def linear(colour):
    """The light of "#rrggbb", 0 to 1 for each channel."""
    values = np.array([*bytes.fromhex(colour[1:])]) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def contrast(one, other):
    """The contrast ratio of two colours, 1 to 21."""
    low, high = sorted(float(linear(c) @ (0.2126, 0.7152, 0.0722)) for c in (one, other))
    return (high + 0.05) / (low + 0.05)


def distance(one, other, vision="usual"):
    """How far two colours are apart; about 0.02 is just noticeable."""
    labs = [
        TO_LAB @ np.cbrt(TO_LMS @ np.clip(VISION[vision] @ linear(c), 0, 1)) for c in (one, other)
    ]
    return float(np.linalg.norm(labs[0] - labs[1]))
