"""The generated Python client: made from the document as it is now, and at work against a running controller."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import AsyncIterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import pytest_asyncio

from controller.api.routes import ROUTES
from tests.controller.client import CLIENT, source
from tests.controller.live import TOKENS, Live, running
from tests.parts.breaking import breaking

REASON = {"reason": "in a test"}


def _loaded() -> ModuleType:
    spec = importlib.util.spec_from_file_location("ringfence_client", CLIENT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


ringfence: Any = _loaded()


@pytest_asyncio.fixture
async def live(tmp_path: Path) -> AsyncIterator[Live]:
    async with running(tmp_path) as controller:
        yield controller


def opened(live: Live, tmp_path: Path, port: int = 0) -> Any:
    authority = tmp_path / "authority.pem"
    authority.write_text(live.ca)
    url = f"https://localhost:{port}" if port else live.admin_url
    return ringfence.Client(url, ca_file=str(authority), token=TOKENS["admin"])


def test_the_client_is_made_from_the_document_as_it_is() -> None:
    assert CLIENT.read_text() == source(), "python -m tests.controller.client"
    methods = [
        name for name in vars(ringfence.Client) if name.split("_")[0] in ("get", "post", "put", "delete")
    ]
    assert len(methods) == len(ROUTES)


async def test_a_program_reads_edits_and_is_told_why_not(live: Live, tmp_path: Path) -> None:
    await live.node("press-1", connect=False)
    await live.node("press-2", connect=False)

    def work() -> None:
        with opened(live, tmp_path) as client:
            assert client.get_me().value["name"] == "admin"
            assert [node["node"] for node in client.pages("/nodes")] == ["press-1", "press-2"]
            assert client.get_nodes(site="factory", limit=1, descending=True).value["next"] == "press-2"
            seen = client.get_nodes_node_labels("press-1")
            body = {"labels": {"line": "3"}, **REASON}
            assert client.put_nodes_node_labels("press-1", body, if_match=seen.etag, dry_run=True).rehearsed
            assert client.get_nodes_node_labels("press-1") == seen
            assert not client.put_nodes_node_labels("press-1", body, if_match=seen.etag).rehearsed
            for changed, status in ((seen.etag, 412), (None, 428)):
                with pytest.raises(ringfence.Problem) as problem:
                    client.put_nodes_node_labels("press-1", {**body, "labels": {}}, if_match=changed)
                assert problem.value.status == status
            many = client.post_labels({"nodes": ["press-2", "nobody"], "set": {"line": "4"}, **REASON}).value
            assert (many["done"], many["refused"]) == (1, 1)
            made = client.post_sites({"site": "shop"}, key="one-key-for-this-shop")
            assert client.post_sites({"site": "shop"}, key="one-key-for-this-shop") == made
            with pytest.raises(ringfence.Problem, match=r"site\.exists"):
                client.post_sites({"site": "shop"})
            with pytest.raises(ValueError, match="names nothing"):
                client.post_nodes_node_isolate("", REASON)
            token = client.post_tokens({"name": "ci", "rights": [{"role": "viewer", "sites": "all"}]}).value
            assert token["token"].startswith("rfa_")
            assert client.delete_tokens_token("ci").value is None

    await asyncio.to_thread(work)


async def test_what_broke_off_is_sent_again_and_done_once(live: Live, tmp_path: Path) -> None:
    async with breaking(live.controller.admins.port, answers_lost=2) as lossy:

        def work() -> Any:
            with opened(live, tmp_path, lossy.port) as client:
                return client.post_sites({"site": "shop"}).value

        assert (await asyncio.to_thread(work))["site"] == "shop" and lossy.lost == 2
    assert (await live.kinds()).count("site.created") == 2, "the factory, and the shop once"


async def test_no_other_authority_is_believed(live: Live, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    async with running(tmp_path / "other", push=False) as other:
        strange = ringfence.Client(live.admin_url, ca_file=_pem(tmp_path, other.ca), token=TOKENS["admin"])
        with pytest.raises(OSError, match="CERTIFICATE_VERIFY_FAILED"):
            await asyncio.to_thread(strange.get_me)


def _pem(folder: Path, text: str) -> str:
    path = folder / "other.pem"
    path.write_text(text)
    return str(path)
