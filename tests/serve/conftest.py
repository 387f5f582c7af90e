"""A server in a thread of its own, on a free port of this machine, for a tiny random model with a tokenizer."""

import threading

import pytest
from engine.checkpoints import save_gpt2, save_tokenizer

from minipage import LLM, AsyncLLM
from minipage.errors import InvalidRequestError
from minipage.serve.app import Settings
from minipage.serve.main import make_server, take_port, warm_up


class Served:
    """Runs until `stop`, or until the test is over."""

    def __init__(self, llm, *, drain_timeout=0.0, tls=None, **settings):
        warm_up(llm)  # kernels are compiled now, and not while a client waits
        self.llm = llm
        self.engine = AsyncLLM(llm)
        self.socket = take_port("127.0.0.1", 0)
        answers = threading.Event()
        settings = Settings(**{"served_model_name": ["tiny"], "chat_template": template} | settings)
        options = {"drain_timeout": drain_timeout, "log_level": "warning", **(tls or {})}
        self.server = make_server(self.engine, settings, tell=lambda where: answers.set(), **options)
        self.address = self.socket.getsockname()
        self.url = "{}://{}:{}".format("https" if tls else "http", *self.address)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.socket]})
        self.thread.start()
        assert answers.wait(20)

    def stop(self):
        self.server.should_exit = True
        self.thread.join(20)
        self.engine.shutdown()
        assert not self.thread.is_alive()
        self.llm.scheduler.check_integrity()
        assert self.llm.block_pool.num_used == 0


def template(messages, add_generation_prompt=True, **options):
    """As a chat template would: each message in a line, and whose turn it is."""
    if any(message["content"] == "nothing" for message in messages):
        raise InvalidRequestError("there is nothing to say")
    lines = [f"{message['role']}: {message['content']}\n" for message in messages]
    return "".join(lines) + ("assistant:" if add_generation_prompt else "")


@pytest.fixture(autouse=True, scope="module")
def servers_have_few_blocks(few_blocks):
    pass


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A GPT-2 with a byte-level tokenizer of 300 tokens and a context of 256; token 0 ends a text."""
    folder = tmp_path_factory.mktemp("served")
    save_tokenizer(folder)
    save_gpt2(folder, seed=1, vocab_size=300, n_positions=256, eos_token_id=0)
    return folder


@pytest.fixture(scope="session")
def offline(folder):
    """The same model without a server: what the texts should be."""
    return LLM(folder)


@pytest.fixture(scope="session")
def served(folder):
    """One server for all tests that leave it as it is."""
    served = Served(LLM(folder, enable_prefix_caching=True))
    yield served
    served.stop()


@pytest.fixture
def serve(folder):
    """Makes servers with options of their own."""
    started = []

    def start(drain_timeout=0.0, settings=None, model=folder, tls=None, **options):
        started.append(Served(LLM(model, **options), drain_timeout=drain_timeout, tls=tls, **(settings or {})))
        return started[-1]

    yield start
    for one in started:
        if one.thread.is_alive():
            one.stop()
