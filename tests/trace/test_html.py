"""The page of a trace: one file that says what the frames say, and a viewer that can be used with any hand."""

import json
import random
import re
from dataclasses import dataclass, field, replace
from html import unescape

import pytest
from stories import document_of

from minipage.memory import BlockCopy
from minipage.trace.drawing.html import as_tree, difference, notebook, page, write_page
from minipage.trace.recording.frames import PHASES, BlockFrame, ChosenToken, ChunkFrame, Frame, SequenceFrame, label_of

CIRCLE = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9"><circle r="4"/></svg>'
WORDS = "to be or not that is the question whether 'tis nobler in mind suffer slings and arrows of".split()


# ---- frames made by hand


@dataclass
class Text:
    """What the stage knows of one sequence."""

    tokens: list[str]
    num_prompt: int
    blocks: list[int] = field(default_factory=list)
    swap: list[int] = field(default_factory=list)
    last: list[int] = field(default_factory=list)
    status: str = "waiting"
    computed: int = 0
    num_new: int = 0
    preemptions: int = 0
    reason: str | None = None
    max_num_tokens: int = 24

    def frame(self, label):
        prompt, said = self.tokens[: self.num_prompt], self.tokens[self.num_prompt :]
        new = said[len(said) - self.num_new :]
        return SequenceFrame(
            seq_id=f"request-{label}",
            request_id=f"request-{label}",
            label=label,
            status=self.status,
            token_ids=tuple(range(len(self.tokens))),
            tokens=tuple(self.tokens),
            prompt="".join(prompt),
            text="".join(said),
            new_text="".join(new),
            num_prompt_tokens=self.num_prompt,
            num_new_tokens=self.num_new,
            num_computed_tokens=self.computed,
            max_num_tokens=self.max_num_tokens,
            blocks=tuple(self.blocks),
            swap_blocks=tuple(self.swap),
            last_blocks=() if self.blocks else tuple(self.last),
            num_preemptions=self.preemptions,
            finish_reason=self.reason,
        )


class Stage:
    """An engine made of cardboard: its tables are moved by hand, and `shoot` makes a frame of how they stand."""

    def __init__(self, block_size, num_blocks):
        self.block_size = block_size
        self.texts: dict[str, Text] = {}
        self.cached: set[int] = set()
        self.free = list(range(num_blocks))
        self.words: dict[int, tuple[str, ...]] = {}  # of free blocks that are cached
        self.num_blocks, self.step, self.told = num_blocks, 0, []
        self.facts = {}
        self.frames: list[Frame] = []

    def begin(self, story="", **facts):
        self.step, self.told = self.step + 1, []
        self.facts = {"story": story} | facts
        for text in self.texts.values():
            text.num_new = 0

    def shoot(self, phase, *events, **facts):
        before, self.told = len(self.told), [*self.told, *events]
        self.facts |= facts
        frames = {label: text.frame(label) for label, text in self.texts.items()}
        done = [label for label, text in self.texts.items() if text.status == "finished"]
        now = [label for label in done if label in self.facts.get("finished", ())]
        by_status = {status: tuple(x for x, t in self.texts.items() if t.status == status) for status in STATUSES}
        nothing = dict(chunks=(), swap_out=(), swap_in=(), copies=(), chosen=(), preempted=(), finished=())
        self.frames.append(
            Frame(
                **(nothing | dict(num_queried_tokens=14, num_hit_tokens=4) | by_status | self.facts),
                step=self.step,
                phase=phase,
                block_size=self.block_size,
                max_num_batched_tokens=16,
                sequences=tuple(seq for label, seq in frames.items() if label not in done or label in now),
                finished_before=tuple(frames[label] for label in done if label not in now),
                blocks=tuple(map(self._block, range(self.num_blocks))),
                free_queue=tuple(self.free),
                events=tuple(self.told),
                num_earlier_events=before,
            )
        )

    def _block(self, number):
        holders = tuple(label for label, text in self.texts.items() if number in text.blocks)
        words = self.words.get(number, ()) if number in self.cached else ()
        for label in holders:
            text, start = self.texts[label], self.texts[label].blocks.index(number) * self.block_size
            words = max(words, tuple(text.tokens[start : min(start + self.block_size, text.computed)]), key=len)
        return BlockFrame(len(holders), len(words), holders, number in self.cached, words)

    def chunk(self, label, start, num_tokens):
        blocks, size = self.texts[label].blocks, self.block_size
        slots = tuple(blocks[i // size] * size + i % size for i in range(start, start + num_tokens))
        self.texts[label].computed = start + num_tokens
        return ChunkFrame(label, start, num_tokens, slots)

    def say(self, **words):
        for label, word in words.items():
            self.texts[label].tokens.append(word)
            self.texts[label].num_new = 1


STATUSES = ("waiting", "running", "swapped")


def a_story():
    """Six steps: a fork, copy-on-write, a text that is swapped out, one that ends, and a block that stays findable."""
    stage = Stage(block_size=4, num_blocks=8)
    texts = stage.texts
    texts["A"] = Text(["To", " be", ",", " or", " not", " to"], 6)
    stage.begin("One question, two answers: A and B begin with the same words. They are computed once.")
    texts["A"].blocks, texts["A"].status, stage.free = [0, 1], "running", [2, 3, 4, 5, 6, 7]
    told = "A starts: its 6 tokens take blocks 0 and 1 from the free queue."
    stage.shoot("schedule", "A arrives: a prompt of 6 tokens.", told, chunks=(stage.chunk("A", 0, 6),))
    stage.shoot("forward", "K and V of 6 tokens are written to blocks 0 and 1; attention reads 2 blocks.")
    stage.shoot("sample", 'Sampled: A " be".', chosen=(ChosenToken("A", " be"),))
    stage.cached.add(0)
    texts["B"] = replace(texts["A"], tokens=texts["A"].tokens[:], blocks=[0, 1])
    stage.say(A=" be", B=" die")
    told = "B branches off and shares blocks 0 and 1.", "Block 0 is full: others can find it."
    stage.shoot("update", *told)

    stage.begin("Both want to write their next word into block 1. A is first, and it is shared: so A gets a copy.")
    texts["A"].blocks, stage.free = [0, 2], [3, 4, 5, 6, 7]
    chunks = stage.chunk("A", 6, 1), stage.chunk("B", 6, 1)
    copies = (BlockCopy(1, 2),)
    stage.shoot("schedule", "A and B: the new tokens fit in their last blocks.", chunks=chunks, copies=copies)
    stage.shoot("copy", "A writes into block 1, which is shared: it is copied to block 2 first.")
    stage.shoot("forward", "K and V of 2 tokens are written to blocks 1 and 2; attention reads 3 blocks.")
    stage.shoot("sample", 'Sampled: A ":", B ",".', chosen=(ChosenToken("A", ":"), ChosenToken("B", ",")))
    stage.say(A=":", B=",")
    stage.shoot("update")

    texts["C"] = Text([" שלום", "\n", "</script>", "👩‍🚀", " the", " noble", " mind", " is", " here"], 9)
    stage.begin("C comes with a long prompt, and takes what is left but two.")
    texts["C"].blocks, texts["C"].status, stage.free = [3, 4, 5], "running", [6, 7]
    chunks = stage.chunk("A", 7, 1), stage.chunk("B", 7, 1), stage.chunk("C", 0, 9)
    stage.shoot("schedule", "C starts: its 9 tokens take blocks 3, 4 and 5 from the free queue.", chunks=chunks)
    stage.shoot("forward", "K and V of 11 tokens are written to 5 blocks; attention reads 6 blocks.")
    stage.shoot("sample", 'Sampled: A " that", B " to", C " o".')
    stage.say(A=" that", B=" to", C=" o")
    stage.cached |= {1, 2, 3, 4}
    stage.shoot("update", "Blocks 1, 2, 3 and 4 are full: others can find them.")

    stage.begin("A and B need one block each, and C, the latest, makes room for the time being.")
    c = texts["C"]
    stage.words |= {3: tuple(c.tokens[:4]), 4: tuple(c.tokens[4:8])}
    c.swap, c.last, c.blocks, c.status, c.preemptions = [0, 1, 2], c.blocks, [], "swapped", 1
    texts["A"].blocks, texts["B"].blocks, stage.free = [0, 2, 6], [0, 1, 7], [5, 4, 3]
    out = tuple(map(BlockCopy, (3, 4, 5), (0, 1, 2)))
    chunks = stage.chunk("A", 8, 1), stage.chunk("B", 8, 1)
    told = "C, last in line, is preempted; its 3 blocks are saved, and free again; it will come back."
    stage.shoot("schedule", told, chunks=chunks, swap_out=out, preempted=("C",))
    stage.shoot("copy", "Blocks 3, 4 and 5 are saved to swap space.")
    stage.shoot("forward", "K and V of 2 tokens are written to blocks 6 and 7; attention reads 5 blocks.")
    stage.shoot("sample", 'Sampled: A " is", B " sleep".')
    stage.say(A=" is", B=" sleep")
    stage.shoot("update")

    stage.begin("B ends. Block 1 is free again, but it stays findable until somebody takes it.")
    stage.shoot("schedule", chunks=(stage.chunk("A", 9, 1), stage.chunk("B", 9, 1)))
    stage.shoot("forward", "K and V of 2 tokens are written to blocks 6 and 7; attention reads 5 blocks.")
    stage.shoot("sample", 'Sampled: A " the", B ".".')
    stage.say(A=" the", B=".")
    b = texts["B"]
    stage.words[1] = tuple(b.tokens[4:8])
    b.last, b.blocks, b.status, b.reason, stage.free = b.blocks, [], "finished", "stop", [5, 4, 3, 7, 1]
    stage.shoot("update", "B is finished (stop): its 3 blocks go back to the free queue.", finished=("B",))

    stage.begin("There is room: C comes back from swap space, into other blocks than before.")
    c.swap, c.blocks, c.status, stage.free = [], [5, 4, 3], "running", [7, 1]
    stage.cached -= {3, 4}
    back = tuple(map(BlockCopy, (0, 1, 2), (5, 4, 3)))
    chunks = stage.chunk("A", 10, 1), stage.chunk("C", 9, 1)
    stage.shoot("schedule", "C: back from swap, 3 blocks to restore.", chunks=chunks, swap_in=back)
    stage.shoot("copy", "Blocks 5, 4 and 3 are restored from swap space.")
    stage.shoot("forward", "K and V of 2 tokens are written to blocks 3 and 6; attention reads 6 blocks.")
    stage.shoot("sample", 'Sampled: A " question", C "verthrown".')
    stage.say(A=" question", C="verthrown")
    stage.shoot("update")
    return stage.frames


def a_long_run(num_steps=200, num_texts=8, length=100):
    """Every step of as many texts as fit in 64 blocks of 16 tokens, each in five phases."""
    stage, rng = Stage(block_size=16, num_blocks=64), random.Random(1)
    for i in range(num_texts):
        start = rng.randrange(60)
        text = Text([f" {rng.choice(WORDS)}" for _ in range(start + 12)], 12, status="running", max_num_tokens=length)
        text.computed = start + 11
        text.blocks = [stage.free.pop(0) for _ in range(-(-text.computed // 16))]
        stage.texts[label_of(i)] = text
    for _ in range(num_steps):
        stage.begin()
        chunks, chosen = [], []
        for label, text in stage.texts.items():
            if text.computed >= length:  # another one takes its place
                stage.free, text.last, text.blocks = stage.free + text.blocks[::-1], text.blocks, []
                text.tokens, text.computed = text.tokens[:12], 0
            position = len(text.tokens) - 1
            while len(text.blocks) * 16 <= position:
                text.blocks.append(stage.free.pop(0))
            chunks.append(stage.chunk(label, text.computed, position + 1 - text.computed))
            chosen.append(ChosenToken(label, f" {rng.choice(WORDS)}"))
        stage.shoot("schedule", "A, B, C, D, E, F, G and H: the new tokens fit.", chunks=tuple(chunks))
        stage.shoot("copy")
        stage.shoot("forward", "K and V of 8 tokens are written to 8 blocks; attention reads 40 blocks.")
        words = ", ".join(f'{label} "{word}"' for label, word in chosen)
        stage.shoot("sample", f"Sampled: {words}.", chosen=tuple(chosen))
        stage.say(**dict(chosen))
        stage.shoot("update")
    return stage.frames


STORY = a_story()


# ---- the document


def data_of(document):
    return json.loads(re.search(r'<script type="application/json" id="trace">(.*?)</script>', document, re.DOTALL)[1])


def patched(old, change):
    """What viewer_frames.js does, in Python."""
    if isinstance(change, list):
        return old[: change[0]] + change[1] if change[0] else change[1]
    if not isinstance(change, dict):
        return change
    new = dict(old) if isinstance(old, dict) else {}
    for key, value in change.items():
        new[key] = patched(new.get(key), value)
    return {key: value for key, value in new.items() if value is not None}


def in_json(tree):
    return json.loads(json.dumps(tree))


def test_the_page_asks_nobody_for_anything():
    document = page(STORY, "A story", "in six steps")
    assert set(re.findall(r"https?://[\w./]*", document)) <= {"http://www.w3.org/2000/svg"}  # a name, no address
    assert not re.search(r"(?:src|href)=\"(?!data:|#)|@import|url\((?!#)", document)
    assert "default-src 'none'" in document and "unsafe-eval" not in document


@pytest.mark.parametrize("frames", [[], STORY, STORY[::-1]])
def test_the_frames_can_be_put_together_again(frames):
    tree, trees = {}, []
    for delta in data_of(page(frames))["deltas"]:
        trees.append(tree := patched(tree, delta))
    assert trees == [in_json(as_tree(frame)) for frame in frames]


def test_a_difference_says_what_changes_and_no_more():
    old = {"same": [1, {"a": 2}], "list": [1, 2, 3], "text": "to b", "gone": 1, "tree": {"a": 1, "b": [2]}}
    new = {"same": [1, {"a": 2}], "list": [1, 2, 4, 5], "text": "to be", "tree": {"a": 1, "b": []}, "kind": {"x": "👑"}}
    told = {"list": [2, [4, 5]], "text": [4, "e"], "tree": {"b": [0, []]}, "kind": {"x": [0, "👑"]}, "gone": None}
    assert difference(old, new) == told
    assert patched(old, told) == new and difference(new, new) == {}
    assert patched("text", difference("text", [1])) == [1] and patched([1], difference([1], "text")) == "text"


def test_nothing_in_a_text_ends_the_script():
    document = page(STORY, "</title><b>", "a & b")
    assert "</title><b>" not in document and "&lt;/title&gt;&lt;b&gt;" in document and "a &amp; b" in document
    assert document.count("</script>") == 2
    assert any("</script>" in seq.tokens for frame in STORY for seq in frame.sequences)


def test_half_characters_can_be_written(tmp_path):
    lost = replace(STORY[0], events=("half a pair: \ud83d",))
    write_page([lost], tmp_path / "lost.html")
    assert patched({}, data_of((tmp_path / "lost.html").read_text("utf-8"))["deltas"][0])["events"] == list(lost.events)


def test_two_hundred_steps_take_little_room():
    frames = a_long_run()
    document = page(frames)
    print(f"{len(frames)} frames: {len(document):,} bytes, {len(page([])):,} of them the viewer")
    assert len(frames) == 1000 and len(document.encode()) < 800_000


def test_in_a_notebook_there_is_a_frame_and_behind_it_a_picture():
    cell = notebook(STORY, "A story", still=CIRCLE)
    document = unescape(re.search(r'srcdoc="([^"]*)"', cell)[1])
    assert document == page(STORY, "A story", still=CIRCLE)
    assert 'sandbox="allow-scripts"' in cell and cell.count("<script") == 0
    assert re.match(r'<div[^>]*><img src="data:image/svg\+xml;base64,[\w+/=]+" alt="A story"', cell)
    assert "<img" not in notebook(STORY)


# ---- in a browser


def where(tab):
    return tab.evaluate("nameOf(now.index)")


def test_the_browser_sees_the_same_frames(opened):
    with opened(STORY) as tab:
        assert tab.evaluate("all.map((i) => trees.at(i))") == [in_json(as_tree(frame)) for frame in STORY]


def test_a_stretch_of_frames_is_read_when_somebody_looks_at_it(opened, monkeypatch):
    """In whatever order; and to open a long trace takes no more than its first."""
    monkeypatch.setattr("minipage.trace.drawing.html.STRETCH", 64)
    frames = a_long_run(40)
    with opened(frames) as tab:
        assert tab.evaluate("[...trees.read.keys()]") == [0]
        for i in (150, 3, 199, 64, 63, 127, 128, 0):
            assert tab.evaluate(f"trees.at({i})") == in_json(as_tree(frames[i])), i
            assert tab.evaluate("[...trees.read.keys()]")[-1] == i // 64 and tab.evaluate("trees.read.size") <= 2
        assert tab.evaluate("[trees.at(-1).step, trees.at(200) === undefined]") == [40, True]
        for frame, key in ((frames[-1], "End"), (frames[-2], "ArrowLeft"), (frames[0], "Home")):
            tab.keyboard.press(key)
            assert where(tab) == f"step{frame.step}-{frame.phase}"
            assert tab.locator("#pool .cell.used").count() == frame.num_used_blocks


def test_of_many_finished_texts_the_last_are_shown(opened):
    stage = Stage(block_size=4, num_blocks=4)
    for i in range(30):
        stage.texts[label_of(i)] = Text(["To", " be"], 1, status="finished", reason="length")
    stage.begin()
    stage.shoot("schedule", "Nobody is left.")
    tree = as_tree(stage.frames[0])
    assert list(tree["sequences"]) == [label_of(i) for i in range(6, 30)] and tree["num_more_finished"] == 6
    with opened(stage.frames) as tab:
        assert tab.inner_text("#queues").endswith("AD and 6 earlier")


def test_every_frame_can_be_reached(opened):
    names = [f"step{frame.step}-{frame.phase}" for frame in STORY]
    with opened(STORY) as tab:
        for name, frame in zip(names, STORY, strict=True):
            assert where(tab) == name and tab.url.endswith(f"#{name}")
            assert tab.inner_text("#step") == f"Step {frame.step}"
            assert tab.inner_text("#phases [aria-current]") == frame.phase
            assert tab.inner_text("#story") == frame.story
            if frame.phase_events:
                assert tab.locator("#events li").all_inner_texts() == list(frame.phase_events)
            assert tab.locator("#pool .cell").count() == len(frame.blocks)
            assert tab.locator("#pool .cell.used").count() == frame.num_used_blocks
            assert tab.locator("#pool .cell.cached").count() == sum(b.cached and not b.ref_count for b in frame.blocks)
            assert f"{frame.num_wasted_slots} empty slot" in tab.inner_text("#figures")
            for seq in frame.all_sequences:
                boxes = tab.locator(f'#texts [aria-label^="Text {seq.label},"] .leads').all_inner_texts()
                in_pool, in_swap = [f"→ {block}" for block in seq.blocks], [f"→ swap {b}" for b in seq.swap_blocks]
                assert boxes == in_pool + in_swap
            if frame.phase == "copy":
                assert tab.locator("#arrows .arrow").count() == len(frame.copies + frame.swap_out + frame.swap_in)
            tab.keyboard.press("ArrowRight")
        assert where(tab) == names[-1]


def test_keys(opened):
    with opened(STORY) as tab:
        for key, name in [
            ("End", "step6-update"),
            ("ArrowLeft", "step6-sample"),
            ("Home", "step1-schedule"),
            ("ArrowLeft", "step1-schedule"),
            ("ArrowRight", "step1-forward"),
            ("s", "step1-update"),
            ("ArrowRight", "step2-copy"),  # half of a step that has two halves
            ("ArrowRight", "step2-update"),
            ("s", "step2-update"),
            ("ArrowRight", "step3-schedule"),
        ]:
            tab.keyboard.press(key)
            assert where(tab) == name, key
        tab.keyboard.press("?")
        assert tab.is_visible("#help")
        tab.keyboard.press("ArrowRight")
        tab.keyboard.press("Escape")
        assert not tab.is_visible("#help") and where(tab) == "step3-schedule"


def test_buttons_slider_and_steps(opened):
    with opened(STORY) as tab:
        for name, place in [("Next", 2), ("Last", len(STORY)), ("Back", len(STORY) - 1), ("First", 1)]:
            tab.get_by_role("button", name=name, exact=True).click()
            assert tab.inner_text("#where") == f"{place} / {len(STORY)}"
        slider = tab.get_by_label("Frame")
        slider.fill("5")
        assert where(tab) == "step2-copy" and slider.get_attribute("aria-valuetext") == "step2, copy"
        slider.press("ArrowRight")  # its own key: one frame, not two
        assert where(tab) == "step2-forward"
        tab.get_by_role("button", name="copy", exact=True).click()
        assert where(tab) == "step2-copy"
        tab.get_by_text("step by step").click()
        assert where(tab) == "step2-copy" and tab.inner_text("#where") == "2 / 9"
        assert tab.locator("#arrows .arrow").count() == 1
        tab.get_by_role("button", name="Next", exact=True).click()
        assert where(tab) == "step2-update" and tab.inner_text("#where") == "3 / 9"
        assert tab.locator("#events li").all_inner_texts() == list(STORY[8].events)


def test_it_plays_to_the_end_and_stops(opened):
    with opened(STORY) as tab:
        tab.clock.install(time=0)
        tab.clock.pause_at(3600)
        tab.select_option("#speed", "4")
        tab.keyboard.press("Escape")
        tab.evaluate("document.activeElement.blur()")
        tab.keyboard.press("p")
        tab.clock.run_for(850)
        assert where(tab) == "step1-sample" and tab.get_by_role("button", name="Pause").is_visible()
        tab.keyboard.press(" ")
        tab.clock.run_for(5000)
        assert where(tab) == "step1-sample"
        tab.get_by_role("button", name="Play").click()
        tab.clock.run_for(60_000)
        assert where(tab) == "step6-update" and tab.get_by_role("button", name="Play").is_visible()


def lit(tab):
    return set(
        tab.eval_on_selector_all("#stage .lit:not(.wire)", "all => all.map(one => one.dataset.key ?? one.dataset.slot)")
    )


def test_the_help_and_what_stands_below_the_blocks_explain_themselves_and_never_contradict_each_other(opened):
    with opened([], document=document_of("prefix"), reduced_motion="reduce") as tab:
        assert all(tab.eval_on_selector_all("#figures dt", "names => names.map((name) => name.title.length > 20)"))
        tab.click("#ask")
        words = tab.inner_text("#help")
        assert all(
            word in words for word in ("In one piece", "This step", "All prompts", "shared", "the prefix cache can")
        )
        assert "◆" in tab.evaluate("getComputedStyle(document.querySelector('.legend-findable'), '::before').content")
        tab.keyboard.press("Escape")
        before, after = tab.evaluate(
            "['step10-before', 'step10-schedule'].map((name) => (show(indexOf(name)), byId('figures').textContent))"
        )
    assert "16 found" in before and "All prompts0 of their 23 tokens reused" in before
    assert "16 reused" in after and "All prompts16 of their 51 tokens reused" in after


def test_a_block_lights_up_everyone_who_maps_it(opened):
    with opened(STORY, "#step1-update") as tab:
        tab.hover('[data-key="block 1"]')
        assert lit(tab) == {"block 1", "A block 1", "B block 1"}
        said = "Block 1 is shared by A (logical block 1) and B (logical block 1): 2 references."
        assert tab.inner_text("#looked-at") == f"{said} It holds “ not to”."
        tab.hover("h1")
        assert lit(tab) == set() and tab.inner_text("#looked-at") == ""
        tab.hover('[data-key="A 5"]')
        assert {"A 5", "B 5", "5", "block 1"} <= lit(tab)
        assert tab.inner_text("#looked-at") == "“ to”, token 5 of A: slot 5 = block 1 × 4 + 1."


def test_all_of_it_can_be_walked_to(opened):
    with opened(STORY, "#step5-update") as tab:
        tab.focus("#pool [tabindex='0']")
        assert lit(tab) >= {"block 0", "A block 0"}
        tab.keyboard.press("ArrowDown")
        assert lit(tab) >= {"block 1", "free 1"}
        told = "Block 1 is free, but the prefix cache can still find it. It holds “ not to die,”."
        assert tab.inner_text("#looked-at") == f"{told} Just now: given back."
        tab.keyboard.press("ArrowLeft")  # another frame; the focus stays where it was
        assert where(tab) == "step5-sample" and lit(tab) >= {"block 1", "B block 1"}
        tab.focus('#texts [aria-label^="Text A"] [tabindex="0"]')
        tab.keyboard.press("ArrowDown")
        assert lit(tab) >= {"A 0", "B 0", "block 0"}


def test_words_that_are_hard_to_write(opened):
    with opened(STORY, "#step3-update") as tab:
        words = tab.locator('#texts [aria-label^="Text C"] .slot bdi').all_inner_texts()
        assert words[:4] == [" שלום", "⏎", "</script>", "👩‍🚀"]
        assert "👩‍🚀" in tab.inner_text("#texts .text:last-child .running-text")


SCHEMES = "light", "dark"
WINDOWS = [((width, height), scheme) for width, height in ((1280, 800), (800, 600), (400, 700)) for scheme in SCHEMES]
USUAL, *OTHERS = reversed(WINDOWS)


@pytest.mark.parametrize(("size", "scheme"), [USUAL, *(pytest.param(*one, marks=pytest.mark.slow) for one in OTHERS)])
def test_the_page_fits_into_its_window(opened, size, scheme):
    with opened(STORY, "#step2-copy", color_scheme=scheme) as tab:
        tab.set_viewport_size(dict(zip(("width", "height"), size)))
        width, height = tab.evaluate("[document.documentElement.scrollWidth, document.documentElement.scrollHeight]")
        assert (width, height) == size
        ground = "getComputedStyle(document.body).backgroundColor"
        before = tab.evaluate(ground)
        assert (sum(map(int, re.findall(r"\d+", before)[:3])) > 380) == (scheme == "light")
        tab.get_by_role("button", name="Light or dark").click()
        assert tab.evaluate(ground) != before


def test_in_an_iframe_that_may_do_nothing(opened):
    with opened([], document=notebook(STORY, "A story", still=CIRCLE)) as tab:
        frame = tab.frame_locator("iframe")
        frame.get_by_role("button", name="Next", exact=True).click()
        assert frame.locator("#where").inner_text() == f"2 / {len(STORY)}"


def test_without_scripts_the_still_is_shown(opened):
    with opened([], document=page(STORY, still=CIRCLE), java_script_enabled=False) as tab:
        assert tab.is_visible("noscript img")


def test_a_long_run_and_none_at_all(opened):
    with opened(a_long_run(20)) as tab:
        tab.keyboard.press("End")
        assert where(tab) == "step20-update"
    with opened([]) as tab:
        tab.keyboard.press("ArrowRight")


def test_the_phases_are_those_of_the_frames(opened):
    with opened([]) as tab:
        assert tab.evaluate("PHASES") == list(PHASES)
