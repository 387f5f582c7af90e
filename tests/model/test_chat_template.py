"""Chat templates: the text is what transformers makes, and whatever a template does, it comes to an end."""

import json
import pickle

import pytest
from jinja2 import nodes
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from minipage.errors import InvalidRequestError, ModelError
from minipage.model import chat_sandbox
from minipage.model.chat_template import ROLES, ChatTemplate, find_chat_template

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = """\
{{- bos_token }}
{%- if not date_string is defined %}{%- set date_string = strftime_now("%d %b %Y") %}{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: " + date_string + "\\n\\n" + system_message + "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
MISTRAL = """\
{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if (message["role"] == "user") != (loop.index0 % 2 == 0) %}
        {{- raise_exception("roles must alternate user/assistant/user/assistant/...") }}
    {%- endif %}
    {%- if message["role"] == "user" %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"] | trim + eos_token }}
    {%- else %}
        {{- raise_exception("only user, system and assistant roles are supported") }}
    {%- endif %}
{%- endfor %}
"""
QWEN = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}{%- for tool in tools %}{{- "\\n" }}{{- tool | tojson }}{%- endfor %}
{%- else %}
    {%- if messages[0].role == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if '</think>' in content %}
            {%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index and (loop.last or (not loop.last and reasoning_content)) %}
            {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning_content.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}
"""
MIXED = """\
{% macro line(message, mark='*') -%}
    {{ mark * 3 }} {{ message.role | upper | center(12) }}: {{ message.content | replace('sea', 'lake') | indent(2) }}
{%- endmacro %}
{% set roles = messages | map(attribute='role') | unique | list %}
{{ roles | join(', ') }} {{ messages | selectattr('role', 'equalto', 'user') | list | length }}
{% for message in messages if message.role != 'system' recursive %}
    {% if loop.index > 3 %}{% break %}{% endif %}
    {% if not message.content %}{% continue %}{% endif %}
{{ loop.cycle('odd', 'even') }} {{ loop.index }}/{{ loop.length }} {{ line(message) }}{{ ', ' if not loop.last }}
{% else %}
nobody
{% endfor %}
{% generation %}{{ {'b': [1, 2.5, none], 'a': '<é>&"'} | tojson }}{% endgeneration %}
{{ messages[-1] | tojson(indent=2) }} {{ '%s has %d' % ('it', messages | length) }} {{ "{:>5}|{}".format(7, 'x') }}
{% filter upper %}{% set block %}in {{ messages | length }} parts{% endset %}{{ block }}{% endfilter %}
{% set pairs = [('a', 1), ('b', 2)] %}{% for name, value in pairs %}{{ name ~ value }}{% endfor %}
{% for key, value in messages[0].items() %}{{ key }}={{ value | string | length }};{% endfor %}
{% for letter in 'abc' %}{{ letter }}{{ loop.nextitem | default('.') }}{% endfor %} {{ dict(x=1)['x'] }} {{ range(3) | list }}
{{ 2 ** 5 + 7 // 2 - 7 % 4 * 1.5 }} {{ missing }} {{ messages[0].nothing }} {{ [3, 1] | sort | first }} {{ {'k': 1}.k }}
{% call(x) line2(1) %}{{ x }}{% endcall %}
"""
MIXED = "{% macro line2(n) %}<{{ caller(n) }}>{% endmacro %}" + MIXED
TEMPLATES = {"ChatML": CHATML, "Llama 3": LLAMA3, "Mistral": MISTRAL, "Qwen 3": QWEN, "all kinds of things": MIXED}
CONVERSATIONS = {
    "a question": [("user", "Why is the sea salty?")],
    "a rule first": [("system", "  Answer in verse. \n"), ("user", "Why?")],
    "several turns": [
        ("user", "Hi"),
        ("assistant", "<think>\nhm\n</think>\n\nHello!"),
        ("user", "Why\n is\n the sea salty?"),
    ],
    "an answer last": [("system", "Be brief."), ("user", "你好 🙂"), ("assistant", "<think>x</think>Naïve café")],
    "strange texts": [("user", "{{ 1 + 1 }} {% raw %} <|im_end|> \x00 \u2028 &amp; '\"\\")],
}


# Of a model that calls tools, as the models that do have it.
TOOLS = """\
{%- for message in messages %}
    {{- '<' + message.role + '>' + message.content }}
    {%- if message.tool_calls is defined and message.tool_calls %}
        {%- for call in message.tool_calls %}
            {{- '\\n<tool_call>\\n' + (call.function | tojson) }}
            {%- for name, value in call.function.arguments | items %}{{ ' ' ~ name ~ '=' ~ value }}{%- endfor %}
        {%- endfor %}
    {%- endif %}
    {{- '\\n' }}
{%- endfor %}
"""


def messages_of(conversation):
    return [{"role": role, "content": content} for role, content in conversation]


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_the_text_is_what_transformers_makes(name, conversation):
    theirs = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), chat_template=TEMPLATES[name], **TOKENS)
    template = ChatTemplate(TEMPLATES[name], TOKENS)
    messages = messages_of(CONVERSATIONS[conversation])
    for options in [{}, {"enable_thinking": False}, {"date_string": "1 May 2026"}]:
        for ending in (True, False):
            expected = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=ending, **options)
            assert template.render(messages, ending, **options) == expected


@pytest.mark.parametrize("last", ["Because", "Hel ", "  end", "", "assistant", "a <|im_end|> b"])
@pytest.mark.parametrize("name", ["ChatML", "Llama 3", "Mistral", "Qwen 3"])
def test_the_last_message_is_continued_where_transformers_does(name, last):
    theirs = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), chat_template=TEMPLATES[name], **TOKENS)
    messages = messages_of([("user", "Why?"), ("assistant", last)])
    try:
        expected = theirs.apply_chat_template(messages, tokenize=False, continue_final_message=True)
    except ValueError:
        with pytest.raises(InvalidRequestError, match="cannot be continued"):
            ChatTemplate(TEMPLATES[name], TOKENS).render(messages, continue_final_message=True)
    else:
        text = ChatTemplate(TEMPLATES[name], TOKENS).render(messages, continue_final_message=True)
        assert text == expected
        assert text.rstrip().endswith(last.strip())


def test_messages_are_not_changed():
    messages = messages_of(CONVERSATIONS["several turns"])
    before = json.dumps(messages)
    for is_continued in False, True:
        ChatTemplate(MIXED, TOKENS).render(messages, continue_final_message=is_continued)
    assert json.dumps(messages) == before


def test_a_content_may_come_in_parts():
    parts = [{"type": "text", "text": "Why is"}, {"type": "text", "text": "the sea salty?"}]
    text = ChatTemplate("{{ messages[0].content }}").render([{"role": "user", "content": parts}])
    assert text == "Why is\nthe sea salty?"
    parts = [{"type": "text", "text": "Well,"}, {"type": "refusal", "refusal": "no."}]  # as OpenAI's models refuse
    text = ChatTemplate("{{ messages[0].content }}").render([{"role": "assistant", "content": parts}])
    assert text == "Well,\nno."


def test_what_else_a_message_says_reaches_the_template():
    message = {"role": "user", "content": "", "name": "Ann", "refusal": None, "tool_calls": []}
    assert (
        ChatTemplate("{{ messages[0] | tojson }}").render([message]) == '{"role": "user", "content": "", "name": "Ann"}'
    )


def answer_with(arguments):
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": arguments}}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


def test_an_answer_is_taken_back_as_a_server_gave_it():
    """With no words, with tool calls, and with fields that no template knows; as in vLLM."""
    question, result = {"role": "user", "content": "Rain?"}, {"role": "tool", "tool_call_id": "c1", "content": "No."}
    more = {"audio": {"id": "a"}, "annotations": [], "refusal": None, "logprobs": [1], "function_call": None}
    messages = [question, answer_with('{"city": "Ghent", "days": [1, 2]}') | more, result]
    before = json.dumps(messages)
    theirs = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), chat_template=TOOLS, **TOKENS)
    known = answer_with({"city": "Ghent", "days": [1, 2]}) | {"content": ""}  # what templates are written for
    expected = theirs.apply_chat_template([question, known, result], tokenize=False)
    assert ChatTemplate(TOOLS).render(messages) == expected and "city=Ghent" in expected
    assert json.dumps(messages) == before
    for nothing in ({}, {"content": None}, {"content": []}, {"content": None, "tool_calls": None}, {"tool_calls": []}):
        messages = [question, {"role": "assistant", **more, **nothing}, question]
        assert ChatTemplate(TOOLS).render(messages) == "<user>Rain?\n<assistant>\n<user>Rain?\n"


@pytest.mark.parametrize("arguments", ["", "{", "[1]", "7", None, 7, '{"a": ' * 100_000])
def test_arguments_that_a_model_has_got_wrong_are_none(arguments):
    text = ChatTemplate(TOOLS).render([{"role": "user", "content": "Rain?"}, answer_with(arguments)])
    assert text.endswith('<assistant>\n<tool_call>\n{"name": "weather", "arguments": {}}\n')


WRONG_MESSAGES = [
    (None, "it must be a list of messages"),
    ("Hello", "'Hello'; it must be a list of messages"),
    ({"role": "user", "content": "x"}, "it must be a list of messages"),
    ([], "messages is empty"),
    (["Hello"], r"messages\[0\] is 'Hello'"),
    ([{"content": "x"}], r"messages\[0\] has no role"),
    ([{"role": "user"}], r"messages\[0\] has no content"),
    ([{"role": "user", "content": None}], r"messages\[0\] has no content"),
    ([{"role": "user", "content": "x"}, {"role": "robot", "content": "x"}], r"messages\[1\] has the role 'robot'"),
    ([{"role": ["user"], "content": "x"}], "has the role"),
    ([{"role": "user", "content": 7}], "has the content 7"),
    ([{"role": "user", "content": {"type": "text", "text": "x"}}], "has the content"),
    ([{"role": "user", "content": []}], "each part must be"),
    ([{"role": "user", "content": ["x"]}], "has 'x' in its content"),
    ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}], "no images"),
    ([{"role": "user", "content": [{"type": "text", "text": 7}]}], "each part must be"),
    ([{"role": "user", "content": [{"type": "refusal", "text": "x"}]}], "each part must be"),
    ([{"role": "user", "content": [{"type": {}, "text": "x"}]}], "each part must be"),
    ([{"role": "tool"}], r"messages\[0\] has no content"),
    ([{"content": "x", "tool_calls": []}], r"messages\[0\] has no role"),
    ([{"role": "assistant", "content": False}], "has the content False"),
    ([{"role": "assistant", "tool_calls": [{"id": 1}]}], r"messages\[0\] has the tool_calls .*must be like"),
    ([{"role": "assistant", "tool_calls": ["x"]}], "must be like"),
    ([{"role": "assistant", "tool_calls": {"function": {}}}], "must be like"),
    ([{"role": "assistant", "tool_calls": 7}], "must be like"),
]


@pytest.mark.parametrize(("messages", "reason"), WRONG_MESSAGES, ids=lambda value: str(value)[:40])
def test_messages_that_are_none(messages, reason):
    with pytest.raises(InvalidRequestError, match=reason):
        ChatTemplate(CHATML).render(messages)


def test_every_role_is_taken():
    for role in ROLES:
        assert f"<|im_start|>{role}\nx" in ChatTemplate(CHATML).render([{"role": role, "content": "x"}])


def test_a_refusal_of_the_template_is_told():
    with pytest.raises(InvalidRequestError, match="the chat template of mistral refuses these messages: roles must"):
        ChatTemplate(MISTRAL, TOKENS, "mistral").render([{"role": "assistant", "content": "x"}])


HELLO = [{"role": "user", "content": "Hello"}]
FAILING = {
    "divides by zero": "{{ 1 / 0 }}",
    "adds a text and a number": "{{ messages[0].content + 1 }}",
    "uses what is not there": "{{ nothing.at.all }}",
    "has an unknown parent": "{% extends 'base.html' %}",
    "includes a file": "{% include '/etc/passwd' %}",
    "calls itself for ever": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "reaches for Python": "{{ messages.__class__.__mro__[1].__subclasses__() }}",
    "reaches for a function's secrets": "{{ raise_exception.__globals__.os }}",
    "reaches through a format": "{{ '{0.__class__.__mro__}'.format(messages).x.y }}",
    "changes the messages": "{{ messages.append(1) }}",
    "writes secrets to a namespace": "{% set ns = namespace() %}{% set ns._x = 1 %}",
    "loops over nothing": "{% for x in none %}{% endfor %}",
}
NOT_VALID = {
    "syntax": "{% for message in messages %}",
    "an unknown tag": "{% banana %}",
    "an unknown filter": "{{ 1 | banana }}",
    "a filter that is not for chats": "{{ messages | pprint }}",
    "far too deep": "{{ " + "(" * 5000 + ")" * 5000 + " }}",
    "a generation without an end": "{% generation %}x",
}


@pytest.mark.parametrize("case", FAILING)
def test_a_template_that_fails(case):
    with pytest.raises(InvalidRequestError, match="the chat template of the model fails on these messages"):
        ChatTemplate(FAILING[case]).render(HELLO)


@pytest.mark.parametrize("case", NOT_VALID)
def test_a_template_that_is_not_valid(case):
    template = ChatTemplate(NOT_VALID[case], origin="a file")  # no error yet: the model may be used without chats
    with pytest.raises(ModelError, match="the chat template of a file is not valid"):
        template.render(HELLO)


MANY = "{% for a in range(99999) %}{% for b in range(99999) %}"
GROW = "{% set ns = namespace(x='x') %}{% for i in range(99) %}"
NEST = "{% set ns = namespace(x=[1]) %}{% for i in range(99) %}"
ENDLESS = {
    "loops and says nothing": MANY + "{% endfor %}{% endfor %}",
    "loops and says much": MANY + "0123456789{% endfor %}{% endfor %}",
    "loops over what it leaves out": "{% for a in range(99999) %}{% for b in range(99999) if false %}{% endfor %}{% endfor %}",
    "loops in a macro": "{% macro f() %}" + MANY + "x{% endfor %}{% endfor %}{% endmacro %}{{ f() | length }}",
    "loops in a block": "{% set x %}" + MANY + "x{% endfor %}{% endfor %}{% endset %}",
    "calls itself twice": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "recurses in a loop": "{% for x in [1, 2] recursive %}{% if loop.depth < 60 %}{{ loop([1, 2]) }}{% endif %}{% endfor %}",
    "doubles a text": GROW + "{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "doubles a text by ~": GROW + "{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "doubles a text by a format": GROW + "{% set ns.x = '%s%s' % (ns.x, ns.x) %}{% endfor %}",
    "doubles a text by a method": GROW + "{% set ns.x = '{0}{0}'.format(ns.x) %}{% endfor %}",
    "doubles a text by a list": GROW + "{% set ns.x = [ns.x, ns.x] | join %}{% endfor %}",
    "doubles a text in a block": GROW + "{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = y %}{% endfor %}",
    "doubles a text by replacing": GROW + "{% set ns.x = ns.x.replace('x', 'xx') %}{% endfor %}",
    "nests a list": NEST + "{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
    "nests a list and compares": NEST + "{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x == ns.x[:] }}",
    "nests a mapping": NEST + "{% set ns.x = {'a': ns.x, 'b': ns.x} %}{% endfor %}{{ ns.x | tojson }}",
    "nests by a function": NEST + "{% set ns.x = dict(a=ns.x, b=ns.x) %}{% endfor %}{{ ns.x | string }}",
    "nests by a filter": NEST + "{% set ns.x = ns.x | batch(2, ns.x) | list + ns.x %}{% endfor %}{{ ns.x | string }}",
    "adds lists": NEST + "{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "squares a number": "{% set ns = namespace(x=3) %}{% for i in range(99) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "a power": "{{ 10 ** 10 ** 10 }}",
    "a power of powers": "{{ 9 ** 60 ** 60 }}",
    "a long text": "{{ 'x' * 10 ** 12 }}",
    "a long text the other way round": "{{ 10 ** 12 * 'x' }}",
    "a long list": "{{ [1] * 10 ** 12 }}",
    "a long text in the middle": "{{ 'x' | center(10 ** 12) }}",
    "a long text to the right": "{{ 'x'.rjust(10 ** 12) }}",
    "tabs": "{{ ('\\t' * 1000).expandtabs(10 ** 9) }}",
    "a long indent": "{{ ('x\n' * 9999) | indent(10 ** 6) }}",
    "a long join": "{{ (range(9999) | list) | join('x' * 99999) }}",
    "a long join of a method": "{{ ('x' * 99999).join(['x'] * 9999) }}",
    "a long replacement": "{{ ('x' * 99999) | replace('x', 'y' * 99999) }}",
    "a wide field": "{{ '%99999999999d' % 1 }}",
    "a field of any width": "{{ '%*d' % (10 ** 10, 1) }}",
    "a wide field of a format": "{{ '{:99999999999}'.format(1) }}",
    "a field of any width of a format": "{{ '{:{}}'.format(1, 10 ** 10) }}",
    "a wide field by a filter": "{{ '%99999999999d' | format(1) }}",
    "a sum of lists": "{{ ([[1]] * 99999) | sum(start=[]) }}",
    "bytes": "{{ (1).to_bytes(10 ** 11) }}",
    "batches": "{{ [1] | batch(10 ** 11, 'x') | list }}",
    "a deep JSON": NEST + "{% set ns.x = [ns.x] %}{% endfor %}{{ ([ns.x] * 999) | tojson(indent=99) }}",
    "a loop over a long text": "{% set x = 'x' * 9999999 %}{% for i in range(99999) %}{% for y in x %}{% endfor %}{% endfor %}",
}


@pytest.mark.parametrize("case", ENDLESS)
def test_a_template_that_does_not_end_is_stopped(case, monkeypatch):
    monkeypatch.setattr(chat_sandbox, "BUDGET", 1_000_000)  # so that it takes a tenth of a second, and not a few
    monkeypatch.setattr(chat_sandbox, "ONE_STEP", 400_000)
    with pytest.raises(InvalidRequestError, match=r"was stopped: .*Use the model's own template"):
        ChatTemplate(ENDLESS[case]).render(HELLO)


def test_time_is_bounded_where_nothing_is_counted(monkeypatch):
    monkeypatch.setattr(chat_sandbox, "SECONDS", -1.0)
    with pytest.raises(InvalidRequestError, match="takes longer than"):
        ChatTemplate("{% for x in range(9) %}{% endfor %}").render(HELLO)


def test_a_template_that_was_stopped_does_its_next_work():
    template = ChatTemplate(
        "{% for i in range(99999) %}{% if messages | length > 1 %}{{ 'x' * 9999 }}{% endif %}{% endfor %}ok"
    )
    for _ in range(2):
        with pytest.raises(InvalidRequestError, match="was stopped"):
            template.render(HELLO * 2)
        assert template.render(HELLO) == "ok"


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_long_conversation_is_within_the_bounds(name):
    """A thousand turns of a thousand characters, and one document of a million."""
    turns = [{"role": ("user", "assistant")[i % 2], "content": f"{i} " * 250} for i in range(999)]
    assert len(ChatTemplate(TEMPLATES[name], TOKENS).render(turns)) > (0 if name == "all kinds of things" else 900_000)
    document = [{"role": "user", "content": "The sea. " * 110_000}]
    assert len(ChatTemplate(TEMPLATES[name], TOKENS).render(document)) > 990_000


def test_all_that_makes_a_value_is_counted():
    """Of a new release of Jinja, somebody has to look at each new kind of expression."""
    known = """And Call Compare Concat CondExpr Const ContextReference DerivedContextReference Dict EnvironmentAttribute
        ExtensionAttribute Filter Getattr Getitem ImportedName InternalName List MarkSafe MarkSafeIfAutoescape NSRef Name
        Not Or Slice TemplateData Test Tuple Add Div FloorDiv Mod Mul Neg Pos Pow Sub BinExpr UnaryExpr Literal _FilterTestCommon"""
    found, waiting = set(), [nodes.Expr]
    while waiting:
        subclasses = waiting.pop().__subclasses__()
        found |= {each.__name__ for each in subclasses if each.__module__ == "jinja2.nodes"}
        waiting += subclasses
    assert found - set(known.split()) == set()


# ---- Where a template is found.


def write(folder, **files):
    for name, content in files.items():
        name = {
            "config": "tokenizer_config.json", "jinja": "chat_template.jinja", "special": "special_tokens_map.json",
        }[name]  # fmt: skip
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


def test_a_folder_without_a_template(tmp_path):
    assert find_chat_template(tmp_path) is None
    write(tmp_path, config={"bos_token": "<s>"})
    assert find_chat_template(tmp_path) is None


def test_a_template_of_a_folder(tmp_path):
    show = "{{ bos_token }}|{{ eos_token }}|{{ pad_token }}"
    tokens = {"bos_token": "<s>", "eos_token": {"content": "</s>", "special": True}, "pad_token": None}
    write(tmp_path, config=tokens | {"chat_template": show})
    assert find_chat_template(tmp_path).render(HELLO) == "<s>|</s>|"
    write(tmp_path, jinja="from the file " + show)
    assert find_chat_template(tmp_path).render(HELLO) == "from the file <s>|</s>|"
    (tmp_path / "tokenizer_config.json").unlink()
    assert find_chat_template(tmp_path).render(HELLO) == "from the file ||"


def test_special_tokens_that_only_the_file_of_before_names(tmp_path):
    """As transformers has it: they count, unless the newer file describes all tokens. A prompt without its <s> is another one."""
    write(tmp_path, config={"eos_token": "<end>", "chat_template": "{{ bos_token }}|{{ eos_token }}"})
    write(tmp_path, special={"bos_token": {"content": "<s>"}, "eos_token": "</s>"})
    assert find_chat_template(tmp_path).render(HELLO) == "<s>|</s>"
    described = {"added_tokens_decoder": {"1": {"content": "<s>"}}}
    write(tmp_path, config={"eos_token": "<end>", "chat_template": "{{ bos_token }}|{{ eos_token }}"} | described)
    assert find_chat_template(tmp_path).render(HELLO) == "|<end>"


def test_the_default_of_several_templates(tmp_path):
    several = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]
    write(tmp_path, config={"chat_template": several})
    template = find_chat_template(tmp_path)
    assert template.render(HELLO) == template.render(HELLO, tools=None) == "plain"
    for each in template, pickle.loads(pickle.dumps(template)):  # as transformers does
        assert each.render(HELLO, tools=[{"type": "function"}]) == "tools"
    write(tmp_path, config={"chat_template": several[:1]})
    with pytest.raises(ModelError, match="no chat template of the name default"):
        find_chat_template(tmp_path).render(HELLO)


def test_templates_in_files_of_their_own(tmp_path):
    """As today's transformers saves them."""
    (tmp_path / "chat_template.jinja").write_text("plain")
    assert find_chat_template(tmp_path).render(HELLO, tools=[]) == "plain"
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates/tool_use.jinja").write_text("tools {{ eos_token }}")
    write(tmp_path, config={"eos_token": "."})
    template = find_chat_template(tmp_path)
    assert (template.render(HELLO), template.render(HELLO, tools=[])) == ("plain", "tools .")
    (tmp_path / "additional_chat_templates/tool_use.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(ModelError, match=r"tool_use\.jinja cannot be read"):
        find_chat_template(tmp_path).render(HELLO)


@pytest.mark.parametrize("config", ["{", {"chat_template": 7}, {"chat_template": ""}, {"chat_template": [7]}])
def test_a_folder_that_is_damaged(tmp_path, config):
    """Whoever chats is told, here and in another process; who has texts continued has a model that works."""
    write(tmp_path, config=config)
    with pytest.raises(ModelError, match=r"tokenizer_config\.json"):
        find_chat_template(tmp_path).render(HELLO)
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff\xfe")
    for render in find_chat_template(tmp_path).check, pickle.loads(pickle.dumps(find_chat_template(tmp_path))).check:
        with pytest.raises(ModelError, match=r"chat_template\.jinja cannot be read"):
            render()


def test_another_process_gets_it_by_pickle():
    template = ChatTemplate("{% for m in messages %}<{{ m.content }}>{{ eos_token }}{% endfor %}", {"eos_token": "."})
    messages = [{"role": "user", "content": "a"}]
    assert template.render(messages) == pickle.loads(pickle.dumps(template.render))(messages) == "<a>."
