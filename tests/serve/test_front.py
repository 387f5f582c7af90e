"""The front of several replicas, without Ray: two whole servers in this process, which a test can take away."""

import asyncio
import json
from contextlib import aclosing, asynccontextmanager

import httpx
import pytest
from serve.conftest import template

from minipage import LLM, AsyncLLM, SamplingParams
from minipage.model.checkpoint import load_model
from minipage.serve.app import Settings
from minipage.serve.main import behind_proxy
from minipage.serve.replicas import replica
from minipage.serve.replicas.front import Front, ReplicaLost
from minipage.serve.replicas.prompts import PromptReader
from minipage.serve.replicas.replica import Replica, passed_on
from minipage.serve.replicas.routing import PrefixRouter, RoundRobin

OPTIONS = {
    "block_size": 4, "enable_prefix_caching": True, "attention": "reference",
    "kv_events_config": {"enable_kv_cache_events": True},
}  # fmt: skip
SETTINGS = Settings(served_model_name=["tiny"], chat_template=template)


class Here:
    """Replicas in this process. `kill` says of one after how many messages of an answer it is lost."""

    def __init__(self, replicas):
        self.replicas = {replica.name: replica for replica in replicas}
        self.dying = {}
        self.taken = []
        self.told = asyncio.Queue()
        self.listening = [asyncio.ensure_future(self.pass_on(replica)) for replica in replicas]

    async def pass_on(self, replica):
        async for batch in replica.events():
            await self.told.put((replica.name, batch))

    async def events(self):
        while True:
            yield await self.told.get()

    def kill(self, name, after=0):
        self.dying[name] = after

    async def answer(self, scope, body, replica):
        name = replica if replica in self.replicas else next(iter(self.replicas))
        self.taken.append(name)
        num_messages = 0
        async with aclosing(self.replicas[name].answer(passed_on(scope), body)) as messages:
            async for message in messages:
                if num_messages == self.dying.get(name, 10**6):
                    del self.replicas[name]
                    raise ReplicaLost(f"replica {name} died.")
                yield message
                num_messages += isinstance(message, dict)

    async def ask(self, question, replica):
        if replica not in self.replicas:
            raise ReplicaLost(f"replica {replica} is gone.")
        answer = getattr(self.replicas[replica], question)()
        return await answer if asyncio.iscoroutine(answer) else answer


@pytest.fixture(scope="module")
def engines(folder):
    engines = [AsyncLLM(LLM(folder, **OPTIONS)) for _ in "AB"]
    yield engines
    for engine in engines:
        engine.shutdown()


@asynccontextmanager
async def served(engines, folder, router=None, settings=SETTINGS, root_path=""):
    """A client, the replicas and the front."""
    for engine in engines:
        await engine.reset_prefix_cache()
    here = Here([Replica(name, engine, engine.engine.kv_events, settings) for name, engine in zip("AB", engines)])
    prompts = PromptReader(load_model(folder).tokenizer, template)
    front = Front(here, router or PrefixRouter(), prompts, settings)
    listening = asyncio.ensure_future(front.listen())
    transport = httpx.ASGITransport(behind_proxy(front.app(), root_path), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url=f"http://127.0.0.1{root_path}", timeout=60) as client:
        while len(front.names) < len(here.replicas):
            await asyncio.sleep(0.01)
        yield client, here, front
    assert front.num_requests.total() == 0
    for task in [listening, *here.listening]:
        task.cancel()
    for engine in engines:
        for _ in range(500):  # an abort is an order to the engine's thread
            if not engine.num_unfinished_requests:
                break
            await asyncio.sleep(0.01)
        assert engine.num_unfinished_requests == 0


def completion(prompt, **more):
    return {"prompt": prompt, "max_tokens": 4, "temperature": 0, "ignore_eos": True, **more}


async def ask(client, prompt, **more):
    answer = await client.post("/v1/completions", json=completion(prompt, **more))
    assert answer.status_code == 200, answer.text
    return answer.json()


async def quiet():
    """Until the events of what was answered have been told."""
    await asyncio.sleep(0.05)


def run(scenario):
    asyncio.run(scenario)


def test_texts_are_those_of_one_server_and_go_where_their_prefix_is(engines, folder, offline):
    async def scenario():
        async with served(engines, folder) as (client, here, _front):
            first, other = [1, 2, 3, 4] * 5, [9, 8, 7, 6] * 5
            for prompt in first, other:
                await ask(client, prompt)
                await quiet()
            homes = dict(zip(["first", "other"], here.taken))
            assert {*homes.values()} == {"A", "B"}, "those of which nobody knows anything take turns"
            for prompt, home in [(other, "other"), (first, "first"), ([*other, 1], "other")]:
                answer = await ask(client, prompt)
                assert here.taken[-1] == homes[home]
                assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] >= 16
                params = SamplingParams(max_tokens=4, temperature=0, ignore_eos=True)
                assert answer["choices"][0]["text"] == offline.generate([prompt], params)[0].outputs[0].text

    run(scenario())


@pytest.mark.parametrize("root_path", ["", "/llm"])
def test_chats_and_texts_are_cut_into_tokens_as_the_replicas_do(engines, folder, root_path):
    async def scenario():
        async with served(engines, folder, root_path=root_path) as (client, here, _front):
            messages = [{"role": "user", "content": "To be, or not to be, that is the question"}]
            chat = {"messages": messages, "max_tokens": 4}
            for _ in range(3):
                assert (await client.post("/v1/chat/completions", json=chat)).status_code == 200
                await quiet()
            await ask(client, "Whether 'tis nobler in the mind to suffer")
            await quiet()
            await ask(client, "Whether 'tis nobler in the mind to suffer")
            assert here.taken[0] == here.taken[1] == here.taken[2] != here.taken[3] == here.taken[4]

    run(scenario())


def test_a_replica_lost_before_it_answers_costs_no_request(engines, folder):
    async def scenario():
        async with served(engines, folder) as (client, here, front):
            whole = await ask(client, [5] * 9)
            await quiet()
            here.kill(here.taken[0])
            again = await ask(client, [5] * 9)
            assert again["choices"][0]["text"] == whole["choices"][0]["text"]
            assert here.taken[1] == here.taken[0] != here.taken[2]
            assert [*front.names] == [here.taken[2]]
            await ask(client, [6] * 9)
            here.kill(here.taken[2])
            answer = await client.post("/v1/completions", json=completion([5] * 9))
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "replica_lost")
            assert (await client.get("/health")).status_code == 503

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Here, "answer", when_none_is_left(Here.answer))
        run(scenario())


def test_a_replica_whose_engine_has_stopped_costs_no_request_either(engines, folder):
    async def scenario():
        stopped = AsyncLLM(engines[0].engine)
        async with served([stopped, engines[1]], folder) as (client, here, front):
            await asyncio.to_thread(stopped.shutdown)
            for token in range(1, 4):
                await ask(client, [token] * 9)
            assert here.taken.count("A") == 1 and [*front.names] == ["B"]

    run(scenario())


def when_none_is_left(answer):
    async def checked(self, scope, body, replica):
        if not self.replicas:
            raise ReplicaLost("nobody is left.")
        async with aclosing(answer(self, scope, body, replica)) as messages:
            async for message in messages:
                yield message

    return checked


def test_a_stream_that_had_begun_ends_with_a_named_error(engines, folder):
    async def scenario():
        async with served(engines, folder) as (client, here, _front):
            here.kill("A", after=3)  # the head, and two events
            here.kill("B", after=3)
            body = completion([5] * 9, max_tokens=30, stream=True)
            answer = await client.post("/v1/completions", json=body)
            *chunks, error, done = [
                line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")
            ]
            assert (len(chunks), done) == (2, "[DONE]")
            assert json.loads(error)["error"]["code"] == "replica_lost"
            assert "died. The answer is not complete" in json.loads(error)["error"]["message"]
            assert len(here.taken) == 1, "what was said cannot be taken back, so nobody begins anew"

    run(scenario())


def test_streams_come_as_they_are_made(engines, folder):
    async def scenario():
        async with served(engines, folder) as (client, _here, _front):
            whole = await ask(client, [5] * 9, max_tokens=12)
            answer = await client.post("/v1/completions", json=completion([5] * 9, max_tokens=12, stream=True))
            events = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
            assert "".join(event["choices"][0]["text"] for event in events) == whole["choices"][0]["text"]

    run(scenario())


def test_each_replica_can_be_read_and_all_together(engines, folder):
    async def scenario():
        async with served(engines, folder, RoundRobin()) as (client, _here, _front):
            for _ in range(2):
                await ask(client, [5] * 9)
            metrics = (await client.get("/metrics")).text
            assert metrics.count("# TYPE vllm:prompt_tokens_total counter") == 1
            for name in "AB":
                assert f'vllm:prompt_tokens_total{{engine="{name}",model_name="tiny"}}' in metrics
                own = (await client.get(f"/replicas/{name}/metrics")).text
                assert f'engine="{name}"' in own and f'engine="{"AB".replace(name, "")}"' not in own
            assert (await client.get("/load")).json() == {"server_load": 0, "replicas": {"A": 0, "B": 0}}
            assert (await client.post("/reset_prefix_cache")).status_code == 200
            assert all(not engine.engine.kv_events.mirror.blocks for engine in engines)
            for path, code in [("/replicas/C/metrics", "no_such_replica"), ("/kv_events", "which_replica")]:
                answer = await client.get(path)
                assert (answer.status_code, answer.json()["error"]["code"]) == (404, code)
            assert (await client.get("/v1/models")).json()["data"][0]["id"] == "tiny"
            refused = await client.post("/v1/completions", json=completion([5], temperature="hot"))
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, "temperature")

    run(scenario())


def test_nobody_comes_in_without_the_key(engines, folder):
    async def scenario():
        settings = Settings(served_model_name=["tiny"], api_key=["secret"])
        async with served(engines, folder, settings=settings) as (client, _here, _front):
            assert (await client.post("/v1/completions", json=completion([5]))).status_code == 401
            assert (await client.get("/replicas/A/kv_events")).status_code == 401
            key = {"Authorization": "Bearer secret"}
            assert (await client.post("/v1/completions", json=completion([5]), headers=key)).status_code == 200

    run(scenario())


def test_a_replica_that_is_always_passed_over_is_forgotten_until_it_gives_a_sign_of_life(engines, folder, monkeypatch):
    monkeypatch.setattr(replica, "SIGN_OF_LIFE_SECONDS", 0.2)

    async def scenario():
        async with served(engines, folder) as (client, here, front):
            unknown = here.replicas.pop("B")
            for token in range(1, 9):
                await ask(client, [token] * 9)
                if [*front.names] == ["A"]:
                    break
            else:
                raise AssertionError("B is still chosen, again and again")
            here.replicas["B"] = unknown
            while [*front.names] == ["A"]:
                await asyncio.sleep(0.01)
            here.taken.clear()
            for token in range(11, 15):
                await ask(client, [token] * 9)
            assert "B" in here.taken

    run(scenario())


def test_a_client_that_goes_away_is_aborted(engines, folder):
    async def scenario():
        async with served(engines, folder) as (client, _here, _front):
            body = completion([5] * 9, max_tokens=200)
            going = asyncio.ensure_future(client.post("/v1/completions", json=body))
            while not any(engine.num_unfinished_requests for engine in engines):
                await asyncio.sleep(0.01)
            going.cancel()
            await asyncio.gather(going, return_exceptions=True)

    run(scenario())
