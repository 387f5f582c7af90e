"""The cellar: what compiled code on a CPU is made of. Attention and the model's layers stand on it.

options.py   how numba compiles, where machine code is kept, who may run it when
vectors.py   vector instructions, written in LLVM's language
matrix.py    the matrix product
pairs.py     products of whole numbers, bfloat16.py of bfloat16, two at a time
halves.py    numbers of two bytes, fp8.py of one; arrays.py: arrays as compiled code takes them
"""
