"""`learn project`: ten projects, each with a file to start from, a benchmark on three workloads, and a leaderboard."""
