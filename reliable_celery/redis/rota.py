"""Who is notified of a message: a few of the idle consumers, so that it does not wake all of them.

The consumers of the same queues share a rota. `WATCHERS` of them watch the lists. The others sleep, each with
a bell of its own, and are woken in turn: when a watcher takes messages, when more are left than it took, and
when a watcher has been silent for a while. A bell is a key that its consumer sets and watches. Ringing it
means deleting it, which also shows whether its consumer was seen lately. Every consumer looks at the lists
every second or two in any case, so a message is found even if all of this goes wrong. (docs/adr/030)
"""

# mypy: disable-error-code="no-untyped-call, misc, attr-defined"
# kombu is untyped in parts.

from __future__ import annotations

from dataclasses import dataclass
from time import monotonic

from kombu.transport import redis as stock

#: Consumers of the same queues that are notified of a message; more would find nothing in most cases.
#: One suffices beside many sleepers: one of them looks within a fraction of a second.
WATCHERS, AMONG_MANY = 2, 1
#: A watcher is replaced after this time without a look (s); one that was just woken after the second one.
SEEN_S, WOKEN_S = 4, 2
#: A sleeper is passed over after this time without a look (s); it sets its bell anew after the second one.
BELL_S, RENEW_S = 13, 8
#: Consumers woken in one step.
MAX_WOKEN = 16
#: Seconds that an unused rota is kept.
KEPT_S = 600
#: With so many sleepers each looks less often, so that they still make that many looks in the time of one
#: watcher, down to `RARELY` times less; and they leave the sweeps to those that do not sleep.
MANY, RARELY = 8, 4

#: How to wait: not at all, by watching the lists, by sleeping, by sleeping on beside the same bell.
BUSY, WATCH, SLEEP, SLEEP_ON = range(4)

#: A part of FETCH, which took `found` at `now`. Its arguments come last: the rota (empty: none, so watch),
#: the consumer, the room that it must have to wait, and the room that it must have left to wait right after
#: it took messages. Sets `wait`, and `sleepers` to their number before.
ROTA = f"""
local at = 4 + acks + #KEYS
local rota, me, wait, sleepers = ARGV[at], ARGV[at + 1], {WATCH}, 0
if rota ~= '' and room > 0 then
    local watchers, bell = rota .. '.watchers', rota .. '.bell.'
    redis.call('ZREMRANGEBYSCORE', watchers, '-inf', now)
    redis.call('ZREM', watchers, me)
    local bell_s, left = redis.call('TTL', bell .. me), 0
    local waits = room - #found >= tonumber(ARGV[at + (#found == 0 and 2 or 3)])
    if #found == room then
        for k = 4, #KEYS do left = left + redis.call('LLEN', KEYS[k]) end
    end
    sleepers = redis.call('LLEN', rota)
    local wanted = sleepers < {MANY} and {WATCHERS} or {AMONG_MANY}
    local missing = wanted - redis.call('ZCARD', watchers)
    wait = {BUSY}
    if #found == 0 and waits and missing > 0 then
        wait, missing = {WATCH}, missing - 1
    elseif #found == 0 and waits then
        wait = {SLEEP}
    end
    local calls = math.min(math.max(missing, 0) + left, {MAX_WOKEN})
    while calls > 0 do
        local other = redis.call('LPOP', rota)
        if not other then break end
        if other ~= me and redis.call('DEL', bell .. other) == 1 then
            redis.call('ZADD', watchers, now + {WOKEN_S}, other)
            calls, missing = calls - 1, missing - 1
        elseif other == me then
            redis.call('DEL', bell .. me)
            bell_s = 0
        end
    end
    if #found > 0 and waits then wait = missing > 0 and {WATCH} or {SLEEP} end
    if bell_s > 0 and (#found > 0 or wait ~= {SLEEP}) then
        redis.call('DEL', bell .. me)
        redis.call('LREM', rota, 1, me)
        bell_s = 0
    end
    if wait == {WATCH} then
        redis.call('ZADD', watchers, now + {SEEN_S}, me)
    elseif wait == {SLEEP} and bell_s > {BELL_S - RENEW_S} then
        wait = {SLEEP_ON}
    elseif wait == {SLEEP} then
        if bell_s <= 0 then redis.call('RPUSH', rota, me) end
        redis.call('SET', bell .. me, 1, 'EX', {BELL_S})
        if #found == 0 then redis.call('EXPIRE', rota, {KEPT_S}) end
    end
end
"""

#: Takes a consumer off the rota, and wakes another if it watched. KEYS: the rota. ARGV: the consumer.
LEAVE = f"""
local watchers, bell = KEYS[1] .. '.watchers', KEYS[1] .. '.bell.'
local watched = redis.call('ZREM', watchers, ARGV[1]) == 1
redis.call('DEL', bell .. ARGV[1])
redis.call('LREM', KEYS[1], 0, ARGV[1])
while watched do
    local other = redis.call('LPOP', KEYS[1])
    if not other then break end
    if redis.call('DEL', bell .. other) == 1 then
        redis.call('ZADD', watchers, redis.call('TIME')[1] + {WOKEN_S}, other)
        break
    end
end
"""


@dataclass(frozen=True)
class Turn:
    """A consumer's place on a rota; without one it watches."""

    rota: str = ""
    consumer: str = ""
    least: int = 0  # it waits only with so much room
    least_left: int = 0  # the same right after it took messages

    def arguments(self) -> list[str | int]:
        """Return the last arguments of FETCH."""
        return [self.rota, self.consumer, self.least, self.least_left]

    @property
    def bell(self) -> str:
        """Return the key that is deleted to wake this consumer."""
        return f"{self.rota}.bell.{self.consumer}"


class RotaChannel(stock.Channel):
    """A channel whose consumer is on the rota of its queues, while an event loop turns."""

    NEVER = 1_000_000  # more room than there is

    _turn = Turn()
    _wait, _sleepers, _noted_at = WATCH, 0, 0.0

    def new_turn(self, least: int) -> Turn:
        """Return this consumer's place on the rota of the queues that it reads now.

        A consumer whose tasks run inside the event loop does not wait while they run.
        """
        if not self.connection.cycle.in_loop:
            return Turn()
        rota = f"{self.unacked_key}_rota.{'+'.join(sorted(self.active_queues))}"
        if self._turn.rota not in ("", rota):
            self.leave_rota()
        self._turn = Turn(rota, self.tag_prefix, least, least if self.connection.holds_leases else self.NEVER)
        return self._turn

    def note_turn(self, wait: int, sleepers: int) -> None:
        """Remember how this consumer waits."""
        self._wait, self._sleepers, self._noted_at = wait, sleepers, monotonic()

    @property
    def sleeps(self) -> bool:
        """Return whether this consumer waits to be woken by others."""
        return self._wait in (SLEEP, SLEEP_ON)

    @property
    def is_one_of_many(self) -> bool:
        """Return whether this consumer sleeps beside many, and has looked lately."""
        return self.sleeps and self._sleepers >= MANY and monotonic() < self._noted_at + RENEW_S

    @property
    def look_factor(self) -> int:
        """Return how many times longer than a watcher it waits for its next look."""
        return min(max(1, self._sleepers // MANY), RARELY) if self.sleeps else 1

    def was_woken(self) -> None:
        """Watch: this consumer's bell was rung, which gave it a watcher's place until its next look."""
        self._wait = WATCH

    def leave_rota(self) -> None:
        """Wake another consumer in place of this one, if it watched."""
        if self._turn.rota:
            with self.conn_or_acquire() as client:
                client.eval(LEAVE, 1, self._turn.rota, self.tag_prefix)
        self._turn, self._wait = Turn(), WATCH
