"""Let tasks whose messages arrived together share their work (docs/adr/012).

Setting: `message_group_max`, the most messages of a group; without it, or with 1, nothing changes. A task
takes part if it has an attribute `together`, a `member.Group`. The group's shared work comes first; then each
task runs as always, with its own signals, events, result and acknowledgement, and finds its own work done.

A group is what has already arrived when the event loop would run the first of them: nothing waits for more.
A redelivered message is never part of a group, since it may be the one that kills its workers. What is never
part of a group runs when it arrives; with an attribute `keeps_its_turn = True`, after the tasks that wait.
Two messages of a group with the same id run alone.
Groups are formed in the pools solo and prefork.
"""
