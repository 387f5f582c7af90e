"""AsyncLLM: tasks and threads at once, who gets which error, and what becomes of the blocks."""

import asyncio
import os
import signal
import sys
import threading

import pytest

from minipage import LLM, AsyncLLM, SamplingParams
from minipage.errors import ConfigurationError, EngineDeadError, InvalidRequestError, RequestError
from minipage.sampling.structured import GrammarCompiler, StructuredOutputsParams

GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
LONG = SamplingParams(temperature=0, max_tokens=50, ignore_eos=True)


@pytest.fixture
def llm(tiny):
    return LLM(tiny, num_blocks=40, block_size=4)


class Gate:
    """Lets the steps of an engine pass one by one, when they are told to."""

    def __init__(self, llm, monkeypatch):
        self.step = llm.step
        self.permits = threading.Semaphore(0)
        self.asked = threading.Semaphore(0)  # one for each step that has come to the gate
        monkeypatch.setattr(llm, "step", self.pass_through)

    def pass_through(self):
        self.asked.release()
        self.permits.acquire()
        return self.step()

    async def pass_one(self):
        """Let one step pass, and wait until the next has come."""
        self.permits.release()
        await asyncio.to_thread(self.asked.acquire)

    def open(self):
        self.permits.release(1000)


async def last(outputs):
    return [output async for output in outputs][-1]


async def first(outputs):
    return await anext(outputs)


def is_empty(llm):
    llm.scheduler.check_integrity()
    return llm.block_pool.num_used == 0 and not llm.requests


def test_many_tasks_get_the_texts_of_generate(llm, tiny, make_prompt):
    prompts = [make_prompt(i) for i in range(12)]
    expected = [output.outputs[0].token_ids for output in LLM(tiny).generate(prompts, GREEDY)]

    async def serve():
        async with AsyncLLM(llm) as engine:
            return await asyncio.gather(*(last(engine.generate(prompt, GREEDY)) for prompt in prompts))

    outputs = asyncio.run(serve())
    assert [output.outputs[0].token_ids for output in outputs] == expected
    assert all(output.finished for output in outputs)
    assert is_empty(llm)


def test_threads_and_tasks_together(llm, tiny, make_prompt):
    prompts = [make_prompt(i) for i in range(8)]
    expected = [output.outputs[0].token_ids for output in LLM(tiny).generate(prompts, GREEDY)]
    found = {}

    with AsyncLLM(llm) as engine:

        def in_thread(i):
            *_, output = engine.stream(prompts[i], GREEDY)
            found[i] = output.outputs[0].token_ids

        async def in_task(i):
            found[i] = (await last(engine.generate(prompts[i], GREEDY))).outputs[0].token_ids

        async def tasks():
            await asyncio.gather(*(in_task(i) for i in range(4)))

        threads = [threading.Thread(target=in_thread, args=[i]) for i in range(4, 8)]
        threads.append(threading.Thread(target=lambda: asyncio.run(tasks())))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [found[i] for i in range(8)] == expected


def test_outputs_grow_and_the_newest_is_enough(llm, monkeypatch, make_prompt):
    """A reader that comes back late finds one output, with everything in it."""
    gate = Gate(llm, monkeypatch)

    async def serve():
        async with AsyncLLM(llm) as engine:
            outputs = engine.generate(make_prompt(1), GREEDY)
            gate.permits.release()
            seen = [await anext(outputs)]
            gate.open()
            while engine.num_unfinished_requests:  # and meanwhile nobody reads
                await asyncio.sleep(0.001)
            return seen + [output async for output in outputs]

    seen = asyncio.run(serve())
    assert [len(output.outputs[0].token_ids) for output in seen] == [1, 12]


@pytest.mark.parametrize("how", ["close", "cancel", "abort"])
def test_whoever_goes_gives_the_blocks_back_before_the_next_step(llm, monkeypatch, make_prompt, how):
    gate = Gate(llm, monkeypatch)

    async def serve():
        async with AsyncLLM(llm) as engine:
            outputs = engine.generate(make_prompt(1), LONG, request_id="going")
            staying = asyncio.create_task(last(engine.generate(make_prompt(2), GREEDY)))
            going = asyncio.create_task(anext(outputs))
            await asyncio.to_thread(gate.asked.acquire)
            while len(llm.requests) < 2 or not going.done():
                await gate.pass_one()
            output = await going
            if how == "close":
                await outputs.aclose()
            elif how == "cancel":
                task = asyncio.create_task(last(outputs))
                await asyncio.sleep(0)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            else:
                answer = engine.abort("going")
            await gate.pass_one()  # the step that was under way
            gone = "going" not in llm.requests
            gate.open()
            if how == "abort":
                assert await answer
                assert not await engine.abort(["going", "nobody"])
                with pytest.raises(InvalidRequestError, match="request_id is 5"):
                    await engine.abort(5)
                output = await last(outputs)
                assert output.outputs[0].finish_reason == "abort"
            return gone, output, await staying

    gone, output, staying = asyncio.run(asyncio.wait_for(serve(), 60))
    assert gone and len(output.outputs[0].token_ids) < 50
    assert len(staying.outputs[0].token_ids) == 12
    assert is_empty(llm)


def test_a_bad_request_is_its_own_affair(llm, make_prompt):
    async def serve():
        async with AsyncLLM(llm) as engine:
            good = asyncio.create_task(last(engine.generate(make_prompt(1), LONG, request_id="a")))
            for prompt, params, name, message in (
                ([999], GREEDY, None, "999"),
                ("text", GREEDY, None, "tokenizer"),
                (make_prompt(2), "greedy", None, "SamplingParams"),
                (make_prompt(2, 40), SamplingParams(n=9, max_tokens=20), None, "pool"),
                (make_prompt(2), GREEDY, 5, "request_id"),
                (make_prompt(2), GREEDY, [5], "request_id"),  # which nothing can be looked up by
            ):
                with pytest.raises(InvalidRequestError, match=message):
                    await last(engine.generate(prompt, params, request_id=name))
            return await good

    assert len(asyncio.run(serve()).outputs[0].token_ids) == 50
    assert is_empty(llm)


async def begun(engine, gate, prompt, params):
    """The outputs of a request "a" that has its first token, and whose next step is at the gate."""
    outputs = engine.generate(prompt, params, request_id="a")
    going = asyncio.create_task(anext(outputs))
    await asyncio.to_thread(gate.asked.acquire)
    await gate.pass_one()
    await going
    return outputs


async def waiting(engine, prompt):
    """The last output of another request "a", which has come while a step is at the gate."""
    second = asyncio.create_task(last(engine.generate(prompt, GREEDY, request_id="a")))
    while engine.num_unfinished_requests < 2:
        await asyncio.sleep(0.001)
    return second


def test_a_second_request_of_one_id_is_refused_and_the_first_goes_on(llm, monkeypatch, make_prompt):
    gate = Gate(llm, monkeypatch)

    async def serve():
        async with AsyncLLM(llm) as engine:
            outputs = await begun(engine, gate, make_prompt(1), GREEDY)
            second = await waiting(engine, make_prompt(2))
            gate.open()
            with pytest.raises(InvalidRequestError, match="already"):
                await second
            return await last(outputs)

    assert len(asyncio.run(serve()).outputs[0].token_ids) == 12


@pytest.mark.parametrize("how", ["close", "abort"])
def test_an_id_is_free_again_as_soon_as_its_request_is_stopped(llm, monkeypatch, make_prompt, how):
    """As after a client's timeout: during one step the first is stopped, and another of the same id comes."""
    gate = Gate(llm, monkeypatch)

    async def serve():
        async with AsyncLLM(llm) as engine:
            outputs = await begun(engine, gate, make_prompt(1), LONG)
            await outputs.aclose() if how == "close" else engine.abort("a")
            second = await waiting(engine, make_prompt(2))
            gate.open()
            return how == "close" or await last(outputs), await second

    first, second = asyncio.run(asyncio.wait_for(serve(), 20))
    assert how == "close" or first.outputs[0].finish_reason == "abort"
    assert second.prompt_token_ids == make_prompt(2) and len(second.outputs[0].token_ids) == 12
    assert is_empty(llm)


def test_a_step_that_raises_ends_those_it_computed(llm, monkeypatch, make_prompt):
    forward, broken = llm.runner.forward, threading.Event()

    def sometimes(plan):
        if broken.is_set():
            broken.clear()
            raise ZeroDivisionError("by nothing")
        return forward(plan)

    monkeypatch.setattr(llm.runner, "forward", sometimes)

    async def serve():
        async with AsyncLLM(llm) as engine:
            broken.set()
            results = await asyncio.gather(
                *(last(engine.generate(make_prompt(i), GREEDY)) for i in range(3)), return_exceptions=True
            )
            after = await last(engine.generate(make_prompt(1), GREEDY))
            return results, after, engine.is_alive

    results, after, is_alive = asyncio.run(serve())
    failed = [result for result in results if isinstance(result, RequestError)]
    assert failed and all("ZeroDivisionError: by nothing" in str(error) for error in failed)
    assert len({id(error) for error in failed}) == len(failed)
    assert len(after.outputs[0].token_ids) == 12 and is_alive
    assert llm.stats()["vllm:request_success"]["error"] == len(failed)
    assert is_empty(llm)


@pytest.mark.parametrize("how", ["a reader goes", "a step fails"])
def test_a_part_that_raises_while_a_request_is_ended_ends_nobody_else(llm, monkeypatch, make_prompt, how):
    gate, failures = Gate(llm, monkeypatch), {}

    def sometimes(owner, name):
        method = getattr(owner, name)

        def call(*arguments):
            if name in failures:
                raise failures.pop(name)
            return method(*arguments)

        monkeypatch.setattr(owner, name, call)

    sometimes(llm.scheduler, "remove")
    sometimes(llm.runner, "copy")

    async def serve():
        async with AsyncLLM(llm) as engine:
            readers = [engine.generate(make_prompt(i), LONG) for i in range(2)]
            begun = [asyncio.create_task(anext(reader)) for reader in readers]
            await asyncio.to_thread(gate.asked.acquire)
            while not all(task.done() for task in begun):
                await gate.pass_one()
            failures["remove"] = RuntimeError("once")
            if how == "a reader goes":
                await readers.pop().aclose()
            else:
                failures["copy"] = RuntimeError("before that")
            gate.open()
            return await asyncio.gather(*map(last, readers), return_exceptions=True)

    results = asyncio.run(asyncio.wait_for(serve(), 60))
    assert not failures, f"this was not tested: {failures}"
    whole = [result for result in results if not isinstance(result, RequestError)]
    assert [len(output.outputs[0].token_ids) for output in whole] == [50]
    assert is_empty(llm)


def test_those_who_wait_are_not_concerned(tiny, monkeypatch, make_prompt):
    llm = LLM(tiny, max_num_seqs=1)
    gate, forward, broken = Gate(llm, monkeypatch), llm.runner.forward, []

    def once(plan):
        if broken and broken.pop():
            raise RuntimeError("once")
        return forward(plan)

    monkeypatch.setattr(llm.runner, "forward", once)

    async def serve():
        async with AsyncLLM(llm) as engine:
            names = "first", "second"
            tasks = [asyncio.create_task(last(engine.generate(make_prompt(1), GREEDY, name))) for name in names]
            await asyncio.to_thread(gate.asked.acquire)
            while len(llm.requests) < 2:
                await gate.pass_one()
            broken.append(True)
            gate.open()
            return await asyncio.gather(*tasks, return_exceptions=True)

    results = asyncio.run(serve())
    assert sorted(isinstance(result, RequestError) for result in results) == [False, True]


@pytest.mark.parametrize("error", [SystemExit("gone"), MemoryError("gone")])
def test_an_engine_that_cannot_go_on_tells_everybody_once(llm, monkeypatch, make_prompt, error):
    """SystemExit is none of the errors that a step may raise; a MemoryError is, but not again and again."""

    def step():
        raise error

    monkeypatch.setattr(llm, "step", step)

    async def serve():
        engine = AsyncLLM(llm)
        told = []
        for _ in range(10):
            waiting = [last(engine.generate(make_prompt(i), GREEDY)) for i in range(4)]
            told += await asyncio.gather(*waiting, return_exceptions=True)
            if not engine.is_alive:
                break
        with pytest.raises(EngineDeadError, match="gone"):
            await last(engine.generate(make_prompt(1), GREEDY))
        with pytest.raises(EngineDeadError, match="gone"):
            next(engine.stream(make_prompt(1), GREEDY))
        with pytest.raises(EngineDeadError):
            engine.abort("0")
        await asyncio.to_thread(engine.shutdown)
        return told, engine.num_unfinished_requests

    told, left = asyncio.run(asyncio.wait_for(serve(), 60))
    assert all(isinstance(one, EngineDeadError | RequestError) and "gone" in str(one) for one in told)
    assert left == 0


def test_an_engine_that_computes_nothing_any_more_is_given_up(llm, monkeypatch, make_prompt):
    def forward(plan):
        raise RuntimeError("no device")

    monkeypatch.setattr(llm.runner, "forward", forward)
    errors = []
    with AsyncLLM(llm) as engine:
        while engine.is_alive and len(errors) < 20:
            with pytest.raises((RequestError, EngineDeadError), match="no device") as caught:
                list(engine.stream(make_prompt(1), GREEDY))
            errors.append(caught.type)
    assert errors == [RequestError] * 4 + [EngineDeadError]
    assert is_empty(llm)


def test_shutdown_finishes_or_aborts(llm, monkeypatch, make_prompt):
    async def serve(timeout):
        engine = AsyncLLM(llm)
        outputs = engine.generate(make_prompt(1), LONG)
        await first(outputs)
        stopping = asyncio.create_task(asyncio.to_thread(engine.shutdown, timeout))
        while engine.is_alive:
            await asyncio.sleep(0.001)
        with pytest.raises(EngineDeadError, match="shut down"):
            await last(engine.generate(make_prompt(2), GREEDY))
        output = await last(outputs)
        await stopping
        engine.shutdown()  # once more does no harm
        return output.outputs[0]

    finished = asyncio.run(serve(None))
    assert finished.finish_reason == "length" and len(finished.token_ids) == 50
    gate = Gate(llm, monkeypatch)
    gate.permits.release(3)
    threading.Timer(0.2, gate.open).start()
    aborted = asyncio.run(serve(0))
    assert aborted.finish_reason == "abort" and 0 < len(aborted.token_ids) < 50
    assert is_empty(llm)


def test_readers_whose_loop_is_closed_are_dropped(llm, monkeypatch, make_prompt):
    gate = Gate(llm, monkeypatch)
    gate.permits.release()
    with AsyncLLM(llm) as engine:
        loop = asyncio.new_event_loop()
        outputs = engine.generate(make_prompt(1), LONG)
        loop.run_until_complete(anext(outputs))
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
        gate.open()
        *_, other = engine.stream(make_prompt(2), GREEDY)
        assert len(other.outputs[0].token_ids) == 12
        assert engine.num_unfinished_requests == 0
    assert is_empty(llm)


def test_an_idle_engine_sleeps(llm, monkeypatch, make_prompt):
    steps = []
    step = llm.step
    monkeypatch.setattr(llm, "step", lambda: steps.append(1) or step())
    with AsyncLLM(llm) as engine:
        list(engine.stream(make_prompt(1), GREEDY))
        assert engine.reset_prefix_cache().result() is None
        num_steps = len(steps)
        threading.Event().wait(0.05)
        assert len(steps) - num_steps <= 1  # the one after the order may not have been taken when we looked


def test_whoever_waits_for_an_answer_may_stop_waiting(llm, monkeypatch, make_prompt):
    gate = Gate(llm, monkeypatch)

    async def serve():
        async with AsyncLLM(llm) as engine:
            going = asyncio.create_task(last(engine.generate(make_prompt(1), LONG, request_id="a")))
            await asyncio.to_thread(gate.asked.acquire)  # the thread is at the gate, and answers nobody
            withdrawn = engine.between_steps(lambda: pytest.fail("it was cancelled"))
            assert withdrawn.cancel()
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(engine.abort("a"), 0)
            gate.open()
            output = await going
            with pytest.raises(SystemExit):
                await asyncio.to_thread(engine.between_steps(lambda: sys.exit("not the engine")).result)
            return output, await last(engine.generate(make_prompt(2), GREEDY))

    aborted, other = asyncio.run(asyncio.wait_for(serve(), 60))
    assert aborted.outputs[0].finish_reason == "abort"  # the order was not taken back
    assert len(other.outputs[0].token_ids) == 12


def test_a_ready_engine_takes_no_options(llm):
    with pytest.raises(ConfigurationError, match="block_size"):
        AsyncLLM(llm, block_size=8)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no processes are forked here")
@pytest.mark.parametrize("is_busy", [False, True])
def test_a_forked_process_is_told_that_the_thread_is_not_there(llm, monkeypatch, make_prompt, is_busy):
    gate = Gate(llm, monkeypatch)
    gate.permits.release(1)
    with AsyncLLM(llm) as engine:
        going = engine.stream(make_prompt(2), LONG)
        if is_busy:
            next(going)
            assert [gate.asked.acquire() for _ in range(2)]  # the thread is at the gate, and holds no lock
        child = os.fork()
        if child == 0:
            signal.alarm(10)  # rather than to wait for ever
            questions = lambda: next(engine.stream(make_prompt(1), GREEDY)), lambda: engine.abort("0"), engine.abort_all
            told = 0
            try:
                for question in questions:
                    try:
                        question()
                    except EngineDeadError as error:
                        told += "forked" in str(error)
                told += not engine.is_alive
                engine.shutdown(timeout=None)  # which waits for nobody
            finally:
                os._exit(0 if told == 4 else 1)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        gate.open()
        *_, output = engine.stream(make_prompt(1), GREEDY)  # and here it goes on
        assert output.finished


def test_grammars_are_not_compiled_by_the_thread_that_steps(talker, monkeypatch):
    pytest.importorskip("llguidance")
    llm, where = LLM(talker), []
    choice = SamplingParams(structured_outputs=StructuredOutputsParams(choice=["sea", "gull"]))
    grammar = GrammarCompiler._compile
    monkeypatch.setattr(
        GrammarCompiler, "_compile", lambda *given: (where.append(threading.current_thread().name), grammar(*given))[1]
    )
    with AsyncLLM(llm) as engine:
        *_, output = engine.stream("The", choice)
    assert output.outputs[0].text in ("sea", "gull")
    assert where == ["MainThread"]
