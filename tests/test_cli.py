"""The command line as people use it: in a shell, through pipes, and in a real pseudo-terminal."""

import inspect
import io
import json
import os
import re
import shlex
import subprocess
import sys
from threading import Event

import numpy as np
import pytest
from engine.checkpoints import save_gpt2, save_tokenizer

from minipage import LLM, SamplingParams, __version__
from minipage.cli import DEFAULTS, main
from minipage.cli_options import DEMO, ENGINE, SAMPLING, bias, early_stopping, settings, structure, truth
from minipage.model.checkpoint import SHIPPED_MODEL, find_folder
from minipage.simulate.__main__ import main as simulations

MINIPAGE = [sys.executable, "-m", "minipage"]
QUIET = {"OPENBLAS_NUM_THREADS": "1"}  # tests share their cores with other tests
LAST_STEP = 23  # of the demo; if the model or the story changes, so does this
posix = pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX terminal")


def shell(*arguments, env=None, stdin=""):
    """Run minipage in a process of its own, with no terminal."""
    return subprocess.run(
        [*MINIPAGE, *arguments], input=stdin, capture_output=True, text=True, encoding="utf-8",
        env={**os.environ, **QUIET, "PYTHONIOENCODING": "utf-8", **(env or {})}, timeout=60,
    )  # fmt: skip


# ---- where it is started


@pytest.mark.parametrize("size", ["0", "1", "abc", "", "²", "99999999", "9" * 5000])
def test_a_terminal_that_does_not_know_its_size_is_printed_to(monkeypatch, capsys, size):
    for command, arguments, text in (
        (main, ["demo", "--plain", "--steps", "1"], "minipage • step 1"),
        (simulations, ["--requests", "1"], "Where the slots go"),
    ):
        monkeypatch.setenv("COLUMNS", size)
        monkeypatch.setenv("LINES", size)
        assert command(arguments) == 0
        out = capsys.readouterr().out
        assert text in out and len(out) < 10_000


@pytest.mark.parametrize("ranks", [{}, {"RANK": "first", "WORLD_SIZE": "2"}], ids=["none", "no numbers"])
def test_what_torchrun_would_set_and_has_not_is_said(monkeypatch, capsys, ranks):
    for name in "RANK", "WORLD_SIZE":
        monkeypatch.delenv(name, raising=False)
    for name, value in {"TORCHELASTIC_RUN_ID": "1", **ranks}.items():
        monkeypatch.setenv(name, value)
    assert main(["generate", "x"]) == 2
    assert "RANK and WORLD_SIZE are no numbers" in capsys.readouterr().err


# ---- before anything is loaded


def test_help_imports_nothing_slow():
    code = """
import sys
from minipage.cli import main
try:
    main(["--help"])
except SystemExit:
    pass
slow = {"numba", "numpy", "rich", "tokenizers", "safetensors", "readchar", "array_api_compat", "torch"}
sys.exit(", ".join(slow & sys.modules.keys()) or 0)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stderr) == (0, "")
    assert "demo" in result.stdout and "generate" in result.stdout and "info" in result.stdout


def test_ctrl_c_while_the_command_line_is_still_loaded_is_ctrl_c():
    code = """
import runpy, sys

class Interrupted:
    def find_spec(self, name, *_):
        if name == "minipage.cli":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupted())
runpy.run_module("minipage", run_name="__main__", alter_sys=True)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout, result.stderr) == (130, "", "")


@pytest.mark.parametrize(
    "command", ["demo", "play", "generate x", "chat shakespeare", "serve", "plan gpt2", "learn quiz", "info"]
)
def test_the_sign_of_life_is_there_before_what_is_slow_is_loaded(command):
    code = f"""
import sys
import minipage.trace.playing.spinner as signs

def spinner(*_, **__):
    sys.exit(", ".join({{"numba", "torch"}} & sys.modules.keys()) or 7)

signs.spinner = spinner
from minipage.cli import main
main({command.split()})
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stderr) == (7, "")


@pytest.mark.parametrize("command", ["demo", "generate", "chat", "info"])
def test_each_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0 and f"minipage {command}" in capsys.readouterr().out


def test_version(capsys):
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"minipage {__version__}\n"


def test_no_command_shows_the_help(capsys):
    assert main([]) == 2
    assert "demo" in capsys.readouterr().out


# ---- exit codes


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["demo", "--num-blocks", "3"], "num_blocks"),
        (["demo", "--block-size", "0"], "block_size is 0"),
        (["demo", "--prompt", ""], "the prompt is empty"),
        (["demo", "--prompt", "To be " * 600], "Shorten it"),
        (["demo", "--num-blocks", "16", "--prompt", "fine", "--prompt", "to be or not " * 20], "num_blocks"),
        (["demo", "--max-tokens", "0"], "max_tokens is 0"),
        (["demo", "--steps", "0"], "at least 1"),
        (["demo", "--model", "./no/such/model"], "no/such/model"),
        (["generate", "--model", "./no/such/model", "x"], "no/such/model"),
        (["generate", "--temperature", "nan", "x"], "temperature is nan"),
        (["generate", "--memory", "1KiB", "x"], "too small"),
        (["generate", "--memory", "lots", "x"], "'lots'"),
        (["generate", ""], "the prompt is empty"),
        (["generate", "x", ""], "prompt 2 of 2: the prompt is empty"),
        (["demo", "basics", "--replay", "x.jsonl"], "--replay"),
        (["demo", "--replay", "x.jsonl", "--block-size", "4"], "--replay"),
    ],
)
def test_bad_input_is_one_sentence(arguments, sentence, capsys):
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("minipage: ") and err.count("\n") == 1 and sentence in err


@posix
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["learn", "quiz", "--to", "."], "--to is '.', which is a folder"),
        (["learn", "quiz", "--to", "/"], "--to is '/', which is a folder"),
        (["serve", "--port", "0", "--host", os.fsdecode(b"\xff")], "cannot listen on"),
        (["serve", "--port", "0", "--host", "a\u202eb"], "cannot listen on"),
    ],
)
def test_what_no_file_and_no_host_is_called_is_a_sentence(arguments, sentence, capsys):
    assert main(arguments) in (1, 2)
    err = capsys.readouterr().err
    assert err.startswith("minipage: ") and err.count("\n") == 1 and sentence in err


@posix
def test_a_seed_that_is_no_text_is_a_seed(tmp_path, capsys):
    seed = os.fsdecode(b"caf\xe9")
    assert main(["learn", "quiz", "--seed", seed, "--to", str(tmp_path / "exam.md")]) == 0
    assert "caf\N{REPLACEMENT CHARACTER}" in (tmp_path / "exam.md").read_text(encoding="utf-8")
    assert main(["learn", "init", str(tmp_path / "mine"), "--seed", seed]) == 0


def test_a_number_that_no_machine_can_hold_is_a_sentence(capsys):
    assert simulations(["--slots", "9" * 23, "--requests", "1"]) == 2
    assert capsys.readouterr().err.startswith("minipage: a number is too large")


@pytest.mark.parametrize(
    "arguments",
    [
        ["dance"],
        ["generate"],
        ["demo", "--num-blocks", "many"],
        ["info", "--no-such"],
        ["demo", "--num-blocks", "9", "--memory", "1MiB"],
        ["generate", "x", "--num-blocks", "9", "--memory", "1MiB"],
    ],
)
def test_bad_usage(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert "usage: minipage" in capsys.readouterr().err


def test_empty_standard_input(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", iter(["\n", "\r\n"]))
    assert main(["generate", "-"]) == 2
    assert "standard input" in capsys.readouterr().err


def test_what_fails_on_the_way(monkeypatch, capsys):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("minipage.trace.playing.demo.run", full)
    assert main(["demo"]) == 1
    assert "No space left" in capsys.readouterr().err


# ---- standard streams, and texts that are none


def as_input(monkeypatch, content):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"))


COMMANDS = {
    "generate": ["generate", "--max-tokens", "1", "To be"],
    "generate json": ["generate", "--max-tokens", "1", "--json", "To be", "To"],
    "demo": ["demo", "--steps", "1"],
    "info": ["info"],
    "learn": ["learn", "list"],
}


@pytest.mark.parametrize("state", ["None", "closed"])
@pytest.mark.parametrize("streams", [["stdin"], ["stdout"], ["stderr"], ["stdin", "stdout", "stderr"]], ids="+".join)
@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_a_closed_standard_stream_is_no_terminal(command, streams, state, monkeypatch, capsys):
    """Under systemd or cron Python has None there."""
    closed = None if state == "None" else io.StringIO()
    if closed is not None:
        closed.close()
    for stream in streams:
        monkeypatch.setattr(sys, stream, closed)
    assert main(command) == 0
    out, err = capsys.readouterr()
    assert err == "" and ("stdout" in streams or out != "")


def test_closed_standard_input_has_no_lines(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", None)
    assert main(["generate", "-"]) == 2
    assert "standard input has no lines" in capsys.readouterr().err


def test_bad_input_without_standard_error_is_said_by_the_exit_code(monkeypatch):
    monkeypatch.setattr("sys.stderr", None)
    assert main(["generate", ""]) == 2
    with pytest.raises(SystemExit, match="2"):
        main(["generate", "--no-such-option"])


@posix
@pytest.mark.parametrize(
    ("redirected", "code", "sentence"),
    [
        ("info <&- >&- 2>&-", 0, ""),
        ("info >/dev/full", 1, "minipage: [Errno 28] No space left on device"),
        ("generate '' 2>/dev/full", 2, ""),
        ("--nonsense 2>/dev/full", 2, ""),
        ("info </dev/null 1</dev/null", 1, "minipage: [Errno 9] Bad file descriptor"),
        ("simulate --help >/dev/full", 1, "minipage: [Errno 28] No space left on device"),
    ],
)
def test_in_a_shell_it_ends_without_a_traceback(redirected, code, sentence):
    if "/dev/full" in redirected and not os.path.exists("/dev/full"):
        pytest.skip("there is no /dev/full")
    command = f"exec {' '.join(map(shlex.quote, MINIPAGE))} {redirected}".replace(" simulate", ".simulate")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    ended = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60, env=environment)
    assert (ended.returncode, ended.stderr.strip()) == (code, sentence)


@pytest.mark.parametrize(
    "arguments",
    [
        "minipage plan gpt2 --sizes-only",
        "minipage learn list",
        "minipage.simulate --requests 2",
        "minipage.simulate -h",
    ],
)
def test_a_reader_who_has_seen_enough_is_no_failure(arguments):
    """Whoever prints: rich would end the process with exit code 1."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", *arguments.split()]
    ended = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_lines_of_input_may_end_in_any_way_and_begin_with_a_byte_order_mark(monkeypatch, capsys):
    as_input(monkeypatch, b"\xef\xbb\xbfTo be\r\n\r\n\n  \ncaf\xe9\rnul\0nul\n\xff\xfe")
    assert main(["generate", "--max-tokens", "1", "--json", "-"]) == 0
    outputs = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    lost = "\N{REPLACEMENT CHARACTER}"
    assert [output["prompt"] for output in outputs] == ["To be", "  ", f"caf{lost}", "nul\0nul", lost * 2]


@posix
def test_bytes_that_are_no_text_are_lost_characters_and_nothing_else(capsys):
    prompt, stop = os.fsdecode(b"caf\xe9"), os.fsdecode(b"\xff")
    assert main(["generate", "--max-tokens", "1", "--stop", stop, prompt]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("caf\N{REPLACEMENT CHARACTER}") and err == ""
    assert main(["demo", "--steps", "1", "--prompt", prompt]) == 0
    assert "caf\N{REPLACEMENT CHARACTER}" in capsys.readouterr().out
    assert main(["generate", "--model", prompt, "x"]) == 2
    assert capsys.readouterr().err.startswith("minipage: ")


def test_the_end_of_a_text_is_not_printed(tmp_path, capsys):
    tokenizer = save_tokenizer(tmp_path)
    save_gpt2(tmp_path, seed=1, vocab_size=300, eos_token_id=list(range(300)))
    (tmp_path / "generation_config.json").unlink()
    assert main(["generate", "--model", str(tmp_path), "--seed", "1", "Every wave"]) == 0
    assert capsys.readouterr().out == "Every wave\n"
    assert main(["generate", "--model", str(tmp_path), "--seed", "1", "--json", "Every wave"]) == 0
    output = json.loads(capsys.readouterr().out)
    assert output["text"] == "" and tokenizer.decode(output["token_ids"], skip_special_tokens=False) != ""


# ---- the table of options

PARTS = {"self", "block_pool", "block_table", "scheduler", "progress"}  # of LLM: nothing that could be typed
VALUES = {str: "some", int: "7", float: "0.5", early_stopping: "never", truth: "false", bias: "7:-0.5"}
VALUES |= {structure: '{"choice": ["yes", "no"]}', settings: '{"sliding_window": 64}'}


@pytest.mark.parametrize("option", ["--hf-overrides", "--structured-outputs"])
@pytest.mark.parametrize("value", ["[" * 99_999, "{", "5", "é" * 9_999])
def test_settings_that_are_none_are_refused_in_a_short_sentence(option, value, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["generate", "x", option, value])
    error = capsys.readouterr().err.rpartition("error: ")[2]
    assert error.startswith(f"argument {option}: ") and len(error) < 500


def parameters(function):
    return {name: p for name, p in inspect.signature(function).parameters.items() if name not in PARTS}


def test_the_tables_have_every_option_of_the_engine_and_of_sampling():
    assert ENGINE.keys() == parameters(LLM).keys() - {"seed"}  # --seed is that of the request
    assert SAMPLING.keys() == parameters(SamplingParams).keys()
    assert ENGINE.keys() < DEMO.keys()


def test_the_help_tells_the_defaults_that_hold():
    known = {name: p.default for name, p in (parameters(LLM) | parameters(SamplingParams)).items()}
    compared = {name: told for name, told in DEFAULTS.items() if name not in ("max_tokens", "model") and known[name]}
    assert len(compared) > 10
    for name, told in compared.items():
        assert str(told).split(",")[0].lower() == str(known[name]).lower(), name


class Taken(Exception):
    """Carries what the engine was asked for."""


@pytest.mark.parametrize("command", ["generate", "demo"])
@pytest.mark.parametrize("name", [*ENGINE, *SAMPLING])
def test_every_option_arrives_under_its_own_name(command, name, monkeypatch):
    table = ENGINE if name in ENGINE else SAMPLING
    if command == "demo" and table is SAMPLING:
        return

    def take(*args, **options):
        raise Taken(options | dict(zip(["model"], args)))

    monkeypatch.setattr("minipage.engine.llm.LLM" if table is ENGINE else "minipage.sampling.SamplingParams", take)
    option = table[name]
    typed = "shakespeare" if name == "model" else VALUES.get(option.kind)
    arguments = [f"--{name.replace('_', '-')}", *([typed] if option.value else [])]
    with pytest.raises(Taken) as taken:
        main([command, "x" if command == "generate" else "basics", *arguments])
    wanted = option.kind(typed) if option.value else True
    assert taken.value.args[0][name] == ([wanted] if option.repeats else wanted)


def test_no_metavar_says_less_than_it_could(capsys):
    for command in ("generate", "demo"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        told = capsys.readouterr().out
        assert set(re.findall(r"--(\\S+) TEXT", told)) <= {"stop", "prompt"}
        for name in ("watermark", "gpu-memory-utilization"):
            assert f"--{name} SHARE" in told
    assert "--html FILE" in told and "--svg FOLDER" in told


# ---- generate


def test_generate_streams_one_text(capsys):
    assert main(["generate", "To be, or", "--max-tokens", "12", "--seed", "1"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("To be, or") and len(out) > 25 and err == ""
    assert main(["generate", "To be, or", "--max-tokens", "12", "--seed", "1", "--block-size", "3"]) == 0
    assert capsys.readouterr().out == out


def test_generate_prints_words_as_they_come(monkeypatch, capsys):
    """Some of the text is printed before all of it is known."""
    import minipage.engine.llm

    step, printed = minipage.engine.llm.LLM._step, []

    def watch(llm):
        printed.append(capsys.readouterr().out)
        step(llm)

    monkeypatch.setattr(minipage.engine.llm.LLM, "_step", watch)
    assert main(["generate", "To be, or", "--max-tokens", "12", "--seed", "1"]) == 0
    assert sum(map(bool, printed)) > 5


def test_generate_many_in_order(capsys):
    prompts = ["To be, or", "ROMEO:", "First Citizen:"]
    assert main(["generate", *prompts, "--max-tokens", "5", "--seed", "3"]) == 0
    out, err = capsys.readouterr()
    assert [
        part.split("\n")[1][: len(prompt)] for part, prompt in zip(out.split("=== ")[1:], prompts, strict=True)
    ] == prompts
    assert err == ""


def test_json_has_no_infinity(capsys):
    wanted = ["--logprobs", "4", "--structured-outputs", '{"choice": ["yes", "no"]}']
    assert main(["generate", "--max-tokens", "1", "--json", *wanted, "To be"]) == 0
    (logprobs,) = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)["logprobs"]
    assert min(each["logprob"] for each in logprobs.values()) == -9999


def test_generate_json(capsys):
    prompts = ["To be, or", "ROMEO:"]
    assert main(["generate", *prompts, "--max-tokens", "6", "--json", "--temperature", "0", "--top-k", "5"]) == 0
    results = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [result["prompt"] for result in results] == prompts
    for result in results:
        assert len(result["token_ids"]) == 6 and result["finish_reason"] == "length" and result["text"]
        assert 0 <= result["seconds_to"]["first_scheduled"] <= result["seconds_to"]["finished"]


def test_generate_stops(capsys):
    arguments = [
        "generate",
        "First Citizen:",
        "--seed",
        "1",
        "--json",
        "--max-tokens",
        "60",
        "--stop",
        "e",
        "--stop",
        "a",
    ]
    assert main(arguments) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["finish_reason"] == "stop" and result["stop_reason"] in ("a", "e")
    assert not set(result["text"]) & {"a", "e"}


def test_generate_several_texts_of_each_prompt(capsys):
    assert main(["generate", "To be", "ROMEO:", "--n", "2", "--max-tokens", "3", "--seed", "1"]) == 0
    titles = re.findall(r"=== (.*) ===", capsys.readouterr().out)
    assert titles == [f"{i} of 2, text {j} of 2" for i in (1, 2) for j in (1, 2)]
    assert main(["generate", "To be", "--beam-width", "2", "--max-tokens", "3", "--json"]) == 0
    best, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert (best["index"], second["index"]) == (0, 1) and best["score"] >= second["score"]


def test_generate_log_probabilities(capsys):
    assert main(["generate", "To be", "--logprobs", "2", "--max-tokens", "3", "--json", "--temperature", "0"]) == 0
    result = json.loads(capsys.readouterr().out)
    for token_id, top in zip(result["token_ids"], result["logprobs"], strict=True):
        assert top[str(token_id)]["rank"] == 1 and len(top) == 2 and top[str(token_id)]["logprob"] < 0
    assert main(["generate", "To be", "--logprobs", "2"]) == 2
    assert "--json" in capsys.readouterr().err


def test_what_the_context_cuts_off_is_said(capsys):
    assert main(["generate", "To be", "--max-model-len", "10", "--max-tokens", "99", "--seed", "1"]) == 0
    assert "after 8 of 99 tokens, with the context of 10" in capsys.readouterr().err
    assert main(["generate", "To be", "--max-model-len", "10", "--max-tokens", "8", "--seed", "1"]) == 0
    assert capsys.readouterr().err == ""
    assert main(["demo", "basics", "--max-model-len", "15", "--max-tokens", "99", "--steps", "1"]) == 0
    assert "A 5" in capsys.readouterr().err


def test_generate_reads_standard_input(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", iter(["To be\n", "\n", "ROMEO:\n"]))
    assert main(["generate", "-", "JULIET:", "--max-tokens", "2", "--json"]) == 0
    results = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [result["prompt"] for result in results] == ["To be", "ROMEO:", "JULIET:"]


@posix
def test_the_reader_may_leave_early():
    for arguments in (["demo"], ["generate", "To be", "ROMEO:", "--max-tokens", "3"]):
        command = " ".join([*MINIPAGE, *(f"'{argument}'" for argument in arguments)])
        code = f"set -o pipefail; {command} | true; echo code=$?"  # `true` is gone before the first line
        result = subprocess.run(["bash", "-c", code], capture_output=True, text=True, timeout=60)
        assert (result.stdout, result.stderr) == ("code=0\n", "")


# ---- info


def test_info(capsys):
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    for word in ("python", "numpy", "numba", "torch", "threading layer", "compiled kernels", "CUDA", "bytes per token"):
        assert word in out
    size = sum(file.stat().st_size for file in find_folder(SHIPPED_MODEL).iterdir())
    assert f"{size:,} bytes" in out
    assert "torch" not in sys.modules or "pytest" in sys.modules  # looked up, not imported


class Driver:
    """What the NVIDIA driver answers on a machine with two GPUs."""

    def cuDriverGetVersion(self, place):
        place._obj.value = 13000
        return 0

    def cuInit(self, flags):
        return 0

    def cuDeviceGetCount(self, place):
        place._obj.value = 2
        return 0

    def cuDeviceGetName(self, name, length, device):
        name.value = f"NVIDIA H{device}00".encode()

    def cuDeviceTotalMem_v2(self, place, device):
        place._obj.value = 80 * 2**30

    def cuDeviceGetAttribute(self, place, attribute, device):
        place._obj.value = {75: 9, 76: 0}[attribute]


def test_info_says_which_gpus_there_are_and_what_is_lacking(capsys, monkeypatch):
    monkeypatch.setattr("ctypes.CDLL", lambda name: Driver())
    versions = {"numba-cuda": "0.30.4", "torch": "2.13.0+cpu"}
    monkeypatch.setattr("minipage.info.installed", lambda *names: next(filter(None, map(versions.get, names)), ""))
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    for device in range(2):
        assert f"NVIDIA H{device}00, 80.0 GiB, compute capability 9.0" in out
    assert "for CUDA 13.0" in out and "0.30.4" in out
    assert "device='cuda'     lacks a PyTorch with CUDA\n" in out
    versions["torch"] = "2.13.0+cu130"
    assert main(["info"]) == 0
    assert "device='cuda'     has all it needs\n" in capsys.readouterr().out


def test_info_does_not_import_torch():
    code = "import sys; from minipage.cli import main; main(['info']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60).returncode == 0


# ---- the demo, printed


def test_plain_demo_ends_with_the_texts():
    result = shell("demo")
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.rstrip().split("\n")
    assert max(map(len, lines)) <= 80
    assert "\x1b" not in result.stdout
    steps = re.findall(r"(?m)^minipage • step (\d+)", result.stdout)
    assert list(dict.fromkeys(steps)) == [str(i + 1) for i in range(LAST_STEP)]  # some are shown in halves
    end = result.stdout[result.stdout.rindex("what happened") :]
    assert re.findall(r"(?m)^ ([A-C])  (.+)", end) == [("A", "KING RICHARD III:"), ("B", "JULIET:"), ("C", "ROMEO:")]
    assert end.count("finished (length); block table") == 3
    again = shell("demo", "--plain", "--steps", "12").stdout  # the same words every time
    assert again.split("minipage • ")[1:12] == result.stdout.split("minipage • ")[1:12]


def test_plain_demo_in_ascii():
    result = shell("demo", "--steps", "9", "--prompt", "Naïve 🙂\ncafé", env={"PYTHONIOENCODING": "ascii"})
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.isascii() and "]->0" in result.stdout and "Na\\xefve" in result.stdout


def test_options_of_the_demo(capsys):
    assert main(["demo", "--steps", "2", "--prompt", "Good morrow", "--block-size", "2", "--num-blocks", "20",
                 "--max-tokens", "9", "--max-num-batched-tokens", "5", "--seed", "8"]) == 0  # fmt: skip
    out = capsys.readouterr().out
    assert "20 blocks of 2 tokens" in out and "of at most 5 tokens" in out and "Good morrow" in out
    assert out.count("what happened") == 2


def test_a_wide_page(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "132")
    assert main(["demo", "--steps", "1"]) == 0
    assert max(map(len, capsys.readouterr().out.split("\n"))) == 132


def test_a_text_that_cannot_go_on_is_named_and_the_exit_code_says_so(monkeypatch, capsys):
    monkeypatch.setattr("minipage.engine.llm.LLM.forward", lambda self, plan: np.full((9, 10_000), np.nan))
    for prompts in (["To be"], ["To be", "KING:"]):
        assert main(["generate", "--max-tokens", "3", *prompts]) == 1
        err = capsys.readouterr().err
        assert err.count("cannot go on") == len(prompts) and "not finite numbers" in err


def test_a_bar_says_how_much_of_the_model_is_loaded():
    from minipage.trace.playing.spinner import loading, signs_of_life

    said = []
    for done in (0, 7, 10):
        loading(said.append)(done, 10)
    assert [text.count("━") for text in said] == [0, 14, 20]
    assert all(text.startswith("loading the model ") for text in said) and said[1].endswith(" 7 of 10 weights")
    shown = Event()
    with signs_of_life("at first", lambda text: text == "then" and shown.set()) as say:
        say("then")
        assert shown.wait(60), "what the block said was never shown"
