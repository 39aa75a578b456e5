"""What a pod knows of each adapter, and which ones are to be mounted next. No clock, no I/O."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Literal

from graft_runtime.adapters.vocabulary import vocabulary_fault
from graft_runtime.contract.checkpoints import Source
from graft_runtime.contract.facts import AdapterFacts
from graft_runtime.contract.status import AdapterState
from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.messages import Capabilities, Mounted, Tier
from graft_runtime.pod.capabilities import weight_fault
from graft_runtime.store.cache import Cached

_ANY = 1 << 62
"""More bytes than any device has."""
PATIENCE_SECONDS = 1.0
"""So long an adapter waits for one whose requests end by themselves; then another has to take no new ones."""


class Residence(Enum):
    """Whether the engine holds an adapter."""

    ABSENT = auto()
    MOUNTING = auto()
    MOUNTED = auto()
    UNMOUNTING = auto()


@dataclass
class Artifact:
    """One version of an adapter, under as many names as point to it."""

    digest: str
    source: Source
    name: str
    """The first name that it goes by, for errors."""
    pinned: bool = False
    successor: Artifact | None = None
    """The version that is wanted under its name instead of it, which has to be tried first."""
    wanted: bool = True
    """Some name of the adapter set points to it."""
    cached: Cached | None = None
    facts: AdapterFacts | None = None
    """None until its files have been read; complete once it was mounted."""
    engine: Capabilities | None = None
    """Of the engine that is to serve it; None before the base serves."""
    bytes: int | None = None
    """Of its files."""
    device_bytes: int | None = None
    """In the memory of the model's device; None before it was compiled."""
    highest_token: int | None = None
    """The highest id that its own tokenizer makes and the base's does not; None for none."""
    proven: bool = False
    """It passed every check against the base, a trial mount included."""
    fault: GraftError | None = None
    residence: Residence = Residence.ABSENT
    users: int = 0
    """Requests that run on it."""
    waiters: int = 0
    """Requests that wait for it."""
    since: float | None = None
    """When it began to wait for a place; seconds of a monotonic clock."""
    last_used: int = 0
    turn: int = 0
    """The number of the mount that it has its place from."""
    yielding: bool = False
    """It is mounted and takes no new requests, so that another gets its place."""
    in_host: bool = False
    """Its pack is in host memory, for the next mount."""
    checked_for: set[str] = field(default_factory=set)
    """The names that it is being checked for, before it may answer under them."""

    @property
    def keeps_place(self) -> bool:
        """Return whether it is pinned, and no successor needs a place to be tried: all places may be pinned."""
        new = self.successor
        untried = new is not None and new.fault is None and (not new.proven or bool(new.checked_for))
        return self.pinned and not untried

    @property
    def size(self) -> int:
        """Return the bytes that it takes on the device, as far as they are known: at first, its files'."""
        return self.device_bytes or self.bytes or 0

    @property
    def state(self) -> AdapterState:
        if self.fault is not None and not self.fault.code.passes:
            return AdapterState.FAILED
        if self.cached is None:
            return AdapterState.FETCHING
        if self.fault is not None and self.residence is not Residence.MOUNTED:
            return AdapterState.FAILED
        if not self.proven:
            return AdapterState.CHECKING
        return AdapterState.MOUNTED if self.residence is Residence.MOUNTED else AdapterState.CACHED

    @property
    def mountable(self) -> bool:
        return self.cached is not None and self.facts is not None and self.fault is None and self.wanted

    @property
    def may_mount_again(self) -> bool:
        """Return whether its mount failed, and another try, or a set that pins fewer, may end otherwise."""
        if self.facts is None or self.fault is None:
            return False
        return self.fault.code.retried or self.fault.code is ErrorCode.ALL_PLACES_PINNED

    @property
    def tier(self) -> Tier | None:
        """Return the fastest tier that the artifact is in; None: in none yet."""
        if self.residence is Residence.MOUNTED:
            return "device"
        if self.in_host:
            return "host"
        return "disk" if self.cached is not None else None

    def mounted(self, event: Mounted, base_rows: int) -> None:
        """Take note that the engine has it; with a fault, it is to be unmounted at once."""
        self.in_host, self.yielding, self.facts, self.device_bytes = False, False, event.facts, event.bytes
        self.fault = vocabulary_fault(self.name, self.highest_token, event.facts.vocabulary_size, base_rows)
        self.proven = self.proven or self.fault is None
        self.residence = Residence.MOUNTED if self.fault is None else Residence.UNMOUNTING

    @property
    def lendable(self) -> bool:
        return self.residence is Residence.MOUNTED and not self.yielding

    @property
    def displaceable(self) -> bool:
        awaited = self.waiters and not self.yielding
        return self.residence is Residence.MOUNTED and self.wanted and not (self.keeps_place or self.users or awaited)


@dataclass(frozen=True)
class Step:
    """One thing to do. `yield` and `stay`: a mounted adapter takes no new requests, or does again. `refuse`: there is
    no place for it, `too large`: there are too few bytes for it, as long as the pinned ones stay."""

    action: Literal["mount", "unmount", "yield", "stay", "refuse", "too large"]
    digest: str


@dataclass(frozen=True)
class Plan:
    """What to do, in order, and whether somebody still waits for a place then."""

    steps: list[Step]
    short: bool


def plan_mounts(artifacts: Iterable[Artifact], limit: int, now: float, room: int | None = None) -> Plan:
    """Plan what to mount and to unmount now.

    An adapter is mounted when a request waits for it, when it is pinned, or to try it once: first come, first served.
    The least recently used makes room. Where requests keep all of them in use, the one with the oldest place yields to
    the adapter that has waited too long, and gets into the queue behind it. `refuse`: pinned adapters hold every place,
    it could never be mounted.

    Args:
        artifacts: all that are wanted, and those that the engine still holds.
        limit: how many the engine can hold. It lets go at once of what nobody uses: such a place can be filled in the
            same breath.
        now: seconds of the clock of `Artifact.since`.
        room: bytes for all that the engine holds; None: any.
    """
    room = _ANY if room is None else room
    everything = list(artifacts)
    held = [a for a in everything if a.residence in {Residence.MOUNTING, Residence.MOUNTED}]
    removed = [a for a in held if a.residence is Residence.MOUNTED and not a.wanted and not a.users]
    candidates = [a for a in everything if a.residence is Residence.ABSENT and a.mountable]
    left = room - sum(a.size for a in held if a.keeps_place and a.wanted)
    too_large = [a for a in candidates if a.size > left]
    wants = sorted(
        (a for a in candidates if a.size <= left and (a.waiters or a.keeps_place or not a.proven)), key=_urgency
    )
    free = _Free(limit - len(held) + len(removed), room - sum(a.size for a in held) + sum(a.size for a in removed))
    victims = sorted((a for a in held if a.displaceable), key=lambda a: (not a.yielding, a.last_used))
    displaced: list[Artifact] = []
    mounts: list[Artifact] = []
    waiting: list[Artifact] = []
    for wanted in wants:
        out = free.room_for(wanted, victims)
        (waiting if out is None else mounts).append(wanted)
        displaced += out or ()
    steps = [Step("unmount", a.digest) for a in [*removed, *displaced]]
    leaving = {step.digest for step in steps}
    steps += [Step("mount", a.digest) for a in mounts]
    steps += _turns([a for a in held if a.digest not in leaving], waiting, now)
    if sum(a.keeps_place and a.wanted for a in held) >= limit:  # also those that were tried before the places went
        heirs = {a.successor.digest for a in held if a.successor is not None}
        steps += [Step("refuse", a.digest) for a in candidates if a.digest not in heirs]
    else:
        steps += [Step("too large", a.digest) for a in too_large]
    return Plan(steps, short=bool(waiting))


@dataclass
class _Free:
    """What is free on the device while a plan is made."""

    places: int
    bytes: int

    def room_for(self, wanted: Artifact, victims: list[Artifact]) -> list[Artifact] | None:
        """Return who goes for this one, from the front of `victims`; None, and nobody goes, where all is too little."""
        places, bytes_ = self.places, self.bytes
        for count in range(len(victims) + 1):
            if places > 0 and bytes_ >= wanted.size:
                self.places, self.bytes = places - 1, bytes_ - wanted.size
                out = victims[:count]
                del victims[:count]
                return out
            if count < len(victims):
                places, bytes_ = places + 1, bytes_ + victims[count].size
        return None


def _turns(held: list[Artifact], waiting: list[Artifact], now: float) -> list[Step]:
    """Choose which mounted adapters take no new requests, for those that have waited too long."""
    if not waiting:
        return [Step("stay", a.digest) for a in held if a.yielding]
    overdue = sum(a.since is not None and now - a.since >= PATIENCE_SECONDS for a in waiting)
    busy = [a for a in held if a.residence is Residence.MOUNTED and a.users and a.wanted and not a.keeps_place]
    more = max(overdue - sum(a.yielding for a in busy), 0)
    oldest = sorted((a for a in busy if not a.yielding), key=lambda a: a.turn)
    return [Step("yield", a.digest) for a in oldest[:more]]


def _urgency(artifact: Artifact) -> tuple[bool, bool, float]:
    return not artifact.keeps_place, not artifact.waiters, artifact.since or 0.0


def scale_fault(name: str, scale: float, artifact: Artifact) -> GraftError | None:
    """Return why an adapter can't be served with this scale. What it is made of is known once it was mounted."""
    if artifact.engine is not None and (fault := weight_fault(name, scale, artifact.engine)) is not None:
        return fault
    if scale == 1 or artifact.facts is None or artifact.facts.scalable:
        return None
    return GraftError(
        ErrorCode.NOT_SCALABLE,
        f"adapter `{name}` has scale {scale:g}, and what it does to the base model is no sum to be scaled",
        hint="leave scale out (1); only adapters that add to the base model's weights can be scaled, as LoRA does",
    )


def no_place(name: str, limit: int) -> GraftError:
    """Return why an adapter is refused: pinned ones hold every place."""
    return GraftError(
        ErrorCode.ALL_PLACES_PINNED,
        f"adapter `{name}` can't be mounted: pinned adapters hold all {limit} places",
        hint="pin fewer adapters, or raise spec.engine.maxMountedAdapters",
    )


def no_bytes(name: str, needed: int, room: int) -> GraftError:
    """Return why an adapter is refused: it takes more bytes than there are beside pinned ones."""
    return GraftError(
        ErrorCode.NO_CAPACITY,
        f"adapter `{name}` needs {needed} bytes of the device's memory; for mounted adapters there are {room}, pinned"
        " ones included",
        hint="pin fewer adapters, give the pod more memory, or train the adapter on fewer modules",
    )


def check_places(group: Mapping[str, Artifact], everything: Iterable[Artifact], limit: int) -> None:
    """Check that adapters can be mounted at the same time, beside those that are pinned.

    Args:
        group: that one request names, by digest.
        everything: of the pod.
        limit: how many the engine can hold.

    Raises:
        GraftError: NotComposable.
    """
    pinned = sum(other.keeps_place and other.wanted for other in everything if other.digest not in group)
    if len(group) > 1 and len(group) + pinned > limit:
        others = f", beside {pinned} pinned ones" if pinned else ""
        raise GraftError(
            ErrorCode.NOT_COMPOSABLE,
            f"`adapters` names {len(group)} adapters{others}, and this pool mounts at most {limit}",
            hint="name fewer adapters, or raise spec.engine.maxMountedAdapters",
            field="adapters",
        )
