"""The text, the network, and the steps of its training."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numba import njit
from safetensors.torch import save
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from minipage.errors import ConfigurationError
from minipage.model.architecture import Model
from minipage.model.checkpoint import stored_shapes
from minipage.model.gpt2 import GPT2
from minipage.model.layers.plain import PlainLayers
from minipage.simd.options import kept_on_disk
from minipage.train.settings import Settings

Ints = np.ndarray[Any, np.dtype[np.int32]]
Weights = dict[str, torch.Tensor]


def train_tokenizer(text: str, vocab_size: int) -> Tokenizer:
    """A byte-level BPE tokenizer: any text can be written in it, common words are one token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()  # one for each byte, so no text is out of reach
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=letters, show_progress=False)
    tokenizer.train_from_iterator([text], trainer)
    return tokenizer


class Corpus:
    """A text, split into what is learned and what is tested, and able to spell the former in many ways."""

    def __init__(self, text: str, settings: Settings) -> None:
        learned, tested = text[: int(len(text) * 0.9)], text[int(len(text) * 0.9) :]
        self.settings, self.num_tested = settings, len(tested)
        self.tokenizer = train_tokenizer(learned, settings.vocab_size)
        self.tested = torch.tensor(self.tokenizer.encode(tested).ids)  # [num_tested_tokens]
        ids = self.tokenizer.get_vocab()
        merges = json.loads(self.tokenizer.to_str())["model"]["merges"]  # pairs of tokens, by rank
        triples = np.array([(ids[a], ids[b], ids[a + b]) for a, b in merges], np.int32)  # [num_merges, 3]
        left, right, merged = triples.reshape(-1, 3).T.copy()  # each [num_merges]
        ranks = np.full((len(ids), len(ids)), len(merges), np.int32)  # [V, V]; len(merges): not a merge
        ranks[left, right] = np.arange(len(merges))
        words = [word for word, _ in self.tokenizer.pre_tokenizer.pre_tokenize_str(learned)]
        bounds = np.cumsum([0] + [len(word) for word in words], dtype=np.int32)  # [num_words + 1]
        letters = np.array([ids[letter] for word in words for letter in word], np.int32)  # [num_bytes]
        self.spell = partial(spell, letters, bounds, ranks, merged)  # (dropout, generator) -> [num_tokens]
        self.spelling, self.tokens = -1, torch.from_numpy(self.spell(0.0, np.random.default_rng(0)))  # [num_tokens]
        if len(self.tokens) <= settings.context or len(self.tested) < 2:
            raise ConfigurationError(f"a context of {settings.context} needs more text than {len(self.tokens)} tokens.")

    def windows(self, step: int) -> torch.Tensor:
        """[B, T + 1] token ids from random places of the text, in the spelling of this step."""
        s, spelling = self.settings, step // self.settings.respell_every
        if spelling != self.spelling:
            dropout = s.bpe_dropout * (1 - spelling * s.respell_every / s.steps)  # none at last, as in use
            generator = np.random.default_rng([s.seed, spelling])
            self.spelling, self.tokens = spelling, torch.from_numpy(self.spell(dropout, generator))  # [num_tokens]
        starts = torch.randint(len(self.tokens) - s.context, (s.batch, 1))  # [B, 1]
        return self.tokens[starts + torch.arange(s.context + 1)]  # [B, T + 1]


@kept_on_disk
@njit
def spell(letters: Ints, bounds: Ints, ranks: Ints, merged: Ints, dropout: float, generator: Any) -> Any:
    """BPE: in each word, from single letters on, do the possible merge of lowest rank, until there is none. Each time,
    each possible merge is overlooked with probability `dropout`."""
    tokens = []
    for n in range(len(bounds) - 1):
        word = list(letters[bounds[n] : bounds[n + 1]])
        while True:
            best, best_rank = -1, len(merged)
            for i in range(len(word) - 1):
                rank = ranks[word[i], word[i + 1]]
                if rank < best_rank and generator.random() >= dropout:
                    best, best_rank = i, rank
            if best < 0:
                break
            word[best] = merged[best_rank]
            word.pop(best + 1)
        tokens.extend(word)
    return np.array(tokens, np.int64)  # [num_tokens]


def initial_weights(gpt2: GPT2, generator: torch.Generator) -> Weights:
    """GPT-2's initialisation: N(0, 0.02), less where a layer adds to the residual stream, layer norms at identity."""
    weights = {}
    for name, shape in stored_shapes(gpt2).items():
        if len(shape) == 1:
            weights[name] = torch.full(shape, float("ln_" in name and name.endswith("weight")))  # [out]
        else:
            std = 0.02 / math.sqrt(2 * gpt2.n_layer) if name.endswith("c_proj.weight") else 0.02
            weights[name] = torch.randn(shape, generator=generator) * std  # [in, out]
    return weights


def model_of(gpt2: GPT2, weights: Weights) -> Model:
    """A model that computes with these weights, which have the names of a checkpoint."""
    return Model(gpt2, PlainLayers(gpt2, gpt2.adapt(lambda name, shape: weights[name])))


def window_attend(num_windows: int, dropout: float, layer: int, *qkv: torch.Tensor) -> torch.Tensor:
    """Causal attention inside each of the windows, which lie one after the other in the flat batch."""
    q, k, v = (a.view(num_windows, -1, *a.shape[1:]).transpose(1, 2) for a in qkv)  # each [B, H, T, D]
    out = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=dropout)  # [B, H, T, D]
    return out.transpose(1, 2).flatten(0, 1)  # [B * T, H, D]


def cross_entropy(model: Model, windows: torch.Tensor, dropout: float = 0.0) -> torch.Tensor:
    """[B, T + 1] token ids -> [B * T] nats: how much each token but the first surprises the model."""
    num_windows, length = windows.shape[0], windows.shape[1] - 1
    positions = torch.arange(length, device=windows.device).repeat(num_windows)  # [B * T]
    attend = partial(window_attend, num_windows, dropout)
    logits = model.logits(model.forward(windows[:, :-1].flatten(), positions, attend))  # [B * T, V]
    return F.cross_entropy(logits.float(), windows[:, 1:].flatten(), reduction="none")  # [B * T]


@torch.no_grad()
def nats_per_character(model: Model, corpus: Corpus) -> float:
    """Cross-entropy of the tested text. Windows overlap by half, so that each token can look back half a context."""
    tokens = corpus.tested.to(model.layers.device)  # [num_tested_tokens]
    length, total = model.architecture.max_model_len, 0.0
    stride = max(1, length // 2)
    for start in range(0, max(1, len(tokens) - 1 - stride), stride):
        nats = cross_entropy(model, tokens[None, start : start + length + 1])  # [<= T]
        total += nats[length - stride if start else 0 :].sum().item()
    return total / corpus.num_tested


class Training:
    """A model while it is trained: all that changes, and how it changes."""

    def __init__(self, text: str, out: Path, settings: Settings, device: str) -> None:
        self.corpus, self.out, self.settings, self.device = Corpus(text, settings), out, settings, device
        sizes = settings.context, settings.n_embd, settings.n_layer, settings.n_head
        self.gpt2 = GPT2(self.corpus.tokenizer.get_vocab_size(), *sizes)
        start = initial_weights(self.gpt2, torch.Generator().manual_seed(settings.seed))
        self.weights = {name: w.to(device).requires_grad_() for name, w in start.items()}
        self.average = {name: w.detach().clone() for name, w in self.weights.items()}
        self.step, self.best = 0, math.inf  # the lowest validation loss so far
        vectors, matrices = ([w for w in self.weights.values() if w.ndim == ndim] for ndim in (1, 2))
        groups = [{"params": vectors, "weight_decay": 0.0}, {"params": matrices, "weight_decay": settings.weight_decay}]
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99))
        self.origin = asdict(settings) | {"text": hashlib.sha256(text.encode()).hexdigest()}

    def run(self) -> Iterator[tuple[float, float | None]]:
        """Train, from the checkpoint if there is one. Yields the loss of each step, and of each validation."""
        self.out.mkdir(parents=True, exist_ok=True)
        if (self.out / "checkpoint.pt").exists():
            self.resume()
        while self.step < self.settings.steps:
            loss = self.learn()
            due = self.step % self.settings.validate_every == 0 or self.step == self.settings.steps
            yield loss, self.validate() if due else None

    def learn(self) -> float:
        """One step; returns its loss, in nats per token."""
        s = self.settings
        torch.manual_seed(s.seed * 1_000_003 + self.step)  # so a resumed run draws what an unbroken one would
        windows = self.corpus.windows(self.step).to(self.device)  # [B, T + 1]
        dropped = {name: F.dropout(w, s.dropout) if ".c_" in name else w for name, w in self.weights.items()}
        with torch.autocast(self.device, torch.bfloat16, enabled=self.device == "cuda"):
            loss = cross_entropy(model_of(self.gpt2, dropped), windows, s.dropout).mean()
        falling = 0.05 + 0.95 * (1 + math.cos(math.pi * self.step / s.steps)) / 2  # from 1 to a twentieth
        for group in self.optimizer.param_groups:
            group["lr"] = s.learning_rate * min(1.0, (self.step + 1) / 100) * falling
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.weights.values(), 1.0)
        self.optimizer.step()
        self.step += 1
        decay = min(s.average, self.step / (self.step + 10))  # early on, forget the random start quickly
        for name, w in self.weights.items():
            self.average[name].lerp_(w.detach(), 1 - decay)
        return loss.item()

    def validate(self) -> float:
        """Nats per character of the averaged weights as they are stored; and store them if they are the best so far."""
        halves = {name: w.half() for name, w in self.average.items()}
        loss = nats_per_character(model_of(self.gpt2, {name: w.float() for name, w in halves.items()}), self.corpus)
        if loss < self.best:
            self.best = loss
            self.save_model(halves)
        state = {name: getattr(self, name) for name in ("origin", "step", "best", "weights", "average")}
        torch.save(state | {"optimizer": self.optimizer.state_dict()}, self.out / "checkpoint.pt.new")
        (self.out / "checkpoint.pt.new").replace(self.out / "checkpoint.pt")  # so there is never half a checkpoint
        return loss

    def save_model(self, weights: Weights) -> None:
        """In the Hugging Face layout, and what there is to say about it."""
        config = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "activation_function": "gelu_new"}
        config |= asdict(self.gpt2) | {"bos_token_id": None, "eos_token_id": None}
        size = sum(w.numel() for w in weights.values())
        report = {"validation_nats_per_character": round(self.best, 4), "step": self.step, "parameters": size}
        (self.out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        (self.out / "training.json").write_text(json.dumps(report | self.origin, indent=2) + "\n")
        (self.out / "model.safetensors").write_bytes(save(weights, metadata={"format": "pt"}))
        self.corpus.tokenizer.save(str(self.out / "tokenizer.json"))

    def resume(self) -> None:
        file = self.out / "checkpoint.pt"
        try:
            state = torch.load(file, map_location=self.device, weights_only=True)
            origin = state["origin"]
        except Exception as error:  # of any kind, for torch.load believes the first bytes of a file
            raise ConfigurationError(f"{file} is no checkpoint of a run; remove it, or train elsewhere.") from error
        changed = ", ".join(name for name, value in self.origin.items() if origin.get(name) != value)
        if changed:
            raise ConfigurationError(f"{self.out} holds a run with another {changed}; go on with that, or elsewhere.")
        self.step, self.best = state["step"], state["best"]
        self.optimizer.load_state_dict(state["optimizer"])
        for name in self.weights:
            self.weights[name].data.copy_(state["weights"][name])
            self.average[name].copy_(state["average"][name])
