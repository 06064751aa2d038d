"""What the layers of an image mean, told from the image-spec alone: a model on plain dictionaries, without a disk.

tree = Tree()
with tree.layer():
    tree.apply(images.directory("etc"))
    tree.apply(images.whiteout("etc/gone"))
assert seen(rootfs) == tree.facts()

It shares no code with what it judges. The rules, from image-spec "Applying Changesets" and "Whiteouts":

- Entries count in their order. A directory that meets a directory gives it its attributes; anything else is removed,
  with all that is below it, and made anew.
- A whiteout hides what lower layers have, never what its own layer brings, wherever in the layer it stands.
- A link on the way to an entry is followed if its layer made it; one of a lower layer is replaced by a directory.
- A directory that only the names of other entries imply keeps what it is in the layers below; a new one is 0755, of
  root.

Where containerd 1.6 unpacks otherwise on purpose or by accident, `Tree.departures` says so while the layer is applied.
"""

from __future__ import annotations

import tarfile
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.images import Entry

Path = tuple[str, ...]
KINDS = {
    tarfile.REGTYPE: "file",
    tarfile.DIRTYPE: "directory",
    tarfile.SYMTYPE: "link",
    tarfile.CHRTYPE: "character device",
    tarfile.BLKTYPE: "block device",
    tarfile.FIFOTYPE: "fifo",
}
_MAX_LINKS = 40
_XATTR = "SCHILY.xattr."


class InvalidEntryError(Exception):
    """No unpacker takes this entry after those before it."""


@dataclass(eq=False)
class Node:
    """An inode."""

    kind: str
    mode: int = 0o755
    uid: int = 0
    gid: int = 0
    mtime: float | None = None
    """None: nobody says, it is when the layer is unpacked."""
    data: bytes | str | tuple[int, int] = b""
    xattrs: dict[str, bytes] = field(default_factory=dict)
    own: bool = True
    """Whether the layer that is being applied has it: made it, described it, or needed it as a parent."""
    implied: bool = False
    """Whether its layer only needed it as a parent."""
    needed: bool = False
    """Whether any layer only needed it as a parent since one has described it: containerd gives it a new time then."""


class Tree:
    """A root file system to which layers are applied."""

    def __init__(self) -> None:
        self._nodes: dict[Path, Node] = {}
        self._whiteouts: set[Path] = set()
        self._lower: dict[Path, str] = {}
        """What was there before the layer, by kind."""
        self._ever: set[Path] = set()
        """What any earlier layer had in its own tree, whiteouts too."""
        self._ever_other: set[Path] = set()
        """Those of them that were no directories."""
        self._first = True
        self._described: dict[Path, Path] = {}
        """Name of a directory in its entry -> where that led."""
        self.departures: set[str] = set()

    @contextmanager
    def layer(self) -> Iterator[None]:
        """All that is applied meanwhile is one layer."""
        for node in self._nodes.values():
            node.own, node.implied = False, False
        self._lower = {path: node.kind for path, node in self._nodes.items()}
        self._whiteouts.clear()
        self._described.clear()
        yield
        self.check_times()
        own = {path: node.kind for path, node in self._nodes.items() if node.own}
        self._ever |= own.keys() | self._whiteouts
        self._ever_other |= self._whiteouts
        self._ever_other |= {path for path, kind in own.items() if kind != "directory"}
        self._first = False

    def facts(self) -> dict[str, tuple[object, ...]]:
        """Everything of the tree that a container could notice, as `tests.rootfs.seen` gives it."""
        first: dict[int, str] = {}
        found: dict[str, tuple[object, ...]] = {}
        for path in sorted(self._nodes):
            node = self._nodes[path]
            name = "/".join(path)
            found[name] = (
                *(node.kind, node.mode, node.uid, node.gid, node.mtime, node.data),
                tuple(sorted(node.xattrs.items())),
                first.setdefault(id(node), name),
            )
        return found

    def needed(self) -> set[str]:
        """The directories that a layer only needed as parents after what described them."""
        return {"/".join(path) for path, node in self._nodes.items() if node.needed}

    def apply(self, entry: Entry) -> None:
        """The next entry of the layer. Raises InvalidEntryError; what it did until then is done."""
        header, data = entry
        path = _parts(header.name)
        if not path:
            return
        if path[0].startswith(".wh..wh.") and path[0] != ".wh..wh..opq":
            self.departures.add("an empty directory of aufs' own")
            return
        *above, base = path
        if base.startswith(".wh."):
            if base == ".wh..wh..opq":
                self._opaque(self._parent(above))
            elif not base.startswith(".wh..wh."):
                self._white_out((*self._parent(above), base.removeprefix(".wh.")))
            return
        real = (*self._parent(above), base)
        self._make(real, header, data)
        if header.type == tarfile.DIRTYPE:
            self._described[path] = real

    def check_times(self) -> None:
        """Note whether, at the end of a layer, a directory's name leads elsewhere than when its entry came."""
        for name, real in self._described.items():
            if self._leads_to(name) != real or self._nodes[real].kind != "directory":
                self.departures.add(
                    "a directory's time, by a name that means something else by now"
                )

    # Entries

    def _make(self, path: Path, header: tarfile.TarInfo, data: bytes) -> None:
        self._check_time(header)
        if header.type == tarfile.LNKTYPE:
            self._hard_link(path, header)
            return
        kind = KINDS[header.type]
        node = Node(
            kind,
            0o777 if kind == "link" else header.mode,
            *(header.uid, header.gid, header.mtime),
            data,
            {
                key.removeprefix(_XATTR): value.encode("utf-8", "surrogateescape")
                for key, value in header.pax_headers.items()
                if key.startswith(_XATTR)
            },
        )
        if kind == "link":
            node.data = header.linkname
        elif kind in ("character device", "block device"):
            node.data = (header.devmajor, header.devminor)
        known = self._nodes.get(path)
        if kind == "directory":
            if known is not None and known.kind == kind:
                if known.own and not known.implied:
                    node.xattrs = {**known.xattrs, **node.xattrs}
                elif known.implied and known.xattrs:
                    self.departures.add("attributes of a lower directory stay")
            elif path in self._whiteouts or (known is not None and known.own):
                if self._lower.get(path) == kind:
                    self.departures.add("a new directory shows what a lower layer has")
                self._remove(path)
            else:
                self._remove(path)
        else:
            self._remove(path)
        self._nodes[path] = node
        self._whiteouts.discard(path)

    def _hard_link(self, path: Path, header: tarfile.TarInfo) -> None:
        *above, base = _parts(header.linkname) or ("",)
        target = (*self._parent(above, create=False), base)
        node = self._nodes.get(target)
        if node is None or not node.own or node.kind == "directory":
            raise InvalidEntryError(f"{header.name}: no {header.linkname} to link to")
        if target == path:
            self.departures.add("a hard link to itself")
            return
        if target[: len(path)] == path:
            raise InvalidEntryError(f"{header.name}: replaces what it links to")
        self._remove(path)
        self._nodes[path] = node
        self._whiteouts.discard(path)
        node.uid, node.gid, node.mtime = header.uid, header.gid, header.mtime
        if node.kind != "link":
            if node.mode != header.mode:
                self.departures.add("a hard link's mode")
            node.mode = header.mode

    def _white_out(self, path: Path) -> None:
        known = self._nodes.get(path)
        if path in self._whiteouts or (known is not None and known.own):
            self.departures.add("a whiteout behind what its layer brings")
        if known is None or not known.own:
            self._remove(path)
            self._whiteouts.add(path)
        elif known.kind == "directory":
            self._hide_lower(path)
            if known.implied:
                self._renew(path)

    def _opaque(self, path: Path) -> None:
        if self._first and any(
            below[: len(path)] == path and below != path for below in self._nodes
        ):
            self.departures.add("an opaque mark behind what its layer brings")
        self._hide_lower(path)

    # The tree

    def _parent(self, parts: list[str] | Path, *, create: bool = True) -> Path:
        """The real path of the directory of that name, made if need be."""
        path: Path = ()
        todo = list(reversed(parts))
        links = 0
        while todo:
            part = todo.pop()
            if part in ("", "."):
                continue
            if part == "..":
                path = path[:-1]
                continue
            candidate = (*path, part)
            node = self._nodes.get(candidate)
            if node is not None and node.own and node.kind == "link":
                links += 1
                if links > _MAX_LINKS:
                    raise InvalidEntryError("links in a circle")
                assert isinstance(node.data, str)
                if node.data.startswith("/"):
                    path = ()
                todo += reversed(node.data.split("/"))
                continue
            if node is not None and node.own and node.kind != "directory":
                raise InvalidEntryError(f"{candidate} is no directory")
            if not create and (node is None or not node.own):
                raise InvalidEntryError(f"no {candidate}")
            path = candidate
            self._imply(path, node)
        return path

    def _leads_to(self, name: Path) -> Path | None:
        """Where a name leads in what the layer itself has, a link at its end followed as well; None: nowhere."""
        path: Path = ()
        todo = list(reversed(name))
        links = 0
        while todo and links <= _MAX_LINKS:
            part = todo.pop()
            if part in ("", ".", ".."):
                path = path[:-1] if part == ".." else path
                continue
            node = self._nodes.get((*path, part))
            if node is None or not node.own:
                return None
            if node.kind != "link":
                path = (*path, part)
                continue
            links += 1
            assert isinstance(node.data, str)
            path = () if node.data.startswith("/") else path
            todo += reversed(node.data.split("/"))
        return path

    def _imply(self, path: Path, node: Node | None) -> None:
        if node is not None and node.own:
            return
        if node is not None and node.kind == "directory":
            self._nodes[path] = replace(node, own=True, implied=True, needed=True)
            return
        if path in self._whiteouts:
            self.departures.add("a path through a whiteout")
        elif path in self._ever or any(path[:n] in self._ever_other for n in range(len(path))):
            self.departures.add("a parent that a lower layer has in another way")
        above = self._nodes.get(path[:-1])
        if above is not None and above.mode & 0o2000:
            self.departures.add("a parent made in a directory with setgid")
        self._remove(path)
        self._nodes[path] = Node("directory", implied=True)
        self._whiteouts.discard(path)

    def _renew(self, path: Path) -> None:
        """A directory that only names imply has nothing of a lower one that is hidden."""
        if self._lower.get(path) == "directory":
            self.departures.add("a parent that is hidden later")
        self._nodes[path] = Node("directory", implied=True)

    def _hide_lower(self, path: Path) -> None:
        for below in [each for each in self._nodes if each[: len(path)] == path and each != path]:
            node = self._nodes[below]
            if not node.own:
                del self._nodes[below]
            elif node.implied:
                self._renew(below)

    def _remove(self, path: Path) -> None:
        for below in [each for each in self._nodes if each[: len(path)] == path]:
            del self._nodes[below]
        self._whiteouts = {each for each in self._whiteouts if each[: len(path)] != path}

    def _check_time(self, header: tarfile.TarInfo) -> None:
        if header.mtime < 0:
            self.departures.add("a time before 1970")


def _parts(name: str) -> Path:
    parts: list[str] = []
    for part in name.split("/"):
        if part == "..":
            del parts[-1:]
        elif part not in ("", "."):
            parts.append(part)
    return tuple(parts)
