"""The group that this process leads while a command runs, or what it does for the one that leads."""

from __future__ import annotations

import contextlib
from collections.abc import Generator

from influence_cli.processes.by_torch import TorchGroup
from influence_cli.processes.group import Group, PeerLost
from influence_cli.processes.seat import Seat

_current: list[Group | Seat] = []  # of a leader; a seat until the group is first asked for


def current() -> Group | None:
    """The processes that this one leads; None where it is alone."""
    if not _current:
        return None
    found = _current[0]
    if not isinstance(found, Group):
        found = _current[0] = TorchGroup(found)
    return found


@contextlib.contextmanager
def leading(group: Group | Seat | None) -> Generator[None]:
    """While a command runs: what it can divide is shared with the others, which are sent home at its end."""
    if group is None:
        yield
        return
    _current[:] = [group]
    try:
        yield
    except PeerLost:
        raise
    except Exception:
        _dismiss()
        raise
    else:
        _dismiss()
    finally:
        _current.clear()


def _dismiss() -> None:
    led = current()
    assert led is not None
    if led.stuck:
        return
    with contextlib.suppress(PeerLost):  # it has all it needs from them
        led.end()
    if isinstance(led, TorchGroup):
        led.leave()


def follow(place: Seat) -> None:
    """Do the jobs that the leader hands out, until it has no more."""
    group = TorchGroup(place)
    group.serve()
    group.leave()
