"""The machine of scheduler_machine.py finds bugs: it has to notice every one of these, and to say what is wrong.

A test that cannot fail proves nothing. The failure messages matter as much: they are what somebody reads who has just
made the mistake.
"""

import broken_groups as lose
import broken_schedulers as decide
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test as run

from minipage.errors import MinipageError
from minipage.memory import BlockTable, PrefixCache
from minipage.promises.scheduler_machine import machine
from minipage.scheduling import Scheduler, SequenceGroup

ANY, CACHING, NO_WATERMARK, TINY = {}, {"caching": True}, {"watermark": 0.0}, {"num_blocks": 6}
CROWD = {"num_blocks": 8, "max_num_seqs": 16, "max_num_batched_tokens": 32}  # so that many have to give way
RECOMPUTE, SWAP = CROWD | {"preemption": "recompute"}, CROWD | {"preemption": "swap", "swap": 24}

URGENCY = SWAP | {"policy": "priority"}
NEXT_TOKEN = r"(\d+) tokens were computed, so token \1 is next, not token|a chunk of \d+ tokens from token|have slots"
TOO_FEW = "too few were counted|blocks wanted"
FOR_EVER = "wait, and nobody runs: this would go on for ever"
LEADER = f"the leader computes them for all|all get one in the same step, or nobody|{TOO_FEW}"
NOT_ITS_OWN = "should hold the K and V of the prefix"
OWN_BLOCK = "only a block of one's own may be written|nobody may write it"
LEAK = "have an owner: a leak|it leaked"
HOLDS = "is waiting but holds blocks"

MUTANTS = [  # the broken class, words that the failure message must have, settings that give it the chance to fail
    (decide.PreemptsTheFirst, "the last in the order give way first", ANY),
    (decide.PreemptsTheGroupThatAsks, "the last in the order give way first", ANY),
    (decide.PreemptsBeforeItMust, "was preempted for nothing", ANY),
    (decide.StopsWhenSwapSpaceIsFull, "got nothing although there was room|it starves", SWAP | {"swap": 6}),
    (decide.SwappedNeverComeBack, FOR_EVER, SWAP),
    (decide.WaitingBeforeRunning, "computed first|got nothing although|had to preempt|way first", NO_WATERMARK),
    (decide.PriorityIsIgnored, "the policy asks for another order", {"policy": "priority"}),
    (decide.PreemptedGoesToTheBackOfTheQueue, "the policy asks for another order", RECOMPUTE),
    (decide.AdmitsWhatCanNeverFit, "it can never fit, refuse it", ANY),
    (decide.AdmitsWhoeverFits, "nobody may overtake", ANY),
    (decide.AdmitsWithoutFreeBlocks, TOO_FEW, NO_WATERMARK),
    (decide.AdmitsWhenOnlyTheFirstChunkFits, TOO_FEW, NO_WATERMARK),
    (decide.ForgetsTheFollowersOwnBlocks, TOO_FEW, NO_WATERMARK | RECOMPUTE),
    (decide.FoundBlocksCostNothing, TOO_FEW, NO_WATERMARK | CACHING),
    (decide.FailedAdmissionKeepsReferences, LEAK + "|reference count", CACHING),
    (decide.NeverGivesTheLastBlockAway, FOR_EVER, TINY),
    (decide.WatermarkIsIgnored, "below the watermark", {"watermark": 0.3}),
    (decide.WatermarkEvenIfNobodyRuns, FOR_EVER, TINY | {"watermark": 0.5}),
    (decide.AdmitsBeforeSomebodySwappedOut, "was let in before .*, who come first in the order", SWAP),
    (decide.BringsBackBeforeSomebodyWhoWaits, "was let in before .*, who come first in the order", URGENCY),
    (decide.AdmitsAfterPreempting, "had to preempt .* and yet it lets", RECOMPUTE),
    (decide.OneSeatTooMany, "but max_num_seqs is", ANY),
    (decide.EveryGroupTakesOneSeat, "but max_num_seqs is", ANY),
    (decide.PromptsIgnoreTheBudget, "but max_num_batched_tokens is", ANY),
    (decide.StartsOneTokenLate, NEXT_TOKEN, ANY),
    (decide.StartsOneTokenEarly, NEXT_TOKEN, ANY),
    (decide.StartsEveryChunkAtTheBeginning, NEXT_TOKEN, ANY),
    (decide.CountsTokensBeforeTheHit, "what was found in the prefix cache, and then|" + OWN_BLOCK, CACHING),
    (decide.SamplesOfAGroupTakeTurns, "all get one in the same step, or nobody", ANY),
    (decide.CountsOneCopyTooFew, "blocks wanted", ANY),
    (decide.CountsNoCopies, "blocks wanted", ANY),
    (decide.CountsACopyForTheLastWriter, "is first, and nobody may|preempted for nothing|" + FOR_EVER, ANY),
    (lose.EverySequenceComputesThePrompt, LEADER, NO_WATERMARK),
    (lose.FollowersForkBeforeTheLeaderIsDone, LEADER + "|preempted for nothing", NO_WATERMARK),
    (lose.ForksWhenItIsPlanned, LEADER + "|" + OWN_BLOCK, NO_WATERMARK),
    (lose.PreemptionLosesGeneratedTokens, "lost tokens", RECOMPUTE),
    (lose.PreemptionKeepsTheBlocks, HOLDS + "|" + LEADER, RECOMPUTE),
    (lose.PreemptsAGroupInPart, HOLDS + "|" + NOT_ITS_OWN, RECOMPUTE),
    (lose.EverybodyResumesFromTheLeadersText, NOT_ITS_OWN, RECOMPUTE),
    (lose.SharedBlocksMoveOncePerSequence, "each once, however many sequences share it|blocks wanted", SWAP),
    (lose.SwapOutKeepsItsBlocks, LEAK, SWAP),
    (lose.SwapOutCopiesNothing, "swap-out has to move these blocks", SWAP),
    (lose.SwapInMixesBlocksUp, NOT_ITS_OWN, SWAP),
    (lose.SwapsOutWithoutRoom, "blocks wanted", SWAP),
    (lose.AbortedStaysInItsQueue, "are done but still queued", ANY),
    (lose.AbortForgetsSwapSpace, LEAK, SWAP),
    (lose.FinishedKeepTheirBlocks, LEAK, ANY),
    (lose.FinishedKeepRunning, "are done but still queued", ANY),
    (lose.FailedStepIsTrusted, "the step failed, so .* has to be computed again", ANY),
    (lose.FailedStepForgetsTheSwapped, "the step failed, so .* has to be computed again", SWAP),
    (lose.HitLeavesNothingToCompute, "at least one token has to be left to compute|blocks wanted", CACHING),
    (lose.SaltIsIgnored, NOT_ITS_OWN, CACHING),
    (lose.ReusedBlocksStayKnown, NOT_ITS_OWN + "|" + OWN_BLOCK, CACHING),
    (lose.PublishesBeforeItIsWritten, f"half written|{OWN_BLOCK}|{NOT_ITS_OWN}", CACHING),
]
UNTIL_IT_FAILS = settings(
    max_examples=1000,
    stateful_step_count=12,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    report_multiple_bugs=False,
)


PARTS = {Scheduler: "Scheduler", SequenceGroup: "Group", BlockTable: "Table", PrefixCache: "Cache"}


@pytest.mark.parametrize(("mutant", "words", "given"), MUTANTS, ids=lambda value: getattr(value, "__name__", ""))
def test_the_machine_catches_it(mutant, words, given):
    [part] = [name for original, name in PARTS.items() if issubclass(mutant, original)]
    with pytest.raises((AssertionError, MinipageError), match=words):
        run(machine(**{part: mutant}, **given), settings=UNTIL_IT_FAILS)
