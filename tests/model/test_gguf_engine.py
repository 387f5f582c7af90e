"""A GGUF file is a model like any other: the engine says what transformers says of the same weights."""

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from gguf_writing import random_model, write_gguf
from test_gguf_files import MODELS, rebuilt, written
from test_gguf_tokenizer import CUTS, byte_level, byte_level_entries
from transformers import LlamaConfig, LlamaForCausalLM

from minipage.engine import LLM
from minipage.errors import ModelError
from minipage.model.checkpoint import describe_model, load_model
from minipage.model.dense import dense_attend
from minipage.model.gguf_files import packaged_model, read_gguf
from minipage.model.place import place_model
from minipage.sampling import SamplingParams

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A Llama that can be told anything, and is as sharp as a trained one."""
    torch.manual_seed(1)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        vocab_size=401,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config).eval()
    for name, weight in model.named_parameters():
        scale = 0.15 if "norm" in name else 2.5 / weight.shape[-1] ** 0.5
        torch.nn.init.normal_(weight, mean=float("norm" in name), std=scale)
    entries = byte_level_entries(byte_level(CUTS["smollm"]), "smollm") | {"tokenizer.chat_template": CHATML}
    return write_gguf(tmp_path_factory.mktemp("gguf") / "model.gguf", model, Kind.Q8_0, tokenizer=entries)


def greedy(model, token_ids, num_tokens):
    with torch.no_grad():
        found = model.generate(torch.tensor([token_ids]), max_new_tokens=num_tokens, do_sample=False, eos_token_id=-1)
    return found[0, len(token_ids) :].tolist()


@pytest.mark.parametrize("case", MODELS)
def test_of_every_kind_the_logits_are_those_of_transformers(tmp_path, case):
    theirs, path = written(case, tmp_path / "model.gguf")
    loaded = load_model(path)
    model = place_model(loaded.architecture, loaded.weights)
    token_ids = np.arange(20) * 7 % 300
    hidden = model.forward(token_ids, np.arange(20), dense_attend)
    with torch.no_grad():
        expected = theirs(torch.tensor([token_ids.tolist()])).logits[0].numpy()
    np.testing.assert_allclose(model.logits(hidden), expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


@pytest.mark.parametrize("prefix_caching", [False, True])
def test_the_engine_says_what_transformers_says_over_several_turns(path, prefix_caching):
    llm = LLM(path, num_blocks=64, block_size=4, enable_prefix_caching=prefix_caching)
    theirs = rebuilt(read_gguf(path))
    messages = []
    for question in ["Why is the sea salty?", "And 12 lakes?", "Who says so?"]:
        messages.append({"role": "user", "content": question})
        prompt = llm.tokenizer.encode(llm.tokenizer.chat_template.render(messages), add_special_tokens=False)
        (answer,) = llm.generate([prompt], SamplingParams(max_tokens=16, temperature=0, ignore_eos=True))
        assert answer.outputs[0].token_ids == greedy(theirs, prompt, 16)
        messages.append({"role": "assistant", "content": answer.outputs[0].text.replace("\ufffd", "?")})


def test_a_template_for_tools_counts_where_the_model_is_told_of_tools(tmp_path):
    texts = {"tokenizer.chat_template": "plain", "tokenizer.chat_template.tool_use": "tools"}
    entries = byte_level_entries(byte_level(CUTS["smollm"]), "smollm") | texts
    template = read_gguf(write_gguf(tmp_path / "model.gguf", random_model("llama"), tokenizer=entries)).chat_template
    messages = [{"role": "user", "content": "Rain?"}]
    assert (template.render(messages), template.render(messages, tools=[])) == ("plain", "tools")


def test_weights_are_dequantized_when_they_are_asked_for(path):
    loaded = load_model(path)
    file = read_gguf(path)
    q = file.weights["model.layers.1.self_attn.q_proj.weight"]
    np.testing.assert_array_equal(loaded.weights["layers.1.self_attn.q_proj.weight"], q.T)
    assert len(loaded.weights) == len(file.weights) == len(list(loaded.weights.items()))


def test_a_model_can_be_described_without_its_weights(path):
    architecture, tokenizer = describe_model(path)
    loaded = load_model(str(path))
    assert architecture == loaded.architecture and tokenizer.encode("The sea") == loaded.tokenizer.encode("The sea")
    architecture, tokenizer = describe_model("shakespeare")
    assert architecture.vocab_size >= tokenizer.vocab_size


def test_settings_are_overridden_as_those_of_a_folder_are(path):
    assert load_model(path, hf_overrides={"eos_token_id": 7}).eos_token_ids == {7}
    with pytest.warns(UserWarning, match=r"hf_overrides has 'eos_tokn_id'.*'eos_token_id'\?"):
        load_model(path, hf_overrides={"eos_tokn_id": 7})


@pytest.mark.parametrize(
    "wrong", [{"num_hidden_layers": 9}, {"intermediate_size": 8}, {"num_attention_heads": 0}], ids=str
)
def test_what_an_override_has_broken_is_not_blamed_on_the_file_alone(path, wrong):
    with pytest.raises(
        ModelError, match=r"Or is it the fault of hf_overrides, \{'" + next(iter(wrong)) + r"': \d\}\?$"
    ):
        LLM(path, num_blocks=8, hf_overrides=wrong)


def test_files_that_cannot_be_served(tmp_path):
    with pytest.raises(ModelError, match=r"missing\.gguf.*No such file"):
        LLM(tmp_path / "missing.gguf")
    short = random_model("llama")
    path = write_gguf(tmp_path / "model.gguf", short, **{"llama.feed_forward_length": 768})
    with pytest.raises(ModelError, match=r"mlp\.gate_proj.* has shape \(512, 256\).*\(768, 256\)"):
        LLM(path)
    path = write_gguf(tmp_path / "model.gguf", short, tokenizer=byte_level_entries(byte_level(CUTS["gpt-2"]), "gpt-2"))
    with pytest.raises(ModelError, match="knows 401 tokens, but the model has 300: it belongs to another model"):
        LLM(path)


QUESTIONS = ["What is the capital of France?", "Write a haiku about 12 waves.", "def add(a, b):\n    return", "Say  7."]


@pytest.mark.slow
def test_smollm2_says_token_for_token_what_transformers_says():
    try:
        path = packaged_model("smollm2")
    except ModelError as error:
        pytest.skip(str(error))
    llm = LLM("smollm2", memory="256MiB", enable_prefix_caching=True)
    theirs = rebuilt(read_gguf(path))
    for question in QUESTIONS:
        messages = [{"role": "user", "content": question}]
        for _ in range(2):
            prompt = llm.tokenizer.encode(llm.tokenizer.chat_template.render(messages), add_special_tokens=False)
            (answer,) = llm.generate([prompt], SamplingParams(max_tokens=24, temperature=0, ignore_eos=True))
            assert answer.outputs[0].token_ids == greedy(theirs, prompt, 24), question
            messages += [{"role": "assistant", "content": answer.outputs[0].text}, {"role": "user", "content": "More."}]
