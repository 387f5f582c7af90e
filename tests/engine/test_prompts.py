"""Prompts as callers have them: texts, dicts, arrays, iterators; what only looks like one is refused in a sentence."""

import array
from collections import OrderedDict, UserDict

import numpy as np
import pytest
import torch
from engine.checkpoints import save_gpt2
from tokenizers import Tokenizer, models

from minipage.engine.llm import LLM
from minipage.errors import InvalidRequestError
from minipage.sampling import SamplingParams

IDS = [65, 66, 67]
SHORT = SamplingParams(max_tokens=1)


@pytest.fixture(scope="module")
def llm(talker):
    return LLM(talker, num_blocks=16, attention="reference")


ONE = {
    "list": IDS,
    "tuple": tuple(IDS),
    "range": range(65, 68),
    "generator": (i for i in IDS),
    "iterator": iter(IDS),
    "array": np.array(IDS),
    "small unsigned array": np.array(IDS, np.uint8),
    "array of objects": np.array(IDS, object),
    "every second of an array": np.array([65, 0, 66, 0, 67])[::2],
    "tensor": torch.tensor(IDS),
    "small tensor": torch.tensor(IDS, dtype=torch.int16),
    "array.array": array.array("i", IDS),
    "NumPy numbers": list(np.array(IDS)),
    "tensors": list(torch.tensor(IDS)),
    "arrays without dimensions": [np.array(i) for i in IDS],
    "dict's values": dict(enumerate(IDS)).values(),
    "prompt_token_ids": {"prompt_token_ids": IDS},
    "prompt_token_ids, an array": {"prompt_token_ids": np.array(IDS)},
    "prompt_token_ids, an iterator": {"prompt_token_ids": iter(IDS)},
    "another mapping": UserDict({"prompt_token_ids": IDS}),
    "None for a text": OrderedDict(prompt=None, prompt_token_ids=IDS),
}


@pytest.mark.parametrize("prompt", ONE.values(), ids=ONE)
def test_token_ids_may_come_as_anything_that_has_them_in_order(llm, prompt):
    (output,) = llm.generate(prompt, SHORT)
    assert (output.prompt, output.prompt_token_ids) == (None, IDS)
    assert {type(token) for token in output.prompt_token_ids} == {int}


@pytest.mark.parametrize("prompt", [IDS, np.array(IDS), torch.tensor(IDS), {"prompt_token_ids": IDS}], ids=repr)
def test_several_prompts_may_each_come_in_another_way(llm, prompt):
    many = (each for each in (prompt, "the", {"prompt": "the"}, np.str_("the"), np.array([1])))
    outputs = llm.generate(many, SHORT)
    assert outputs[0].prompt_token_ids == IDS and outputs[4].prompt_token_ids == [1]
    assert [output.prompt for output in outputs[1:]] == ["the", "the", "the", None]
    assert len({tuple(output.prompt_token_ids) for output in outputs[1:4]}) == 1


def test_with_a_text_and_token_ids_the_token_ids_count_and_the_text_is_kept(llm):
    (output,) = llm.generate({"prompt": "as the user wrote it", "prompt_token_ids": IDS}, SHORT)
    assert (output.prompt, output.prompt_token_ids) == ("as the user wrote it", IDS)
    request_id = llm.add_request({"prompt": "the"}, SHORT)
    assert [(o.request_id, o.prompt) for o in llm.step()] == [(request_id, "the")]


@pytest.mark.parametrize("rows", [np.array([IDS, [1, 2, 3]]), torch.tensor([IDS, [1, 2, 3]])], ids=["array", "tensor"])
def test_the_rows_of_an_array_are_prompts_but_an_array_of_rows_is_no_prompt(llm, rows):
    assert [output.prompt_token_ids for output in llm.generate(rows, SHORT)] == [IDS, [1, 2, 3]]
    for one in ([rows], {"prompt_token_ids": rows}):
        with pytest.raises(InvalidRequestError, match="2 dimensions"):
            llm.generate(one, SHORT)
    with pytest.raises(InvalidRequestError, match="2 dimensions"):
        llm.add_request(rows, SHORT)


def test_a_whole_array_of_texts_is_many_prompts(llm):
    assert [o.prompt for o in llm.generate(np.array(["the", "sea"]), SHORT)] == ["the", "sea"]
    assert llm.generate([], SHORT) == llm.generate(np.array([], int), SHORT) == []


WRONG = {
    "bytes": (b"the", "decode it first"),
    "a bytearray": (bytearray(b"the"), "decode it first"),
    "a memoryview": (memoryview(b"the"), "decode it first"),
    "a set of ids": ({65, 66}, "no order"),
    "a set of texts": ({"the", "sea"}, "no order"),
    "three dimensions": (np.array([[IDS, IDS]]), r"token id \[65, 66, 67\]|3 dimensions"),
    "a tensor of three dimensions": (torch.tensor([[IDS, IDS]]), r"token id \[65, 66, 67\]|3 dimensions"),
    "no dimension": (np.array(65), "0 dimensions|65 is no prompt"),
    "a tensor without dimensions": (torch.tensor(65), "0 dimensions|65 is no prompt"),
    "a number": (65, "no prompt"),
    "None": (None, "no prompt"),
    "fractions": (np.array([65.0, 66.0]), "65.0"),
    "a fraction behind a number": ([65, 66.0], "66.0"),
    "truth": (np.array([True, False]), "True"),
    "an unknown key": ({"prompt": "the", "multi_modal_data": {}}, "'multi_modal_data'"),
    "a misspelt key": ({"promt": "the"}, "'promt'.*'prompt'"),
    "a key that is no text": ({1: "the"}, "the key 1"),
    "an empty dict": ({}, "empty dict"),
    "only None": ({"prompt": None}, "empty dict"),
    "ids for a text": ({"prompt": IDS}, "'prompt'.*must be a text"),
    "bytes for a text": ({"prompt": b"the"}, "'prompt'.*must be a text"),
    "a text for ids": ({"prompt_token_ids": "the"}, "no prompt"),
    "bytes for ids": ({"prompt_token_ids": b"the"}, "decode it first"),
    "a matrix for ids": ({"prompt_token_ids": torch.ones((1, 3), dtype=torch.int64)}, "2 dimensions"),
    "a tensor without memory": (torch.ones(3, dtype=torch.int64, device="meta"), "Tensor cannot be made a list"),
    "a number without memory": ([65, torch.ones((), device="meta")], "Tensor cannot be made a list"),
    "a sparse tensor": (torch.tensor(IDS).to_sparse(), "Tensor cannot be made a list"),
    "a sparse matrix": (torch.tensor([IDS, IDS]).to_sparse(), "Tensor cannot be made a list|2 dimensions"),
    "sparse ids": ({"prompt_token_ids": torch.tensor(IDS).to_sparse()}, "Tensor cannot be made a list"),
    "an endless number": ([10**5000], "cannot be written out; this model has 0 to"),
    "long texts in a set": ({letter * 1000 for letter in "abcdefgh"}, "no order"),
    "nothing": ("", "empty"),
    "no ids": ({"prompt_token_ids": []}, "empty"),
    "a huge number": ([2**70], "this model has 0 to"),
    "a negative number": (np.array([-1]), "-1; this model has 0 to"),
}


@pytest.mark.parametrize("in_a_list", [False, True])
@pytest.mark.parametrize(("prompt", "words"), WRONG.values(), ids=WRONG)
def test_what_is_no_prompt_is_refused_in_a_short_sentence_and_the_others_with_it(llm, prompt, words, in_a_list):
    with pytest.raises(InvalidRequestError, match=words) as error:
        llm.generate(["the", prompt] if in_a_list else prompt, SHORT)
    assert len(str(error.value)) < 200
    assert not llm.has_unfinished_requests() and llm.block_pool.num_used == 0


def test_a_text_that_the_tokenizer_has_no_token_for_is_told_so_and_an_empty_one_that_it_is_empty(tmp_path):
    save_gpt2(tmp_path)
    Tokenizer(models.BPE(vocab={"a": 0, "b": 1}, merges=[])).save(str(tmp_path / "tokenizer.json"))
    llm = LLM(tmp_path, num_blocks=16, attention="reference")
    assert llm.generate("a☃b", SHORT)[0].prompt_token_ids == [0, 1]
    for prompt in ("☃", {"prompt": "☃"}, "☃" * 10**5):
        with pytest.raises(
            InvalidRequestError, match=r"^the prompt '☃.*has no character known to the tokenizer"
        ) as error:
            llm.add_request(prompt)
        assert len(str(error.value)) < 200
    for prompt in ("", {"prompt": ""}, {"prompt": "☃", "prompt_token_ids": []}):
        with pytest.raises(InvalidRequestError, match=r"^the prompt is empty"):
            llm.add_request(prompt)


def test_a_prompt_that_is_long_and_wrong_gets_a_short_sentence(llm):
    for prompt in (b"the" * 10**5, {"prompt": list(range(10**5))}, {"x" * 10**5: 1}, [["x" * 10**5, 1]]):
        with pytest.raises(InvalidRequestError) as error:
            llm.generate(prompt, SHORT)
        assert len(str(error.value)) < 300
