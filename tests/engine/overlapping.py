"""The slot oracle beside an engine whose steps overlap: what a step was planned with, when it was launched, is kept
until it is computed, when tables and texts have gone on."""

from engine.engine_machine import EngineMachine
from engine.slot_oracle import forget

from minipage.engine.llm import LLM


class OverlappedLLM(LLM):
    """The real engine, with an oracle at its runner's elbow."""

    def __init__(self, model, oracle, **options):
        super().__init__(model, attention=oracle.attention, async_scheduling=True, **options)
        self.oracle, runner = oracle, self.runner
        oracle.groups = runner.kv_groups
        self.inner = {name: getattr(runner, name) for name in ("copy", "batches", "compute", "sample")}
        for name in self.inner:
            setattr(runner, name, getattr(self, f"watched_{name}"))
        self.free = {}  # of a plan: the blocks that were free, here and in the swap pool
        self.launched = []  # (batches, what the oracle has to know of them)

    def schedule(self):
        found = self.scheduler.prefix_cache if self.scheduler.prefix_cache is not None else ()
        here = {block for block in self.block_pool.free_queue if block not in found}
        there = set(self.scheduler.swap_pool.free_queue) if self.scheduler.swap_pool else set()
        if self.overlap._flying is None:  # nobody reads them, and a tier may bring back blocks while it is planned
            self.forget(here, there)
            here, there = set(), set()
        plan = super().schedule()
        if not plan.chunks and self.scheduler.has_unfinished and self.overlap._flying is None:
            self.scheduler.check_integrity()
            raise AssertionError("requests are unfinished, but a step computes nothing: everybody waits for somebody")
        self.free[id(plan)] = plan, here, there
        self.oracle.fail("schedule")
        return plan

    def forget(self, here, there):
        """What these blocks hold, of the pool and of the swap pool, means nothing any more."""
        forget(self.kv_cache, here, self.oracle.prefixes)
        if self.swap_cache is not None:
            forget(self.swap_cache, there, self.oracle.swapped)

    def watched_copy(self, plan):
        _, here, there = self.free.pop(id(plan))
        self.forget(here, there)
        oracle, size = self.oracle, self.block_pool.block_size
        oracle.move(plan.swap_out, oracle.prefixes, oracle.swapped, size)
        oracle.move(plan.swap_in, oracle.swapped, oracle.prefixes, size)
        oracle.move(plan.copies, oracle.prefixes, oracle.prefixes, size)
        oracle.fail("copy")
        self.inner["copy"](plan)

    def watched_batches(self, plan):
        self.oracle.begin(plan, self.block_pool, self.scheduler.prefix_cache, writes=False)
        batches = self.inner["batches"](plan)
        self.launched.append((batches, self.oracle.chunks))
        return batches

    def watched_compute(self, batches):
        """By now the tokens are known that were being drawn at the launch."""
        [chunks] = [chunks for known, chunks in self.launched if known is batches]
        self.launched = [each for each in self.launched if each[0] is not batches]
        [batch], oracle, size = batches, self.oracle, self.block_pool.block_size
        assert (batch.token_ids >= 0).all(), "a token is computed that nobody has drawn yet"
        oracle.layer, oracle.chunks, oracle.half_written = 0, [], set()
        for number, (salt, tokens, start, stop) in enumerate(chunks):
            first = batch.query_start_loc[number]
            tokens = (*tokens[:start], *batch.token_ids[first : first + stop - start].tolist())
            assert min(tokens) >= 0, "what comes before a chunk was not drawn yet"
            oracle.chunks.append((salt, tokens, start, stop))
            for i in range(start, stop):
                slot = int(batch.slot_mapping[first + i - start])
                assert slot == batch.block_tables[number][i // size] * size + i % size
                assert slot not in oracle.half_written, f"slot {slot} is written twice in one step"
                oracle.half_written.add(slot)
                oracle.prefixes[slot] = 0, salt, tokens[: i + 1]
        logits = self.inner["compute"](batches)
        oracle.half_written = set()
        return logits

    def watched_sample(self, logits, draws):
        tokens = self.inner["sample"](logits, draws)
        self.oracle.fail("sample")
        return tokens

    def update(self, plan, tokens):
        super().update(plan, tokens)
        self.oracle.fail("update")


class OverlapMachine(EngineMachine):
    Engine = OverlappedLLM

    steps_until_it_fails = 3  # one that has been launched may only preempt; then it is a later one that fails

    def everything_is_accounted_for(self):
        super().everything_is_accounted_for()
        for group in self.llm.scheduler.groups:
            assert "next_chunks" not in vars(group)
            assert all(min(seq.token_ids) >= 0 for seq in group.sequences), "a placeholder was left behind"
