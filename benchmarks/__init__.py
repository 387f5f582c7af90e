"""What things cost: one command for each question, from the top of the repository.

python -m benchmarks.memory      does an operation on the memory manager cost the same, however large the pool?
python -m benchmarks.scheduler   what does a scheduling step cost, by the number of running sequences?

Each takes --quick, for a first look, and --json FILE, which keeps all the numbers together with the versions and the
computer that they come from. `measure.py` says how time is measured.
"""
