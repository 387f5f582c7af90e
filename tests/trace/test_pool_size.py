"""Every story fits whatever texts, block sizes and lengths the viewer chooses, and still shows what it is about."""

import pytest
from stories import slow_but

from minipage.cli import main
from minipage.errors import MinipageError
from minipage.trace.playing.demo import SMALL, Demo, make_engine
from minipage.trace.playing.pool_size import pool_for
from minipage.trace.playing.scenarios import SCENARIOS

QUESTION = "To be, or not to be, that is the question"
TEXTS = {
    "its own": None,
    "a question": [QUESTION],
    "a letter": ["x"],
    "a long one": ["word " * 100],
    "unequal ones": ["To be", "word " * 60, "ROMEO:"],
    "many": [QUESTION, "x", "To be", "word " * 20, "ROMEO:"],
}
BLOCKS = {"basics": 12, "fragmentation": 245, "continuous-batching": 16, "chunked-prefill": 20, "copy-on-write": 16,
          "beam": 24, "prefix": 20, "preemption": 9, "swap": 9, "kernel": 16}  # fmt: skip


def run(name, texts=None, max_tokens=None, **options):
    """The frames of a story with these."""
    scenario = SCENARIOS[name].with_prompts(texts, max_tokens)
    return list(Demo(make_engine(scenario, options), scenario).frames())


@pytest.mark.parametrize(("name", "num_blocks"), BLOCKS.items())
def test_left_alone_a_story_has_the_pool_that_it_was_written_for(name, num_blocks):
    scenario = SCENARIOS[name]
    assert pool_for(scenario, SMALL | scenario.engine)["num_blocks"] == num_blocks


def test_hf_overrides_count_here_too():
    """With a context that no prompt fits in the engine will refuse the requests; and no error comes before that."""
    scenario = SCENARIOS["preemption"]
    assert pool_for(scenario, SMALL | scenario.engine | {"hf_overrides": {"n_positions": 1}}) == {}


FEW, MANY = ((1, 5, 64), (None, 9999)), ((1, 2, 3, 4, 5, 8, 16, 64), (None, 1, 2, 40, 9999))


@pytest.mark.parametrize("tried", [FEW, pytest.param(MANY, marks=pytest.mark.slow)], ids=["few", "many"])
@pytest.mark.parametrize("texts", slow_but(TEXTS, "many"))
@pytest.mark.parametrize("name", SCENARIOS)
def test_a_pool_for_everything(name, texts, tried):
    """No request is refused, for many sizes: the engine's own check is asked."""
    for block_size in tried[0]:
        for max_tokens in tried[1]:
            scenario = SCENARIOS[name].with_prompts(TEXTS[texts], max_tokens)
            sizes = pool_for(scenario, SMALL | scenario.engine | {"block_size": block_size})
            assert sizes, (block_size, max_tokens)
            if "num_blocks" in sizes:
                assert 1 <= sizes["num_blocks"] * block_size <= 40_000


OTHERS = [
    ("many", 3, None), ("a letter", 8, None), ("a question", 4, None), ("its own", 16, None), ("unequal ones", 4, 20),
]  # fmt: skip
# Each story with one of them; the other pairs are slow.
PAIRS = [
    pytest.param(name, *other, marks=[pytest.mark.slow] * (i % len(OTHERS) != j))
    for i, name in enumerate(name for name in SCENARIOS if name != "fragmentation")
    for j, other in enumerate(OTHERS)
]


@pytest.mark.parametrize(("name", "texts", "block_size", "max_tokens"), PAIRS)
def test_stories_of_other_texts_and_sizes(name, texts, block_size, max_tokens):
    """They run to their end. What a story is about is seen, or the last sentence says why not."""
    frames = run(name, TEXTS[texts], max_tokens, block_size=block_size)
    assert not frames[-1].running and not frames[-1].waiting
    told = " ".join(frame.story for frame in frames)
    assert any(frame.preempted for frame in frames) or "Nobody had to give way" in told or not SCENARIOS[name].runs_dry
    fixed = "continuous-batching", "preemption", "swap", "admission", "window"  # their pools have sizes of their own
    if name not in fixed:
        assert not any(frame.preempted for frame in frames)
    if name in ("copy-on-write", "beam"):
        assert any(frame.copies for frame in frames) != ("Nothing was copied" in told)
    if name == "prefix" and texts not in ("unequal ones", "many"):
        assert frames[-1].num_hit_tokens or "No request found" in told


def test_what_cannot_be_seen_is_said():
    assert (
        "Nothing was copied" in run("copy-on-write", [QUESTION], block_size=7)[-1].story
    )  # 14 tokens: two full blocks
    full, alone = "fills its last block", "no second token was generated"
    for block_size, max_tokens, reason in ((7, None, full), (4, 1, alone), (7, 1, alone)):
        last = run("copy-on-write", [QUESTION], max_tokens, block_size=block_size)[-1]
        assert [why for why in (full, alone) if why in last.story] == [reason]
    assert "Nobody had to give way" in run("preemption", max_tokens=1)[-1].story
    assert "No request found" in run("prefix", block_size=64)[-1].story
    assert "No block was added" in run("basics", block_size=64)[-1].story


def test_one_text_of_the_viewers_is_the_beginning_of_all_prompts_of_the_story_of_prefixes():
    frames = run("prefix", [QUESTION])
    assert all(seq.prompt.startswith(QUESTION) for seq in frames[-1].all_sequences)
    assert frames[-1].num_hit_tokens >= 2 * 12


def test_texts_of_the_viewers_take_the_place_of_the_storys():
    prompts = [seq.prompt for seq in run("continuous-batching", ["To be"], max_tokens=3)[-1].all_sequences]
    assert prompts[0] == "To be" and len(prompts) == 3 and prompts[1].startswith("JULIET")


def test_a_pool_of_ones_own_is_not_changed(capsys):
    with pytest.raises(MinipageError, match="num_blocks"):
        run("basics", num_blocks=2)
    assert main(["demo", "basics", "--num-blocks", "7", "--steps", "1"]) == 0
    assert "7 blocks of 4" in capsys.readouterr().out


def test_the_swap_pool_grows_with_the_story():
    frames = run("swap", ["word " * 60, "word " * 40])
    assert any(frame.swap_out for frame in frames)
