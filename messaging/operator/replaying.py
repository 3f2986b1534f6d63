"""Send a dead letter's message again."""

from __future__ import annotations

import json

from kombu.serialization import dumps

from messaging.brokers.topology import is_rabbitmq
from messaging.dead_letters import PARKED, DeadLetter
from messaging.errors import describe
from messaging.postgres.dead_letters import DeadLetters, NotReplayable
from messaging.worker.dispatcher import Dispatcher

#: Properties of the message itself; the others were added by its transport.
OWN_PROPERTIES = ("correlation_id", "reply_to", "priority", "expiration")

#: RabbitMQ takes these for more routing keys. A replay goes to the default exchange, which leads to every
#: queue; the sender may have had rights on one only.
ROUTING_HEADERS = ("CC", "BCC")


def replay(
    dispatcher: Dispatcher, letters: DeadLetters, letter_id: str, actor: str, *, anyway: bool = False
) -> DeadLetter:
    """Send a dead letter's message again, to the queue that it came from and to no other.

    Raises:
        NotReplayable: it was already settled, this release has no such task (unless `anyway`), or the
            broker or the project has no such queue.
    """
    with letters.replaying(letter_id, actor) as letter:
        if not anyway and letter.task not in dispatcher.app.tasks:
            raise NotReplayable(
                f"This release has no task {letter.task}; the message would come back as a dead letter"
            )
        _publish_again(dispatcher, letter)
    return letter


def _publish_again(dispatcher: Dispatcher, letter: DeadLetter) -> None:
    headers = {name: value for name, value in letter.headers.items() if name not in ROUTING_HEADERS}
    own = {name: letter.properties[name] for name in OWN_PROPERTIES if letter.properties.get(name)}
    queue = letter.queue or dispatcher.project.commands_queue
    if is_rabbitmq(dispatcher.runtime.settings.broker_url) and queue not in dispatcher.project.queues:
        # RabbitMQ tells only the sender's routing key; another one, in CC, may have led to our queue.
        raise NotReplayable(f"Its sender wrote {queue}, which is not a queue of this project")
    content_type, content_encoding, body = _message_of(dispatcher, letter)
    with dispatcher.app.producer_or_acquire() as producer:
        try:
            producer.publish(
                body,
                exchange="",
                routing_key=queue,
                content_type=content_type,
                content_encoding=content_encoding,
                headers=headers,
                mandatory=True,  # RabbitMQ would drop a message for a queue that does not exist
                retry=True,
                retry_policy=dispatcher.app.conf.task_publish_retry_policy,
                **own,
            )
        except producer.connection.channel_errors as error:
            raise NotReplayable(
                f"The broker did not accept it for the queue {queue}: {describe(error)}"
            ) from None


def _message_of(dispatcher: Dispatcher, letter: DeadLetter) -> tuple[str, str, bytes | str]:
    """Return content type, encoding and body as received; sign a worker's own letters if we sign."""
    if letter.reason == PARKED:
        content_type, encoding, body = dumps(json.loads(letter.body), dispatcher.app.conf.task_serializer)
        return content_type, encoding, body
    return (
        letter.content_type or "application/octet-stream",
        letter.content_encoding or "binary",
        letter.body,
    )
