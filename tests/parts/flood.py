"""Clients that flood a controller: bad tokens and enrolments that are garbage, each over a connection of its own, all at once.

    python -m tests.parts.flood ADMIN-ADDRESS NODE-ADDRESS CA-FILE

A process of its own: what the clients of a flood cost is not the controller's. Prints the statuses that it was answered.
"""

from __future__ import annotations

import asyncio
import ssl
import sys

import aiohttp

from contract.messages import ENROL_BEGIN_PATH

TOKENS, ENROLMENTS = 400, 200


async def _flood(admins: str, nodes: str, ca: str) -> set[int]:
    tls = ssl.create_default_context(cafile=ca)
    connector = aiohttp.TCPConnector(ssl=tls, limit=0, force_close=True)
    async with aiohttp.ClientSession(connector=connector) as http:

        async def token() -> int:
            headers = {"Authorization": "Bearer rfa_wrong"}
            async with http.get(admins + "/api/v1/me", headers=headers) as reply:
                return reply.status

        async def enrolment() -> int:
            async with http.post(nodes + ENROL_BEGIN_PATH, data=bytes([0xC1]) * 5000) as reply:
                return reply.status

        calls = [token() for _ in range(TOKENS)] + [enrolment() for _ in range(ENROLMENTS)]
        return set(await asyncio.gather(*calls))


if __name__ == "__main__":
    print(*sorted(asyncio.run(_flood(*sys.argv[1:]))))
