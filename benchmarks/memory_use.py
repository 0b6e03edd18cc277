"""How much memory a process and those that it starts take."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path


def family(root: int) -> Iterator[int]:
    """Ids of a process, and of all that it or those it started have started."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    for pid in parents:
        ancestor = pid
        while ancestor in parents and ancestor != root:
            ancestor = parents[ancestor]
        if ancestor == root:
            yield pid


class Memory(threading.Thread):
    """Looks ten times a second at what all processes have resident; what they share counts once for each.

    They are a process and those that it starts; by default this one.
    """

    def __init__(self, root: int | None = None) -> None:
        super().__init__(daemon=True)
        self.root = os.getpid() if root is None else root
        self.most, self.over = 0, threading.Event()

    def run(self) -> None:
        while not self.over.wait(0.1):
            now = 0
            for pid in family(self.root):
                try:
                    now += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
                except (OSError, IndexError):
                    continue
            self.most = max(self.most, now * os.sysconf("SC_PAGE_SIZE"))
