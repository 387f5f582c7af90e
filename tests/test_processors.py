"""What is done to logits before a token is chosen, against slow oracles: plain Python in the order that vLLM documents
for its sampler (allowed tokens, bad words, min_tokens, logit_bias; then repetition, frequency and presence penalties),
and transformers' processors where they mean the same.
"""

import copy
import math
import pickle
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from transformers import (
    MinNewTokensLengthLogitsProcessor,
    NoBadWordsLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
)

from minipage.errors import InvalidRequestError
from minipage.sampling import NO_TOKEN, Processors, SamplingParams, StructuredOutputsParams, sample

V = 13  # not a multiple of 8: the last byte of a mask is not full
tokens = st.integers(0, V - 1)
texts = st.lists(tokens, max_size=12)
rows = st.lists(st.floats(-20, 20, width=32), min_size=V, max_size=V).map(lambda row: np.array(row, np.float32))
penalties = st.sampled_from([-2, -0.5, 0, 0.25, 1.3])
options = st.fixed_dictionaries(
    {},
    optional={
        "presence_penalty": penalties,
        "frequency_penalty": penalties,
        "repetition_penalty": st.sampled_from([0.5, 1.0, 1.2, 3.0]),
        "logit_bias": st.dictionaries(tokens, st.sampled_from([-100.0, -1.5, 0.0, 2.5, 100.0]), max_size=4),
        "allowed_token_ids": st.sets(tokens, min_size=1).map(sorted),
        "min_tokens": st.integers(0, 6),
    },
)
words = st.lists(st.lists(tokens, min_size=1, max_size=3), max_size=4)


def slowly(logits, params, prompt, output, stop, bad_words):
    """The same, one option after the other, in Python's float64."""
    x = [float(value) for value in logits]
    never = -math.inf
    if params.allowed_token_ids:
        x = [value if token in params.allowed_token_ids else never for token, value in enumerate(x)]
    for *before, last in bad_words:
        if output[len(output) - len(before) :] == before and len(output) >= len(before):
            x[last] = never
    if len(output) < params.min_tokens:
        for token in stop:
            x[token] = never
    for token, bias in params.logit_bias or ():
        x[token] += bias
    for token in {*prompt, *output} if params.repetition_penalty != 1 else ():
        x[token] = x[token] / params.repetition_penalty if x[token] > 0 else x[token] * params.repetition_penalty
    for token, times in Counter(output).items():
        x[token] -= params.frequency_penalty * times
        x[token] -= params.presence_penalty
    return x


def adjusted(logits, params, prompt=(), output=(), stop=(), bad_words=()):
    adjustment = Processors(params, list(prompt), stop, bad_words, len(logits)).adjustment(list(output))
    return logits if adjustment is None else adjustment.apply(logits)


@given(rows, options, texts, texts, st.sets(tokens, max_size=3), words)
@example(  # a bias changes the sign, on which the repetition penalty depends
    np.array([-5, 5, 1] + [0] * 10, np.float32), {"logit_bias": {0: 100.0, 1: -100.0}, "repetition_penalty": 3.0},
    [0, 1, 2], [0, 0, 3], set(), [],
)  # fmt: skip
def test_everything_together_is_what_a_slow_oracle_says(logits, given_options, prompt, output, stop, bad_words):
    params, before = SamplingParams(**given_options), logits.copy()
    ours = adjusted(logits, params, prompt, output, stop, bad_words)
    expected = slowly(logits, params, prompt, output, stop, bad_words)
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-4)
    np.testing.assert_array_equal(logits, before, "the row of logits belongs to somebody else and was changed")


def by_transformers(processor, logits, prompt, output):
    return processor(torch.tensor([[*prompt, *output]]), torch.from_numpy(logits.copy())[None])[0].numpy()


some = texts.filter(bool)


@given(rows, st.sampled_from([0.3, 1.1, 2.0]), some, texts)
def test_the_repetition_penalty_is_that_of_transformers(logits, penalty, prompt, output):
    theirs = by_transformers(RepetitionPenaltyLogitsProcessor(penalty), logits, prompt, output)
    np.testing.assert_allclose(adjusted(logits, SamplingParams(repetition_penalty=penalty), prompt, output), theirs)


@given(rows, st.dictionaries(tokens, st.sampled_from([-7.0, 0.5, 30.0]), min_size=1, max_size=4), some)
def test_a_bias_is_that_of_transformers(logits, bias, prompt):
    theirs = by_transformers(SequenceBiasLogitsProcessor({(t,): b for t, b in bias.items()}), logits, prompt, [])
    np.testing.assert_allclose(adjusted(logits, SamplingParams(logit_bias=bias), prompt), theirs)


@given(rows, words.filter(bool), texts)
def test_bad_words_are_those_of_transformers(logits, bad_words, output):
    """Of the output alone, as in vLLM; transformers, which has no prompt here, looks at the prompt as well."""
    theirs = by_transformers(NoBadWordsLogitsProcessor(bad_words), logits, [], [*output])
    np.testing.assert_array_equal(adjusted(logits, SamplingParams(), [], output, (), bad_words), theirs)


@given(rows, st.integers(1, 5), some, texts, st.sets(tokens, min_size=1, max_size=3))
def test_min_tokens_are_those_of_transformers(logits, least, prompt, output, stop):
    processor = MinNewTokensLengthLogitsProcessor(len(prompt), least, sorted(stop))
    theirs = by_transformers(processor, logits, prompt, output)
    np.testing.assert_array_equal(adjusted(logits, SamplingParams(min_tokens=least), prompt, output, stop), theirs)


@given(rows, options, texts, texts)
def test_the_penalties_look_at_the_output_alone_and_repetition_at_the_prompt_too(logits, given_options, prompt, output):
    others = SamplingParams(**(given_options | {"repetition_penalty": 1}))
    np.testing.assert_array_equal(adjusted(logits, others, prompt, output), adjusted(logits, others, [], output))
    alone = SamplingParams(repetition_penalty=2)
    np.testing.assert_array_equal(adjusted(logits, alone, prompt, output), adjusted(logits, alone, output, prompt))


def test_who_asks_for_nothing_pays_nothing():
    assert not Processors.are_wanted(SamplingParams(temperature=0.5, top_k=3, logprobs=2, stop=["x"], seed=1))
    assert Processors(SamplingParams(min_tokens=2), [1], [3], [], V).adjustment([4, 5]) is None
    for option in ({"presence_penalty": 0.1}, {"repetition_penalty": 0.9}, {"min_tokens": 1}, {"bad_words": ["x"]}):
        assert Processors.are_wanted(SamplingParams(**option)), option


def test_where_nothing_is_allowed_no_token_is_drawn():
    params = SamplingParams(allowed_token_ids=[3], min_tokens=1)
    adjustment = Processors(params, [1], [3], [], V).adjustment([])
    assert adjustment.leaves_nothing(V)
    for temperature in (0, 1):
        assert sample(np.zeros(V, np.float32), SamplingParams(temperature=temperature), 0.5, adjustment) == NO_TOKEN
    assert not Processors(params, [1], [3], [], V).adjustment([5]).leaves_nothing(V)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("repetition", [1e-6, 1e6])
@pytest.mark.parametrize("bias", [{}, {0: 1e30}, {0: -1e30, 1: -1e30, 2: -1e30}])
def test_the_largest_values_leave_numbers_that_float32_holds(repetition, bias):
    logits = np.array([-1e4, 0, 1e4], np.float32)
    params = SamplingParams(repetition_penalty=repetition, logit_bias=bias, frequency_penalty=-2, presence_penalty=2)
    assert np.isfinite(adjusted(logits, params, [0, 1, 2], [0, 1, 1])).all()


# ---- parameters


GOOD = [
    {"presence_penalty": -2, "frequency_penalty": 2, "repetition_penalty": 0.01},
    {"presence_penalty": np.float32(0.5)},
    {"bad_words": ("a", " b")},
    {"allowed_token_ids": (3,)},
    {"prompt_logprobs": 0},
    {"logit_bias": ((1, -100), (7, 0.5))},
    {"structured_outputs": StructuredOutputsParams(choice=("a", "b"))},
]
BAD = {
    "presence_penalty": [-2.1, 3, math.nan, True, None, "1"],
    "frequency_penalty": [2.001, math.inf, None],
    "repetition_penalty": [0, -1, math.inf, math.nan, None, True, 1e-7, 1e300],
    "logit_bias": [
        {"x": 1},
        {1: "a"},
        {1: math.nan},
        {1: math.inf},
        {1: 1e31},
        {1: -1e300},
        {1.5: 1},
        {True: 1},
        5,
        "12",
        [1, 2],
        (1,),
        {1: None},
    ],
    "bad_words": ["word", [""], [3], 5, [None], b"x"],
    "allowed_token_ids": [[], [1.0], ["3"], "12", 3, [True]],
    "prompt_logprobs": [-1, 1.0, True, "all"],
    "structured_outputs": [{"json": "{}"}, "json", 1],
}


@pytest.mark.parametrize("values", GOOD, ids=str)
def test_good_parameters_are_taken_and_can_be_compared_hashed_and_copied(values):
    params = SamplingParams(**values)
    assert {name: getattr(params, name) for name in values} == values
    assert params == replace(params) == pickle.loads(pickle.dumps(params)) == copy.deepcopy(params)
    assert hash(params) == hash(replace(params)) and eval(repr(params)) == params != SamplingParams()


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, values in BAD.items() for v in values], ids=str)
def test_a_bad_parameter_is_named(name, value):
    with pytest.raises(InvalidRequestError, match=f"^{name} is .*; it must be "):
        SamplingParams(**{name: value})


@pytest.mark.parametrize("values", [v for v in GOOD if "min_tokens" not in v], ids=str)
def test_a_beam_search_refuses_what_it_would_ignore(values):
    with pytest.raises(InvalidRequestError, match="beam") as error:
        SamplingParams(beam_width=2, **values)
    assert next(iter(values)) in str(error.value)


@pytest.mark.parametrize(
    "given_bias",
    [{7: 0.5, 1: -100}, {"7": 0.5, "1": -100}, [(7, 0.5), [1, -100]], {np.int64(7): np.float32(0.5), 1: -100}],
    ids=str,
)
def test_a_bias_may_come_as_json_has_it_and_nobody_can_change_it_later(given_bias):
    params = SamplingParams(logit_bias=given_bias)
    given_bias.clear()
    assert params.logit_bias == ((1, -100), (7, 0.5)) and params == SamplingParams(logit_bias={1: -100, 7: 0.5})


NO_STRUCTURES = [
    {},
    {"json": "{}", "regex": "a"},
    {"json_object": False},
    {"json_object": np.zeros(2)},
    {"choice": []},
    {"choice": "ab"},
    {"choice": [1]},
    {"choice": np.array("ab")},
    {"regex": 5},
    {"json": [1]},
    {"json": {"a": {1}}},
    {"grammar": b"x"},
    {"json": "{}", "disable_any_whitespace": 1},
]


@pytest.mark.parametrize("values", NO_STRUCTURES, ids=str)
def test_structures_that_make_no_sense_are_refused(values):
    with pytest.raises(InvalidRequestError, match=r"^structured_outputs: "):
        StructuredOutputsParams(**values)


def test_a_schema_that_its_owner_changes_later_is_not_ours():
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    params = SamplingParams(structured_outputs=StructuredOutputsParams(json=schema))
    schema["properties"]["a"]["type"] = "string"
    assert '"integer"' in params.structured_outputs.json and hash(params) == hash(replace(params))
