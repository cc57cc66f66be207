"""Chat templates, ordinary ones and hostile ones."""

import pytest

from dlm_edge.errors import InputFileError, JobError
from dlm_edge.runtime.template import MAX_TEMPLATE_BYTES, ChatTemplate

MESSAGES = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Hi <b> & 'you'"}]
CHATML = """{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message['content'] | trim + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}"""
LOOPS = "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}"


def render(source, **tokens):
    return ChatTemplate(source, max_positions=1024, tokens=tokens).render(MESSAGES)


def test_chatml():
    assert render(CHATML) == (
        "<|im_start|>system\nBe short.<|im_end|>\n<|im_start|>user\nHi <b> & 'you'<|im_end|>\n<|im_start|>assistant\n"
    )


def test_blocks_are_trimmed_as_transformers_does():
    assert render("{% if true %}\n  {% if true %}\nx\n  {% endif %}\n{% endif %}\n") == "x\n"


def test_tokens_and_methods_of_strings():
    assert render("{{ bos_token }}{{ messages[0]['content'].split(' ')[1].strip('.') }}", bos_token="<s>") == "<s>short"


def test_tojson_escapes_nothing_for_html():
    assert render("{{ messages[1] | tojson }}") == '{"role": "user", "content": "Hi <b> & \'you\'"}'


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{{ raise_exception('only one user') }}", "only one user"),
        ("{{ strftime_now('%Y') }}", "strftime_now"),
        ("{% include 'secret' %}", "secret"),
        ("{% import '/etc/passwd' as x %}", "passwd"),
        ("{% extends 'x' %}", "x"),
        ("{{ messages[0].__class__.__mro__ }}", "undefined"),
        ("{{ cycler.__init__.__globals__ }}", "undefined"),
        (LOOPS, "fuel"),
        ("{% for i in range(10000000) %}x{% endfor %}", "range"),
        ("{{ 'x' * 1000000000 }}", "too large"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{{ 10 ** 1000 }}", "10 ** 1000"),
        ("{% for i in range(2000) %}{{ 'x' * 1000 }}{% endfor %}", "characters"),
        ("{% if %}", "syntax"),
    ],
)
def test_templates_that_fail(source, reason):
    with pytest.raises(JobError) as error:
        render(source)
    assert error.value.code == "E-TEMPLATE" and reason in error.value.message
    assert "\n" not in error.value.message


def test_a_long_conversation_has_fuel_enough():
    messages = [{"role": "user", "content": "word"} for _ in range(1000)]
    assert ChatTemplate(CHATML, max_positions=32768).render(messages).count("im_start") == 1001


def test_files_that_cannot_be_used(tmp_path):
    path = tmp_path / "chat_template.jinja"
    for content in (b"\xff", b"x" * (MAX_TEMPLATE_BYTES + 1)):
        path.write_bytes(content)
        with pytest.raises(InputFileError) as error:
            ChatTemplate.read(path, max_positions=10)
        assert error.value.code == "E-TEMPLATE"
