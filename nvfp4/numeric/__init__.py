"""The arithmetic of a conversion: tensors in, tensors out, no files.

`codes` packs and unpacks NVFP4 and FP8, `scale_search` chooses block scales, `feedback` rounds by
the statistics of a layer's input, `damage` measures errors, and `lora` merges LoRAs into weights.
`kernels` and `gpu_kernel` hold the same loops in a form that numba and triton can compile, and
`compiled` compiles them.
"""
