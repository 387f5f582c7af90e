"""The stories: they happen, on the real engine, and what they say is seen when it is said."""

import base64
import io
import json
import os
import re
import sys
import xml.etree.ElementTree as ElementTree

import pytest
from rich.console import Console
from stories import frames_of, played, slow_but

from minipage import LLM
from minipage.cli import main
from minipage.trace import Trace
from minipage.trace.drawing.exports import write_html
from minipage.trace.drawing.glyphs import UNICODE
from minipage.trace.drawing.terminal import draw
from minipage.trace.playing.demo import Demo, make_engine
from minipage.trace.playing.player import Player
from minipage.trace.playing.scenarios import SCENARIOS
from minipage.trace.recording.frames import is_stop

NAMES = list(SCENARIOS)


@pytest.mark.parametrize("name", NAMES)
def test_every_turn_of_every_story_is_told(name):
    demo, frames = played(name)
    told = {frame.story for frame in frames}
    assert [turn.say for turn in demo.scenario.turns if turn.say not in told] == []
    assert 5 <= len(list(filter(is_stop, frames))) <= 40
    assert demo.llm.block_pool.num_free == demo.llm.block_pool.num_blocks


ALONE_AND_TOGETHER = [name for name in NAMES if name not in ("quantized", "fragmentation")]


@pytest.mark.parametrize("name", slow_but(ALONE_AND_TOGETHER, "copy-on-write", "swap", "speculation"))
def test_the_words_are_those_that_the_model_says_alone(name):
    """Of `quantized`, rounding may change words; `fragmentation` ends before its texts do, and has its own test."""
    demo, frames = played(name)
    alone = LLM(block_size=16, hf_overrides=demo.scenario.engine.get("hf_overrides"))
    for i, (arrival, params) in enumerate(zip(demo.arrivals, demo.params, strict=True)):
        texts = {output.text for output in alone.generate(arrival.prompt, params)[0].outputs}
        request_id = chr(ord("A") + i)
        shown = {seq.text for seq in frames[-1].all_sequences if seq.request_id == request_id}
        assert texts <= shown or params.beam_width  # (the best texts of a search need not be its last beams)


def test_each_shows_what_it_is_for():
    assert any(frame.copies for frame in frames_of("copy-on-write"))
    assert any("branches off" in event for frame in frames_of("beam") for event in frame.events)
    assert frames_of("prefix")[-1].num_hit_tokens >= 16
    assert any(frame.preempted and not frame.swap_out for frame in frames_of("preemption"))
    assert any(frame.swap_in for frame in frames_of("swap"))
    assert not any(frame.preempted for frame in frames_of("quantized"))
    assert any(1 < chunk.num_tokens < 8 for frame in frames_of("chunked-prefill") for chunk in frame.chunks)


def test_phases_can_be_stepped_through():
    frames = frames_of("copy-on-write")
    player = Player(frames[0], iter(frames[1:]), UNICODE)
    assert player.frame.phase == "update" and player.frame.step == 1
    player.press("p")
    seen = []
    for _ in range(6):
        player.press("n")
        seen.append((player.frame.step, player.frame.phase))
    assert seen == [(2, phase) for phase in ("before", "schedule", "copy", "forward", "sample", "update")]
    player.press("b")
    assert player.frame.phase == "sample"
    player.press("p")
    assert (player.frame.step, player.frame.phase) == (2, "update")
    player.press("end")
    assert player.frame is frames[-1] and player.finished
    player.press("home")
    assert player.frame is frames[4 - 1]


def test_files(tmp_path, capsys):
    wanted = {kind: tmp_path / kind for kind in ("html", "svg", "json", "cast", "timeline")}
    options = [part for kind, path in wanted.items() for part in (f"--{kind}", str(path))]
    assert main(["demo", "basics", "--steps", "6", *options]) == 0
    assert capsys.readouterr().out.count("wrote ") == 5
    assert "</html>" in wanted["html"].read_text()
    pictures = sorted(wanted["svg"].iterdir())
    assert len(pictures) == 6
    for picture in pictures:
        text = picture.read_text()
        ElementTree.fromstring(text)
        assert "http" not in text.replace("http://www.w3.org/2000/svg", "") and "@font-face" not in text
    header, *events = map(json.loads, wanted["cast"].read_text().splitlines())
    assert header["version"] == 2 and len(events) == 6 and all(kind == "o" for _, kind, _ in events)
    assert len(Trace.load(wanted["json"]).steps) == 6
    timeline = json.loads(wanted["timeline"].read_text())["traceEvents"]
    assert {fact["ph"] for fact in timeline} == {"M", "C", "X"}
    assert main(["demo", "--replay", str(wanted["json"]), "--plain"]) == 0
    assert "KING RICHARD III" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["demo", "copyonwrite"], "did you mean 'copy-on-write'"),
        (["demo", "xyzzy"], "--list"),
        (["demo", "basics", "--preemption", "never"], "preemption"),
        (["demo", "basics", "--num-blocks", "20", "--prompt", "word " * 200], "block"),
        (["demo", "--replay", __file__], "damaged"),
    ],
)
def test_bad_input_is_a_sentence(arguments, message, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("minipage: ") and error.count("\n") == 1


def test_the_list(capsys):
    assert main(["demo", "--list"]) == 0
    shown = capsys.readouterr().out
    assert len(shown.splitlines()) == len(NAMES), "a line for each, however long"
    for line, story in zip(shown.splitlines(), SCENARIOS.values(), strict=True):
        assert line.startswith(f"{story.name}: {story.title}") and line.endswith(story.about)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--replay", "nosuch.jsonl"], "'nosuch.jsonl' cannot be read: No such file or directory."),
        (["--replay", "."], "'.' cannot be read: "),
        (["basics", "--steps", "1", "--svg", os.devnull], f"{os.devnull!r} is no folder; give a folder"),
        (["all", "--svg", os.devnull], f"{os.devnull!r} is no folder; give a folder"),
        (["basics", "--html", ""], "the name of what html is to be written to is empty"),
        (["all", "--svg", ""], "the name of what svg is to be written to is empty"),
    ],
)
@pytest.mark.skipif(sys.platform == "win32", reason="other words for the same")
def test_a_file_that_cannot_be_used_is_a_sentence(arguments, message, capsys):
    assert main(["demo", *arguments]) != 0
    error = capsys.readouterr().err
    assert error.startswith(f"minipage: {message}") and error.count("\n") == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda line: line.replace('"step"', '"stop"'), "should have told, and have not: 'step'."),
        (lambda line: line[:-1], "is not JSON, or only a part of it."),
        (lambda line: "[" * 99_999, "is not JSON, or only a part of it."),
        (lambda line: "[7]", "does not follow from the lines before it."),
    ],
)
def test_what_is_damaged_is_said_without_pythons_words(change, message, tmp_path, capsys):
    demo, _ = played("basics")
    demo.trace.save(tmp_path / "run.jsonl")
    text = (tmp_path / "run.jsonl").read_text("utf-8")
    line = text.splitlines()[3]
    (tmp_path / "run.jsonl").write_text(text.replace(line, change(line), 1), "utf-8")
    assert main(["demo", "--replay", str(tmp_path / "run.jsonl")]) == 2
    error = capsys.readouterr().err
    assert "is damaged: line " in error and message in error and "Error" not in error


def changed(lines, number, **facts):
    lines[number] = json.dumps(json.loads(lines[number]) | facts)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda lines: changed(lines, 1, pool=[["take"]]), "is damaged: line "),
        (lambda lines: changed(lines, 1, chunks=[["A", None, 4]]), "is damaged: line "),
        (lambda lines: changed(lines, 0, ref_counts=[0]), "is damaged: what it tells cannot be drawn"),
        (lambda lines: changed(lines, 1, story=1.5), None),
    ],
)
def test_what_can_be_replayed_and_makes_no_sense_is_a_sentence_too(damage, message, tmp_path, capsys):
    demo, _ = played("basics")
    demo.trace.save(tmp_path / "run.jsonl")
    lines = (tmp_path / "run.jsonl").read_text("utf-8").splitlines()
    damage(lines)
    (tmp_path / "run.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    code = main(["demo", "--replay", str(tmp_path / "run.jsonl"), "--html", str(tmp_path / "run.html")])
    error = capsys.readouterr().err
    assert (code, message in error and error.count("\n")) == (2, 1) if message else (code, error) == (0, "")


def test_own_prompts_and_options(capsys):
    assert main(["demo", "copy-on-write", "--prompt", "To be", "--block-size", "2", "--num-blocks", "40"]) == 0
    assert "40 blocks of 2 tokens" in capsys.readouterr().out


def test_who_has_no_blocks_says_why():
    def screens(name, status):
        for frame in frames_of(name):
            if any(seq.status == status and not seq.blocks for seq in frame.sequences):
                console = Console(width=100, height=40, file=io.StringIO(), color_system=None)
                console.print(draw(frame, 100, 40))
                yield console.file.getvalue()

    assert all("swapped out: its K and V are in" in screen for screen in screens("swap", "swapped"))
    assert any("its first sample computes" in screen for screen in screens("copy-on-write", "running"))
    assert any("waits to be recomputed" in screen for screen in screens("preemption", "waiting"))
    assert any(screens("swap", "swapped"))


OPTIONS = {
    "--block-size 3": "of 3 tokens",
    "--num-blocks 77": "77 blocks",
    "--memory 1MiB": "memory: 32 blocks",
    "--seed 5": "",
    "--max-tokens 2": "",
    "--max-model-len 100": "",
    "--max-num-batched-tokens 5": "of at most 5 tokens",
    "--max-num-seqs 1": "",
    "--preemption recompute": "",
    "--preemption swap --swap-space 1MiB": "",
    "--preemption auto": "",
    "--policy priority": "",
    "--watermark 0.1": "",
    "--kv-cache-dtype int8": "",
    "--enable-prefix-caching": "",
    "--model shakespeare": "",
    "--prompt Hello": "Hello",
}
OTHERWISE = {("partial-hit", "--memory 1MiB"): "memory: 8 blocks"}  # of 16 tokens
ALONE = {  # options that some scenarios have to refuse, with what they say
    ("copy-on-write", "--max-num-seqs 1"): "3 sequences go on together",
    ("beam", "--max-num-seqs 1"): "3 sequences go on together",
    ("fragmentation", "--max-model-len 100"): "Shorten it",
    ("fragmentation", "--memory 1MiB"): "but the whole pool has",
}


def run_with(name, options, capsys):
    code = main(["demo", name, "--steps", "2", *options.split()])
    out, err = capsys.readouterr()
    if (name, options) in ALONE:
        assert code == 2 and ALONE[name, options] in err
    else:
        assert (code, err) == (0, "")
        assert OTHERWISE.get((name, options), OPTIONS.get(options, "")) in out or name in ("fragmentation", "quantized")


@pytest.mark.parametrize("options", OPTIONS)
def test_every_option(options, capsys):
    run_with("preemption", options, capsys)


@pytest.mark.parametrize("name", slow_but(NAMES, "preemption", "prefix"))
def test_options_together(name, capsys):
    sizes = ("--num-blocks", "--max-model-len") if name == "fragmentation" else ()
    left_out = ("--max-num-seqs", "--memory", "--max-tokens", *sizes)
    several = [option for option in OPTIONS if option.split()[0] not in left_out]
    run_with(name, " ".join(several), capsys)


@pytest.mark.slow
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("name", NAMES)
def test_every_option_with_every_scenario(name, options, capsys):
    run_with(name, options, capsys)


def test_a_policy_is_seen():
    """With policy="priority" who comes last goes first; without, last."""

    def first_to_run(**options):
        scenario = SCENARIOS["fragmentation"]
        frames = Demo(make_engine(scenario, {"max_num_seqs": 1} | options), scenario).frames(1)
        return next(frames).running

    assert first_to_run() == ("A",) and first_to_run(policy="priority") == ("H",)


def stills(html):
    """The pictures in a page, decoded: what is seen where no script runs."""
    return [base64.b64decode(data).decode() for data in re.findall(r"data:image/svg\+xml;base64,([\w+/=]+)", html)]


@pytest.mark.parametrize("name", ["basics", "preemption", "copy-on-write"])
def test_what_stands_for_a_story_where_no_script_runs_is_its_fullest_frame(name, tmp_path):
    demo, frames = played(name)
    most = max(frame.num_used_blocks for frame in frames if is_stop(frame))
    write_html(frames, demo.trace, tmp_path / "page.html")
    pages = demo.trace._repr_html_(), (tmp_path / "page.html").read_text(encoding="utf-8")
    for still in (stills(page)[0] for page in pages):
        text = re.sub(r"<[^>]+>", "", still).replace("&#160;", " ")
        assert f"{most} of {len(frames[0].blocks)} blocks" in text


def test_one_path_for_two_files_is_refused(tmp_path, capsys):
    assert main(["demo", "basics", "--html", str(tmp_path / "x"), "--json", str(tmp_path / "x")]) == 2
    assert "same place" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["html", "svg", "json", "cast", "timeline"])
def test_what_cannot_be_written_is_said_in_a_sentence(kind, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["demo", "basics", "--steps", "1", f"--{kind}", str(tmp_path / "file" / "x")]) == 1
    error = capsys.readouterr().err
    assert re.fullmatch(r"minipage: '[^']+' cannot be written: [^\n]+\.\n", error)
