"""`learn quiz`: thirty questions by a seed, each with its answer, which the engine computes, and its source."""
