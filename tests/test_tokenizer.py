"""Text that grows token by token is, in the end, what the tokenizer makes of all tokens together; and what was kept
from training, or was broken before it came here, changes no prompt.
"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers
from tokenizers.decoders import DecodeStream

from minipage.engine.detokenizer import Detokenizer
from minipage.errors import InvalidRequestError
from minipage.model.tokenizer import Tokenizer, without_surrogates

LOST = "\N{REPLACEMENT CHARACTER}"
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
SPACED = ["", "a", "b", "▁a", "▁", "▁▁b", "c▁d", LOST, "▁" + LOST, ".", "▁.", "é", " ", "▁🙂"]


def by_words(words, decoder):
    backend = Backend(models.WordLevel({word: i for i, word in enumerate(words)}))
    if decoder:
        backend.decoder = decoder
    backend.add_special_tokens(["<s>", "</s>"])
    backend.add_tokens(["added"])
    return Tokenizer(backend)


def byte_level(vocab_size=290):
    backend = Backend(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=alphabet, special_tokens=["<|endoftext|>"], show_progress=False
    )
    backend.train_from_iterator(["the café, 你好 🙂 the cat"] * 3, trainer)
    backend.add_tokens(["éé€"])  # letters that stand for no byte
    return Tokenizer(backend)


def llama_decoder():
    space = decoders.Replace("▁", " ")
    return decoders.Sequence([space, decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])


# Every kind of decoder that looks at more than one token.
TOKENIZERS = {
    "byte level": byte_level(),
    "Metaspace": by_words(SPACED, decoders.Metaspace()),
    "Metaspace, never first": by_words(SPACED, decoders.Metaspace(prepend_scheme="never")),
    "Llama's": by_words(SPACED + BYTES, llama_decoder()),
    "bytes alone": by_words(SPACED + BYTES, decoders.ByteFallback()),
    "WordPiece": by_words(
        ["a", "##a", "b", "##", "##b", ".", "'s", "n't", "do not", LOST, "##é"], decoders.WordPiece()
    ),
    "characters": by_words(["a", "b", "a</w>", "b</w>", "</w>", "é</w>", LOST, LOST + "</w>"], decoders.BPEDecoder()),
    "CTC": by_words(["<pad>", "|", "a", "b", "c", LOST, "'s"], decoders.CTC()),
    "no decoder": by_words(SPACED, None),
}


def streamed(tokenizer, token_ids, skip_special_tokens=False, before=None):
    """What is shown after each token, and at the end."""
    detokenizer = Detokenizer(tokenizer, skip_special_tokens, before)
    shown = []
    for token_id in token_ids:
        detokenizer.add(token_id)
        shown.append(detokenizer.text)
    detokenizer.flush()
    return [*shown, detokenizer.text]


@pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS)
@given(st.data(), st.booleans())
@settings(max_examples=settings.default.max_examples * 2)
def test_what_is_streamed_is_in_the_end_the_text_of_all_tokens_together(tokenizer, data, skip):
    known = st.integers(0, tokenizer.vocab_size + 2)  # and three that it does not know
    few = data.draw(st.lists(known, min_size=1, max_size=5))
    token_ids = data.draw(st.lists(st.sampled_from(few) | known, max_size=25))
    shown = streamed(tokenizer, token_ids, skip)
    assert shown[-1] == tokenizer.backend.decode(token_ids, skip_special_tokens=skip)
    for earlier, later in zip(shown, shown[1:], strict=False):
        assert later.startswith(earlier), f"{earlier!r} was shown, and taken back: {later!r}"


@pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS)
@given(st.data(), st.booleans())
def test_what_is_added_to_a_text_is_what_the_tokenizer_makes_of_both_without_it(tokenizer, data, skip):
    known = st.integers(0, tokenizer.vocab_size + 2)
    few = data.draw(st.lists(known, min_size=1, max_size=5))
    before, token_ids = (data.draw(st.lists(st.sampled_from(few) | known, max_size=12)) for _ in range(2))
    old, both = (tokenizer.backend.decode(ids, skip_special_tokens=skip) for ids in (before, before + token_ids))
    shown = streamed(tokenizer, token_ids, skip, before)
    for earlier, later in zip(shown, shown[1:], strict=False):
        assert later.startswith(earlier), f"{earlier!r} was shown, and taken back: {later!r}"
    while not both.startswith(old):  # half a character, which is a whole one in both
        old = old[:-1]
    if LOST not in both or not any(map(tokenizer.is_byte, before)):  # a run of bytes is lost from its beginning
        assert shown[-1] == both[len(old) :]


@pytest.mark.parametrize(
    ("name", "before", "token_ids", "text"),
    [
        ("Llama's", ["a", "</s>"], ["▁a"], " a"),  # what is left out separates nothing
        ("Llama's", ["a", "</s>", "<s>", "<s>"], ["</s>", "▁a"], " a"),
        ("Llama's", ["<s>"], ["▁a"], "a"),
        ("WordPiece", ["a", "<s>"], ["##a", "b"], "a b"),
        ("Llama's", ["a", LOST], ["▁a"], " a"),  # no half of anything, but a character that was lost before
        ("Llama's", ["a", "<0xE4>", "<0xBD>"], ["<0xA0>", "b"], "你b"),
        ("Llama's", ["a", "<0xE4>", "<0xBD>", "<0xA0>"], ["<0xE4>", "<0xBD>", "<0xA0>", "b"], "你b"),
        ("byte level", ["a", "ð", "Ł", "Ļ"], ["Ĥ", "a"], "🙂a"),
        ("byte level", ["ð", "Ł", "Ļ"], ["Ĥ"], "🙂"),
        ("byte level", ["a", "ð", "Ł", "Ļ"], ["a"], "a"),  # it stays half a character
        ("byte level", ["a", "ï", "¿", "½"], ["ï", "¿", "½", "a"], LOST + "a"),
    ],
    ids=str,
)
def test_a_text_goes_on_where_the_one_before_ends(name, before, token_ids, text):
    tokenizer = TOKENIZERS[name]
    ids = [[tokenizer.backend.token_to_id(token) for token in tokens] for tokens in (before, token_ids)]
    assert None not in ids[0] + ids[1]
    assert streamed(tokenizer, ids[1], True, ids[0])[-1] == text


def test_to_ask_for_a_long_text_again_and_again_copies_nothing():
    tokenizer = TOKENIZERS["byte level"]
    token_ids = tokenizer.encode("the cat")
    detokenizer = Detokenizer(tokenizer, before=token_ids)
    for token_id in token_ids:
        detokenizer.add(token_id)
        assert detokenizer.text is detokenizer.text


@pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS)
def test_no_more_than_the_last_few_tokens_are_held_back(tokenizer):
    words = [i for i in range(tokenizer.vocab_size) if tokenizer.token_text(i).strip(" " + LOST).isalpha()]
    words = [i for i in words if not tokenizer.is_byte(i)]
    text = ""
    for n in range(1, 40):
        token_ids = (words * 40)[:n]
        shown = streamed(tokenizer, token_ids)[-2]
        assert len(shown) >= len(text), "less and less is shown"
        text = tokenizer.decode(token_ids[:-2])
        assert len(shown) >= len(text.rstrip(LOST)), f"only {shown!r} of {text!r} is shown, and more"


@pytest.mark.parametrize("length", [1, 8, 50, 4000])
def test_broken_text_is_not_looked_at_again_and_again(monkeypatch, length):
    """The tokens that the library looks at are counted: in a straight line, not in a square."""
    held, looked_at = [0], []

    class Counting:
        def __init__(self, **options):
            self.stream = DecodeStream(**options)

        def step(self, backend, token_ids):
            held[0] += len(token_ids)
            looked_at.append(held[0])  # whatever it holds, it decodes anew
            text = self.stream.step(backend, token_ids)
            held[0] = 0 if text else held[0]
            return text

    monkeypatch.setattr("minipage.engine.detokenizer.DecodeStream", Counting)
    tokenizer = TOKENIZERS["byte level"]
    broken = next(i for i in range(tokenizer.vocab_size) if tokenizer.token_text(i) == LOST)
    detokenizer = Detokenizer(tokenizer)
    for _ in range(length):
        detokenizer.add(broken)
    assert not looked_at, "nobody has asked for the text"
    assert detokenizer.text in ("", LOST * length)
    assert 0 < sum(looked_at) <= 20 * length
    for token_id in tokenizer.encode("the cat" * length):
        detokenizer.add(token_id)
    assert detokenizer.text.startswith(LOST * length + "the cat"), "good text after it is not shown"
    detokenizer.flush()
    assert detokenizer.text == LOST * length + "the cat" * length


@pytest.mark.parametrize("name", ["Llama's", "Metaspace", "byte level", "no decoder"])
def test_the_text_of_a_token_is_what_it_adds(name):
    """So one that begins a word does not look like one that goes on with it."""
    tokenizer = TOKENIZERS[name]
    before = tokenizer.backend.token_to_id("a")
    for token_id in range(tokenizer.vocab_size):
        text = tokenizer.token_text(token_id)
        if LOST not in text:
            assert tokenizer.decode([before, token_id]) == "a" + text


# ---- prompts


@pytest.mark.parametrize("keep", ["truncation", "padding", "dropout"])
def test_what_was_set_in_training_changes_no_prompt(tmp_path, keep):
    backend = byte_level().backend
    expected = backend.encode("the café, 你好").ids
    if keep == "truncation":
        backend.enable_truncation(max_length=2)
    elif keep == "padding":
        backend.enable_padding(length=64)
    else:
        backend.model.dropout = 0.9
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer(tmp_path / "tokenizer.json")
    assert [tokenizer.encode("the café, 你好") for _ in range(5)] == [expected] * 5


@pytest.mark.parametrize(
    ("text", "mended"),
    [
        ("a\ud800b", f"a{LOST}b"),
        ("\udcff", LOST),
        ("\ud83d", LOST),
        ("\ude42\ud83d", LOST * 2),
        ("\ud83d\ude42", "🙂"),  # two halves that belong together, as some JSON has them
        ("\ufeffé🙂", "\ufeffé🙂"),
        ("", ""),
    ],
)
def test_half_a_surrogate_pair_is_a_lost_character(text, mended):
    tokenizer = TOKENIZERS["byte level"]
    assert without_surrogates(text) == mended
    assert tokenizer.encode(text) == tokenizer.encode(mended)


def test_a_text_that_a_tokenizer_cannot_spell_is_refused():
    with pytest.raises(InvalidRequestError, match="cannot read the text"):
        TOKENIZERS["WordPiece"].encode("Zürich")


def panicking():
    """A tokenizer whose library panics where a text is a single space, and knows how to go on."""
    steps = [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 1)]
    return by_words(["▁", "▁a", "b", "▁b▁"], decoders.Sequence(steps))


@pytest.mark.parametrize(
    ("token_ids", "text"),
    [([0], LOST), ([1], "a"), ([0, 1], " a"), ([1, 0], "a"), ([0, 0, 0], " "), ([2**40], LOST), ([-1, 1], LOST + "a")],
)
def test_a_panic_of_the_library_is_no_reason_to_stop(token_ids, text):
    tokenizer = panicking()
    assert tokenizer.decode(token_ids) == text
    assert tokenizer.token_text(token_ids[0]) in (LOST, " a")


@given(st.lists(st.integers(0, 3), max_size=8))
def test_what_was_streamed_stays_where_the_library_panics(token_ids):
    tokenizer = panicking()
    assert streamed(tokenizer, token_ids)[-1] == tokenizer.decode(token_ids)


def test_what_was_said_before_a_decoder_fails_for_good_stays(monkeypatch):
    tokenizer = by_words(SPACED, decoders.Metaspace())
    detokenizer = Detokenizer(tokenizer)
    for token_id in (1, 3):
        detokenizer.add(token_id)
    said = detokenizer.text
    tokenizer.backend.decoder = panicking().backend.decoder
    for token_id in (4, 4, 4):
        detokenizer.add(token_id)
    monkeypatch.setattr(tokenizer, "decode_whole", lambda *_: 1 / 0)
    for _ in range(2):
        detokenizer.flush()
        assert said and detokenizer.text.startswith(said) and detokenizer.text.strip(LOST + " ") == said.strip()


def test_a_text_that_the_library_panics_at_is_refused():
    class PanicException(BaseException):
        pass

    class Backend:
        def encode(self, text, **options):
            raise PanicException("index out of bounds")

    tokenizer = byte_level()
    tokenizer.backend = Backend()
    with pytest.raises(InvalidRequestError, match="panicked: index out of bounds"):
        tokenizer.encode("a")


def test_long_texts_are_read_like_short_ones():
    tokenizer = byte_level()
    text = "The sea is a wide grey field.\n" * 400  # above LONG, where another call of the library reads it
    assert tokenizer.encode(text) == tokenizer.backend.encode(text).ids


@given(st.text(st.characters(), max_size=8))
def test_whatever_is_in_a_text_it_can_be_encoded_and_comes_back(text):
    tokenizer = TOKENIZERS["byte level"]
    assert tokenizer.decode(tokenizer.encode(text)) == without_surrogates(text)
    without_surrogates(text).encode()
