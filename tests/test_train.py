"""The training script, on a text and a network so small that a run takes a second."""

from __future__ import annotations

import json
import math
import os
import random
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from minipage.train import training as train  # noqa: E402 - only where there is PyTorch
from minipage.train.__main__ import main  # noqa: E402
from minipage.train.settings import Settings  # noqa: E402

SETTINGS = {
    "vocab_size": 320, "context": 16, "n_layer": 2, "n_head": 2, "n_embd": 16, "steps": 12, "batch": 4,
    "learning_rate": 0.01, "bpe_dropout": 0.3, "respell_every": 5, "validate_every": 4,
}  # fmt: skip


def make_text(num_words: int = 1500) -> str:
    """Nonsense, but with words that recur, and letters of one to four bytes."""
    draw = random.Random(7)
    words = ["".join(draw.choices("abcdeghilnorstu", k=draw.randint(1, 9))) for _ in range(200)]
    words += ["naïve", "日本", "🙂"]
    return "".join(draw.choice(words) + draw.choice([" ", " ", ", ", "\n", "  "]) for _ in range(num_words))


TEXT = make_text()


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """For so little work, several threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def options(**changed: object) -> list[str]:
    return [f"--{name.replace('_', '-')}={value}" for name, value in (SETTINGS | changed).items()]


def start(out: Path, **changed: object) -> train.Training:
    return train.Training(TEXT, out, Settings(**(SETTINGS | changed)), "cpu")


def finish(training: train.Training) -> dict[str, torch.Tensor]:
    for _ in training.run():
        pass
    return training.weights | {f"average {name}": w for name, w in training.average.items()}


def assert_identical(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one whole run, which no test may change."""
    out = tmp_path_factory.mktemp("finished")
    finish(start(out))
    return out


@pytest.fixture(scope="module")
def corpus() -> train.Corpus:
    return train.Corpus(TEXT, Settings(**SETTINGS))


# Spelling.


def test_spelling_without_dropout_is_that_of_the_tokenizer(corpus: train.Corpus) -> None:
    learned = TEXT[: int(len(TEXT) * 0.9)]
    assert corpus.spell(0.0, np.random.default_rng(1)).tolist() == corpus.tokenizer.encode(learned).ids


@pytest.mark.parametrize("dropout", [0.0, 0.1, 0.5, 0.99])
def test_every_spelling_says_the_same(corpus: train.Corpus, dropout: float) -> None:
    tokens = corpus.spell(dropout, np.random.default_rng(1)).tolist()
    assert corpus.tokenizer.decode(tokens) == TEXT[: int(len(TEXT) * 0.9)]


def test_more_dropout_spells_in_more_tokens(corpus: train.Corpus) -> None:
    lengths = [len(corpus.spell(dropout, np.random.default_rng(1))) for dropout in (0.0, 0.1, 0.3, 0.9)]
    assert lengths == sorted(set(lengths))


def test_spelling_follows_the_seed(corpus: train.Corpus) -> None:
    one, same, other = (corpus.spell(0.2, np.random.default_rng(seed)).tolist() for seed in (1, 1, 2))
    assert one == same != other


def test_a_merge_is_skipped_with_the_stated_probability() -> None:
    """20,000 words "ab" and the one merge a+b: a fifth of them stay apart."""
    letters = np.array([0, 1] * 20_000, np.int32)  # [num_bytes]
    bounds = np.arange(0, 40_001, 2, dtype=np.int32)  # [num_words + 1]
    ranks = np.ones((3, 3), np.int32)  # [V, V]
    ranks[0, 1] = 0
    tokens = train.spell(letters, bounds, ranks, np.array([2], np.int32), 0.2, np.random.default_rng(1))
    assert (len(tokens) - 20_000) / 20_000 == pytest.approx(0.2, abs=0.01)


def test_the_text_is_spelt_anew_and_as_usual_in_the_end() -> None:
    corpus = train.Corpus(TEXT, Settings(**(SETTINGS | {"steps": 1000, "respell_every": 10})))
    usual, lengths = len(corpus.tokens), []
    for step in (0, 9, 10, 500, 990):
        corpus.windows(step)
        lengths.append(len(corpus.tokens))
    assert lengths[0] == lengths[1] > lengths[3] > lengths[4] >= usual
    assert lengths[4] < 1.01 * usual


# Runs.


def test_same_seed_same_weights(finished: Path, tmp_path: Path) -> None:
    again = finish(start(tmp_path))
    assert (tmp_path / "model.safetensors").read_bytes() == (finished / "model.safetensors").read_bytes()
    assert (tmp_path / "training.json").read_bytes() == (finished / "training.json").read_bytes()
    other = finish(start(tmp_path / "other", seed=2))
    assert not torch.equal(again["wte.weight"], other["wte.weight"])


@pytest.mark.parametrize("steps_before", [3, 4, 7])
def test_a_resumed_run_is_the_unbroken_one(finished: Path, tmp_path: Path, steps_before: int) -> None:
    """Broken off before the first checkpoint, at one, and between two; each time in the middle of a spelling."""
    run = start(tmp_path).run()
    for _ in range(steps_before):
        next(run)
    resumed, unbroken = start(tmp_path), start(finished)
    assert_identical(finish(resumed), finish(unbroken))
    assert (resumed.step, resumed.best) == (unbroken.step, unbroken.best)
    assert (tmp_path / "model.safetensors").read_bytes() == (finished / "model.safetensors").read_bytes()


def test_it_learns(tmp_path: Path) -> None:
    training = start(tmp_path, steps=60, validate_every=30)
    losses = [loss for loss, _ in training.run()]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])


def test_the_best_model_is_kept_not_the_last(tmp_path: Path) -> None:
    training = start(tmp_path, steps=8, validate_every=4)
    run = training.run()
    for _ in range(4):
        next(run)
    training.best, kept = 0.0, (tmp_path / "model.safetensors").read_bytes()
    for _ in run:
        pass
    assert (tmp_path / "model.safetensors").read_bytes() == kept


def test_hugging_face_loads_it_and_finds_the_same_loss(finished: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model = transformers.GPT2LMHeadModel.from_pretrained(finished, dtype=torch.float32).eval()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(finished / "tokenizer.json"))
    assert model.config.bos_token_id is None and model.config.eos_token_id is None
    tested = TEXT[int(len(TEXT) * 0.9) :]
    tokens = torch.tensor(tokenizer(tested)["input_ids"])  # [num_tokens]
    nats, context, scored = 0.0, SETTINGS["context"], 0
    while scored < len(tokens) - 1:  # a window, then half a window on, of which the new half counts
        begin = max(0, scored - context // 2)
        window = tokens[begin : begin + context + 1]  # [<= T + 1]
        with torch.no_grad():
            logits = model(window[None, :-1]).logits[0]  # [<= T, V]
        losses = torch.nn.functional.cross_entropy(logits, window[1:], reduction="none")  # [<= T]
        nats += losses[scored - begin :].sum().item()
        scored = begin + len(window) - 1
    report = json.loads((finished / "training.json").read_text())
    assert report["validation_nats_per_character"] == pytest.approx(nats / len(tested), abs=1e-3)
    assert report["parameters"] == model.num_parameters()


# The command line.


def test_help_and_a_text_that_is_none_wait_for_nothing_slow(tmp_path: Path) -> None:
    code = """
import sys
from minipage.train.__main__ import main
main([sys.argv[1], "--out", sys.argv[2]])
try:
    main(["--help"])
except SystemExit:
    pass
sys.exit(", ".join({"torch", "numba", "numpy", "tokenizers"} & sys.modules.keys()) or 0)
"""
    command = [sys.executable, "-c", code, str(tmp_path / "no such text"), str(tmp_path / "out")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0 and ended.stdout.startswith("usage: ") and "No such file" in ended.stderr


def test_without_pytorch_it_says_what_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    monkeypatch.setitem(sys.modules, "torch", None)
    assert main([str(tmp_path / "text.txt"), f"--out={tmp_path / 'out'}", *options()]) == 2
    assert "pip install 'minipage[torch]'" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX terminal")
@pytest.mark.parametrize("terminal", [True, False])
def test_whoever_watches_sees_that_pytorch_is_loaded(tmp_path: Path, terminal: bool) -> None:
    """It is made slow here, because it may be quick."""
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    (tmp_path / "torch.py").write_text("import time; time.sleep(1); raise ImportError('no torch')", encoding="utf-8")
    command = [sys.executable, "-m", "minipage.train", str(tmp_path / "text.txt"), f"--out={tmp_path / 'out'}"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path]), "TERM": "xterm"}
    if terminal:
        import pexpect

        seen, ended = pexpect.run(shlex.join(command), env=environment, timeout=60, withexitstatus=True)
        text = seen.decode()
    else:
        process = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
        text, ended = process.stdout + process.stderr, process.returncode
    assert ended == 2 and ("loading PyTorch" in text) == terminal and "minipage: no torch" in text


@pytest.mark.slow
def test_what_compiles_has_a_sign_of_its_own_because_numba_is_there_by_then(tmp_path: Path) -> None:
    """A sign that began before could neither name the kernel nor keep Ctrl-C until it is compiled."""
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    code = """
import sys
import minipage.trace.playing.spinner as signs

usual = signs.spinner

def spinner(message):
    print(message, "numba" in sys.modules)
    return usual(message)

signs.spinner = spinner
from minipage.train.__main__ import main
main(sys.argv[1:])
"""
    command = [sys.executable, "-c", code, str(tmp_path / "text.txt"), f"--out={tmp_path / 'out'}", *options()]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.stdout.startswith("loading PyTorch False\nreading the text True\nstep 4: ")


def test_command_line_prints_a_line_for_each_validation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    assert main([str(tmp_path / "text.txt"), f"--out={tmp_path / 'out'}", *options()]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[:3]] == ["step 4", "step 8", "step 12"]
    report = json.loads((tmp_path / "out" / "training.json").read_text())
    assert f"{report['validation_nats_per_character']:.4f}" in lines[3]


@pytest.mark.parametrize(
    ("content", "changed", "sentence"),
    [
        (None, {}, "No such file"),
        (b"to be or not to be", {}, "a context of 16 needs more text"),
        (b"", {}, "a context of 16 needs more text"),
        (b"\xff\xfe" * 1000, {}, "not UTF-8"),
        (TEXT.encode(), {"n_embd": 15}, "multiple of n_head"),
        (TEXT.encode(), {"batch": 0}, "batch is 0; it must be a whole number from 1 to 100,000,000."),
        (TEXT.encode(), {"dropout": 1.5}, "dropout is 1.5; it must be"),
        (TEXT.encode(), {"learning_rate": math.nan}, "learning_rate is nan"),
        (TEXT.encode(), {"seed": 2**64}, "seed is 18446744073709551616; it must be"),
        (TEXT.encode(), {"n_embd": 2**40}, "n_embd is 1099511627776; it must be"),
        (TEXT.encode(), {"vocab_size": 1_000_000}, "vocab_size is 1000000; it must be"),
    ],
)
def test_mistakes_are_answered_with_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None, changed: dict[str, float], sentence: str
) -> None:
    if content is not None:
        (tmp_path / "text.txt").write_bytes(content)
    assert main([str(tmp_path / "text.txt"), f"--out={tmp_path / 'out'}", *options(**changed)]) == 2
    stderr = capsys.readouterr().err
    assert sentence in stderr and len(stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_only_the_same_run_is_resumed(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.read_bytes() for path in finished.iterdir()}
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    (tmp_path / "other.txt").write_text(make_text(1000), encoding="utf-8")
    for text, changed, name in (("text", {"steps": 99}, "steps"), ("other", {}, "text")):
        assert main([str(tmp_path / f"{text}.txt"), f"--out={finished}", *options(**changed)]) == 2
        assert f"another {name};" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in finished.iterdir()} == before


def test_what_no_memory_holds_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    command = [str(tmp_path / "text.txt"), f"--out={tmp_path / 'out'}", *options(n_embd=10**8)]
    assert main(command) == 1
    stderr = capsys.readouterr().err
    assert stderr.startswith("minipage: there is no memory for") and len(stderr.splitlines()) == 1


@pytest.mark.parametrize("content", [b"", b"junk\n", b"another file of somebody else's"])
def test_a_folder_of_something_else_is_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "checkpoint.pt").write_bytes(content)
    for out, sentence in (("out", "is no checkpoint of a run"), ("text.txt", "which is a file")):
        assert main([str(tmp_path / "text.txt"), f"--out={tmp_path / out}", *options()]) == 2
        stderr = capsys.readouterr().err
        assert sentence in stderr and len(stderr.splitlines()) == 1
    assert (tmp_path / "out" / "checkpoint.pt").read_bytes() == content


def test_ctrl_c_says_how_to_go_on(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    command = [str(tmp_path / "text.txt"), f"--out={tmp_path / 'out'}", *options()]
    learn = train.Training.learn

    def learn_with_ctrl_c(training: train.Training) -> float:
        if training.step == 6:
            signal.raise_signal(signal.SIGINT)
        return learn(training)

    with monkeypatch.context() as patch:
        patch.setattr(train.Training, "learn", learn_with_ctrl_c)
        assert main(command) == 130
    stderr = capsys.readouterr().err
    assert "same command" in stderr and len(stderr.splitlines()) == 1
    assert main(command) == 0
    assert capsys.readouterr().out.startswith("step 8:")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (finished / "model.safetensors").read_bytes()
