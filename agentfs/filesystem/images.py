"""Resident images: whole contents on tmpfs, one for all the files that have the content.

An image is named by its digest and never changes. The kernel reads it for every
inode that is attached to it, so all who map it share its pages. Images are made
by decompressing, or kept when a staged file is sealed, which costs a rename.
Together with staged files they stay within the budget of the tmpfs; to make room,
the images that are worth least go first (`policy.placement`), never one that a program
has open or that is pinned. What is cold goes in any case, what is warm when memory is short.

All scores fall alike with time, so one number says what an image is worth for as long as
nothing else changes: the score it had when it was used, and when that was.
"""

from __future__ import annotations

import contextlib
import heapq
import math
import mmap
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import trio

from agentfs.config import Tiers
from agentfs.filesystem.contents import BytesLost, ContentReader
from agentfs.filesystem.livefile import LiveFile
from agentfs.filesystem.placement import Placement
from agentfs.filesystem.relay import Relay
from agentfs.filesystem.staging import StagedFile, Staging
from agentfs.filesystem.turns import Turns
from agentfs.model import Inode, Kind
from agentfs.policy.placement import USUAL_IMPORTANCE, Facts, is_kept, score, tier

_LARGEST_SHARE = 0.5
"""Of the budget; a larger content is served from the store, not made resident."""

_SCANNED_BYTES = 256 << 10
"""A content from this size on becomes resident at once: to share it is worth more."""

_IMAGES_MAX = 16_384
"""Each takes descriptors and 1 kB of the daemon's memory, however small it is."""

_OPENED_KEPT = 65_536
"""Digests of small contents that have been opened once, in 8 MB."""

_PLACES_KEPT = 8
"""Of an image: the directories through which it was last opened are those that matter."""

_ROUND_S = 5.0
"""From one judging of all images to the next, if the first is done by then."""

_JUDGED = 512
"""Images judged in one go, 50 us each, with turns for others."""

_ENTRIES_MAX = 4096
"""Beside four for each image, in the order of images: with more it is made anew."""

_INCOMPLETE = ".tmp"

_HUGE_PAGE = 2 << 20
_MADV_COLLAPSE = 25
"""From linux/mman.h; Linux 6.1."""


class Image:
    """One resident content."""

    __slots__ = (
        "backing",
        "content",
        "digest",
        "facts",
        "is_frozen",
        "is_pinned",
        "path",
        "places",
        "priority",
        "ranked",
        "size",
        "used_at",
        "users",
    )

    def __init__(self, digest: bytes, path: str, backing: int, size: int) -> None:
        self.digest = digest
        self.content: int | None = None
        """Its id, when it was made."""
        self.path = path
        self.backing = backing
        self.size = size
        self.users: dict[int, LiveFile] = {}
        """Files attached to it, by nodeid."""
        self.places: dict[int, tuple[int, bytes]] = {}
        """(inode, name) by directory, of files it was last opened through."""
        self.facts = Facts(Kind.OTHER, None, USUAL_IMPORTANCE, 1)
        self.is_pinned = False
        self.used_at = 0.0
        self.priority = 0.0
        self.ranked = math.inf
        """The priority of its entry in the order of images, which may have risen since."""
        self.is_frozen = False
        """Staged copies may be the same file: it never becomes one that is written."""

    @contextlib.contextmanager
    def opened(self) -> Iterator[int]:
        """A descriptor for a moment: there are more images than descriptors to be had."""
        fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        try:
            yield fd
        finally:
            os.close(fd)


class Images:
    """The resident images of one mount."""

    def __init__(
        self, staging: Staging, reader: ContentReader, relay: Relay, placement: Placement
    ) -> None:
        self._staging = staging
        self._placement = placement
        self._reader = reader
        self._relay = relay
        self._directory = staging.image_directory()
        self._images: dict[bytes, Image] = {}
        self._made: dict[bytes, trio.Event] = {}
        self._opened: dict[bytes, None] = {}
        self._order: list[tuple[float, int, Image]] = []
        """A heap of (priority, number, image): an entry for each image, at what it was worth once
        or less, and others that no longer count."""
        self._entered = 0
        self._round: dict[Image, None] = {}
        """Images to be judged anew."""
        self._placed: dict[Image, None] = {}
        """Images opened through another directory than before: to be judged first."""
        self._next_round = 0.0
        self._pace: float | None = None
        """How many times as fast as configured contents cool that leave then; None: they stay."""
        self.clock: Callable[[], float] = time.monotonic
        self._in_small_pages: list[Image] = []
        staging.make_room = self.make_room

    @property
    def count(self) -> int:
        return len(self._images)

    def digests(self) -> Iterable[bytes]:
        """Of all contents that are resident."""
        return self._images.keys()

    def inherit(self, backings: dict[tuple[int, int], int]) -> dict[tuple[int, int], Image]:
        """Keep the images of an earlier daemon that the kernel has; drop the others.

        :param backings: backing id by (st_dev, st_ino)
        :returns: images by the same
        """
        kept = {}
        for path in self._directory.iterdir():
            status = path.stat()
            identity = (status.st_dev, status.st_ino)
            if identity not in backings or path.name.endswith(_INCOMPLETE):
                path.unlink()
                continue
            self._staging.count_images(status.st_size)
            digest = bytes.fromhex(path.name)
            image = self._add(digest, str(path), backings[identity], status.st_size)
            image.is_frozen = not status.st_mode & stat.S_IWUSR
            self._touch(image)
            kept[identity] = image
        return kept

    async def get(
        self, content: int, *, is_wanted: bool = False, worth: float = math.inf
    ) -> Image | None:
        """The image of a content, made if need be; None: it is not to be resident, or cannot be.

        A small content becomes resident when it is opened for the second time, unless it
        *is_wanted*: what reads everything once, as a backup does, leaves no images behind.

        :param worth: a priority; no image of a higher one makes room
        :raises ContentDamaged: the digest differs
        """
        recipe = self._reader.recipe(content)
        digest = recipe.digest
        while digest not in self._images:
            made = self._made.get(digest)
            if made is not None:
                await made.wait()
                continue
            is_scanned = recipe.size < _SCANNED_BYTES and not self._was_opened(digest)
            if is_scanned and not is_wanted:
                return None
            if self._is_too_large(recipe.size):
                return None
            if not self._fits(recipe.size, worth) or not self._has_place(worth):
                return None
            self._made[digest] = made = trio.Event()
            try:
                await self._make(content, digest, recipe.size)
            except BytesLost:
                return None  # what is left of it is read through the daemon
            finally:
                del self._made[digest]
                made.set()
        return self._images[digest]

    async def expect(self, inode: Inode, name: bytes, likelihood: float) -> bool:
        """Make a content resident that is likely to be opened; False: it is, or it is not to be.

        It counts as less than one just opened by as many doublings as it is unlikely, and takes
        the room of what counts less.
        """
        assert inode.content is not None, "it is sealed"
        assert inode.parent is not None, "it has a name"
        if self.find(inode.content) is not None:
            return False
        await self._judge_some(self._placed)
        weights = self._placement.weights
        facts, _ = self._placement.facts(inode.content, {inode.parent: (inode.id, name)})
        used_at = self.clock() + math.log2(likelihood) * weights.half_life_s
        worth = score(facts, weights) + used_at / weights.half_life_s
        image = await self.get(inode.content, is_wanted=True, worth=worth)
        if image is None:
            return False
        self.note_place(image, inode, name)
        image.facts, image.used_at = facts, used_at
        self._rank(image)
        return True

    def _fits(self, size: int, worth: float) -> bool:
        if worth == math.inf:
            return self._staging.takes(size)
        lesser = sum(image.size for image in self._images.values() if image.priority < worth)
        if self._staging.used_bytes - lesser + size > self._staging.budget_bytes:
            return False  # in vain nothing is to be dropped
        return self._staging.used_bytes + size <= self._staging.budget_bytes or self.make_room(
            size, worth
        )

    def _is_too_large(self, size: int) -> bool:
        return size > _LARGEST_SHARE * self._staging.budget_bytes

    def _was_opened(self, digest: bytes) -> bool:
        if digest in self._opened:
            return True
        self._opened[digest] = None
        if len(self._opened) > _OPENED_KEPT:
            del self._opened[next(iter(self._opened))]
        return False

    async def _make(self, content: int, digest: bytes, size: int) -> None:
        path = f"{self._directory}/{digest.hex()}"
        self._staging.count_images(size)  # reserved while it is made
        fd = os.open(path + _INCOMPLETE, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            await self._reader.copy_to(content, fd)
            os.rename(path + _INCOMPLETE, path)
            backing = self._relay.register(fd)
        except BaseException:
            os.unlink(path if os.path.exists(path) else path + _INCOMPLETE)
            self._staging.count_images(-size)
            raise
        finally:
            os.close(fd)
        image = self._add(digest, path, backing, size)
        image.content = content
        self._touch(image)

    def _add(self, digest: bytes, path: str, backing: int, size: int) -> Image:
        image = Image(digest, path, backing, size)
        self._images[digest] = image
        if size >= _HUGE_PAGE:
            self._in_small_pages.append(image)
        return image

    def find(self, content: int) -> Image | None:
        """The image of a content, if there is one."""
        return self._images.get(self._reader.recipe(content).digest)

    def adopt(self, content: int, staged: StagedFile, backing: int, inode: Inode) -> Image | None:
        """Make a sealed file's staged copy the image of its content.

        Who restores an old file, with its times, has not used it: it is as old as these say.
        None: there is one already, or there is to be none.
        """
        size = inode.size
        digest = self._reader.recipe(content).digest
        if digest in self._images or digest in self._made or staged.on_disk:
            return None
        if self._is_too_large(size) or not self._has_place():
            return None
        path = f"{self._directory}/{digest.hex()}"
        os.rename(staged.path, path)
        os.truncate(path, size)  # gives back what was reserved beyond its end
        self._staging.let_go(staged)
        self._staging.count_images(size)
        image = self._add(digest, path, backing, size)
        image.is_frozen = staged.is_frozen
        image.content = content
        self._touch(image, age_s=self._placement.age_s(inode.mtime_ns))
        return image

    async def collapse(self) -> None:
        """Put new images into huge pages.

        A file that grows as it is written lies in small ones. A thousand mappings of 50 MB
        need 97 MB of page tables over small pages, and 1 MB over huge ones.
        """
        images, self._in_small_pages = self._in_small_pages, []
        for image in images:
            if self._images.get(image.digest) is image:
                with image.opened() as fd:
                    await trio.to_thread.run_sync(_collapse, fd, image.size)

    def give_up(self, image: Image, inode_id: int) -> StagedFile:
        """Turn an image that has one user back into that user's staged file."""
        del self._images[image.digest]
        staged = self._staging.accept(inode_id, image.path)
        self._staging.count_images(-image.size)
        self._staging.count(staged, image.size)
        return staged

    def use(self, image: Image, file: LiveFile) -> None:
        """Note that a file is being attached to it."""
        image.users[file.nodeid] = file
        file.image = image
        self.note_place(image, file.inode, file.name[1])

    def note_place(self, image: Image, inode: Inode, name: bytes) -> None:
        """Note where a file lies that has the content."""
        if inode.parent is not None:
            if image.places.pop(inode.parent, None) is None:
                self._placed[image] = None  # to be judged soon; not now, when a program waits
            image.places[inode.parent] = (inode.id, name)
            if len(image.places) > _PLACES_KEPT:
                del image.places[next(iter(image.places))]

    def opened(self, image: Image) -> None:
        """A program has had it open."""
        self._touch(image)

    def _touch(self, image: Image, age_s: float = 0.0) -> None:
        image.used_at = self.clock() - age_s
        self._rank(image)

    def _priority(self, image: Image) -> float:
        weights = self._placement.weights
        return score(image.facts, weights) + image.used_at / weights.half_life_s

    def _rank(self, image: Image) -> None:
        image.priority = self._priority(image)
        if image.priority >= image.ranked:
            return  # its entry comes up too early, and is put where it belongs then
        if len(self._order) > _ENTRIES_MAX + 4 * len(self._images):
            images, self._order = self._images.values(), []
            for one in images:
                self._enter(one)
        else:
            self._enter(image)

    def _enter(self, image: Image) -> None:
        self._entered += 1
        image.ranked = image.priority
        heapq.heappush(self._order, (image.priority, self._entered, image))

    def _judge(self, image: Image) -> None:
        """Look at what the content is to agents by now."""
        image.facts, image.is_pinned = self._placement.facts(image.content, image.places)
        if is_kept(image.facts):
            image.used_at = self.clock()
        self._rank(image)

    def tier(self, image: Image) -> str:
        """Where it belongs: hot, if it is to stay."""
        return self._tier(image, self._placement.weights)

    def _tier(self, image: Image, weights: Tiers) -> str:
        users = image.users.items()
        if image.is_pinned or any(one.handles or self._relay.opens(at) for at, one in users):
            return "hot"
        aged = replace(image.facts, age_s=self.clock() - image.used_at)
        return tier(aged, weights)

    def judge_anew(self) -> None:
        """Attributes have changed: what was found holds no more."""
        self._placement.forget()
        self._next_round = 0.0

    def cool(self, pace: float | None) -> None:
        """Let contents leave that have cooled, and cool so many times as fast; None: let them stay.

        They are looked at from now on, not when the next round begins.
        """
        self._pace = pace
        self._next_round = 0.0

    async def settle(self) -> None:
        """Judge images anew, in rounds; drop those that are cold, or warm while memory is short.

        What is cold takes memory that the kernel could use: it cannot take back a tmpfs's.
        """
        now = self.clock()
        if not self._round and now >= self._next_round:
            self._next_round = now + _ROUND_S
            await self._placement.note_open_files()
            self._round = dict.fromkeys(self._images.values())
        self._placement.note_uses()
        await self._judge_some(self._placed)
        await self._judge_some(self._round)

    async def _judge_some(self, images: dict[Image, None]) -> None:
        turns = Turns()
        # Taken before others have a turn, who may judge some as well.
        for image in [images.popitem()[0] for _ in range(min(len(images), _JUDGED))]:
            if self._images.get(image.digest) is image:
                self._judge(image)
                if self._is_to_leave(image):
                    self._drop(image)
            await turns.give()

    def _is_to_leave(self, image: Image) -> bool:
        weights = self._placement.weights
        if self._pace is None:
            return self._tier(image, weights) == "cold"
        faster = replace(weights, cool_s=weights.cool_s / self._pace)
        return self._tier(image, faster) != "hot"

    def _has_place(self, worth: float = math.inf) -> bool:
        """Whether there may be one image more. Before it is made: nobody uses a new one yet."""
        if len(self._images) >= _IMAGES_MAX and worth == math.inf:
            self._thin_out()
        return len(self._images) < _IMAGES_MAX

    def _thin_out(self) -> None:
        ordered = sorted(self._images.values(), key=lambda image: image.priority)
        for image in ordered[: _IMAGES_MAX // 8]:
            self._drop(image)

    def leave(self, file: LiveFile) -> bool:
        """Detach a file from its image; False, and nothing changed, while it is open.

        An open that we have granted may not have reached the relay yet.
        """
        if file.handles or not self._relay.detach(file.nodeid):
            return False
        if file.image is not None:
            file.image.users.pop(file.nodeid, None)
            file.image = None
        return True

    def make_room(self, wanted: int, worth: float = math.inf) -> bool:
        """Drop images that nobody has open until *wanted* bytes fit; False if they cannot.

        :param worth: a priority; no image of a higher one is dropped
        """
        left = self._staging.budget_bytes - wanted
        kept = []
        try:
            while self._staging.used_bytes > left and self._order and self._order[0][0] < worth:
                entry = heapq.heappop(self._order)
                priority, _, image = entry
                if self._images.get(image.digest) is not image or image.ranked != priority:
                    continue  # it is gone, or there is another entry for it
                if image.priority > priority:
                    self._enter(image)
                    continue
                kept.append(entry)
                if self._drop(image):
                    kept.pop()
        finally:
            for entry in kept:
                heapq.heappush(self._order, entry)
        return self._staging.used_bytes <= left

    def _drop(self, image: Image) -> bool:
        if image.is_pinned:
            return False
        for file in list(image.users.values()):
            if not self.leave(file):
                return False
        del self._images[image.digest]
        self._relay.unregister(image.backing)
        os.unlink(image.path)
        self._staging.evict(image.size)
        return True

    def close(self) -> None:
        """Drop all: the mount is gone."""
        for image in list(self._images.values()):
            os.unlink(image.path)
            self._staging.count_images(-image.size)
        self._images.clear()


def _collapse(fd: int, size: int) -> None:
    with mmap.mmap(fd, size, prot=mmap.PROT_READ) as mapping, contextlib.suppress(OSError):
        mapping.madvise(_MADV_COLLAPSE)  # in vain where memory is fragmented or the kernel is old
