"""Sampling against slow oracles: what each filter keeps, how often each token is drawn, which parameters are refused.

The oracles are plain Python over lists, one filter after the other, and transformers' own filters.
"""

import copy
import math
import pickle
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st
from transformers import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from minipage.errors import InvalidRequestError, MinipageError, shown
from minipage.sampling import Processors, SamplingParams, random_number, sample, top_logprobs
from minipage.sampling.sampler import probabilities

# Whole numbers divided by a power of two: sums come out the same in any order, so a tie is a tie for everybody.
logit_rows = st.lists(st.integers(-80, 80).map(lambda i: i / 8), min_size=1, max_size=12).map(
    lambda row: np.array(row, np.float32)
)
temperatures = st.sampled_from([0.05, 0.3, 0.7, 1.0, 1.7, 20.0])
top_ks = st.integers(-1, 14)
top_ps = st.sampled_from([1e-6, 0.1, 0.35, 0.5, 0.77, 0.9, 0.999, 1.0])
min_ps = st.sampled_from([0.0, 0.01, 0.2, 0.6, 1.0])


def slow_softmax(scores):
    """Probabilities of a list of scores that may hold -inf."""
    weights = [math.exp(score - max(scores)) for score in scores]
    return [weight / sum(weights) for weight in weights]


def slow_probabilities(logits, params):
    """The same distribution, one filter after the other; also how close the nearest decision was."""
    p = slow_softmax([float(x) / params.temperature for x in logits])
    order = sorted(range(len(p)), key=lambda token: (-logits[token], token))  # likeliest first, the lower id in a tie
    margins = [1.0]
    kept = set(order[: params.top_k] if params.top_k > 0 else order)
    if params.top_p < 1:
        total, together, nucleus = sum(p[token] for token in kept), 0.0, set()
        for token in (t for t in order if t in kept):
            if together >= params.top_p * total:
                break
            nucleus.add(token)
            together += p[token]
            margins.append(abs(together - params.top_p * total))
        kept = nucleus
    highest = max(p)
    margins += [abs(p[token] - params.min_p * highest) for token in kept if params.min_p not in (0, 1)]
    kept = {token for token in kept if p[token] >= params.min_p * highest}
    total = sum(p[token] for token in kept)
    return [p[token] / total if token in kept else 0.0 for token in range(len(p))], min(margins)


# ---- the distribution


@given(logit_rows, temperatures, top_ks, top_ps, min_ps)
@example(np.zeros(4, np.float32), 1.0, 2, 0.5, 0.0)  # all tied
@example(np.array([3, 1, 2], np.float32), 1.0, 1, 1.0, 0.0)
@example(np.array([3, 1, 2], np.float32), 1.0, 0, 1e-6, 1.0)
def test_each_filter_keeps_what_a_slow_oracle_keeps(logits, temperature, top_k, top_p, min_p):
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    expected, margin = slow_probabilities(logits, params)
    assume(margin > 1e-9)  # whether a token exactly on the edge is kept is a matter of rounding
    p = probabilities(logits, params)
    assert p.sum() == pytest.approx(1)
    np.testing.assert_allclose(p, expected, rtol=1e-9, atol=1e-12)


@given(st.permutations(range(12)), temperatures, top_ks.filter(bool), top_ps, min_ps)
def test_the_distribution_is_that_of_transformers(order, temperature, top_k, top_p, min_p):
    logits = np.array([0.37 * i - 0.011 * i * i for i in order], np.float32)  # no ties: there, transformers keeps more
    assert len(set(logits)) == 12
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    _, margin = slow_probabilities(logits, params)
    assume(margin > 1e-5)
    scores = TemperatureLogitsWarper(temperature)(None, torch.from_numpy(logits)[None])
    if top_k > 0:
        scores = TopKLogitsWarper(top_k)(None, scores)
    scores = MinPLogitsWarper(min_p)(None, TopPLogitsWarper(top_p)(None, scores))
    expected = torch.softmax(scores, dim=-1)[0].numpy()
    np.testing.assert_allclose(probabilities(logits, params), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("temperature", [1e-3, 1e-30, 1e-300, 5e-324])
@pytest.mark.parametrize("scale", [1e-6, 1, 1e30])
def test_a_tiny_temperature_is_greedy_without_overflow(temperature, scale):
    logits = np.array([1, 3, 2], np.float32) * np.float32(scale)
    params = SamplingParams(temperature=temperature)
    p = probabilities(logits, params)
    assert np.isfinite(p).all() and p.argmax() == 1
    if temperature < 1e-20:
        assert p.tolist() == [0, 1, 0]


@pytest.mark.filterwarnings("error")
def test_a_huge_temperature_makes_all_tokens_alike():
    p = probabilities(np.array([-100, 0, 100], np.float32), SamplingParams(temperature=1e308))
    np.testing.assert_allclose(p, 1 / 3)


# ---- the draw


numbers = st.floats(0, 1, exclude_max=True)


def test_tokens_are_drawn_as_often_as_their_probabilities_say():
    """With the numbers of one sample's positions, of many samples at one position, and of many seeds."""
    logits = np.log(np.array([0.4, 0.05, 0.3, 0.2, 0.05], np.float32))
    params, num_draws = SamplingParams(top_p=0.95), 20_000
    expected = probabilities(logits, params) * num_draws
    for vary in (lambda i: (7, 0, i), lambda i: (7, i, 3), lambda i: (i, 0, 3)):
        counts = Counter(sample(logits, params, random_number(*vary(i))) for i in range(num_draws))
        assert set(counts) == set(np.flatnonzero(expected)), "a filtered token was drawn, or a likely one never"
        chi_square = sum((counts[token] - e) ** 2 / e for token, e in enumerate(expected) if e)
        assert chi_square < 25, f"drawn {counts}, expected {expected}: chi-square {chi_square:.1f} of 4 or 5 tokens"


@given(logit_rows, numbers)
def test_temperature_zero_takes_the_likeliest_token_whatever_was_drawn(logits, draw):
    assert sample(logits, SamplingParams(temperature=0, top_k=3, top_p=0.1), draw) == int(logits.argmax())


@given(logit_rows, temperatures, numbers)
@example(np.array([0, 0], np.float32), 1.0, 0.5)  # on the edge: the second half begins here
@example(np.array([0, -80], np.float32), 0.05, 0.0)
@example(np.array([-80, 0], np.float32), 0.05, 0.0)  # not the token that has no probability
def test_the_draw_says_which_share_of_the_distribution_is_hit(logits, temperature, draw):
    token = sample(logits, SamplingParams(temperature=temperature), draw)
    edges = np.cumsum(slow_probabilities(logits, SamplingParams(temperature=temperature))[0])
    assert edges[token] >= draw - 1e-9 and (token == 0 or edges[token - 1] <= draw + 1e-9)


@pytest.mark.parametrize("size", [255, 256, 257, 1_000, 5_000])
def test_of_a_large_vocabulary_a_running_sum_over_all_of_it_finds_the_same_tokens(size):
    rng, params = np.random.default_rng(size), SamplingParams(top_k=size // 2, temperature=0.7)
    logits = rng.standard_normal(size).astype(np.float32)  # [V]
    logits[:300] -= 50  # so that the first stretch has none that may be drawn
    p = probabilities(logits, params)  # [V]
    edges = np.cumsum(p)  # [V]
    for draw in (0.0, *rng.random(200), math.nextafter(1, 0)):
        token = sample(logits, params, draw)
        assert p[token] > 0
        assert edges[token] >= draw - 1e-12 and (token == 0 or edges[token - 1] <= draw + 1e-12)


@given(logit_rows, temperatures, top_ks, top_ps, min_ps)
def test_the_largest_and_smallest_draw_never_hit_a_filtered_token(logits, temperature, top_k, top_p, min_p):
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    for draw in (0.0, math.nextafter(1, 0)):
        assert probabilities(logits, params)[sample(logits, params, draw)] > 0


@given(st.integers(0, 2**70), st.integers(0, 1000), st.integers(0, 10**6))
def test_a_random_number_is_made_from_its_seed_index_and_position_alone(seed, index, position):
    number = random_number(seed, index, position)
    assert 0 <= number < 1
    assert random_number(seed, index, position) == number, "the same three gave another number"
    others = random_number(seed + 1, index, position), random_number(seed, index + 1, position)
    assert number not in (*others, random_number(seed, index, position + 1), random_number(seed, position, index + 1))


def test_digits_that_only_look_alike_make_different_numbers():
    assert len({random_number(*three) for three in ((1, 11, 1), (11, 1, 1), (1, 1, 11), (111, 0, 1))}) == 4


@given(logit_rows, st.sampled_from([0.0, 0.7, 1.0]), st.data())
def test_forbidden_tokens_are_never_drawn(logits, temperature, data):
    tokens = st.integers(0, len(logits) - 1)
    forbidden = data.draw(st.sets(tokens, max_size=len(logits) - 1))
    before = logits.copy()
    for draw in (0.0, 0.3, 0.6, math.nextafter(1, 0)):
        params = SamplingParams(temperature=temperature, min_tokens=1)
        adjustment = Processors(params, [0], forbidden, [], len(logits)).adjustment([])
        assert sample(logits, params, draw, adjustment) not in forbidden
    np.testing.assert_array_equal(logits, before, "the row of logits belongs to somebody else and was changed")


# ---- log probabilities


@given(logit_rows, st.integers(0, 14), st.data())
def test_top_logprobs_are_log_softmax_with_ranks(logits, count, data):
    token = data.draw(st.integers(0, len(logits) - 1))
    expected = torch.log_softmax(torch.from_numpy(logits).double(), dim=-1).numpy()
    top = top_logprobs(logits, token, count)
    for other, (logprob, rank) in top.items():
        assert logprob == pytest.approx(expected[other], abs=1e-9)
        likelier, as_likely = (expected > expected[other] + 1e-9).sum(), (expected >= expected[other] - 1e-9).sum()
        assert likelier < rank <= as_likely, f"token {other} has rank {rank} in {expected}"
    ranks = {rank for _, rank in top.values()}  # `token` may share one with a token that is as likely
    assert token in top
    assert ranks >= {*range(1, min(count, len(logits)) + 1)}, "the likeliest tokens are not all there"
    assert len(top) <= min(count, len(logits)) + 1


# ---- parameters


GOOD = [
    {},
    {"temperature": 0},
    {"temperature": np.float32(0.5), "top_k": np.int64(3), "seed": np.int64(2)},
    {"top_k": -1},
    {"top_k": 10**9},
    {"top_p": 1},
    {"min_p": 1},
    {"seed": 0},
    {"seed": 2**64 - 1},
    {"max_tokens": 1, "min_tokens": 1},
    {"max_tokens": None, "min_tokens": 10**6},
    {"stop": "x"},
    {"stop": ("x", "yz")},
    {"stop": (), "stop_token_ids": (3, 4)},
    {"stop": None, "stop_token_ids": None},  # vLLM's defaults
    {"logprobs": 0},
    {"n": 16_384},
    {"beam_width": 1},
    {"beam_width": 16_384, "early_stopping": np.True_},
    {"beam_width": 3, "length_penalty": -0.5, "early_stopping": "never", "stop_token_ids": (1,)},
]
BAD = {
    "temperature": [math.nan, math.inf, -math.inf, -0.1, True, "1", None, [1.0], 10**400, 1j],
    "top_k": [-2, 1.0, True, "5", None],
    "top_p": [0, -0.5, 1.5, math.nan, math.inf, True, "0.5", None],
    "min_p": [-0.1, 1.1, math.nan, True, "0", None],
    "seed": [-1, 1.5, True, "1", 2**64, 10**5000],
    "max_tokens": [0, -1, 1.5, True, "16", math.inf],
    "min_tokens": [-1, 17, 1.0, True, None],  # max_tokens is 16
    "logprobs": [-1, 1.0, True, "all"],
    "stop": ["", [""], ["ok", ""], [3], 5, [None], b"x", b"", bytearray(b"x"), [b"x"]],
    "n": [0, -1, 1.0, True, "2", None, 16_385, 10**5000],
    "beam_width": [0, -1, 1.5, True, "4", 16_385, 10**5000],
    "length_penalty": [-(10**5000), math.nan, math.inf, "1", None, True],
    "early_stopping": ["always", None, 2, 1, 0, 1.0],
    "stop_token_ids": [["x", 10**5000], ["x"], [1.0], [True], 5, "12", "", b"12", [[1, 2]]],
    "ignore_eos": [1, None, "yes"],
    "skip_special_tokens": [0, None, "no"],
    "include_stop_str_in_output": [1, None],
}


@pytest.mark.parametrize("values", GOOD, ids=str)
def test_good_parameters_are_taken(values):
    params = SamplingParams(**values)
    assert {name: getattr(params, name) for name in values} == values


BAD_PAIRS = [(name, value) for name, values in BAD.items() for value in values]


@pytest.mark.parametrize(("name", "value"), BAD_PAIRS, ids=lambda x: shown(x)[:9])
def test_a_bad_parameter_is_named_with_its_value(name, value):
    with pytest.raises(InvalidRequestError) as error:
        SamplingParams(**{name: value})
    assert str(error.value).startswith(f"{name} is {shown(value)}; it must be "), str(error.value)
    assert isinstance(error.value, MinipageError) and isinstance(error.value, ValueError)


BEAMS_DO_NOT = [
    {"n": 2},
    {"temperature": 0.7},
    {"top_k": 3},
    {"top_p": 0.9},
    {"min_p": 0.1},
    {"stop": "x"},
    {"logprobs": 1},
]


@pytest.mark.parametrize("values", BEAMS_DO_NOT, ids=str)
def test_a_beam_search_refuses_what_it_would_ignore(values):
    SamplingParams(**values)
    with pytest.raises(InvalidRequestError, match="beam") as error:
        SamplingParams(beam_width=2, **values)
    assert all(name in str(error.value) for name in values), str(error.value)


def test_parameters_do_not_change():
    with pytest.raises(AttributeError):
        SamplingParams().temperature = 2


WAYS = {  # to hand in three words or numbers
    "list": list,
    "tuple": tuple,
    "generator": lambda values: (value for value in values),
    "map": lambda values: map(type(values[0]), values),
    "dict": dict.fromkeys,
    "dict's keys": lambda values: dict.fromkeys(values).keys(),
    "dict's values": lambda values: dict(enumerate(values)).values(),
    "set": set,
    "frozenset": frozenset,
    "array": np.array,
    "array of objects": lambda values: np.array(values, object),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_what_ends_a_text_may_come_as_anything_that_has_members(way):
    words, numbers = ["ab", "cd", "e"], [3, 1, 2]
    params = SamplingParams(stop=way(words), stop_token_ids=way(numbers))
    assert sorted(params.stop) == sorted(words) and sorted(params.stop_token_ids) == sorted(numbers)
    assert {type(value) for value in params.stop + params.stop_token_ids} <= {str, np.str_, int}
    assert params == replace(params) == pickle.loads(pickle.dumps(params)) == copy.deepcopy(params)
    assert hash(params) == hash(replace(params)) and eval(repr(params)) == params


@pytest.mark.parametrize("tensor", [torch.tensor([3, 1]), [torch.tensor(3), torch.tensor(1)], np.array([3, 1], "u1")])
def test_stop_tokens_may_be_tensors(tensor):
    assert SamplingParams(stop_token_ids=tensor).stop_token_ids == (3, 1)


@pytest.mark.parametrize("field", ["seed", "stop_token_ids"])
@pytest.mark.parametrize("tensor", [torch.ones(2, dtype=torch.int).to_sparse(), torch.ones((), device="meta")])
def test_tensors_without_a_list_of_members_are_refused(field, tensor):
    with pytest.raises(InvalidRequestError):
        SamplingParams(**{field: tensor})


class Unspeakable:
    def __repr__(self):
        raise RuntimeError("no words for it")


ODD = {
    "huge": 10**5000,
    "a huge one": [10**5000],
    "a": Unspeakable(),
    "in": {"a": [Unspeakable()]},
    "long": "x" * 10**6,
}


@pytest.mark.parametrize("value", ODD.values(), ids=ODD)
def test_whatever_is_wrong_a_sentence_can_show_it(value):
    assert 0 < len(shown(value)) < 200
    with pytest.raises(InvalidRequestError):
        SamplingParams(temperature=value)


def test_a_list_that_its_owner_changes_later_is_not_ours():
    words, numbers = ["a"], [1]
    params = SamplingParams(stop=words, stop_token_ids=numbers)
    words[0], numbers[0] = "b", 2
    assert params == SamplingParams(stop=["a"], stop_token_ids=[1])


def test_numbers_of_numpy_and_pytorch_become_pythons_own():
    given = {
        "temperature": np.float32(0.5),
        "top_p": torch.tensor(0.5),
        "max_tokens": np.array(3),
        "seed": np.uint64(9),
    }
    params = SamplingParams(**given)
    assert repr(params) == repr(SamplingParams(temperature=0.5, top_p=0.5, max_tokens=3, seed=9))
    for values in ({"ignore_eos": np.int64(1)}, {"max_tokens": np.float64(3)}, {"temperature": np.array([0.5])}):
        with pytest.raises(InvalidRequestError):
            SamplingParams(**values)
