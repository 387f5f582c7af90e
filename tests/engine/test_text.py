"""Where a text ends, and what of it may be seen while it grows.

To try any text at all, `Parrot` replaces one phase of the real engine: its sample() says what the test tells it to.
"""

import shutil

import pytest
from engine.checkpoints import save_tokenizer
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from minipage.engine.completion import Completion
from minipage.engine.llm import LLM
from minipage.engine.request import NextToken
from minipage.memory import BlockPool, BlockTable
from minipage.sampling import Logprob, SamplingParams
from minipage.scheduling import Sequence


class Parrot(LLM):
    """An engine whose every text is `script`, a list of token ids, whatever the model thinks."""

    script: tuple[int, ...] = ()

    def sample(self, plan, logits):
        ends = [(self.requests[chunk.group.group_id], seq) for chunk in plan.chunks for seq in chunk.receivers]
        return {
            request: [NextToken(seq, self.script[len(seq.output_token_ids)], None)] for request, seq in ends
        }  # none asks for more than one text


@pytest.fixture(scope="module")
def parrot(talker):
    return Parrot(talker, block_size=4, num_blocks=32, attention="reference")


@pytest.fixture(scope="module")
def by_words(talker, tmp_path_factory):
    """A tokenizer that knows some whole words, the model's own; and one that says every byte by itself."""
    return save_tokenizer(tmp_path_factory.mktemp("words"))


@pytest.fixture(scope="module")
def by_bytes(tmp_path_factory):
    """The same tokenizer before it learned any words: every byte is a token, so characters fall to pieces."""
    return save_tokenizer(tmp_path_factory.mktemp("bytes"), vocab_size=257)


words = st.sampled_from(["the", " wave", " began", "a", "ab", "b", " ", "é", "你好", "🙂", "\n", "£5"])
# Words, and whether to say them byte by byte.
pieces = st.lists(st.tuples(words, st.booleans()), min_size=1, max_size=12)
half_as_many = settings(max_examples=settings.default.max_examples // 2)


def spell(pieces, by_words, by_bytes):
    """(text, token ids) of some pieces."""
    encoded = [(by_bytes if in_bytes else by_words).encode(word).ids for word, in_bytes in pieces]
    return "".join(word for word, _ in pieces), [token for ids in encoded for token in ids]


def whole_characters(tokenizer, token_ids):
    """The text of some tokens without the beginning of a character at its end."""
    return tokenizer.decode(token_ids, skip_special_tokens=False).rstrip("\N{REPLACEMENT CHARACTER}")


def slow_stop(tokenizer, token_ids, stops, min_tokens):
    """(text, number of tokens, stop string): every place in every beginning of the text is tried, one by one.

    The first stop string to be completed ends the text; of several that one token completes, the one that begins first.
    """
    before = ""
    for n in range(1, len(token_ids) + 1):
        text = whole_characters(tokenizer, token_ids[:n])
        if n > min_tokens:
            for place in range(len(text)):
                for stop in stops:
                    if text.startswith(stop, place) and place + len(stop) > len(before):
                        return text[:place], n, stop
        before = text
    return before, len(token_ids), None


# ---- against the oracle


@half_as_many
@given(pieces, st.lists(st.one_of(words, st.text("ab é🙂", min_size=1, max_size=4)), max_size=3), st.integers(0, 8))
@example([(word, False) for word in ("a", "b", "ab", " wave")], ["b ", "ab wave"], 0)
@example([("the", False), (" wave", False), ("the", False)], ["the"], 2)  # the first comes before min_tokens
@example([("🙂", True), ("🙂", True)], ["🙂🙂"], 0)
def test_a_text_ends_at_the_first_stop_string_and_no_part_of_it_is_ever_shown(
    parrot, by_words, by_bytes, pieces, stops, min_tokens
):
    _, parrot.script = spell(pieces, by_words, by_bytes)
    min_tokens = min(min_tokens, len(parrot.script))
    text, length, stop = slow_stop(by_words, parrot.script, stops, min_tokens)
    params = SamplingParams(stop=stops, min_tokens=min_tokens, max_tokens=len(parrot.script), ignore_eos=True)
    seen = [output.outputs[0] for output in parrot.stream([3], params)]
    assert seen[-1].text == text
    assert len(seen[-1].token_ids) == length == len(seen), "not every token was streamed, or one too often"
    assert (seen[-1].finish_reason, seen[-1].stop_reason) == (("stop", stop) if stop else ("length", None))
    held_back = max(map(len, stops), default=1) - 1
    for shorter, longer in zip(seen, seen[1:], strict=False):
        assert longer.text.startswith(shorter.text), f"{shorter.text!r} was shown, and taken back in {longer.text!r}"
        said = whole_characters(by_words, shorter.token_ids)
        assert len(said) - len(shorter.text) <= held_back, f"more of {said!r} is held back than a stop string needs"


@half_as_many
@given(pieces)
def test_characters_split_over_tokens_come_out_whole(parrot, by_words, by_bytes, pieces):
    text, parrot.script = spell(pieces, by_words, by_bytes)
    params = SamplingParams(max_tokens=len(parrot.script))
    seen = [output.outputs[0].text for output in parrot.stream([3], params)]
    assert seen[-1] == text
    assert not any("\N{REPLACEMENT CHARACTER}" in part for part in seen), f"half a character was shown: {seen}"


@given(st.lists(st.integers(1, 256), min_size=1, max_size=6), st.sampled_from(["a", "é", "你", "🙂"]))
@example([129], "🙂")
def test_a_whole_character_survives_nonsense_before_it(parrot, by_bytes, junk, character):
    """A model may say bytes that are no text at all. The next character is none the worse for it."""
    parrot.script = [*junk, *by_bytes.encode(character).ids]
    expected = by_bytes.decode(parrot.script, skip_special_tokens=False)
    output = parrot.generate([3], SamplingParams(max_tokens=len(parrot.script)))[0].outputs[0]
    assert output.text.endswith(character) == expected.endswith(character), f"{output.text!r} for {expected!r}"


def test_a_text_that_was_cut_within_a_character_goes_on_with_all_of_it(parrot, by_bytes):
    *prompt, rest = by_bytes.encode("ok 🙂").ids
    parrot.script = [rest, *by_bytes.encode("a").ids]
    seen = [output.outputs[0].text for output in parrot.stream(prompt, SamplingParams(max_tokens=2))]
    assert seen == ["🙂", "🙂a"]


def test_half_a_character_at_the_end_is_shown_as_such(parrot, by_bytes):
    parrot.script = by_bytes.encode("ok 🙂").ids[:-1]
    output = parrot.generate([3], SamplingParams(max_tokens=len(parrot.script)))[0].outputs[0]
    assert output.text == "ok \N{REPLACEMENT CHARACTER}"


def test_the_first_word_is_not_glued_to_the_prompt(talker, tmp_path):
    """Llama's tokenizers drop the space that a text begins with, and no text begins where a prompt ends."""
    shutil.copytree(talker, tmp_path, dirs_exist_ok=True)
    backend = Tokenizer(models.WordLevel({f"▁w{i}": i for i in range(300)}))
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    backend.save(str(tmp_path / "tokenizer.json"))
    llm = Parrot(tmp_path, num_blocks=32, attention="reference")
    llm.script = (7, 8)
    seen = [output.outputs[0].text for output in llm.stream([3], SamplingParams(max_tokens=2, stop=["w9"]))]
    assert seen[-1] == " w7 w8"
    assert llm.generate([3], SamplingParams(max_tokens=2, stop=[" w7"]))[0].outputs[0].text == ""
    llm = LLM(tmp_path, num_blocks=32, attention="reference")
    for beam in llm.generate([3], SamplingParams(beam_width=2, max_tokens=3, ignore_eos=True))[0].outputs:
        assert beam.text == "".join(f" w{token}" for token in beam.token_ids)


def test_the_log_probabilities_of_a_long_text_are_not_added_up_again_for_each_token():
    """How often they are looked at is counted: in a straight line, not in a square."""
    looks = []

    class Counting(dict):
        def __getitem__(self, token_id):
            looks.append(token_id)
            return super().__getitem__(token_id)

    seq = Sequence("a", [1, 2], BlockTable(BlockPool(1, 1)))
    text = Completion(0, seq, SamplingParams(logprobs=0), frozenset(), 1000, None)
    for i in range(1, 201):
        text.add_token(5, Counting({5: Logprob(-i, 1, "")}))
        output = text.output()
        assert output.cumulative_logprob == -i * (i + 1) / 2 and len(output.logprobs) == i
    assert len(looks) < 1000


# ---- what ends a text, and what is no text at all


def say(parrot, token_ids, **params):
    parrot.script = token_ids
    return parrot.generate([3], SamplingParams(max_tokens=len(token_ids), **params))[0].outputs[0]


@pytest.mark.parametrize(
    ("params", "text"),
    [
        ({}, "gull"),
        ({"skip_special_tokens": False}, "gull"),  # the token that ends it is left out in any case
        ({"include_stop_str_in_output": True}, "gull"),
        ({"include_stop_str_in_output": True, "skip_special_tokens": False}, "gull<|endoftext|>"),
        ({"ignore_eos": True}, "gullgull"),
        ({"ignore_eos": True, "skip_special_tokens": False}, "gull<|endoftext|>gull"),
        ({"ignore_eos": True, "stop": "lg"}, "gul"),  # as if nothing were in between
    ],
    ids=str,
)
def test_special_tokens_and_the_end_are_left_out_of_the_text_unless_asked_for(parrot, by_words, params, text):
    gull = by_words.encode("gull").ids
    output = say(parrot, [*gull, 0, *gull], **params)
    assert output.text == text
    assert output.token_ids[: len(gull) + 1] == [*gull, 0], "a token was left out of token_ids, too"


def test_a_stop_token_that_is_no_special_one_is_left_out_too(parrot, by_words):
    the, wave = by_words.encode("the").ids, by_words.encode(" wave").ids
    output = say(parrot, [*the, *wave], stop_token_ids=wave[-1:])
    assert output.text == by_words.decode([*the, *wave[:-1]]) and output.token_ids == [*the, *wave]
    assert say(parrot, [*the, *wave], stop_token_ids=wave[-1:], include_stop_str_in_output=True).text == "the wave"


def test_a_stop_string_is_shown_if_asked_for_and_nothing_needs_to_be_held_back(parrot, by_bytes):
    parrot.script = by_bytes.encode("every wave").ids
    params = SamplingParams(stop=["y w"], include_stop_str_in_output=True)
    seen = [output.outputs[0] for output in parrot.stream([3], params)]
    assert [output.text for output in seen] == ["e", "ev", "eve", "ever", "every", "every ", "every w"]
    assert (seen[-1].finish_reason, seen[-1].stop_reason) == ("stop", "y w")


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize(
    ("text", "num_missing", "stop", "shown"),
    [
        ("ab🙂", 1, "b\N{REPLACEMENT CHARACTER}", "a"),  # its end is known only when nothing more comes
        ("ab🙂", 2, "\N{REPLACEMENT CHARACTER}", "ab"),
        ("ab🙂", 3, "x", "ab\N{REPLACEMENT CHARACTER}"),
    ],
)
def test_stop_strings_are_looked_for_in_what_comes_out_at_the_end(
    parrot, by_bytes, text, num_missing, stop, shown, kept
):
    output = say(parrot, by_bytes.encode(text).ids[:-num_missing], stop=stop, include_stop_str_in_output=kept)
    found = stop != "x"
    assert output.text == shown + stop * (kept and found)
    assert (output.finish_reason, output.stop_reason) == (("stop", stop) if found else ("length", None))


def test_a_stop_string_in_what_was_held_back_comes_before_the_stop_token_after_it(parrot, by_bytes):
    output = say(parrot, [*by_bytes.encode("a🙂").ids[:-1], 0], stop="\N{REPLACEMENT CHARACTER}")
    assert (output.text, output.stop_reason) == ("a", "\N{REPLACEMENT CHARACTER}")


def test_no_stop_string_is_in_a_text_that_is_aborted(parrot, by_bytes):
    parrot.script = by_bytes.encode("ab🙂").ids
    request_id = parrot.add_request([3], SamplingParams(stop="b\N{REPLACEMENT CHARACTER}"))
    for _ in range(4):
        parrot.step()
    parrot.abort(request_id)
    output = parrot.step()[0].outputs[0]
    assert (output.text, output.finish_reason) == ("a", "abort")


def test_half_a_surrogate_pair_is_the_same_lost_character_in_a_prompt_and_in_a_stop_string(parrot, by_bytes):
    assert say(parrot, by_bytes.encode("ab🙂").ids[:-1], stop="b\ud83d").text == "a"
    lost = parrot.generate("a\udcff", SamplingParams(max_tokens=1))[0]
    assert lost.prompt == "a\N{REPLACEMENT CHARACTER}"
    assert lost.prompt_token_ids == by_bytes.encode(lost.prompt).ids


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("kept", [True, False])
def test_beams_leave_out_of_their_texts_what_others_do(talker, by_words, skip, kept):
    llm = LLM(talker, num_blocks=32, attention="reference")
    ways = {"skip_special_tokens": skip, "include_stop_str_in_output": kept}
    params = SamplingParams(beam_width=3, max_tokens=6, stop_token_ids=range(0, 300, 3), **ways)
    outputs = llm.generate("Every wave", params)[0].outputs
    assert {output.finish_reason for output in outputs} >= {"stop"}
    for output in outputs:
        said = output.token_ids if kept or output.finish_reason != "stop" else output.token_ids[:-1]
        assert output.text == by_words.decode(said, skip_special_tokens=skip)


# ---- examples


def test_a_stop_string_may_begin_in_one_token_and_end_in_another(parrot, by_bytes):
    parrot.script = by_bytes.encode("every wave").ids
    seen = [output.outputs[0].text for output in parrot.stream([3], SamplingParams(stop=["y w"]))]
    assert seen == ["", "", "e", "ev", "eve", "ever", "ever"]


def test_what_only_looked_like_a_stop_string_is_shown_in_the_end(parrot, by_bytes):
    parrot.script = by_bytes.encode("the end").ids
    params = SamplingParams(stop=["ending"], max_tokens=len(parrot.script))
    assert parrot.generate([3], params)[0].outputs[0].text == "the end"


@pytest.mark.parametrize("ignore_eos", [False, True])
def test_the_end_of_text_token_ends_it_unless_it_is_ignored(parrot, by_words, ignore_eos):
    parrot.script = [*by_words.encode("gull").ids, 0, *by_words.encode("gull").ids]  # 0 is <|endoftext|>
    eos_at = parrot.script.index(0)
    params = SamplingParams(ignore_eos=ignore_eos, max_tokens=len(parrot.script))
    output = parrot.generate([3], params)[0].outputs[0]
    if ignore_eos:
        assert (output.finish_reason, output.stop_reason) == ("length", None)
        assert output.token_ids == parrot.script
    else:
        assert (output.finish_reason, output.stop_reason) == ("stop", None)
        assert output.token_ids == parrot.script[: eos_at + 1]
        assert output.text == "gull"


def test_a_stop_token_ends_the_text_and_is_kept(parrot):
    parrot.script = (5, 6, 7, 8, 9)
    output = parrot.generate([3], SamplingParams(stop_token_ids=[8, 7]))[0].outputs[0]
    assert (output.token_ids, output.finish_reason, output.stop_reason) == ([5, 6, 7], "stop", 7)


def test_text_prompts_and_their_token_ids_say_the_same(talker, by_words):
    llm = LLM(talker, num_blocks=16, attention="reference")
    text = "Every wave"
    params = SamplingParams(temperature=0, max_tokens=6)
    from_text, from_ids = llm.generate([text, by_words.encode(text).ids], params)
    assert from_text.prompt == text and from_ids.prompt is None
    assert from_text.prompt_token_ids == from_ids.prompt_token_ids == by_words.encode(text).ids
    assert from_text.outputs == from_ids.outputs
