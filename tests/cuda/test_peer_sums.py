"""Sums between GPUs are what PyTorch adds up, in all ranks bit by bit the same.

Here the ranks take turns on one device: each sends its part without waiting, and then all come back for what the others
have sent.
"""

from functools import partial

import numpy as np
import pytest
import torch
from test_fused import check, numbers, wide
from where import DEVICE as ON_GPU
from where import SIMULATOR

from minipage.attention.cuda.device_arrays import pinned
from minipage.model.layers.torch import TorchLayers
from minipage.model.llama import Llama
from minipage.model.rope import Rotary
from minipage.model.shard import Shard
from minipage.worker.gpu import peer_sums
from minipage.worker.gpu.peer_layers import PeerLayers
from minipage.worker.gpu.peer_sums import Inboxes, Norm, can_add, empty_inbox, launch_sum
from minipage.worker.gpu.views import for_kernels

WHERE = "cuda" if ON_GPU else "cpu"


@pytest.fixture(autouse=True)
def few_rows_fit(monkeypatch):
    """So that an inbox is small."""
    monkeypatch.setattr(peer_sums, "MOST_ROWS", 5)
    if SIMULATOR:
        monkeypatch.setattr(peer_sums, "MOST_GLANCES", 40)  # whoever waits in vain fails
    peer_sums.sum_kernel.cache_clear()
    yield
    peer_sums.sum_kernel.cache_clear()


class Ranks:
    """Several, on one device."""

    def __init__(self, size):
        self.size = size
        *self.own, spare = [torch.from_numpy(empty_inbox(size)).to(WHERE) for _ in range(size + 1)]
        to_own = torch.tensor([inbox.data_ptr() for inbox in self.own], device=WHERE)
        to_spare = torch.tensor([spare.data_ptr()] * size, device=WHERE)
        stop = np.zeros(1, np.int32) if SIMULATOR else pinned((1,), np.int32)
        counts = [torch.zeros(5, dtype=torch.int32, device=WHERE) for _ in range(size)]
        # One that sends only, and one that receives only.
        self.senders = [Inboxes(*map(for_kernels, (spare, to_own, counts[r])), stop) for r in range(size)]
        self.receivers = [Inboxes(*map(for_kernels, (self.own[r], to_spare, counts[r])), stop) for r in range(size)]

    def launch(self, inboxes, rank, part, onto, norm, x, h):
        arrays = [None if each is None else for_kernels(each) for each in (part, onto)]
        norm = norm and norm._replace(
            weight=for_kernels(norm.weight), bias=None if norm.bias is None else for_kernels(norm.bias)
        )
        launch_sum(*arrays, norm, for_kernels(x), for_kernels(h), inboxes, rank)
        if ON_GPU:
            torch.cuda.synchronize()

    def send(self, rank, part):
        inboxes = self.senders[rank]
        inboxes.stop[0] = 1
        self.launch(inboxes, rank, part, None, None, torch.empty_like(part), torch.empty_like(part))
        inboxes.stop[0] = 0
        inboxes.counts[: len(part)] -= 1  # as if it had not been: it comes back for the same sum

    def add_up(self, parts, onto, norm):
        for rank, part in enumerate(parts):
            self.send(rank, part)
        found = []
        for rank, part in enumerate(parts):
            x = torch.empty_like(part) if onto is None else onto.clone()
            h = x if norm is None else torch.empty_like(part)
            self.launch(self.receivers[rank], rank, part, None if onto is None else x, norm, x, h)
            found.append((x, h))
        assert all(np.array_equal(inbox.cpu(), empty_inbox(self.size)) for inbox in self.own)
        return found


def plain_norm(x, norm):
    x = x.double()
    if norm.is_centered:
        x = x - x.mean(-1, keepdim=True)
    x = x / (x.square().mean(-1, keepdim=True) + norm.epsilon).sqrt() * norm.weight.double()
    return x if norm.bias is None else x + norm.bias.double()


CASES = [(torch.float32, 2, True), (torch.bfloat16, 2, False), (torch.float16, 2, True), (torch.bfloat16, 3, True)]


@pytest.mark.parametrize("dtype, size, is_centered", CASES, ids=str)
def test_sums_and_norms(dtype, size, is_centered):
    ranks = Ranks(size)
    some = partial(numbers, dtype=dtype)
    norm = Norm(some(72), some(72) if is_centered else None, 1e-5, is_centered)
    for number, num_rows in enumerate((1, 2, 1)):  # rows have counts of their own
        parts = [some(num_rows, 72) * (1 + rank + number) for rank in range(size)]
        onto = some(num_rows, 72)
        for given, after in ((onto, norm), (None, None), (onto, None))[: 3 if number == 1 else 1]:
            total = sum(part.double() for part in parts) + (0 if given is None else given.double())
            found = ranks.add_up(parts, given, after)
            for x, h in found:
                assert torch.equal(x, found[0][0]) and torch.equal(h, found[0][1])
            x, h = found[0]
            check(x, wide(total), dtype, size=20)
            if after:
                check(h, wide(plain_norm(x, after)), dtype, size=6)


def test_nobody_takes_what_was_sent_for_an_earlier_sum():
    if ON_GPU:
        pytest.skip("the GPU would stop working for this process")
    ranks, part = Ranks(2), numbers(2, 64, dtype=torch.float32)
    ranks.add_up([part, part], None, None)
    ranks.add_up([part, part], None, None)
    with pytest.raises(RuntimeError, match="waited for too long"):
        ranks.launch(ranks.receivers[0], 0, part, None, None, part.clone(), part.clone())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_part_that_looks_like_an_empty_inbox_arrives(dtype):
    ranks, part = Ranks(2), numbers(2, 64, dtype=dtype)
    words = part.view(torch.int32)  # [2, words of a row]
    words[0, ::3] = int(empty_inbox(1)[0])
    for x, _ in ranks.add_up([part, part], None, None):
        check(x, wide(2 * part.double()), dtype, size=1)


def test_what_is_no_few_rows_of_whole_pieces_is_not_taken():
    x = torch.zeros(5, 64, device=WHERE)
    assert can_add(x) and can_add(x[:, :4].contiguous())
    for other in (x[:0], x[:, :32], x[:, :3].contiguous(), x[None], x.new_zeros(6, 64), x.int(), x.new_zeros(1, 8192)):
        assert not can_add(other)


# ---- the layers


class Alone:
    """A rank whose sums have one part, its own; it says with which norms they were asked for."""

    rank, size = 0, 1

    def __init__(self):
        self.peers, self.norms = self, []

    def all_reduce(self, part):
        return part

    def gather(self, part, sizes):
        return part

    def add_onto(self, x, part, norm):
        self.norms.append(norm)
        x += part
        return x if norm is None else plain_norm(x, norm).to(x.dtype)


def test_the_norm_after_a_sum_is_made_along_with_it_from_the_second_time_on():
    sizes = {"vocab_size": 11, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8}
    model = Llama(**sizes, **heads, max_position_embeddings=32, rotary=Rotary((1.0, 0.1, 0.01, 0.001)))
    weights = {name: numbers(*weight.shape, dtype=torch.float32) for name, weight in model.weights()}
    plain, talk = TorchLayers(model, weights), Alone()
    peers = PeerLayers(Shard(model, 0, 1), TorchLayers(model, weights), talk)
    ids = torch.tensor([3, 1, 4], device=WHERE)

    def forward(layers):
        return model.logits(layers, model.forward(layers, ids, ids, lambda i, q, k, v: q + v))

    expected = wide(forward(plain))
    for _ in range(3):
        check(forward(peers), expected, torch.float32, size=50)
    first, *later = (talk.norms[i : i + 4] for i in (0, 4, 8))
    assert first == [None] * 4 and all(norm is not None for norms in later for norm in norms)
