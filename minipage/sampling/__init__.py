"""Sampling: what a request may ask for, how a token is drawn from logits, and beam search."""

from minipage.sampling.params import SamplingParams, is_whole
from minipage.sampling.sampler import NO_TOKEN, Draw, Logprob, random_number, sample, sample_batch, top_logprobs

__all__ = [
    "NO_TOKEN",
    "Draw",
    "Logprob",
    "SamplingParams",
    "is_whole",
    "random_number",
    "sample",
    "sample_batch",
    "top_logprobs",
]
