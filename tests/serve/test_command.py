"""`minipage serve` on the command line: what it prints, its exit codes, and TLS."""

import gc
import os
import signal
import socket
import ssl
import sys
import threading
from contextlib import nullcontext
from types import SimpleNamespace

import httpx
import pytest
from serve.lookers import until
from serve.started import Started
from serve.tls_files import make_tls_files, needs_openssl

from minipage import LLM, AsyncLLM, SamplingParams
from minipage.cli import main, make_parser
from minipage.cli_options import ENGINE, SERVER, given
from minipage.engine.stats import METRICS
from minipage.serve import command
from minipage.serve import main as server_main
from minipage.serve.app import Settings
from minipage.serve.command import read_settings

BODY = {"prompt": "The sea", "max_tokens": 4, "temperature": 0, "ignore_eos": True}


def test_serves_until_sigterm_and_finishes_what_is_there(folder):
    started = Started(folder, "--port", 0, "--served-model-name", "mine", "--max-num-seqs", 8, MINIPAGE_API_KEY="k")
    assert "mine" in started.lines[-1] and started.url.startswith("http://127.0.0.1:")
    with httpx.Client(base_url=started.url, headers={"Authorization": "Bearer k"}, timeout=60) as http:
        assert httpx.get(f"{started.url}/v1/models").status_code == 401
        assert http.get("/v1/models").json()["data"][0]["id"] == "mine"
        assert 'vllm:generation_tokens_total{engine="0",model_name="mine"} 0.0' in http.get("/metrics").text
        assert http.post("/v1/completions", json=BODY).status_code == 200
        with http.stream("POST", "/v1/completions", json=BODY | {"max_tokens": 240, "stream": True}) as answer:
            lines = answer.iter_lines()
            next(lines)
            ending = threading.Thread(target=lambda: codes.append(started.end()))
            codes = []
            ending.start()
            assert list(lines)[-2:] == ["data: [DONE]", ""]
        ending.join()
    [(code, errors)] = codes
    assert code == 0
    assert "240 generated" in errors and "The sea" not in errors and "Traceback" not in errors


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_second_ctrl_c_ends_the_waiting_and_everybody_has_an_answer(folder):
    started = Started(folder, "--port", 0, "--drain-timeout", 60, "--max-num-seqs", 1)  # most of them have to wait
    body, answers = BODY | {"prompt": ["The sea"] * 600, "max_tokens": 240}, []
    url = f"{started.url}/v1/completions"
    asking = threading.Thread(target=lambda: answers.append(httpx.post(url, json=body, timeout=60)))
    asking.start()
    until(lambda: httpx.get(f"{started.url}/load").json()["server_load"] == 600)
    started.process.send_signal(signal.SIGINT)
    until(lambda: not answers_at(started.url))
    code, errors = started.end(signal.SIGINT)
    asking.join()
    assert (code, answers[0].status_code) == (0, 200)
    assert "abort" in {choice["finish_reason"] for choice in answers[0].json()["choices"]}
    assert "ERROR" not in errors


def answers_at(url):
    try:
        return httpx.get(f"{url}/health")
    except httpx.TransportError:
        return None


@needs_openssl
@pytest.mark.slow
def test_tls(folder, tmp_path):
    key, certificate = make_tls_files(tmp_path)
    started = Started(folder, "--port", 0, "--ssl-keyfile", key, "--ssl-certfile", certificate)
    assert started.url.startswith("https://")
    trust = ssl.create_default_context(cafile=certificate)
    assert httpx.post(f"{started.url}/v1/completions", json=BODY, verify=trust, timeout=60).status_code == 200
    assert started.end(signal.SIGINT)[0] == 0
    files = ["--ssl-keyfile", key, "--ssl-certfile", certificate, "--ssl-ca-certs", certificate]
    started = Started(folder, "--port", 0, *files)
    with pytest.raises(httpx.TransportError):  # whoever has no certificate is not let in
        httpx.post(f"{started.url}/v1/completions", json=BODY, verify=trust, timeout=60)
    trust.load_cert_chain(certificate, key)
    assert httpx.post(f"{started.url}/v1/completions", json=BODY, verify=trust, timeout=60).status_code == 200
    assert started.end()[0] == 0


@needs_openssl
def test_a_pass_phrase_of_a_tls_key_is_asked_for_once(folder, tmp_path, monkeypatch):
    key, certificate = make_tls_files(tmp_path, "-passout", "pass:secret")
    server, asked = {"ssl_keyfile": str(key), "ssl_certfile": str(certificate)}, []
    monkeypatch.setattr(command, "getpass", lambda: asked.append("secret") or asked[-1])
    settings = read_settings(server, "m")
    with AsyncLLM(folder, num_blocks=8) as llm:
        config = server_main.make_server(llm, settings, **server).config
        config.load()
    assert config.ssl and asked == ["secret"]


@needs_openssl
@pytest.mark.parametrize("name", ["ssl_certfile", "ssl_keyfile", "ssl_ca_certs"])
def test_a_damaged_tls_file_is_named_before_the_model_is_loaded(tmp_path, capsys, name):
    key, certificate = make_tls_files(tmp_path)
    (tmp_path / "damaged.pem").write_text("-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n")
    files = {"ssl_certfile": certificate, "ssl_keyfile": key, name: tmp_path / "damaged.pem"}
    options = [f"--{each.replace('_', '-')}={file}" for each, file in files.items()]
    assert main(["serve", "/no/such/model", "--port", "0", *options]) == 2
    printed = capsys.readouterr()
    assert f"damaged.pem cannot be used as {name}" in printed.err and "loads" not in printed.out


def test_a_port_in_use_is_known_before_the_model_is_loaded(capsys):
    with socket.create_server(("127.0.0.1", 0)) as other:
        assert main(["serve", "/no/such/model", "--port", str(other.getsockname()[1])]) == 1
    assert "cannot listen on 127.0.0.1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["/no/such/model"], "/no/such/model"),
        (["--block-size", "0"], "block_size is 0"),
        (["--port", "70000"], "port is 70000"),
        (["--api-key", ""], "API key is empty"),
        (["--drain-timeout", "-1"], "at least 0"),
        (["--drain-timeout", "nan"], "at least 0"),
        (["--host", ""], "host is empty"),
        (["--ssl-keyfile", "/no/such/key"], "ssl_keyfile is '/no/such/key'"),
        (["--ssl-ca-certs", "/no/such/file"], "ssl_ca_certs is '/no/such/file'"),
        (["--ssl-keyfile", __file__], "ssl_keyfile is given, and no ssl_certfile"),
        (["--ssl-ca-certs", __file__], "ssl_ca_certs is given, and no ssl_certfile"),
        (["--ssl-certfile", os.__file__], f"{os.__file__} cannot be used as ssl_certfile"),
        (["--allowed-origins", "[" * 99_999], "no list of texts"),
        (["--log-level", "loud"], "log_level is 'loud'"),
        (["a", "--model", "b"], "given twice"),
        (
            ["--served-model-name", "a", "gpt2"],
            "no model is given. Give it first: minipage serve gpt2 --served-model-name a",
        ),
        (["--allowed-origins", "[1]"], "no list of texts"),
        (["--chat-template", "/no/such/file"], "cannot be read"),
        (["--data-parallel-size", "0"], "data_parallel_size is 0"),
        (["--router", "best"], "router is 'best'; it must be one of prefix, ray, round-robin"),
        (["--router", "ray", "--router-load-limit", "3"], "router_load_limit is for router='prefix'"),
        (["--router-load-limit", "-1"], "router_load_limit is -1; it must be a whole number of at least 0"),
    ],
)
def test_bad_options_are_refused_in_a_sentence(capsys, arguments, sentence):
    assert main(["serve", *arguments, *([] if "--port" in arguments else ["--port", "0"])]) == 2
    assert sentence in capsys.readouterr().err


def test_without_ray_a_sentence_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "minipage.serve.replicas.on_ray", raising=False)
    assert main(["serve", "--data-parallel-size", "2", "--port", "0"]) == 2
    assert "pip install 'minipage[ray]'" in capsys.readouterr().err


def test_options_reach_the_settings(monkeypatch):
    monkeypatch.delenv("MINIPAGE_API_KEY", raising=False)
    options = {"allowed_origins": ['["a", "b"]', "c"], "api_key": ["k"], "max_body_size": 5, "port": 1}
    settings = read_settings(options, "a model")
    assert settings.allowed_origins == ["a", "b", "c"] and settings.served_model_name == ["a model"]
    assert (settings.api_key, settings.max_body_size) == (["k"], 5)
    assert options == {"port": 1}  # what is left is for the server itself


def test_several_names_may_follow_one_option():
    args = make_parser().parse_args("serve a-model --served-model-name a b --port 1 --served-model-name c".split())
    assert (args.served, given(args, SERVER)) == ("a-model", {"served_model_name": ["a", "b", "c"], "port": 1})


def test_options_have_the_names_that_vllm_gives_them():
    """Those that minipage calls otherwise are understood by both names; switches can be turned off, too."""
    words = "--num-gpu-blocks-override 9 --scheduling-policy priority --max-num-queued-reqs 5 --shutdown-timeout 2"
    more = "--uvicorn-log-level error --enable-prefix-caching --no-enable-prefix-caching --max-num-seqs 3"
    args = make_parser().parse_args(["serve", *words.split(), *more.split()])
    assert given(args, ENGINE) == {
        "num_blocks": 9, "policy": "priority", "enable_prefix_caching": False, "max_num_seqs": 3,
    }  # fmt: skip
    assert given(args, SERVER) == {"max_queued_requests": 5, "drain_timeout": 2.0, "log_level": "error"}
    args = make_parser().parse_args("serve --kv-cache-memory-bytes 1048576".split())
    assert LLM(num_blocks=None, **given(args, ENGINE)).block_pool.num_blocks == 8


@pytest.mark.parametrize(
    ("said", "budget"),
    [("", 1024), ("--max-num-seqs 1200", 1200), ("--max-num-batched-tokens 9", 9), ("--device cuda", None)],
)
def test_a_step_on_a_cpu_is_short_if_nothing_else_is_said_and_in_all_ranks(said, budget, monkeypatch):
    class Follower(Exception):
        """In place of a model that does what rank 0 says."""

    def follow(**options):
        made.append(options)
        raise Follower

    made = []
    monkeypatch.setattr(command, "run", lambda engine, *_: made.append(engine))
    assert main(["serve", *said.split()]) == 0
    monkeypatch.setattr("minipage.cli.is_follower", lambda args: True)
    monkeypatch.setattr("minipage.LLM", follow)
    with pytest.raises(Follower):
        main(["serve", *said.split()])
    assert [options.get("max_num_batched_tokens") for options in made] == [budget, budget]


def test_the_help_tells_how_long_a_step_is(capsys):
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    assert "(default 1024; on a GPU 2048)" in " ".join(capsys.readouterr().out.split())


def test_all_memory_is_written_before_anybody_comes(folder):
    """So that no client waits until the system has found it: what was there is gone, and no prefix is known."""
    llm = LLM(folder, num_blocks=4, enable_prefix_caching=True)
    for array in llm.kv_cache.arrays:
        array.fill(1)
    server_main.take_memory(llm)
    assert not any(array.any() for array in llm.kv_cache.arrays)
    llm.kv_cache.k = llm.kv_cache.v = SimpleNamespace()  # as on a GPU
    server_main.take_memory(llm)


def test_what_warms_up_is_neither_counted_nor_found(folder, tmp_path):
    """And what an earlier server has left in a tier still is."""
    tier = {"kv_offloading_size": 1e-3, "kv_offloading_path": tmp_path / "kv"}
    params, prompts = SamplingParams(max_tokens=1), [[i] * 64 for i in range(1, 9)]
    LLM(folder, num_blocks=8, enable_prefix_caching=True, **tier).generate(prompts, params)
    for options in {}, {"prefix_match_unit": 4}, tier:
        llm = LLM(folder, num_blocks=8, enable_prefix_caching=True, **options)
        server_main.warm_up(llm)
        counts = llm.stats()
        assert not any(
            counts[metric.name] for metric in METRICS if metric.kind == "counter" and "success" not in metric.name
        )
        assert llm.generate([[0] * 64], params)[0].num_cached_tokens == 0
    assert llm.generate(prompts[:1], params)[0].num_cached_tokens == 48


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_thread_that_loads_is_gone_and_its_helpers_with_it(device, monkeypatch):
    """On a CPU. What a GPU is asked to do for a thread stays with that thread."""
    threads = []
    monkeypatch.setattr(server_main, "LLM", lambda **engine: threads.append(threading.current_thread()))
    monkeypatch.setattr(server_main, "take_memory", lambda llm: None)
    monkeypatch.setattr(server_main, "warm_up", lambda llm: threads.append(threading.current_thread()))
    server_main.load_llm({"device": device})
    assert len(threads) == 2 and threads[0] is threads[1]
    assert (threads[0] in threading.enumerate()) == (threads[0] is threading.current_thread()) == (device == "cuda")


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_what_fails_or_is_interrupted_apart_is_over():
    assert server_main.apart(lambda: 5) == 5
    with pytest.raises(ZeroDivisionError):
        server_main.apart(lambda: 1 / 0)
    loading = []

    def load():
        loading.append(threading.current_thread())
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        while True:
            pass

    was = signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background of a shell it may be ignored
    try:
        with pytest.raises(KeyboardInterrupt):
            server_main.apart(load)
    finally:
        signal.signal(signal.SIGINT, was)
    assert not loading[0].is_alive()


@pytest.mark.skipif(sys.platform != "linux", reason="niceness is a thread's on Linux only")
def test_the_engine_lets_the_event_loop_go_first(folder):
    def niceness():
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    with AsyncLLM(LLM(folder)) as llm:
        server_main.let_others_go_first(llm)
        assert llm.between_steps(niceness).result() == min(niceness() + server_main.PATIENCE, 19)


def test_a_chat_template_that_is_not_valid_is_refused_at_once(tmp_path, capsys):
    (tmp_path / "t.jinja").write_text("{% for m in")
    assert main(["serve", "--chat-template", str(tmp_path / "t.jinja"), "--port", "0"]) == 2
    assert "is not valid (line 1" in capsys.readouterr().err


def test_a_chat_template_may_be_a_file(tmp_path):
    (tmp_path / "t.jinja").write_text("{% for m in messages %}<{{ m.content }}>{% endfor %}{{ suffix }}")
    settings = read_settings({"chat_template": str(tmp_path / "t.jinja")}, "m")
    assert settings.chat_template([{"role": "user", "content": "a"}], suffix="!") == "<a>!"


def test_the_help_names_every_option(capsys):
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    help_text = capsys.readouterr().out
    assert all(f"--{name.replace('_', '-')}" in help_text for name in SERVER)


def test_what_is_loaded_is_not_searched_for_garbage_while_clients_wait(monkeypatch):
    frozen = []
    server = SimpleNamespace(run=lambda sockets: frozen.append(gc.get_freeze_count()))
    monkeypatch.setattr(server_main, "make_server", lambda *_, **__: server)
    gc.unfreeze()  # what tests/conftest.py has frozen
    server_main.serve(nullcontext, Settings(), port=0)
    assert frozen[0] > 10_000
