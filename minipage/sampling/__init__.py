"""Sampling: what a request may ask for, what that does to its logits, how a token is drawn, and beam search."""

from minipage.sampling.param_checks import as_tuple, check_token_ids, is_whole
from minipage.sampling.params import SamplingParams
from minipage.sampling.processors import Adjustment, Processors, make_processors, only_those
from minipage.sampling.sampler import NO_TOKEN, Draw, Logprob, random_number, sample, sample_batch, top_logprobs
from minipage.sampling.structured import Grammar, GrammarCompiler, StructuredOutputsParams

__all__ = [
    "NO_TOKEN",
    "Adjustment",
    "Draw",
    "Grammar",
    "GrammarCompiler",
    "Logprob",
    "Processors",
    "SamplingParams",
    "StructuredOutputsParams",
    "as_tuple",
    "check_token_ids",
    "is_whole",
    "make_processors",
    "only_those",
    "random_number",
    "sample",
    "sample_batch",
    "top_logprobs",
]
