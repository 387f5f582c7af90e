"""LLM.chat: a conversation is rendered, made into tokens as the template wrote it, and served like any prompt."""

import re
import shutil

import numpy as np
import pytest
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from minipage.engine import LLM
from minipage.errors import InvalidRequestError, ModelError
from minipage.model.chat_template import ChatTemplate
from minipage.sampling import SamplingParams

GREEDY = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True)
QUESTIONS = ["Why is the sea salty?", "Who says so? 🙂", "And the gulls?"]


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


@pytest.fixture(scope="module", params=[False, True], ids=["computed anew", "prefix caching"])
def llm(request, chatter):
    return LLM(chatter, block_size=4, num_blocks=200, enable_prefix_caching=request.param)


@pytest.fixture
def fresh(chatter):
    return LLM(chatter, block_size=4, num_blocks=200, enable_prefix_caching=True)


def test_it_says_what_transformers_says_over_several_turns(llm, chatter):
    theirs = AutoModelForCausalLM.from_pretrained(chatter)
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(chatter / "tokenizer.json"))
    tokenizer.chat_template = (chatter / "chat_template.jinja").read_text()
    messages = []
    for question in QUESTIONS:
        messages.append(user(question))
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")["input_ids"]
        expected = theirs.generate(ids, max_new_tokens=12, do_sample=False, eos_token_id=-1, pad_token_id=0)
        (output,) = llm.chat(messages, GREEDY)
        assert output.prompt_token_ids == ids[0].tolist()
        assert output.outputs[0].token_ids == expected[0, ids.shape[1] :].tolist()
        messages.append(assistant(output.outputs[0].text))


def test_several_conversations_are_answered_in_their_order(llm):
    conversations = [[user(question)] for question in QUESTIONS]
    together = llm.chat(conversations, GREEDY)
    alone = [llm.chat(conversation, GREEDY)[0] for conversation in conversations]
    assert [each.outputs[0].token_ids for each in together] == [each.outputs[0].token_ids for each in alone]
    assert [each.prompt for each in together] == [each.prompt for each in alone]
    params = [GREEDY, SamplingParams(max_tokens=2), GREEDY]
    assert [len(each.outputs[0].token_ids) for each in llm.chat(tuple(conversations), params)] == [12, 2, 12]


def test_whether_an_answer_is_asked_for(llm):
    short = SamplingParams(max_tokens=1)
    (asked,) = llm.chat([user("Hi")], short)
    (plain,) = llm.chat([user("Hi")], short, add_generation_prompt=False)
    assert asked.prompt == plain.prompt + "<|im_start|>assistant\n"


def test_values_for_the_template(fresh):
    fresh.tokenizer.chat_template = ChatTemplate(
        "{{ messages[0].content }}{% if loud is defined and loud %}!{% endif %}"
    )
    short = SamplingParams(max_tokens=1)
    assert fresh.chat([user("Hi")], short, chat_template_kwargs={"loud": True})[0].prompt == "Hi!"
    assert fresh.chat([user("Hi")], short)[0].prompt == "Hi"
    for wrong, said in (({"messages": []}, "'messages'"), ({"self": 1}, "'self'"), ({3: 1}, "a dict"), ("x", "a dict")):
        with pytest.raises(InvalidRequestError, match=f"chat_template_kwargs .*{said}"):
            fresh.chat([user("Hi")], short, chat_template_kwargs=wrong)


def test_a_template_that_begins_with_a_token_gets_no_second_one(fresh):
    """As transformers and vLLM do it: what a tokenizer would put before any text is not put before a conversation."""
    from tokenizers.processors import TemplateProcessing

    begin = "<|endoftext|>"
    fresh.tokenizer.backend.post_processor = TemplateProcessing(f"{begin} $A", special_tokens=[(begin, 0)])
    fresh.tokenizer.chat_template = ChatTemplate("{{ bos_token }}{{ messages[0].content }}", {"bos_token": begin})
    (output,) = fresh.chat([user("Hi")], SamplingParams(max_tokens=1))
    assert output.prompt_token_ids.count(0) == 1 and output.prompt_token_ids[0] == 0


def test_the_second_turn_finds_the_blocks_of_the_first(fresh):
    messages = [user(QUESTIONS[0])]
    (first,) = fresh.chat(messages, GREEDY)
    assert fresh.scheduler.num_hit_tokens == 0
    messages += [assistant(first.outputs[0].text), user("Why?")]
    (second,) = fresh.chat(messages, GREEDY)
    known = [*first.prompt_token_ids, *first.outputs[0].token_ids[:-1]]  # the last token's K and V were never needed
    alike = next((i for i, (a, b) in enumerate(zip(known, second.prompt_token_ids)) if a != b), len(known))
    assert fresh.scheduler.num_hit_tokens == alike // 4 * 4 >= len(first.prompt_token_ids) // 4 * 4 - 4


BAD = {
    "a text": ("Hello", "must be a list of messages"),
    "none": ([], "messages is empty"),
    "nothing": (None, "must be a list of messages"),
    "one message": (user("Hello"), "must be a list of messages"),
    "a number in it": ([user("Hello"), 7], r"messages\[1\] is 7"),
    "no role": ([{"content": "Hello"}], r"messages\[0\] has no role"),
    "no content": ([{"role": "user"}], r"messages\[0\] has no content"),
    "another role": ([{"role": "narrator", "content": "Hello"}], "'narrator'; it must be one of system"),
    "an array for a role": ([{"role": np.array(["user", "system"]), "content": "Hello"}], "must be one of system"),
    "a list for a role": ([{"role": ["user"], "content": "Hello"}], "must be one of system"),
    "a picture": ([{"role": "user", "content": [{"type": "image_url"}]}], "reads no images"),
    "one bad of two": ([[user("Hello")], [{"role": "?", "content": "!"}]], "conversation 1 of 2 .*role"),
    "one empty of two": ([[user("Hello")], []], "conversation 1 of 2 .*is empty"),
    "one too long of two": ([[user("Hello")], [user("far " * 900)]], "prompt 1 of 2 .*Shorten it"),
}


@pytest.mark.parametrize(("messages", "sentence"), BAD.values(), ids=BAD)
def test_wrong_messages_are_refused_before_anything_is_queued(fresh, messages, sentence):
    with pytest.raises(InvalidRequestError, match=sentence):
        fresh.chat(messages, GREEDY)
    assert not fresh.has_unfinished_requests() and fresh.block_pool.num_used == 0
    assert len(fresh.chat([user("Hello")], GREEDY)) == 1


TEMPLATES = {
    "refuses": ("{{ raise_exception('only kings may ask') }}", "refuses these messages: only kings may ask"),
    "loops": ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "was stopped"),
    "divides by zero": ("{{ 1 // 0 }}", "fails on these messages"),
    "says nothing": ("", "the prompt is empty"),
}


@pytest.mark.parametrize(("template", "sentence"), TEMPLATES.values(), ids=TEMPLATES)
def test_a_template_that_fails_is_told_of_in_a_sentence(fresh, template, sentence):
    fresh.tokenizer.chat_template = ChatTemplate(template)
    with pytest.raises(InvalidRequestError, match=sentence):
        fresh.chat([user("Hello")], GREEDY)
    assert not fresh.has_unfinished_requests()


BROKEN = {"no UTF-8": (b"\xff\xfe", "cannot be read"), "no Jinja": (b"{% if", "is not valid")}


@pytest.mark.parametrize(("content", "sentence"), BROKEN.values(), ids=BROKEN)
def test_a_template_that_is_broken_keeps_nobody_from_continuing_a_text(chatter, tmp_path, content, sentence):
    shutil.copytree(chatter, tmp_path, dirs_exist_ok=True)
    (tmp_path / "chat_template.jinja").write_bytes(content)
    llm = LLM(tmp_path, num_blocks=16)
    assert llm.generate("The sea", GREEDY)[0].outputs[0].token_ids
    with pytest.raises(ModelError, match=f"{re.escape(str(tmp_path))}.* {sentence}"):
        llm.chat([user("Hello")], GREEDY)
    assert not llm.has_unfinished_requests()


def test_a_model_that_cannot_chat_says_so(mute):
    llm = LLM(mute, num_blocks=16)
    with pytest.raises(InvalidRequestError, match=r"no chat template.*generate"):
        llm.chat([user("Hello")], GREEDY)
    llm.tokenizer = None
    with pytest.raises(InvalidRequestError, match="no tokenizer"):
        llm.chat([user("Hello")], GREEDY)
    assert re.match(r"^<LLM: 0 requests", repr(llm))
