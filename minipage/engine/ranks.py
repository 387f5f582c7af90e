"""`LLM(tensor_parallel_size=N)`: from the options of an engine to a runner that leads N ranks, or to one that follows.

    rank 0                          the others
    start_others ─▶ compare ─▶ load this rank's part ─▶ lead | follow

Rank 0 is the process that the user sees. The others have the same options and the same files, and refuse anything else.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from dataclasses import dataclass
from typing import Any, NoReturn

from minipage.engine.build import load_runner
from minipage.errors import ConfigurationError, RankError
from minipage.model.architecture import Architecture
from minipage.model.place import Progress, find_torch, is_simulated
from minipage.model.shard import check_size
from minipage.model.stored_weights import Weights, hash_of
from minipage.worker.ranks.follower import end_with_rank_0, follow, give_up, show_signs_of_life
from minipage.worker.ranks.leader import LeadingRunner
from minipage.worker.ranks.meeting import Disconnected, Meeting, is_under_torchrun, join, meet_by_torchrun, start_others
from minipage.worker.ranks.process_group import ProcessGroup
from minipage.worker.runner import Limits, ModelRunner


@dataclass
class Choices:
    """What ranks must agree on: the options of `load_runner`, and which model."""

    source: tuple[str, str, dict[str, Any]]  # what load_model is given: model, load_format, hf_overrides
    limits: Limits
    how: dict[str, Any]  # the options of load_runner that can be written as JSON


def make_ranks(
    size: int,
    source: tuple[str, str, dict[str, Any]],
    architecture: Architecture,
    weights: Weights,
    limits: Limits,
    how: dict[str, Any],
    progress: Progress | None,
) -> ModelRunner:
    """A runner that leads `size` ranks. In a rank that torchrun has started to follow, this never returns: it does what
    rank 0 says, and then the process ends.

    Raises:
        ConfigurationError: the model cannot be cut into this many parts, or the ranks do not agree.
        RankError: one of them was lost.
    """
    choices = Choices(source, limits, how)
    check_size(architecture, size)
    if not is_under_torchrun() and callable(choices.how["attention"]):
        raise ConfigurationError(
            "attention is a function, which the processes of other ranks do not have. Give the name of one."
        )
    meeting = meet_by_torchrun() if is_under_torchrun() else start_others(size, as_json(choices))
    if meeting.size != size:
        raise ConfigurationError(
            f"tensor_parallel_size is {size}, but torchrun has started {meeting.size} processes. Choose one number."
        )
    if meeting.rank > 0:
        follow_and_end(meeting, architecture, weights, choices)
    try:
        return lead(meeting, architecture, weights, choices, progress)
    except BaseException:
        meeting.end_all()
        raise


def lead(
    meeting: Meeting, architecture: Architecture, weights: Weights, choices: Choices, progress: Progress | None
) -> LeadingRunner:
    ours = facts(architecture, weights, choices)
    refusal = None
    for rank in range(1, meeting.size):
        theirs = wait_for(meeting, f"facts of {rank}", rank)
        if theirs.pop("host") == socket.gethostname():
            meeting.pids[rank] = theirs["pid"]
        del theirs["pid"]
        differing = [name for name, value in theirs.items() if ours[name] != value]
        for name in differing[:1] if refusal is None else ():
            refusal = f"rank {rank} has another {name} than rank 0: {theirs[name]}, where rank 0 has {ours[name]}. "
            refusal += "All ranks need the same minipage, the same model and the same options."
    meeting.tell("verdict", refusal)
    if refusal:
        raise ConfigurationError(refusal)
    group = make_group(meeting, choices)
    runner = load_runner(architecture, weights, choices.limits, progress, group, **choices.how)
    for rank in range(1, meeting.size):
        wait_for(meeting, f"{rank} is ready", rank)
    return LeadingRunner(runner, group, meeting)


def follow_and_end(meeting: Meeting, architecture: Architecture, weights: Weights, choices: Choices) -> NoReturn:
    """What a rank other than 0 does, from its beginning to the end of its process."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for rank 0, which says when it is over
    try:
        ours = facts(architecture, weights, choices) | {"host": socket.gethostname(), "pid": os.getpid()}
        meeting.tell(f"facts of {meeting.rank}", ours)
        if meeting.read("verdict") is not None:
            time.sleep(10)  # until rank 0 has said why: when one of its processes ends, torchrun ends all
            os._exit(1)
        group = make_group(meeting, choices)
        show_signs_of_life(group, meeting)
        runner = load_runner(architecture, weights, choices.limits, talk=group, **choices.how)
        meeting.tell(f"{meeting.rank} is ready", True)
        follow(runner, group, meeting)
    except Exception as error:
        give_up(meeting, error)
    sys.stdout.flush()
    os._exit(0)  # at once: threads that talk to the store must not outlive Python


def main(rank: int, size: int, port: int) -> None:
    """The process that rank 0 has started."""
    from minipage.model.checkpoint import load_model

    end_with_rank_0()
    meeting, options = join(rank, size, port)
    try:
        choices = Choices(**options | {"limits": Limits(*options["limits"])})
        loaded = load_model(*choices.source)
    except Exception as error:
        give_up(meeting, error)
    follow_and_end(meeting, loaded.architecture, loaded.weights, choices)


def make_group(meeting: Meeting, choices: Choices) -> ProcessGroup:
    """This rank's connections to the others, for numbers where it computes."""
    if choices.how["device"] == "cuda" and not is_simulated():
        find_torch("cuda")
        from minipage.worker.gpu.nccl import gpu_group

        return gpu_group(meeting.store, meeting.rank, meeting.size, meeting.host, meeting.device)
    return ProcessGroup(meeting.store, meeting.rank, meeting.size, meeting.host)


# ---- agreeing


def facts(architecture: Architecture, weights: Weights, choices: Choices) -> dict[str, Any]:
    """What must be the same in all ranks."""
    return {
        "version of minipage": sys.modules["minipage"].__version__,
        "architecture": repr(architecture),
        "content of its weights (a hash)": hash_of(weights),
        "options": as_json(choices)["how"] | choices.limits._asdict(),
    }


def as_json(choices: Choices) -> dict[str, Any]:
    how = {name: str(value) if callable(value) else value for name, value in choices.how.items()}
    return {"source": list(choices.source), "limits": list(choices.limits), "how": how}


def wait_for(meeting: Meeting, key: str, rank: int) -> Any:
    """What another rank tells while it begins. Raises RankError if it ends instead."""
    try:
        return meeting.wait_for(key, rank)
    except Disconnected as error:
        raise RankError(f"{error}.") from None
