"""SmolLM2-135M-Instruct, where its package is installed: token for token what transformers says of the same weights."""

import functools

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from minipage.engine import LLM
from minipage.errors import ModelError
from minipage.model.gguf_files import packaged_model
from minipage.sampling import SamplingParams

CONVERSATIONS = [
    ["What is the capital of France?", "And of Italy?", "Which of the two is larger?"],
    ["Explain in one sentence why the sea is salty.", "Is a lake salty, too?"],
    ["Name three fruits.", "Which of them is yellow?", "Write a line about it."],
    ["What is 12 + 30?", "And twice that?"],
    ["Who wrote Romeo and Juliet?", "When was he born?"],
    ["Translate 'good morning' into Spanish.", "Now into German."],
    ["Write a Python function that adds two numbers.", "Give it a docstring."],
    ["Warum ist der Himmel blau? 🙂", "你好！"],
    ["List the days of the week.", "Backwards, please."],
]
SYSTEM = [{"role": "system", "content": "You answer in very few words."}]
NUM_TOKENS = 24


@pytest.fixture(scope="module")
def path():
    try:
        return packaged_model("smollm2")
    except ModelError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def told(path):
    """Every question with the tokens of its conversation up to there, and the answer of transformers in tokens."""
    where = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    tokenizer = AutoTokenizer.from_pretrained(**where)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(**where), dtype=torch.float32).eval()
    tensors = load_gguf_checkpoint(path, return_tensors=True, model_to_load=model)["tensors"]  # transformers' own way
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    assert missing == ["lm_head.weight"] and not unexpected
    model.tie_weights()

    @functools.cache
    def tell(index):
        messages = SYSTEM.copy() if index % 3 == 2 else []
        turns = []
        for question in CONVERSATIONS[index]:
            messages = [*messages, {"role": "user", "content": question}]
            ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")["input_ids"]
            with torch.no_grad():
                said = model.generate(ids, max_new_tokens=NUM_TOKENS, do_sample=False, pad_token_id=2)
            answer = said[0, ids.shape[1] :].tolist()
            turns.append((messages, ids[0].tolist(), answer))
            text = tokenizer.decode(answer, skip_special_tokens=True)
            messages = [*messages, {"role": "assistant", "content": text}]
        return turns

    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # threads that wait for each other on busy cores took 13 minutes instead of half of one
    yield tell
    torch.set_num_threads(num_threads)


def compare(told, indices, prefix_caching):
    llm = LLM("smollm2", num_blocks=128, enable_prefix_caching=prefix_caching)
    params = SamplingParams(max_tokens=NUM_TOKENS, temperature=0)
    num_prompts = 0
    for index in indices:
        for messages, prompt_token_ids, answer in told(index):
            (output,) = llm.chat(messages, params)
            assert output.prompt_token_ids == prompt_token_ids
            assert output.outputs[0].token_ids == answer
            num_prompts += 1
    assert (llm.scheduler.num_hit_tokens > 0) is prefix_caching
    return num_prompts


@pytest.mark.slow
@pytest.mark.parametrize("prefix_caching", [False, True], ids=["computed anew", "prefix caching"])
def test_it_says_what_transformers_says(told, prefix_caching):
    assert compare(told, range(len(CONVERSATIONS)), prefix_caching) == 20


def test_it_answers_two_questions(path):
    llm = LLM("smollm2", num_blocks=16, enable_prefix_caching=True)
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    greedy = SamplingParams(max_tokens=12, temperature=0)
    (first,) = llm.chat(messages, greedy)
    assert "Paris" in first.outputs[0].text
    messages += [{"role": "assistant", "content": first.outputs[0].text}, {"role": "user", "content": "And of Italy?"}]
    (second,) = llm.chat(messages, greedy)
    assert "Rome" in second.outputs[0].text and llm.scheduler.num_hit_tokens >= 32
