"""The heart stays small, by the count of CONTRIBUTING: lines of code, without blanks, comments and docstrings."""

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

import minipage

PACKAGE = Path(minipage.__file__).parent
ROOT = PACKAGE.parent
SILENT = {
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER,
}  # fmt: skip
# The engine with GPT-2 on a CPU, in NumPy and float32: what is left if nothing needs to be fast or small, nobody's
# files are read, and options are plain.
HEART = """
    errors.py memory/block_pool.py memory/block_table.py memory/prefix_cache.py
    scheduling/sequence.py scheduling/chunks.py scheduling/group.py scheduling/plan.py
    scheduling/policy.py scheduling/preemption.py scheduling/scheduler.py
    simd/arrays.py attention/arguments.py attention/kv_cache.py attention/reference.py
    model/architecture.py model/gpt2.py model/layers/plain.py
    sampling/param_checks.py sampling/params.py sampling/sampler.py worker/batch.py worker/runner.py
    engine/prompts.py engine/detokenizer.py engine/stop_strings.py engine/completion.py
    engine/request.py engine/sampled.py engine/intake.py
    engine/recovery.py engine/engine.py
"""
# Models with sliding windows, or with several KV cache groups: other models never come by here.
WINDOWS = "memory/kv_groups.py memory/kv_group_cache.py scheduling/windowed.py engine/windows.py"
# What a reader may leave for later: fewer bytes, beams, what is done to logits, chats, metrics, options, other models.
MORE = """
    simd/halves.py simd/fp8.py attention/quantize.py attention/cache_size.py sampling/beam_params.py
    sampling/beam_search.py engine/beams.py sampling/structured.py sampling/processors.py engine/conversations.py
    engine/stats.py engine/build.py engine/llm.py model/layers/activations.py
"""
PARTIAL_HITS = "memory/partial_cache.py engine/partial_hits.py"  # prefixes that end inside a block
EVICTION = "memory/eviction.py"  # the free queue in other orders than the heart's
OFFLOAD = "memory/offload.py engine/offload.py worker/offload.py worker/gpu/offload.py"  # a tier below the pool
# The same in machine code.
FAST = """
    simd/options.py simd/vectors.py simd/matrix.py
    attention/loops.py attention/decode.py attention/prefill.py attention/cpu.py
    model/layers/passes.py model/layers/compiled.py
"""


def code_lines(text):
    """The numbers of the lines that have code."""
    docstrings = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                docstrings.update(range(first.lineno, first.end_lineno + 1))
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in SILENT:
            lines.update(range(token.start[0], token.end[0] + 1))
    return lines - docstrings


def files(names):
    for name in names.split():
        found = sorted(PACKAGE.glob(name.replace("*", "*.py") if name.endswith("*") else name))
        assert found, name
        yield from found


def count(names):
    return sum(len(code_lines(file.read_text(encoding="utf-8"))) for file in files(names))


def test_blanks_comments_and_docstrings_do_not_count():
    text = '"""A\nmodule."""\n\n# why\nx = (\n    1\n)  # three\n\n\ndef f():\n    """One."""\n    return """a\nb"""\n'
    assert sorted(code_lines(text)) == [5, 6, 7, 10, 12, 13]


@pytest.mark.parametrize(("names", "what"), [(HEART, "in NumPy"), (MORE, "more"), (FAST, "in machine code")])
def test_contributing_says_how_large_the_heart_is(names, what):
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    most = int(re.search(rf"[Aa]t most ([\d,]+) lines\s+{what}", " ".join(text.split()))[1].replace(",", ""))
    assert count(names) <= most < count(names) + 120, count(names)


def test_no_file_of_the_package_is_longer_than_300_lines():
    texts = {file: file.read_text(encoding="utf-8") for file in PACKAGE.rglob("*.py")}
    lengths = {file: len(code_lines(text)) for file, text in texts.items() if text.count("\n") > 300}
    assert [f"{file.relative_to(PACKAGE)}: {length}" for file, length in lengths.items() if length > 300] == []


def test_hardly_anything_lies_loose_at_the_top():
    """The heart is in its rooms; what else lies there can be deleted (test_the_heart_alone.py)."""
    outer = {"__main__.py", "cli.py", "cli_options.py", "cli_defaults.py", "output.py", "info.py"}
    outer |= {"lesson.py"}
    assert {file.name for file in PACKAGE.glob("*.py")} - outer <= {"__init__.py", "errors.py", "renamed.py"}


def test_windows_take_less_than_200_lines_in_files_of_their_own_partial_hits_100_and_eviction_60():
    assert count(PARTIAL_HITS) < 100
    assert count(EVICTION) <= 60
    assert 100 < count(WINDOWS) < 200


def test_a_tier_takes_less_than_75_lines_each_for_the_idea_the_engine_and_its_memories():
    for names in OFFLOAD.split():
        assert count(names) < 75, names
    assert count(OFFLOAD) < 270


def test_overlap_takes_less_than_140_lines():
    assert count("engine/overlap.py") < 140


def test_speculation_takes_less_than_180_lines():
    assert count("engine/speculation.py engine/drafts.py") < 180
    assert count("engine/account.py") < 65  # which knows no drafts
