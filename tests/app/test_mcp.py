"""The calls as tools of the Model Context Protocol, asked by its own client."""

from __future__ import annotations

import ast
import asyncio
import base64
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from mcp import ClientSession
from mcp.client.streamable_http import streamablehttp_client

from tests.app.folders import ids_by_mitigation
from tests.app.serving import Served, example_path, serve

Ask = Callable[[ClientSession], Awaitable[Any]]


@pytest.fixture(scope="module")
def served(tiny_checkpoints: Path) -> Served:
    return serve(tiny_checkpoints)


def ask(served: Served, question: Ask) -> Any:
    async def session() -> Any:
        address = f"{served.url}/gradio_api/mcp/"
        async with (
            streamablehttp_client(address) as (read, write, _),
            ClientSession(read, write) as client,
        ):
            await client.initialize()
            return await question(client)

    return asyncio.run(session())


def data_uri(path: Path) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(path.read_bytes()).decode()}"


def test_tools_are_the_documented_calls_with_their_words(served: Served) -> None:
    tools = {tool.name: tool for tool in ask(served, lambda c: c.list_tools()).tools}
    assert set(tools) == {"models", "predict", "attribute", "burden", "compare", "flips"}
    assert all(tool.description for tool in tools.values())
    asked = tools["attribute"].inputSchema
    assert set(asked["properties"]) == {"image", "variants", "method", "target"}
    assert asked["required"] == ["image"]


def test_a_tool_gives_the_numbers_of_the_service(served: Served, tiny_checkpoints: Path) -> None:
    chosen = [ids_by_mitigation(tiny_checkpoints)["none"]]
    arguments = {"image": data_uri(example_path()), "variants": chosen, "top_k": 2}
    answer = ask(served, lambda c: c.call_tool("predict", arguments))
    assert not answer.isError
    found = ast.literal_eval(answer.content[0].text)
    image = served.service.load_image(example_path())
    wanted = served.service.predict(image, chosen, 2)[chosen[0]]
    assert [top["prob"] for top in found[chosen[0]]["top"]] == [top.prob for top in wanted.top]


@pytest.mark.parametrize(
    ("image", "words"),
    [
        ("/etc/passwd", "provide a url"),
        ("file:///etc/passwd", "provide a url"),
        ("data:image/jpeg;base64,aGVsbG8=", "not a picture"),
    ],
)
def test_no_file_of_the_server_can_be_named(served: Served, image: str, words: str) -> None:
    answer = ask(served, lambda c: c.call_tool("predict", {"image": image}))
    assert answer.isError
    assert words in answer.content[0].text
