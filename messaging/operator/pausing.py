"""Pause and resume: the same steps for the operator's tool and for Flower."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from messaging.delivery import Waits
from messaging.errors import MessagingError, describe
from messaging.operator.deliveries import DeliveryQueries
from messaging.postgres.filters import DeliveryFilter
from messaging.postgres.pauses import Pause, Scope, first_stop
from messaging.project.runtime import Runtime
from messaging.worker.dispatcher import Dispatcher

#: Deliveries that are put aside in one transaction.
BATCH = 1000


class WrongPause(MessagingError):
    """It cannot be paused or resumed."""


@dataclass(frozen=True)
class Pausing:
    """Pauses and resumes a project's handlers."""

    dispatcher: Dispatcher

    def pause(self, scope: Scope, name: str, actor: str, reason: str) -> str:
        """Pause something and return what happened. What is running finishes; what is pending is put aside.

        Raises:
            WrongPause: it does not exist, or is paused already.
        """
        names, runtime = self._names(scope, name), self.dispatcher.runtime
        while not runtime.pauses.add(scope, names, actor, reason):
            for old in runtime.pauses.active():
                if old.scope is scope and old.name in names:
                    raise WrongPause(f"Already paused: {shown(old)}")
            # Somebody else has resumed it in between.
        count = self._put_aside(scope, names)
        return (
            f"{_subject(scope, name)} is paused. {count:,} pending deliveries wait; what is running finishes."
        )

    def pause_group(self, group: str, actor: str, reason: str | None = None) -> str:
        """Pause the handler of a group of failures and return what happened.

        Which group a delivery belongs to is known once it has failed, so the handler is paused as a whole.
        Without a reason, the group's error is the reason.

        Raises:
            WrongPause: no failed delivery is in the group, or its handler is paused already.
        """
        queries = DeliveryQueries(self.dispatcher.runtime.engine)
        found = next(iter(queries.groups(DeliveryFilter(group=group), 1)), None)
        if found is None:
            raise WrongPause(
                f"No failed delivery is in the group {group}: `deliveries groups` lists them. To stop a"
                " handler that has nothing failed, name it"
            )
        handler = self.dispatcher.project.all_names(found.handler)[0]
        said = self.pause(Scope.HANDLER, handler, actor, reason or f"group {group}: {found.error}")
        return f"{said} `deliveries resume {handler}` ends the pause."

    def close(self, handler: str, actor: str, reason: str | None = None) -> str:
        """Close a handler's breaker and return what happened.

        Raises:
            WrongPause: its breaker is closed, or no handler has this name.
        """
        runtime = self.dispatcher.runtime
        names = self._names(Scope.HANDLER, handler, runtime.breakers.stopped())
        if not runtime.breakers.close(names, actor, reason):
            paused = first_stop(runtime.pauses.active(), names, "")
            hint = f". It is paused: {shown(paused)}; use `resume`" if paused else ""
            raise WrongPause(f"The breaker of {handler} has not stopped it{hint}")
        return f"The breaker of {handler} is closed; {self._wake()}. It opens again if the failures go on."

    def resume(self, scope: Scope, name: str, actor: str, reason: str | None = None) -> str:
        """Resume something and return what happened.

        Raises:
            WrongPause: it does not exist, or is not paused.
        """
        runtime = self.dispatcher.runtime
        if not runtime.pauses.remove(scope, self._names(scope, name), actor, reason):
            raise WrongPause(f"{_subject(scope, name)} is not paused")
        return f"{_subject(scope, name)} is resumed; {self._wake()}."

    def _wake(self) -> str:
        try:
            self.dispatcher.ask("relay")
        except Exception as error:  # noqa: BLE001  beat requests it too
            return f"the relay sends what waits later: {describe(error)}"
        return "the relay sends what waits"

    def _names(self, scope: Scope, name: str, stopped: Iterable[str] = ()) -> tuple[str, ...]:
        """Return the names under which deliveries of a handler or an event are stored."""
        project, paused = self.dispatcher.project, self.dispatcher.runtime.pauses.active()
        names = project.all_names(name) if scope is Scope.HANDLER else (name,)
        known = {
            Scope.HANDLER: set(project.bus.event_handlers),
            Scope.EVENT: set(project.bus.event_types),
            Scope.ALL: {""},
        }[scope]
        known |= {one.name for one in paused if one.scope is scope} | set(stopped)  # of another release
        if not known & set(names):
            raise WrongPause(f"No {scope} is called {name!r}; there are {', '.join(sorted(known))}")
        return names

    def _put_aside(self, scope: Scope, names: tuple[str, ...]) -> int:
        waiting, count = self.dispatcher.runtime.waiting, 0
        while True:
            moved = waiting.put_aside(
                Waits.PAUSE,
                BATCH,
                handlers=names if scope is Scope.HANDLER else (),
                events=names if scope is Scope.EVENT else (),
                everything=scope is Scope.ALL,
            )
            count += len(moved)
            if len(moved) < BATCH:
                return count


def active(runtime: Runtime) -> list[Pause]:
    """Return the pauses: one for each handler, whatever names it had before."""
    found, all_names = runtime.pauses.active(), runtime.project.all_names
    paused = {(one.scope, one.name) for one in found}
    return [
        one
        for one in found
        if one.scope is not Scope.HANDLER
        or one.name == all_names(one.name)[0]
        or (one.scope, all_names(one.name)[0]) not in paused
    ]


def shown(pause: Pause) -> str:
    """Return a pause as a sentence without its end."""
    since = pause.at.strftime("%Y-%m-%d %H:%M:%SZ")
    return f"{pause.subject}, by {pause.actor} since {since}: {pause.reason}"


def _subject(scope: Scope, name: str) -> str:
    return {Scope.HANDLER: name, Scope.EVENT: f"The event {name}", Scope.ALL: "Everything"}[scope]
