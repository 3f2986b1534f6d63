"""Celery's Redis result backend with one round trip for a success (docs/adr: results-in-one-round-trip).

Setting: `result_backend = "messaging.worker.result_backend:ResultBackend+redis://…"`. Keys, values and
announcements stay Celery's, so a sender keeps its plain `redis://` address.
"""

from __future__ import annotations

from typing import Any

from celery import states
from celery.backends.redis import RedisBackend
from celery.exceptions import BackendError, BackendStoreError
from kombu.utils.encoding import bytes_to_str
from redis.exceptions import RedisError


class ResultBackend(RedisBackend):
    """Writes a success without reading what was there before.

    Celery reads first so that nothing replaces a success. Another success may: a command that is carried out
    again answers from the inbox, with the same result. Every other state still takes Celery's way.
    """

    def _store_result(
        self,
        task_id: str,
        result: Any,
        state: str,
        traceback: str | None = None,
        request: Any = None,
        **kwargs: Any,
    ) -> Any:
        try:
            if state != states.SUCCESS:
                return super()._store_result(task_id, result, state, traceback, request=request, **kwargs)
            meta = self._get_result_meta(result=result, state=state, traceback=traceback, request=request)
            meta["task_id"] = bytes_to_str(task_id)
            self._set_with_state(self.get_key_for_task(task_id), self.encode(meta), state)
        except (BackendError, RedisError, OSError) as error:
            raise BackendStoreError(str(error), state=state, task_id=task_id) from error
        return result

    def mark_as_failure(self, task_id: str, exc: BaseException, *args: Any, **kwargs: Any) -> Any:
        """Leave unsaid that an answer could not be stored: the message comes back, and is answered then.

        Where Redis is back by now, Celery would tell the sender so, as if it were the outcome of the task.
        """
        if not isinstance(exc, BackendError):
            return super().mark_as_failure(task_id, exc, *args, **kwargs)
        return None

    def _set(self, key: str, value: str | bytes, expires: int | None = None) -> None:
        """Keep and announce a result; MULTI around the two would double the replies to read."""
        with self.client.pipeline(transaction=False) as pipe:
            pipe.set(key, value, ex=expires or self.expires or None)
            pipe.publish(key, value)
            pipe.execute()


def address(url: str) -> str:
    """Return Celery's `result_backend` for the address of the results; what is not Redis stays as it is."""
    if not url.startswith(("redis:", "rediss:", "redis+socket:")):
        return url
    return f"{__name__}:{ResultBackend.__name__}+{url.removeprefix('redis+')}"
