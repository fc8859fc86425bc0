"""Look at what conversions and ComfyUI need here, and say what to do about what is missing.

`prober` is the program that runs in a Python and tells what it has, `facts` starts it and asks the
system, `judge` tells what follows from the facts, and `examine` does all of it in order. Nothing
here needs torch: that it is missing is one of the findings.
"""
