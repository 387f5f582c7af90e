"""How a layer is computed: all of `Layers` in the array API, and what other libraries and numba do better.

plain.py      NumPy, CuPy and PyTorch: each method in one to four lines
compiled.py   NumPy with numba: the products; passes.py: the rest
torch.py      PyTorch, with its own operations
onednn.py     PyTorch in bfloat16 on a CPU: the matrices in the order that its instructions want
bfloat16.py   the same through our own products, where they are faster; int8.py: weights of one byte
"""
