"""The worker: it computes what the scheduler has planned, and decides nothing.

batch.py    a step's plan as flat arrays
runner.py   the model, and the memory it works in; gpu/ the same on a GPU
"""
