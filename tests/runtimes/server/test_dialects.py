"""One request in every dialect has one answer; and what each dialect says besides."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from runtimes.contract import SpecialIds
from runtimes.generation.runtime import GenerateOptions
from runtimes.generation.sampling import Sampling
from runtimes.prompts.fim import Context, RepoFile
from runtimes.prompts.tokenizer import cut_at_stop
from runtimes.server.app import Settings, create_app
from runtimes.server.request import ServerDefaults
from tests.support.runtime_toys import scripted_logits
from tests.support.serving import HERE, make_service
from tests.support.tiny import tiny_tokenizer

PREFIX, SUFFIX = "def f(", "):\n    pass\n"
RAW = f"<fim_prefix>{PREFIX}<fim_suffix>{SUFFIX}<fim_middle>"
SAMPLED = {"temperature": 0.9, "top_k": 30, "top_p": 0.95, "seed": 7}
STOP = "e"


def openai(extra: dict) -> dict:
    return {"model": "m", "max_tokens": 12, "stop": [STOP], **SAMPLED, **extra}


def llama(extra: dict) -> dict:
    return {"n_predict": 12, "stop": [STOP], **SAMPLED, **extra}


def ollama(extra: dict) -> dict:
    return {"model": "m", "options": {"num_predict": 12, "stop": [STOP], **SAMPLED}, **extra}


def tgi(extra: dict) -> dict:
    return {"parameters": {"max_new_tokens": 12, "stop": [STOP], **SAMPLED}, **extra}


INFILLS = [
    ("/v1/completions", openai({"prompt": PREFIX, "suffix": SUFFIX})),
    ("/v1/completions", openai({"prompt": RAW, "suffix": None})),
    ("/completions", openai({"prompt": PREFIX, "suffix": SUFFIX})),
    ("/fim/completions", openai({"prompt": PREFIX, "suffix": SUFFIX})),
    ("/v1/engines/any/completions", openai({"prompt": [RAW]})),
    ("/completion", llama({"prompt": RAW})),
    ("/infill", llama({"input_prefix": "def ", "prompt": "f(", "input_suffix": SUFFIX})),
    ("/api/generate", ollama({"prompt": PREFIX, "suffix": SUFFIX})),
    ("/api/generate", ollama({"prompt": RAW, "raw": True})),
    ("/", tgi({"inputs": RAW})),
    ("/generate", tgi({"inputs": RAW})),
    ("/models/bigcode/starcoder2-3b", tgi({"inputs": RAW})),
]
CONTINUATIONS = [
    ("/v1/completions", openai({"prompt": PREFIX})),
    ("/completions", openai({"prompt": PREFIX, "suffix": ""})),
    ("/v1/engines/any/completions", openai({"prompt": [PREFIX]})),
    ("/completion", llama({"prompt": PREFIX})),
    ("/api/generate", ollama({"prompt": PREFIX, "suffix": ""})),
    ("/generate", tgi({"inputs": PREFIX})),
]


def text_of(answer: dict) -> str:
    if "choices" in answer:
        return answer["choices"][0]["text"]
    return next(answer[k] for k in ("content", "response", "generated_text") if k in answer)


def streamed_text(path: str, lines: list[str]) -> str:
    events = [
        json.loads(line.removeprefix("data: ")) for line in lines if line and "[DONE]" not in line
    ]
    if path.startswith("/api"):
        return "".join(e["response"] for e in events)
    if "token" in events[0]:
        assert events[-1]["generated_text"] == "".join(e["token"]["text"] for e in events)
        return events[-1]["generated_text"]
    if "content" in events[0]:
        return "".join(e["content"] for e in events)
    return "".join(e["choices"][0]["text"] for e in events)


@pytest.mark.parametrize("verb", ["infill", "generate"])
def test_one_answer_in_every_dialect_streamed_or_not(client, service, verb):
    options = GenerateOptions(12, Sampling(**SAMPLED), (STOP,))
    if verb == "infill":
        expected = service.runtime.infill(PREFIX, SUFFIX, options).text
    else:
        expected = service.runtime.generate(PREFIX, options).text
    assert expected
    for path, body in INFILLS if verb == "infill" else CONTINUATIONS:
        whole = client.post(path, json={**body, "stream": False})
        assert whole.status_code == 200, whole.text
        assert text_of(whole.json()) == expected, path
        with client.stream("POST", path, json={**body, "stream": True}) as stream:
            assert streamed_text(path, list(stream.iter_lines())) == expected, path


def test_defaults_are_the_same_too(client, service):
    """No dialect's own temperature or length: greedy, 128 tokens."""
    expected = service.runtime.generate(PREFIX, GenerateOptions(128)).text
    for path, body in (
        ("/v1/completions", {"prompt": PREFIX}),
        ("/completion", {"prompt": PREFIX}),
        ("/api/generate", {"model": "m", "prompt": PREFIX, "stream": False}),
        ("/generate", {"inputs": PREFIX}),
        ("/completion", {"prompt": PREFIX, "temperature": None, "top_k": -1, "seed": -1}),
    ):
        assert text_of(client.post(path, json=body).json()) == expected


def test_files_become_the_trained_prompt_in_every_dialect(client, service):
    files = [{"path": "a.py", "text": "A = 1\n"}, {"path": "b.py", "text": "B = 2\n"}]
    own = {"repo_name": "me/it", "files": files, "path": "c.py"}
    context = Context("me/it", tuple(RepoFile(f["path"], f["text"]) for f in files), "c.py")
    expected = service.runtime.infill(PREFIX, SUFFIX, GenerateOptions(8), context)
    extra = [{"filename": f["path"], "text": f["text"]} for f in files]
    gap = {"input_prefix": PREFIX, "input_suffix": SUFFIX, "n_predict": 8}
    for path, body in (
        ("/v1/completions", {"prompt": PREFIX, "suffix": SUFFIX, "max_tokens": 8, "starpack": own}),
        ("/infill", {**gap, "starpack": own}),
        ("/infill", {**gap, "input_extra": extra,
                     "starpack": {"repo_name": "me/it", "path": "c.py"}}),
        ("/api/generate", {"model": "m", "prompt": PREFIX, "suffix": SUFFIX, "stream": False,
                           "options": {"num_predict": 8}, "starpack": own}),
        ("/generate", {"inputs": RAW, "parameters": {"max_new_tokens": 8}, "starpack": own}),
    ):  # fmt: skip
        answer = client.post(path, json=body).json()
        assert text_of(answer) == expected.text, path
        budget = answer["starpack"]["budget"][0]
        assert budget["prompt_tokens"] == expected.finish.timings.prompt_tokens
        assert budget["extras_tokens"] == len(tiny_tokenizer().encode("".join(
            ["me/it", *(f"{f['path']}\n{f['text']}" for f in files)])).ids)  # fmt: skip


def test_a_long_prompt_is_an_error_or_a_trim_that_is_told(client):
    body = {"input_prefix": "x" * 900, "input_suffix": "y" * 50, "n_predict": 4}
    refused = client.post("/infill", json=body)
    assert refused.status_code == 400
    assert "900 before the gap, 50 after it" in refused.json()["error"]["message"]
    done = client.post("/infill", json={**body, "starpack": {"over_context": "trim"}})
    budget = done.json()["starpack"]["budget"][0]
    assert done.json()["truncated"] is True
    assert budget["dropped_prefix_tokens"] > 500 and budget["suffix_tokens"] == 50
    assert int(done.headers["x-starpack-dropped-tokens"]) == budget["dropped_prefix_tokens"]
    assert int(done.headers["x-starpack-prompt-tokens"]) == budget["prompt_tokens"] <= 396


def test_the_server_may_trim_by_itself(tmp_path: Path):
    service = make_service(tmp_path, defaults=ServerDefaults(over_context="trim", max_tokens=8))
    with TestClient(create_app(service, Settings()), base_url=HERE) as client:
        done = client.post("/v1/completions", json={"prompt": "x" * 900, "max_tokens": 5000})
        assert done.json()["starpack"]["max_tokens"] == 8
        assert done.json()["starpack"]["budget"][0]["dropped_prefix_tokens"] > 500
        asked = {"prompt": "x" * 900, "starpack": {"over_context": "error"}}
        assert client.post("/v1/completions", json=asked).status_code == 400


def test_openai_choices_prompts_echo_and_usage(client, service):
    body = {"prompt": ["ab", "cd"], "n": 2, "max_tokens": 6, "temperature": 1, "seed": 3}
    body["echo"] = True
    answer = client.post("/v1/completions", json=body).json()
    expected = []
    for prompt in ("ab", "cd"):
        for seed in (3, 4):
            options = GenerateOptions(6, Sampling(temperature=1.0, seed=seed))
            expected.append(prompt + service.runtime.generate(prompt, options).text)
    assert [c["text"] for c in answer["choices"]] == expected
    assert [c["index"] for c in answer["choices"]] == [0, 1, 2, 3]
    assert answer["usage"]["prompt_tokens"] == 4 and answer["usage"]["completion_tokens"] <= 24
    stream = client.post(
        "/v1/completions",
        json={**body, "stream": True, "stream_options": {"include_usage": True}},
    )
    events = [json.loads(e.removeprefix("data: ")) for e in stream.text.split("\n\n")[:-2]]
    texts = ["", "", "", ""]
    for event in events[:-1]:
        assert event["usage"] is None
        texts[event["choices"][0]["index"]] += event["choices"][0]["text"]
    assert texts == expected
    usage, streamed = answer["usage"], events[-1]["usage"]
    assert events[-1]["choices"] == []
    assert streamed["total_tokens"] == usage["total_tokens"]


def test_openai_logprobs(client, service):
    body = {"prompt": "ab", "max_tokens": 5, "logprobs": 2, "echo": True}
    choice = client.post("/v1/completions", json=body).json()["choices"][0]
    lists = choice["logprobs"]
    ids = service.runtime.tokenizer.encode("ab")
    done = service.runtime.generate("ab", GenerateOptions(5, logprobs=2))
    scores = service.runtime.score([*ids, *done.ids])
    assert lists["token_logprobs"][0] is None
    assert lists["token_logprobs"][1:] == pytest.approx(list(scores))
    assert lists["tokens"][:2] == ["a", "b"] and len(lists["tokens"]) == 2 + len(done.ids)
    assert len(lists["top_logprobs"][-1]) == 2 and lists["text_offset"][:3] == [0, 1, 2]
    scored = client.post("/v1/completions", json={**body, "max_tokens": 0}).json()["choices"][0]
    assert scored["text"] == "ab" and scored["logprobs"]["tokens"] == ["a", "b"]
    with client.stream("POST", "/v1/completions", json={**body, "stream": True}) as stream:
        lines = [json.loads(x[6:]) for x in stream.iter_lines() if x.startswith("data: {")]
    parts = [e["choices"][0]["logprobs"] for e in lines if e["choices"][0]["logprobs"]]
    assert [t for part in parts for t in part["tokens"]] == lists["tokens"]
    assert [o for part in parts for o in part["text_offset"]] == lists["text_offset"]


def test_openai_prompts_as_ids(client, service):
    ids = [1, *service.runtime.tokenizer.encode("a"), 3, *service.runtime.tokenizer.encode("b"), 2]
    answer = client.post("/v1/completions", json={"prompt": ids, "max_tokens": 6}).json()
    expected = service.runtime.infill("a", "b", GenerateOptions(6)).text
    assert answer["choices"][0]["text"] == expected
    assert client.post("/v1/completions", json={"prompt": [10**6]}).status_code == 400
    assert client.post("/v1/completions", json={"prompt": "a", "n": 17}).status_code == 400
    asked = {"prompt": ["a"] * 9, "n": 2}
    assert client.post("/v1/completions", json=asked).status_code == 400


def test_control_tokens_in_texts_stay_text_unless_they_spell_the_whole_form(client):
    marks = sorted(SpecialIds().tokens)
    for text in ("x<fim_prefix>", "<fim_prefix>a<fim_suffix>b<fim_middle>c", "".join(marks)):
        answer = client.post("/v1/completions", json={"prompt": text, "max_tokens": 1}).json()
        assert answer["starpack"]["budget"][0]["control_tokens"] == 0
    answer = client.post("/tokenize", json={"content": "<fim_prefix>", "parse_special": True})
    assert not set(answer.json()["tokens"]) & SpecialIds().stops


def test_raw_fim_can_be_turned_off(tmp_path: Path):
    service = make_service(tmp_path, defaults=ServerDefaults(raw_fim=False))
    with TestClient(create_app(service, Settings()), base_url=HERE) as client:
        answer = client.post("/completion", json={"prompt": RAW, "n_predict": 1}).json()
    assert answer["starpack"]["budget"][0]["control_tokens"] == 0


def test_continue_s_stops_are_dropped_only_together(tmp_path: Path):
    answer = "try:\n    x.t.y\ntry"
    tokenizer = tiny_tokenizer()
    service = make_service(tmp_path, scripted_logits(3, tokenizer.encode(answer).ids))
    with TestClient(create_app(service, Settings()), base_url=HERE) as client:
        for stops, dropped in ((["t.", "\nt"], ["t.", "\nt"]), (["t."], []), (["\nt"], [])):
            done = client.post("/completion", json={"prompt": "abc", "stop": stops}).json()
            kept = [stop for stop in stops if stop not in dropped]
            assert done["content"] == cut_at_stop(answer, kept)[0]
            assert done["starpack"]["dropped_stops"] == dropped


def test_llama_response_fields_and_warm_up(client, service):
    gap = {"input_prefix": PREFIX, "input_suffix": SUFFIX}
    warm = client.post("/infill", json={**gap, "n_predict": 0, "response_fields": [""]})
    assert warm.json() == {}
    names = ["content", "timings/cache_n", "timings/prompt_n", "nowhere/here", "stop"]
    asked = client.post("/infill", json={**gap, "n_predict": 3, "response_fields": names})
    data = asked.json()
    assert data.keys() == set(names) - {"nowhere/here"}
    assert data["timings/prompt_n"] == 1  # the warm-up has taken the rest in
    assert service.runtime.held_ids[0] == SpecialIds().fim_prefix


def test_llama_probabilities_tokens_and_detokenize(client, service):
    body = {"prompt": PREFIX, "n_predict": 4, "n_probs": 3, "return_tokens": True}
    done = client.post("/completion", json=body).json()
    assert [p["id"] for p in done["completion_probabilities"]] == done["tokens"]
    assert len(done["completion_probabilities"][0]["top_logprobs"]) == 3
    text = client.post("/detokenize", json={"tokens": done["tokens"]}).json()["content"]
    assert text == done["content"]
    pieces = client.post("/tokenize", json={"content": "aé", "with_pieces": True}).json()["tokens"]
    assert [p["piece"] for p in pieces] == ["a", [0xC3], [0xA9]]


def test_ollama_without_a_prompt_loads(client):
    for stream in (True, False):
        answer = client.post("/api/generate", json={"model": "m", "stream": stream})
        assert json.loads(answer.text)["done_reason"] == "load"
    refused = client.post("/api/generate", json={"model": "m", "prompt": "x", "system": "be nice"})
    assert refused.status_code == 400 and isinstance(refused.json()["error"], str)


def test_tgi_full_text_and_details(client, service):
    parameters = {"max_new_tokens": 4, "return_full_text": True, "details": True}
    done = client.post("/generate", json={"inputs": PREFIX, "parameters": parameters}).json()
    expected = service.runtime.generate(PREFIX, GenerateOptions(4))
    assert done["generated_text"] == PREFIX + expected.text
    assert [t["id"] for t in done["details"]["tokens"]] == list(expected.ids)
    stream = client.post("/generate_stream", json={"inputs": PREFIX, "parameters": parameters})
    last = json.loads(stream.text.split("\n\n")[-2].removeprefix("data: "))
    assert last["generated_text"] == done["generated_text"]


def test_an_empty_prompt_starts_a_document(client, service):
    expected = next(iter(service.runtime.run([SpecialIds().endoftext], GenerateOptions(1)))).ids
    answer = client.post("/completion", json={"prompt": "", "n_predict": 1, "return_tokens": True})
    assert answer.json()["tokens"] == list(expected)


@pytest.mark.parametrize(
    ("path", "key"),
    [
        ("/health", "status"), ("/ready", "status"), ("/props", "total_slots"),
        ("/v1/models", "data"), ("/api/tags", "models"), ("/api/version", "version"),
        ("/copilot_internal/v2/token", "token"), ("/openapi.json", "paths"),
    ],
)  # fmt: skip
def test_what_is_told(client, path, key):
    answer = client.get(path)
    assert answer.status_code == 200 and key in answer.json()
    assert answer.headers["link"] == '</licence>; rel="license"'


def test_slots_say_what_is_held(client):
    slot = client.get("/slots").json()[0]
    assert (slot["tokens_held"], slot["is_processing"]) == (0, False)
    client.post("/completion", json={"prompt": "abc", "n_predict": 2})
    assert client.get("/slots").json()[0]["tokens_held"] == 4


def test_the_licence_and_its_restrictions(client):
    text = client.get("/licence").text
    assert "machine-generated" in text and "Use restrictions: none of this for harm." in text
