"""What things cost: one command for each question, from the top of the repository.

python -m benchmarks.attention   paged attention on the CPU beside PyTorch's, and beside the bandwidth of the memory
python -m benchmarks.engine      how fast does a whole engine serve, beside transformers' two?
python -m benchmarks.memory      how many sequences fit, paged and reserved, and what does the memory manager cost?
python -m benchmarks.scheduler   what does a scheduling step cost, by the number of running sequences?
python -m benchmarks.offload     what does it cost to bring back a prefix that was evicted?
python -m benchmarks.startup     how long until something is there to see?

Each takes --quick, for a first look; --json FILE, which keeps all the numbers together with the versions and the
computer that they come from; and --save FOLDER, which also draws them. `measure.py` says how time is measured, and
docs/performance.md what was found. They need `pip install -e . --group benchmarks`.
"""
