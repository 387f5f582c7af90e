"""Structured output: whatever a model of random weights would like to say, its text matches what was asked for.

`jsonschema` judges texts under random schemas; Python's `re` those under regular expressions.
"""

import json
import random
import re
import shutil
import sys

import numpy as np
import pytest
from engine.checkpoints import save_gpt2, save_tokenizer

from minipage.engine.llm import LLM
from minipage.errors import InvalidRequestError
from minipage.model.checkpoint import SHIPPED_MODEL, find_folder
from minipage.sampling import GrammarCompiler, SamplingParams, StructuredOutputsParams

jsonschema = pytest.importorskip("jsonschema")
llguidance = pytest.importorskip("llguidance")
CALM = {"block_size": 4, "num_blocks": 4096, "max_num_seqs": 64}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Models of random weights: of the shipped model's tokens, which have no end of text; and of bytes and a few words,
    with more tokens than the tokenizer knows of."""
    by_words, by_bytes = tmp_path_factory.mktemp("words"), tmp_path_factory.mktemp("bytes")
    save_gpt2(by_words, vocab_size=2000, n_positions=512, eos_token_id=None)
    shutil.copy(find_folder(SHIPPED_MODEL) / "tokenizer.json", by_words)
    save_gpt2(by_bytes, vocab_size=309, n_positions=512, eos_token_id=0)
    save_tokenizer(by_bytes)
    return {"words": by_words, "bytes": by_bytes}


def random_schema(rng, depth=0):
    """A schema of moderate size that some finite text matches, whatever the model prefers."""
    low = rng.randint(-1000, 1000)
    words = [rng.choice(["red", "naïve", "a b", 'say "so"', "x" * 20, ""]) for _ in range(rng.randint(1, 4))]
    simple = [
        {"type": "string", "maxLength": rng.randint(0, 8)},
        {"type": "string", "pattern": rng.choice(["^[a-c]{2,4}$", "^(up|down)$", "^[0-9]{3}-[0-9]{2}$"])},
        {"type": "integer", "minimum": low, "maximum": low + rng.randint(0, 5000)},
        {"type": rng.choice(["boolean", "null"])},
        {"enum": [*words, low, None, True]},
        {"const": rng.choice([words, {"a": low}, 1.5, "é"])},
        {"type": "string", "format": rng.choice(["date", "time", "uuid"])},
        {"$ref": "#/$defs/word"},
    ]
    if depth == 3 or (depth and rng.random() < 0.4):
        return rng.choice(simple)
    few = [random_schema(rng, depth + 1) for _ in range(rng.randint(1, 3))]
    names = [rng.choice(["a", "name", "größe", "two words"]) + str(i) for i in range(len(few))]
    least = rng.randint(0, 2)
    return rng.choice(
        [
            {
                "type": "object",
                "properties": dict(zip(names, few, strict=True)),
                "required": [name for name in names if rng.random() < 0.6],
                "additionalProperties": False,
            },
            {"type": "array", "items": few[0], "minItems": least, "maxItems": least + rng.randint(0, 2)},
            {"type": "array", "prefixItems": few, "items": False, "minItems": len(few)},
            {"anyOf": few},
        ]
    )


def with_definitions(schema):
    return schema | {"$defs": {"word": {"type": "string", "enum": ["one", "two"]}}}


@pytest.mark.parametrize("folder", ["words", "bytes"])
@pytest.mark.parametrize("number", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_every_text_under_a_random_schema_is_valid(folders, folder, number):
    rng = random.Random(f"{folder} {number}")
    schemas = [with_definitions(random_schema(rng)) for _ in range(number)]
    params = [
        SamplingParams(
            structured_outputs=StructuredOutputsParams(json=schema, disable_any_whitespace=i % 3 == 0),
            temperature=[1.0, 0, 1.5][i % 3],
            max_tokens=400,
            seed=i,
        )
        for i, schema in enumerate(schemas)
    ]
    outputs = LLM(folders[folder], **CALM).generate([[i % 50 + 1, 2, 3] for i in range(number)], params)
    unfinished = 0
    for schema, output in zip(schemas, outputs, strict=True):
        text = output.outputs[0]
        assert output.error is None, (output.error, schema)
        if text.finish_reason == "length":
            unfinished += 1
        else:
            jsonschema.validate(json.loads(text.text), schema, jsonschema.Draft202012Validator)
    assert unfinished <= number // 10, f"{unfinished} of {number} texts did not come to their end"


REGEXES = ["[0-9]{4}-[0-9]{2}", "(yes|no|may be)", "[a-z]+@[a-z]+[.](com|org)", "é{2,5}", "(a|b)(c|d){1,3}", "x?y?z"]


@pytest.mark.parametrize("folder", ["words", "bytes"])
def test_every_text_matches_its_regex_choice_or_grammar(folders, folder):
    llm = LLM(folders[folder], **CALM)
    wanted = [(pattern, StructuredOutputsParams(regex=pattern)) for pattern in REGEXES]
    wanted += [("yes|no|é|a b", StructuredOutputsParams(choice=["yes", "no", "é", "a b"]))]
    wanted += [('say "\\n"|\n', StructuredOutputsParams(choice=('say "\\n"'.replace("\\n", "\n"), "\n")))]
    wanted += [("a(b|c)*d", StructuredOutputsParams(grammar='start: "a" ("b" | "c")* "d"'))]
    wanted += [("a(b|c)*d", StructuredOutputsParams(grammar='root ::= "a" x "d"\nx ::= ("b" | "c") x | ""'))]
    params = [SamplingParams(structured_outputs=s, max_tokens=60, n=2, seed=i) for i, (_, s) in enumerate(wanted)]
    outputs = llm.generate([[1, 2]] * len(wanted), params)
    for (pattern, _), output in zip(wanted, outputs, strict=True):
        for text in output.outputs:
            if text.finish_reason == "stop":
                assert re.fullmatch(pattern.replace('"\\n"', '"\n"'), text.text), (pattern, text)
            else:
                assert pattern.startswith("[a-z]+") or "*" in pattern, (pattern, text)
    (any_object,) = llm.generate([[3]], SamplingParams(
        structured_outputs=StructuredOutputsParams(json_object=True), max_tokens=300, seed=4, logit_bias=closing(llm)
    ))  # fmt: skip
    assert isinstance(json.loads(any_object.outputs[0].text), dict)


def closing(llm):
    """A bias towards what brings an object to its end."""
    return {llm.tokenizer.encode(sign)[0]: 50 for sign in '}"]'}


# ---- whatever happens to a request, its text is the same


SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "ages": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 99}, "maxItems": 3},
    },
    "required": ["name", "ages"],
    "additionalProperties": False,
}
ALL = [
    {"structured_outputs": StructuredOutputsParams(json=SCHEMA, disable_any_whitespace=True), "n": 2},
    {"structured_outputs": StructuredOutputsParams(regex="[ab]{20}"), "frequency_penalty": 0.5},
    {"presence_penalty": 1.5, "repetition_penalty": 1.4, "temperature": 0},
    {"bad_words": ["the", "a", "e"], "logit_bias": {5: 3.0}, "n": 3},
    {"allowed_token_ids": list(range(1, 290, 3)), "min_tokens": 12},
    {"structured_outputs": StructuredOutputsParams(choice=["yes", "no"]), "logprobs": 1},
    {"top_k": 5},
]
PROMPTS = [[i + 1, 7, 30, 2 * i + 5, 9, 11, 40, 3, i] for i in range(len(ALL))]
PARAMS = [SamplingParams(**({"seed": i, "max_tokens": 40} | options)) for i, options in enumerate(ALL)]
WAYS = {
    "chunks": {"max_num_batched_tokens": 5, "max_num_seqs": 4},
    "recompute": {"num_blocks": 44, "block_size": 4},
    "swap": {"num_blocks": 44, "block_size": 4, "preemption": "swap", "swap_space": "1MiB"},
    "prefix caching": {"enable_prefix_caching": True, "max_num_seqs": 3},
}


def tokens(outputs):
    return [[text.token_ids for text in output.outputs] for output in outputs]


@pytest.fixture(scope="module")
def alone(folders):
    """What each request is given when it has the engine for itself."""
    return [
        tokens(LLM(folders["bytes"], **CALM).generate([prompt], params))[0] for prompt, params in zip(PROMPTS, PARAMS)
    ]


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_text_is_the_same_alone_in_a_batch_in_chunks_and_after_preemptions(folders, alone, way):
    llm = LLM(folders["bytes"], **({"block_size": 4, "num_blocks": 512, "max_num_seqs": 20} | way))
    for _ in range(1 + ("enable_prefix_caching" in way)):
        outputs = llm.generate(PROMPTS, PARAMS)
        assert tokens(outputs) == alone
    preempted = sum(output.metrics.num_preemptions for output in outputs)
    assert (preempted > 0) == ("num_blocks" in way), f"{preempted} preemptions: the pool is of the wrong size"
    llm.scheduler.check_integrity()


def test_the_samples_of_one_request_differ_and_each_is_valid(folders):
    structure = StructuredOutputsParams(json=SCHEMA, disable_any_whitespace=True)
    params = SamplingParams(structured_outputs=structure, n=8, seed=1, max_tokens=100)
    (output,) = LLM(folders["bytes"], **CALM).generate([[1, 2]], params)
    for text in output.outputs:
        jsonschema.validate(json.loads(text.text), SCHEMA)
    assert len({text.text for text in output.outputs}) > 3


@pytest.mark.parametrize("phase", ["forward", "sample", "update"])
def test_a_step_that_is_taken_back_leaves_every_grammar_where_it_was(folders, alone, phase):
    llm = LLM(folders["bytes"], block_size=4, num_blocks=512, max_num_seqs=20)
    real, calls = getattr(llm, phase), []

    def interrupted(*arguments):
        calls.append(1)
        result = real(*arguments)
        if len(calls) % 5 == 3:
            raise KeyboardInterrupt
        return result

    setattr(llm, phase, interrupted)
    ids = [llm.add_request(prompt, params) for prompt, params in zip(PROMPTS, PARAMS, strict=True)]
    outputs = {}
    while llm.has_unfinished_requests():
        try:
            outputs |= {output.request_id: output for output in llm.step()}
        except KeyboardInterrupt:
            llm.scheduler.check_integrity()
    assert tokens(outputs[i] for i in ids) == alone


# ---- what a text may contain


def test_bad_words_never_come_in_either_spelling(folders):
    llm = LLM(folders["words"], **CALM)
    often = llm.tokenizer.encode(" the")[0], llm.tokenizer.encode("the")[0]
    bias = dict.fromkeys(often, 30.0)
    plain, without = (
        llm.generate([[1, 2]], SamplingParams(max_tokens=20, seed=1, logit_bias=bias, bad_words=bad))[0].outputs[0]
        for bad in (None, ["the"])
    )
    assert len(set(often)) == 2 and set(plain.token_ids) <= {*often}
    assert not {*often} & {*without.token_ids}
    pair = llm.tokenizer.decode(plain.token_ids[:2])
    word = llm.tokenizer.encode(pair, add_special_tokens=False)
    assert len(word) == 2
    again = llm.generate([[1, 2]], SamplingParams(max_tokens=20, seed=1, logit_bias=bias, bad_words=[pair]))[0].outputs[
        0
    ]
    assert word not in [again.token_ids[i : i + 2] for i in range(19)]


def test_the_logprobs_are_the_models_own_before_anything_was_done_to_them(folders):
    llm = LLM(folders["words"], **CALM)
    params = SamplingParams(max_tokens=1, temperature=0, logprobs=0, allowed_token_ids=[77])
    (free,) = llm.generate([[1, 2, 3]], SamplingParams(max_tokens=1, temperature=0, logprobs=2000))[0].outputs
    (text,) = llm.generate([[1, 2, 3]], params)[0].outputs
    assert text.token_ids == [77] != free.token_ids
    assert text.logprobs[0][77].logprob == pytest.approx(free.logprobs[0][77].logprob, abs=1e-6)


NGRAM = {"speculative_config": {"method": "ngram", "num_speculative_tokens": 3, "only_if_quicker": False}}


@pytest.mark.parametrize("drafts", [{}, NGRAM])
def test_but_what_has_to_look_like_something_shares_the_probability(folders, drafts):
    """So it is in vLLM: with a choice of two, logprobs say how likely the model finds each."""
    prompt, again = [11, 12, 13], StructuredOutputsParams(regex="(ab){8}[cd]")
    llm = LLM(folders["bytes"], **CALM, **drafts)
    params = SamplingParams(max_tokens=30, temperature=0, logprobs=3, structured_outputs=again)
    text = llm.generate([prompt], params)[0].outputs[0]
    for i, known in enumerate(text.logprobs):
        free = SamplingParams(max_tokens=1, temperature=0, logprobs=2000)
        (model,) = llm.generate([prompt + text.token_ids[:i]], free)[0].outputs[0].logprobs
        possible = {token: model[token].logprob for token, each in known.items() if each.logprob > -np.inf}
        assert text.token_ids[i] in possible
        others = 1 - sum(np.exp(each.logprob) for each in known.values())
        assert others == pytest.approx(0, abs=1e-5), "what may come is among these three"
        together = np.log(sum(np.exp(logprob) for logprob in possible.values()))
        for token, logprob in possible.items():
            assert known[token].logprob == pytest.approx(logprob - together, abs=1e-4)
    assert not drafts or llm.stats()["vllm:spec_decode_num_accepted_tokens"] > 0


def test_a_text_that_is_complete_ends_whatever_else_was_asked_for(folders):
    yes = StructuredOutputsParams(choice=["yes"])
    for options in ({}, {"ignore_eos": True}, {"min_tokens": 30}, {"temperature": 0}):
        for folder in folders.values():
            params = SamplingParams(structured_outputs=yes, max_tokens=40, **options)
            (text,) = LLM(folder, **CALM).generate([[1, 2]], params)[0].outputs
            assert (text.text, text.finish_reason) == ("yes", "stop"), (options, text)


def test_what_looks_like_a_special_token_is_a_text_like_any_other(folders):
    """Letter by letter: the token itself would be left out of the text, or end it."""
    sign, llm = "<|endoftext|>", LLM(folders["bytes"], **CALM)
    assert llm.tokenizer.encode(sign) == [0]
    wanted = {
        sign: {"choice": [sign]},
        f"yes{sign}é": {"choice": [f"yes{sign}é"]},
        f"no{sign}": {"regex": r"no<\|endoftext\|>"},
        f"{sign}ab": {"grammar": f'start: "{sign}" "ab"'},
        f"{sign}ba": {"grammar": f'root ::= "{sign}ba"'},
        f'["{sign}"]': {"json": {"const": [sign]}, "disable_any_whitespace": True},
    }
    params = [
        SamplingParams(
            structured_outputs=StructuredOutputsParams(**values), temperature=0, max_tokens=40, logit_bias={0: 90}
        )
        for values in wanted.values()
    ]
    outputs = llm.generate([[1, 2]] * len(wanted), params)
    assert [(output.error, output.outputs[0].text) for output in outputs] == [(None, text) for text in wanted]
    usual = SamplingParams(structured_outputs=StructuredOutputsParams(choice=["The sea, every wave"]), max_tokens=40)
    [output] = llm.generate([[1, 2]], usual)  # anything else is spelled as the tokenizer does it, and models know it
    assert output.outputs[0].token_ids == llm.tokenizer.encode("The sea, every wave")


# ---- mistakes


BAD = {
    "an unknown type": {"json": {"type": "objct"}},
    "no JSON": {"json": "{"},
    "what llguidance has no rules for": {"json": {"not": {"type": "string"}}},
    "what nothing matches": {"json": "false"},
    "no regex": {"regex": "("},
    "look-around": {"regex": "(?=a)b"},
    "no grammar": {"grammar": "junk !!"},
    "no GBNF": {"grammar": "root ::= ("},
    "a schema of somewhere else": {"json": {"$ref": "http://localhost/schema"}},
    "whitespace that is none": {"json_object": True, "whitespace_pattern": "("},
    "one too deep": {"json": "[" * 100_000},
}


@pytest.mark.parametrize("values", BAD.values(), ids=BAD)
def test_what_cannot_be_compiled_is_refused_when_it_is_added(folders, values):
    llm = LLM(folders["bytes"], **CALM)
    with pytest.raises(InvalidRequestError, match=r"structured_outputs: .* cannot be compiled: ") as error:
        llm.add_request([1, 2], SamplingParams(structured_outputs=StructuredOutputsParams(**values)))
    assert len(str(error.value)) < 500 and not llm.has_unfinished_requests()


def test_what_the_model_does_not_have_is_refused(tiny, folders, monkeypatch):
    choice = SamplingParams(structured_outputs=StructuredOutputsParams(choice=["a"]))
    for params in (choice, SamplingParams(bad_words=["a"])):
        with pytest.raises(InvalidRequestError, match="no tokenizer"):
            LLM(tiny, **CALM).add_request([1], params)
    for options in ({"logit_bias": {309: 1}}, {"allowed_token_ids": [3, 309]}, {"allowed_token_ids": [-1]}):
        with pytest.raises(InvalidRequestError, match=f"{next(iter(options))} has the token id"):
            LLM(folders["bytes"], **CALM).add_request([1], SamplingParams(**options))
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(InvalidRequestError, match=r"pip install 'minipage\[structured\]'"):
        LLM(folders["bytes"], **CALM).add_request([1], choice)


def test_a_dead_end_ends_that_request_and_no_other(folders):
    """The grammar wants "abc", and no way to spell it is left."""
    llm = LLM(folders["bytes"], **CALM)
    dead = SamplingParams(structured_outputs=StructuredOutputsParams(choice=["abc"]), bad_words=["c", "bc", "abc"])
    plain = SamplingParams(max_tokens=5, seed=1, ignore_eos=True)
    bad, good = llm.generate([[1, 2], [3, 4]], [dead, plain])
    assert bad.outputs[0].finish_reason == "error"
    assert "no token is left" in bad.error and "structured_outputs, bad_words" in bad.error
    assert tokens([good]) == tokens(llm.generate([[3, 4]], plain)) and good.error is None


def test_a_grammar_that_llguidance_gives_up_ends_that_request_alone(folders, monkeypatch):
    llm = LLM(folders["bytes"], **CALM)
    params = SamplingParams(structured_outputs=StructuredOutputsParams(regex="[a-z]{9}"), seed=1)
    llm.add_request([1, 2], params, "lost")
    llm.add_request([1, 2], params, "fine")
    llm.step()
    (text,) = llm.requests["lost"].texts.values()
    text.grammar.advance(300)  # a token that no grammar knows
    outputs = {}
    while llm.has_unfinished_requests():
        outputs |= {output.request_id: output for output in llm.step()}
    assert outputs["lost"].outputs[0].finish_reason == "error" and "no token is left" in outputs["lost"].error
    assert re.fullmatch("[a-z]{9}", outputs["fine"].outputs[0].text)


def test_tokens_that_only_the_model_or_only_the_tokenizer_knows_are_never_allowed(folders):
    tokenizer = (folders["bytes"] / "tokenizer.json").read_text(encoding="utf-8")
    for vocab_size in (290, 300, 301, 333):
        for ends in ([0], [], [500]):
            compiler = GrammarCompiler(tokenizer, vocab_size, ends)
            grammar = compiler.compile(StructuredOutputsParams(regex="(?s:.*)"))
            allowed = np.unpackbits(grammar.allowed(), bitorder="little")
            assert len(allowed) - vocab_size in range(8) and not allowed[min(300, vocab_size) :].any()
            assert allowed[0] == (ends == [0]) and allowed[1 : min(300, vocab_size)].sum() > 100


def test_thousands_of_choices_may_begin_alike(talker):
    """As alternatives of a rule, llguidance would follow each of them by itself, and give up after 2,000."""
    choices = [f"sea {i}" for i in range(3000)]
    params = SamplingParams(structured_outputs=StructuredOutputsParams(choice=choices), max_tokens=20)
    [output] = LLM(talker).generate("The", params)
    assert output.error is None and output.outputs[0].text in choices
