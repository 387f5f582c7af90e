"""The scenario `kernel`: a walk through one attention call is float64 attention, and what the real kernel returned."""

import json
import re

import numpy as np
import pytest
from screens import screen, section
from stories import slow_but

from minipage import LLM
from minipage.trace import Trace
from minipage.trace.drawing.exports import write_svg
from minipage.trace.drawing.html import as_tree
from minipage.trace.playing.demo import Demo, make_engine
from minipage.trace.playing.scenarios import SCENARIOS
from minipage.trace.recording.attention_walk import online_softmax
from minipage.trace.recording.frames import is_stop

SCENARIO = SCENARIOS["kernel"]


def dense(q, k, v, scale):
    """Attention of one query in float64, with all scores at once; q: [head_size], k and v: [num_tokens, head_size]."""
    scores = k.astype(np.float64) @ q.astype(np.float64) * scale  # [num_tokens]
    weights = np.exp(scores - scores.max())  # [num_tokens]
    return weights / weights.sum() @ v.astype(np.float64)  # [head_size]


@pytest.mark.parametrize("num_tokens", [1, 3, 4, 5, 17, 64])
@pytest.mark.parametrize("block_size", [1, 4, 16])
def test_the_online_softmax_is_attention(num_tokens, block_size):
    rng = np.random.default_rng(num_tokens * 100 + block_size)
    q, k, v = (rng.standard_normal((n, 8)) * 3 for n in (1, num_tokens, num_tokens))  # each [n, 8]
    blocks = tuple(range(-(-num_tokens // block_size)))[::-1]
    *_, last = online_softmax(q[0], k, v, blocks, block_size, 0.5)
    np.testing.assert_allclose(np.array(last.output) / last.total, dense(q[0], k, v, 0.5), rtol=1e-12)
    assert last.maximum == pytest.approx((k @ q[0] * 0.5).max(), rel=1e-12)


class Watched:
    """An engine whose every attention call is kept: its arguments, as they were, and what came out."""

    def __init__(self, **options):
        self.llm = make_engine(SCENARIO, options)
        self.calls = []
        kernel = self.llm.runner.paged_attention

        def watched(q, k_cache, v_cache, *others):
            out = kernel(q, k_cache, v_cache, *others)
            self.calls.append((q.copy(), k_cache.copy(), v_cache.copy(), others, out.copy()))
            return out

        self.llm.runner.paged_attention = watched


@pytest.fixture(scope="module")
def watched():
    watched = Watched()
    demo = Demo(watched.llm, SCENARIO)
    return watched, demo, list(demo.frames())


def walks(frames):
    return [frame for frame in frames if frame.phase == "attend"]


def test_the_walk_is_the_engines_own_call(watched):
    """q, K, V, table and result are those of the call that the engine made in that step, layer and head."""
    engine, _, frames = watched
    first, *_, last = walks(frames)
    walk, size = last.attention, last.block_size
    chunk = first.chunks[0]
    assert walk.label == chunk.label and walk.position == chunk.start + chunk.num_tokens - 1
    q, k_cache, v_cache, (tables, lens, starts, scale, *_), out = engine.calls[
        (first.step - 1) * engine.llm.model.kv.num_layers + walk.layer
    ]
    row = starts[1] - 1
    blocks = tables[0, : -(-lens[0] // size)].tolist()
    assert [step.physical for step in walk.steps] == blocks == list(first.sequences[0].blocks)
    assert [step.logical for step in walk.steps] == list(range(len(blocks)))
    k, v = (cache[blocks][:, :, walk.head].reshape(-1, q.shape[-1])[: lens[0]] for cache in (k_cache, v_cache))
    exact = dense(q[row, walk.head], k, v, scale)  # [head_size]
    np.testing.assert_allclose(walk.result, exact, rtol=1e-10, atol=1e-13)
    assert walk.kernel == tuple(out[row, walk.head].tolist())
    np.testing.assert_allclose(walk.kernel, exact, rtol=1e-5, atol=1e-6)
    assert walk.largest_difference < 1e-6
    scores = k.astype(np.float64) @ q[row, walk.head].astype(np.float64) * scale  # [num_tokens]
    np.testing.assert_allclose([s for step in walk.steps for s in step.scores], scores, rtol=1e-10)


def test_each_step_follows_from_the_one_before(watched):
    steps = walks(watched[2])[-1].attention.steps
    assert len(steps) >= 4 and any(step.shrink < 1 for step in steps[1:]) and any(step.shrink == 1 for step in steps)
    maximum, total = -np.inf, 0.0
    for step in steps:
        assert step.maximum == max(maximum, *step.scores)
        assert step.shrink == pytest.approx(np.exp(maximum - step.maximum))
        assert step.weights == pytest.approx(np.exp(np.array(step.scores) - step.maximum))
        total = total * step.shrink + sum(step.weights)
        assert step.total == pytest.approx(total)
        maximum = step.maximum


def test_every_frame_knows_one_block_more(watched):
    frames = walks(watched[2])
    assert [len(frame.attention.steps) for frame in frames[:-1]] == list(range(1, len(frames)))
    assert [bool(frame.attention.kernel) for frame in frames] == [False] * (len(frames) - 1) + [True]
    assert [frame.attended_block for frame in frames] == [*frames[0].sequences[0].blocks, None]
    assert len({frame.step for frame in frames}) == 1
    assert all(frame.attention is None for frame in watched[2] if frame.phase != "attend")


def test_looking_changes_no_word(watched):
    alone = LLM()
    for arrival, params, seq in zip(SCENARIO.arrivals, watched[1].params, watched[2][-1].all_sequences, strict=True):
        assert alone.generate(arrival.prompt, params)[0].outputs[0].text == seq.text
    assert "forward" not in vars(watched[0].llm.model)


@pytest.mark.parametrize("dtype", slow_but(("bfloat16", "int8", "fp8"), "int8"))  # each compiles kernels of its own
def test_of_a_quantized_cache_the_kernel_reads_the_same_numbers(dtype):
    frames = list(Demo(make_engine(SCENARIO, {"kv_cache_dtype": dtype}), SCENARIO).frames())
    assert walks(frames)[-1].attention.largest_difference < 1e-5


@pytest.mark.parametrize(("width", "height"), [(80, 24), (160, 48), (40, 16), (60, 20)])
def test_the_terminal_shows_the_numbers(watched, width, height):
    for frame in walks(watched[2]):
        lines = screen(frame, width, height)
        assert len(lines) == height and max(map(len, lines)) <= width
        walk, shown = frame.attention, "\n".join(section(lines, "inside attention"))
        if height < 24:
            continue
        for step in walk.steps:
            row = next(line for line in shown.split("\n") if line.startswith(f"after block {step.physical} "))
            shrink = [f"{step.shrink:.2f}"] if step.logical else []
            assert row.split()[3:][: 2 + len(shrink)] == [*shrink, f"{step.maximum:.2f}", f"{step.total:.2f}"]
            assert f"{step.output[0]:.3f}" in row and f"{step.output[3]:.3f}" in row
        if walk.kernel:
            assert shown.count(f"{walk.kernel[0]:.3f}") >= 2, "the result and the kernel's, one below the other"
        else:
            step = walk.steps[-1]
            assert f"block {step.physical} is read" in shown
            for score, weight in zip(step.scores, step.weights, strict=True):
                assert f"{score:8.2f} {weight:6.2f}" in shown
            assert f"→{step.physical}◂ read" in "\n".join(lines) or f"→ block {step.physical}◂ read" in "\n".join(lines)


@pytest.mark.parametrize(("width", "height"), [(80, 24), (80, 20), (160, 48)])
@pytest.mark.parametrize("block_size", [1, 16, 32])
def test_the_weights_on_the_screen_add_up(block_size, width, height):
    """Words that have no room are counted, and so is what they weigh; rows that have none are counted, too."""
    for frame in walks(Demo(make_engine(SCENARIO, {"block_size": block_size}), SCENARIO).frames()):
        lines, walk = section(screen(frame, width, height), "inside attention"), frame.attention
        assert any(line.startswith(f"after block {walk.steps[-1].physical} ") for line in lines) or walk.kernel
        rows = [line for line in lines if line.startswith("after block")]
        left_out = [int(line.split()[1]) for line in lines if "earlier row" in line]
        assert len(rows) + sum(left_out) == len(walk.steps)
        if not walk.kernel:
            start, end = (next(i for i, line in enumerate(lines) if word in line) for word in ("is read", "shrink"))
            words = lines[start + 1 : end]
            shown = [float(line[20:].split()[0 if "together" in line else 1]) for line in words]
            num_words = sum(int(re.search(r"and (\d+) more", line)[1]) if "together" in line else 1 for line in words)
            assert num_words == len(walk.steps[-1].weights)
            assert sum(shown) == pytest.approx(sum(walk.steps[-1].weights), abs=0.006 * len(shown))


def test_a_file_brings_it_back(watched, tmp_path):
    _, demo, frames = watched
    demo.trace.save(tmp_path / "run.jsonl")
    assert list(Trace.load(tmp_path / "run.jsonl")) == frames
    assert [frame.story for frame in frames if is_stop(frame) and frame.story]


def test_each_look_has_a_picture_of_its_own(watched, tmp_path):
    write_svg(watched[2], watched[1].trace, tmp_path)
    assert len(list(tmp_path.iterdir())) == len(list(filter(is_stop, watched[2])))


def test_the_page_gets_what_it_draws(watched):
    last = walks(watched[2])[-1]
    tree = json.loads(json.dumps(as_tree(last)))["attention"]
    assert len(tree["steps"]) == len(last.attention.steps)
    assert tree["result"] == pytest.approx(last.attention.result, abs=1e-6)
    assert tree["kernel"] == pytest.approx(last.attention.kernel, abs=1e-6)
