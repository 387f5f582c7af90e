"""Browsers made of cardboard: they read the stream of a live page, and put the frames together as its script does."""

import json
import socket
import threading
import time
from contextlib import suppress

import httpx

# To make one reads all certificates, and here nobody has any. What was kept open may lead to a server that is gone.
HTTP = httpx.Client(timeout=60, verify=False, limits=httpx.Limits(max_keepalive_connections=0))


def until(condition, seconds=90):  # a kernel may have to be compiled meanwhile
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "that took too long"
        time.sleep(0.002)


def patch(old, change):
    """`patch` of viewer_frames.js: the other half of `difference`."""
    if isinstance(change, list):
        kept, rest = change
        return (old[:kept] + rest) if kept else rest
    if not isinstance(change, dict):
        return change
    new = dict(old) if isinstance(old, dict) else {}
    for key, value in change.items():
        if value is None:
            new.pop(key, None)
        else:
            new[key] = patch(new.get(key), value)
    return new


class Looker:
    """One that looks; `trees` are the frames it was told of."""

    def __init__(self, url, headers=None):
        self.trees, self.facts, self.error = [], {}, None
        self.raw = ""
        self.status = None
        self.client = httpx.Client(timeout=60, transport=httpx.HTTPTransport(verify=False, retries=5))
        self.is_open = threading.Event()
        self.thread = threading.Thread(target=self.read, args=(url, headers or {}))
        self.thread.start()
        assert self.is_open.wait(20)

    def read(self, url, headers):
        try:
            with self.client.stream("GET", f"{url}/live", headers=headers) as answer:
                self.status = answer.status_code
                self.socket = answer.extensions["network_stream"].get_extra_info("socket")
                self.is_open.set()
                for line in answer.iter_lines():
                    self.raw += line
                    if line.startswith("data: "):
                        self.take(json.loads(line[6:]))
        except Exception as error:  # the test has closed it
            self.error = error
        finally:
            self.is_open.set()

    def take(self, news):
        if news.get("anew"):
            self.trees = []
        for delta in news.get("frames", ()):
            self.trees.append(patch(self.trees[-1] if self.trees else {}, delta))
        self.facts |= news.get("facts", {})

    @property
    def tree(self):
        return self.trees[-1] if self.trees else {}

    def close(self):
        with suppress(OSError):  # it may be closed already
            self.socket.shutdown(socket.SHUT_RDWR)  # which also wakes the thread that reads

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
        self.thread.join(20)
        self.client.close()


def looks_like(tree, llm):
    """Whether a frame says what is so in the engine, which stands still."""
    return bool(tree) and shown_in(tree) == so_in(llm)


def shown_in(tree):
    blocks, texts = tree.get("blocks", {}), tree.get("sequences", {})
    return {
        "ref counts": [blocks.get(str(i), {}).get("ref_count", 0) for i in range(tree["num_blocks"])],
        "free queue": (tree.get("num_free", 0), tree.get("free_queue", [])),
    } | {
        queue: [
            (t["prompt"] + t.get("text", ""), len(t["tokens"]), t.get("blocks") or t.get("swap_blocks", []))
            for t in (texts[label] for label in tree.get(queue, ()))
        ]
        for queue in ("running", "waiting", "swapped")
    }  # fmt: skip


def so_in(llm):
    pool, scheduler = llm.block_pool, llm.scheduler
    return {
        "ref counts": [pool.ref_count(block) for block in range(pool.num_blocks)],
        "free queue": (pool.num_free, list(pool.free_queue)[:40]),
    } | {
        queue: [
            (llm.tokenizer.decode(seq.token_ids), len(seq.token_ids), list(seq.block_table.blocks))
            for group in getattr(scheduler, queue)
            for seq in group.sequences
        ]
        for queue in ("running", "waiting", "swapped")
    }
