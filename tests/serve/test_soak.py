"""Two thousand requests at once: some go away, some are malformed, some read slowly; nobody else notices."""

import asyncio
import gc
import os
import random

import httpx
import pytest

from minipage import SamplingParams

REQUESTS, CONCURRENCY = 2000, 64
WORDS = "the sea is a wide grey field and nobody mows it".split()


def resident_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def make(i):
    rng = random.Random(i)
    prompt = " ".join(rng.choices(WORDS, k=rng.randint(1, 25)))
    seeded = {"temperature": 1, "seed": i} if rng.random() < 0.5 else {"temperature": 0}
    return rng, {"prompt": prompt, "max_tokens": rng.randint(1, 40), **seeded}


async def one(http, i):
    """What became of request `i`: its text, or "gone", or a status."""
    rng, body = make(i)
    if i % 10 == 0:
        bad = rng.choice([b"{", b"\xff", b"[" * 10_000, b'{"prompt": 5}', b'{"prompt": "a", "n": "x"}'])
        return (await http.post("/v1/completions", content=bad)).status_code
    if i % 3 == 0 and i % 5:
        answer = await http.post("/v1/completions", json=body)
        return answer.json()["choices"][0]["text"]
    text, patience = "", rng.randint(0, 12)
    async with http.stream("POST", "/v1/completions", json=body | {"stream": True}) as answer:
        async for line in answer.aiter_lines():
            if i % 5 == 0:
                patience -= 1
                if patience < 0:
                    return "gone"
            if i % 7 == 0:
                await asyncio.sleep(0.01)
            if line.startswith("data: {"):
                text += httpx.Response(200, content=line[6:].encode()).json()["choices"][0]["text"]
    return "gone" if i % 5 == 0 else text


@pytest.mark.slow
def test_soak(serve, offline):
    server = serve(num_blocks=150, block_size=4, max_num_seqs=32, enable_prefix_caching=True)
    sizes = []

    async def all_of_them():
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=CONCURRENCY)
        async with httpx.AsyncClient(base_url=server.url, timeout=300, limits=limits) as http:
            seats = asyncio.Semaphore(CONCURRENCY)

            async def seated(i):
                async with seats:
                    if i % 200 == 0:
                        gc.collect()
                        sizes.append(resident_bytes())
                        assert (await http.get("/health")).status_code == 200
                    return await one(http, i)

            return await asyncio.gather(*(seated(i) for i in range(REQUESTS)))

    found = asyncio.run(all_of_them())
    bodies = [make(i)[1] for i in range(REQUESTS)]
    outputs = offline.generate(
        [body["prompt"] for body in bodies],
        [SamplingParams(**{name: body[name] for name in body if name != "prompt"}) for body in bodies],
    )
    for i, output in enumerate(outputs):
        expected = {"gone": "gone", "bad": 400, "text": output.outputs[0].text}
        kind = "bad" if i % 10 == 0 else "gone" if i % 5 == 0 else "text"
        assert found[i] == expected[kind], f"request {i}"
    assert server.engine.num_unfinished_requests == 0 and not server.llm.requests
    assert server.server.server_state.tasks == set()
    stats = server.llm.stats()
    assert stats["vllm:num_preemptions"] > 0, "the pool should have been too small"
    assert stats["vllm:request_success"]["error"] == 0
    assert max(sizes[-3:]) < 1.1 * max(sizes[1:4]) + 2**24
