"""What every request passes: rate limit, header limit, basic auth, security headers.

No exception gets out.
"""

import asyncio
import math
from collections.abc import Mapping

from exporter.tokenbucket import TokenBucket
from exporter.web.auth import Logins
from exporter.web.connection import MAX_HEADER_BYTES
from exporter.web.log import log_failure
from exporter.web.messages import Handler, HTTPError, Request, Response, text
from exporter.web.webconfig import RateLimit, WebConfig, WebConfigFile


class Middleware:
    """A handler around that of the pages; `headers` are in every answer, but for those the file replaces."""

    def __init__(self, pages: Handler, web_config: WebConfigFile, headers: Mapping[str, str]) -> None:
        self._pages, self._web_config, self._headers = pages, web_config, headers
        self._logins = Logins()
        self._limit: RateLimit | None = None
        self._bucket: TokenBucket  # of that limit

    async def __call__(self, request: Request) -> Response:
        """Answer one request; raises nothing."""
        config = self._web_config.current()
        try:
            response = await self._answer(request, config)
        except HTTPError as exc:
            response = exc.response
        except Exception as exc:
            log_failure("request failed", exc)
            response = text("internal error\n", 500)
        named = {**self._headers, **config.headers}
        headers = {name: value for name, value in named.items() if value}
        return Response(response.body, response.status, {**response.headers, **headers})

    async def _answer(self, request: Request, config: WebConfig) -> Response:
        if config.rate_limit and not self._within(config.rate_limit):
            wait = math.ceil(config.rate_limit.interval)
            return text("Too Many Requests\n", 429, Retry_After=str(wait))
        if sum(len(name) + len(value) for name, value in request.headers.items()) > MAX_HEADER_BYTES:
            return text("request headers too large\n", 431)
        authorization = request.headers.get("authorization", "")
        if config.auth and not await self._logins.good(config.auth, authorization, request.client):
            return text("Unauthorized\n", 401, WWW_Authenticate='Basic charset="UTF-8"')
        return await self._pages(request)

    def _within(self, limit: RateLimit) -> bool:
        if limit != self._limit:  # a changed one begins with a full bucket
            self._limit, self._bucket = limit, TokenBucket(limit.burst, limit.interval)
        return self._bucket.take(asyncio.get_running_loop().time())
