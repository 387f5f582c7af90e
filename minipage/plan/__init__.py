"""Capacity planning: `minipage plan`. How many requests fit on one's own GPU, and how fast will they be?

deployment.py   bytes: what weights, a step and K and V take, and how many blocks are left
forecast.py     the same deployment, simulated with lengths and a rate; and what to change first
report.py       a table, JSON, a page
cli.py          the command
"""
