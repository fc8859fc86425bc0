"""Turn planned tensors into the values that are written.

`pieces` reads ahead, `layer` quantises one layer, `rounding` rounds it by statistics, `float16`
casts what is not quantised, and `compute` holds threads, device and compiled kernels.
"""
