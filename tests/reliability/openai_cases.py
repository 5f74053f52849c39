"""What only OpenAI's own form can get wrong: messages and their parts, tools, answer formats."""

from __future__ import annotations

import json
from typing import Any, Final

from tests.reliability.bodies import Body
from tests.reliability.pictures import PNG
from tests.reliability.protocols import text_of

URL: Final = {"url": f"data:image/png;base64,{text_of(PNG)}"}
PICTURE: Final = {"type": "image_url", "image_url": URL}
TEXT_PART: Final = {"type": "text", "text": "What?"}


def user(content: Any, **more: Any) -> dict[str, Any]:
    """A message of a user."""
    return {"role": "user", "content": content, **more}


GOOD: Final = [user([PICTURE, TEXT_PART])]


def chat(name: str, message: str, messages: Any = GOOD, status: int = 400, **fields: Any) -> Body:
    """A case of a chat request."""
    content = json.dumps({"messages": messages, **fields}).encode()
    return Body(name, content, message, status)


def parts(name: str, message: str, *content: Any) -> Body:
    """A case of one message's parts."""
    return chat(name, message, [user(list(content))])


def tool(**function: Any) -> dict[str, Any]:
    """A tool with a function of these members."""
    return {"type": "function", "function": {"name": "f", **function}}


FIRST: Final = "messages[0].content[0]"
NOT_IN: Final = "pictures belong in messages of user or tool"
ROLES: Final = "it must be one of system, developer, user, assistant, tool"
CONTENT: Final = "it must be a string or a list of parts"
MEDIA: Final = "this model reads text and pictures (image_url) only"
FORM: Final = "an answer has one form"

CHAT_CASES: Final = [
    Body("no messages", b"{}", "messages is missing; it must be a list of messages"),
    chat("messages null", "messages is missing; it must be a list of messages", None),
    chat("messages an object", "messages is an object; it must be a list of messages", {}),
    chat("messages a string", "messages is a string; it must be a list of messages", "hello"),
    chat("no message", "messages has 0 messages; it must have from 1 to 4096", []),
    chat("5000 messages",
         "messages has 5000 messages; it must have from 1 to 4096", [user("a")] * 5000),
    chat("a message that is a string", "messages[0] is a string; it must be an object", ["hello"]),
    chat("a message that is null", "messages[1] is null; it must be an object", [user("a"), None]),
    chat("no role", f"messages[0].role is null; {ROLES}", [{"content": "a"}]),
    chat("another role", f"messages[0].role is 'robot'; {ROLES}",
         [{"role": "robot", "content": "a"}]),
    chat("a role that is a number", f"messages[0].role is 5; {ROLES}",
         [{"role": 5, "content": "a"}]),
    chat("the old role of functions",
         "messages[0].role is 'function', which tools replaced: use 'tool'",
         [{"role": "function", "content": "a"}]),
    chat("no content", f"messages[0].content is missing; {CONTENT}", [{"role": "user"}]),
    chat("content null", f"messages[0].content is missing; {CONTENT}", [user(None)]),
    chat("content a number", "messages[0].content is a number; it must be a string or a list",
         [user(5)]),
    chat("content an object", "messages[0].content is an object; it must be a string or a list",
         [user(TEXT_PART)]),
    chat("no parts", "messages[0].content has 0 parts; it must have from 1 to 4096", [user([])]),
    chat("5000 parts",
         "messages[0].content has 5000 parts; it must have from 1 to 4096",
         [user([TEXT_PART] * 5000)]),
    parts("a part that is a number", f"{FIRST} is a number; it must be an object with a type", 5),
    parts("a part without a type", f"{FIRST}.type is missing; it must be text or image_url", {}),
    parts("another part", f"{FIRST}.type is 'picture'; it must be text or image_url",
          {"type": "picture"}),
    parts("a type that is a number", f"{FIRST}.type is 5; it must be text or image_url",
          {"type": 5}),
    *(
        parts(f"a part of {kind}", f"{FIRST}.type is {kind!r}; {MEDIA}", {"type": kind})
        for kind in ("input_audio", "video_url", "file")
    ),
    parts("text that is missing", f"{FIRST}.text is missing; it must be a string",
          {"type": "text"}),
    parts("text that is a number", f"{FIRST}.text is a number; it must be a string",
          {"type": "text", "text": 5}),
    parts("a picture without a URL", f"{FIRST}.image_url is missing; it must be a string",
          {"type": "image_url"}),
    parts("an empty image_url", f"{FIRST}.image_url.url is missing; it must be a string",
          {"type": "image_url", "image_url": {}}),
    parts("a URL that is a number", f"{FIRST}.image_url.url is a number; it must be a string",
          {"type": "image_url", "image_url": {"url": 5}}),
    parts("a URL that is base64", f"{FIRST}.image_url.url is 'iVBORw0KGgoAAA…",
          {"type": "image_url", "image_url": {"url": text_of(PNG)}}),
    parts("another detail", f"{FIRST}.image_url.detail is 'ultra'; it must be one of auto, low, …",
          {"type": "image_url", "image_url": {**URL, "detail": "ultra"}}),
    chat("a picture of the system", f"{FIRST} is a picture in a message of role 'system'; {NOT_IN}",
         [{"role": "system", "content": [PICTURE]}, *GOOD]),
    chat("a picture of the assistant",
         f"messages[1].content[0] is a picture in a message of role 'assistant'; {NOT_IN}",
         [*GOOD, {"role": "assistant", "content": [PICTURE]}, *GOOD]),
    parts("200 pictures", "prompt has 200 images; the limit is 8", *[PICTURE] * 200),
    chat("200 pictures in 200 messages", "prompt has 200 images; the limit is 8", GOOD * 200),
    chat("calls of the user",
         "messages[0].tool_calls is in a message of role 'user'; only the assistant calls",
         [user("a", tool_calls=[{"type": "function", "function": {"name": "f"}}])]),
    chat("a call without a function", 'messages[0].tool_calls[0] must be {"type": "function", …',
         [{"role": "assistant", "content": "", "tool_calls": [{}]}, *GOOD]),
    chat("arguments that are no JSON",
         "messages[0].tool_calls[0].function.arguments is not valid JSON: …",
         [{"role": "assistant", "content": "",
           "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}, *GOOD]),
    chat("tools an object", "tools is an object; it must be a list", tools={}),
    chat("a tool that is a string", 'tools[0] must be {"type": "function", …', tools=["f"]),
    chat("another kind of tool", "tools[0].type is 'retrieval'; it must be function",
         tools=[{"type": "retrieval"}]),
    chat("a function without a name",
         'tools[0] must be {"type": "function", "function": {"name": …',
         tools=[{"type": "function"}]),
    chat("a function with a bad name", "tools[0].function.name is 'a b'; it must be 1 to 64 of …",
         tools=[tool(name="a b")]),
    chat("one function twice", "tools[1].function.name is 'f', as of a tool before it",
         tools=[tool(), tool()]),
    chat("parameters that are a list",
         "tools[0].function.parameters is a list; it must be a JSON schema",
         tools=[tool(parameters=[])]),
    chat("200 tools", "tools has 200 tools; the limit is 128",
         tools=[tool(name=f"f{i}") for i in range(200)]),
    chat("a choice of nothing", "tool_choice asks for a call; tools is missing or empty",
         tool_choice="required"),
    chat("a choice of another", "tool_choice names 'g'; tools has f", tools=[tool()],
         tool_choice={"type": "function", "function": {"name": "g"}}),
    chat("another choice", "tool_choice is 'any'; it must be none, auto, required or …",
         tools=[tool()], tool_choice="any"),
    chat("n of zero", "n is 0; it must be from 1 to 16", n=0),
    chat("n of 100", "n is 100; it must be from 1 to 16", n=100),
    chat("n a fraction", "n is 1.5; it must be an integer, not a fraction", n=1.5),
    chat("stream a string", "stream is 'yes'; it must be true or false", stream="yes"),
    chat("stream_options without stream",
         "stream_options is given without stream; stream must be true",
         stream_options={"include_usage": True}),
    chat("stream_options a list", "stream_options of the request is a list; it must be an object",
         stream=True, stream_options=[]),
    chat("include_usage a number", "stream_options.include_usage is 1; it must be true or false",
         stream=True, stream_options={"include_usage": 1}),
    chat("logprobs a number", "logprobs is 5; it must be true or false", logprobs=5),
    chat("21 top_logprobs", "top_logprobs is 21; it must be from 0 to 20", logprobs=True,
         top_logprobs=21),
    chat("top_logprobs without logprobs", "top_logprobs is 3; logprobs must be true with it",
         top_logprobs=3),
    chat("response_format a string",
         "response_format is a string; it must be an object with a type",
         response_format="json_object"),
    chat("another response_format",
         "response_format.type is 'xml'; it must be text, json_object or json_schema",
         response_format={"type": "xml"}),
    chat("a schema without a schema", 'response_format.json_schema must be {"name": …',
         response_format={"type": "json_schema", "json_schema": {"name": "x"}}),
    chat("two forms of answer", f"regex and response_format are given together; {FORM}",
         regex="a", response_format={"type": "json_object"}),
    chat("mm_processor_kwargs of another kind",
         "unknown member 'do_resize' of mm_processor_kwargs; known: min_pixels, max_pixels, size",
         mm_processor_kwargs={"do_resize": False}),
    chat("a chat template", "chat_template is not supported: the model's own is used",
         chat_template="{{ x }}"),
    chat("audio", "audio is not supported: this model answers in text", audio={"voice": "a"}),
    chat("modalities", "modalities is not supported: this model answers in text",
         modalities=["text", "audio"]),
    chat("prompt_logprobs of all the vocabulary",
         "prompt_logprobs is -1; it must be from 0 to 20", prompt_logprobs=-1),
    chat("a salt that is a number", "cache_salt is a number; it must be a string", cache_salt=5),
    chat("a model that is a number", "model is a number; it must be a string", model=5),
    chat("a model of 10,000 characters", "model 'xxxxx…", status=404, model="x" * 10_000),
]  # fmt: skip


def completion(name: str, message: str, **fields: Any) -> Body:
    """A case of a completions request."""
    return Body(name, json.dumps({"prompt": "A", **fields}).encode(), message)


COMPLETION_CASES: Final = [
    Body("no prompt", b"{}", "prompt is missing; it must be a string, or a list"),
    completion("prompt an object", "prompt is an object; it must be a string or a list", prompt={}),
    completion("prompt a number", "prompt is a number; it must be a string or a list", prompt=5),
    completion("no prompts",
               "prompt is an empty list; it must hold at least one prompt", prompt=[]),
    completion("mixed prompts",
               "prompt[1] is a number; it must be a string or a list of tokens", prompt=["a", 1]),
    completion("a token over the vocabulary",
               "prompt has token ids from 99999 to 99999; this model's …", prompt=[99999]),
    completion("a negative token",
               "prompt has token ids from -1 to -1; this model's are from 0 to 1023", prompt=[-1]),
    completion("100 prompts", "prompt holds 100 prompts; the limit is 32", prompt=["a"] * 100),
    completion("best_of below n",
               "best_of is 2; it must be from n, which is 3, to 16", n=3, best_of=2),
    completion("best_of of 100",
               "best_of is 100; it must be from n, which is 1, to 16", best_of=100),
    completion("logprobs of 50", "logprobs is 50; it must be from 0 to 20", logprobs=50),
    completion("logprobs true", "logprobs is true; it must be an integer, …", logprobs=True),
    completion("no tokens and no echo",
               "max_tokens is 0; it must be from 1 to 1048576", max_tokens=0),
    completion("no tokens said with false", "max_tokens is false; it must be an integer, …",
               max_tokens=False, echo=True),
    completion("prompt_logprobs of 21", "prompt_logprobs is 21; it must be from 0 to 20",
               prompt_logprobs=21),
    completion("prompt_logprobs true", "prompt_logprobs is true; it must be an integer, …",
               prompt_logprobs=True),
    completion("prompt_logprobs streamed",
               "prompt_logprobs is given with stream; only whole answers tell them",
               prompt_logprobs=1, stream=True),
    completion("more logprobs of prompts than an answer holds",
               "12800 tokens of prompts have 268800 logprobs to tell; the limit is 131072",
               prompt=[[5] * 400] * 32, echo=True, logprobs=20),
    completion("a suffix", "suffix is not supported: this model does not fill in the middle",
               suffix="b"),
]  # fmt: skip
