"""Finished trials survive whatever ends a run; nothing foreign and nothing torn is read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from infoq_onnx.errors import AnalysisError, OutputError
from infoq_onnx.schema import Change, Delta, Trial, Unit
from infoq_onnx.sensitivity.journal import Journal, locked, open_journal
from tests.prepared import is_one_line


def trial(unit: str, bits: int = 2, value: float = 1 / 3) -> Trial:
    return Trial(key(unit, bits), -0.125, value, {"tensor/ö": Delta(1e-17, value, -value, 0.0)})


def key(unit: str, bits: int = 2) -> tuple[Change, ...]:
    return (Change(Unit("weight", unit), bits),)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.jsonl"


def test_trials_come_back_exactly(path: Path) -> None:
    journal = open_journal(path, "f")
    journal.add([trial("a", 2), trial("a", 3)])
    assert len(journal.trials) == 2
    again = open_journal(path, "f")
    assert again.trials == journal.trials
    assert again.trials[key("a", 3)] == trial("a", 3)


def test_what_further_observers_tell_is_taken_together(path: Path) -> None:
    journal = open_journal(path, "f")
    journal.add([Trial(key("a"), 0.5, 1.0, {"one": Delta(1.0, 0.1, None, None), "two": Delta(2.0, 0.2, 3.0, 0.3)})])
    journal.add([Trial(key("a"), 0.5, 1.0, {"one": Delta(None, None, 4.0, 0.4), "all": Delta(5.0, 0.5, None, None)})])
    expected = {
        "one": Delta(1.0, 0.1, 4.0, 0.4),
        "two": Delta(2.0, 0.2, 3.0, 0.3),
        "all": Delta(5.0, 0.5, None, None),
    }
    assert journal.trials[key("a")].deltas == expected
    assert open_journal(path, "f").trials == journal.trials
    journal.settle([key("a")])
    assert len(path.read_text(encoding="utf-8").splitlines()) == 2
    assert open_journal(path, "f").trials[key("a")].deltas == expected


def test_one_line_a_trial_on_disk_before_the_next(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_size))
    journal = open_journal(path, "f")
    journal.add([trial("a")])
    first = path.stat().st_size
    journal.add([trial("b"), trial("c")])
    assert synced == [first, path.stat().st_size]
    head, *lines = path.read_text(encoding="utf-8").splitlines()
    assert json.loads(head) == {"fingerprint": "f"}
    assert [json.loads(line)["changes"][0]["unit"]["name"] for line in lines] == ["a", "b", "c"]


def test_another_fingerprint_starts_anew(path: Path) -> None:
    open_journal(path, "f").add([trial("a")])
    assert open_journal(path, "g").trials == {}
    # the old trials are gone for good
    assert open_journal(path, "f").trials == {}


def test_a_torn_last_line_is_dropped_wherever_it_is_torn(path: Path) -> None:
    journal = open_journal(path, "f")
    journal.add([trial("a")])
    kept = path.read_bytes()
    journal.add([trial("b")])
    whole = path.read_bytes()
    for end in range(len(kept), len(whole)):
        path.write_bytes(whole[:end])
        again = open_journal(path, "f")
        assert list(again.trials) == [key("a")]
        assert path.read_bytes() == kept
    again.add([trial("b")])
    assert path.read_bytes() == whole
    assert len(open_journal(path, "f").trials) == 2


@pytest.mark.parametrize(
    "line",
    [
        b"\x00" * 20,
        b"{}",
        b"[]",
        b'{"kl": 1.0}',
        b'{"changes": [{"unit": "b", "bits": 2}], "deltas": {}, "kl": 0.0, "top1_drop": 0.0}',
        b'{"changes": null}',
        b"\xff\xfe",
    ],
)
def test_what_is_no_trial_ends_the_journal(line: bytes, path: Path) -> None:
    journal = open_journal(path, "f")
    journal.add([trial("a")])
    kept = path.read_bytes()
    journal.add([trial("b")])
    path.write_bytes(kept + line + b"\n" + path.read_bytes()[len(kept) :])
    assert list(open_journal(path, "f").trials) == [key("a")]
    assert path.read_bytes() == kept


@pytest.mark.parametrize("content", [b"", b"\n", b"no journal", b"\xff\n\xff\n", b'{"fingerprint": "f"}'])
def test_what_is_no_journal_is_replaced(content: bytes, path: Path) -> None:
    path.write_bytes(content)
    journal = open_journal(path, "f")
    assert journal.trials == {}
    journal.add([trial("a")])
    assert len(open_journal(path, "f").trials) == 1


def test_a_folder_in_its_place(path: Path) -> None:
    path.mkdir()
    with pytest.raises(OutputError) as caught:
        open_journal(path, "f")
    assert is_one_line(caught.value, str(path))


def test_no_folder(path: Path) -> None:
    with pytest.raises(OutputError) as caught:
        open_journal(path.parent / "gone" / "journal.jsonl", "f")
    assert is_one_line(caught.value, "gone")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full to write to")
def test_a_full_disk() -> None:
    journal = Journal(Path("/dev/full"), "", {})
    with pytest.raises(OutputError) as caught:
        journal.add([trial("a")])
    assert is_one_line(caught.value, "/dev/full", "run analyze again")
    # what is not on disk does not count
    assert journal.trials == {}


# ----------------------------------------------------------------------------------------------------------------- lock


HOLDER = """
import sys
from pathlib import Path
from infoq_onnx.sensitivity.journal import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_another_process_is_named_and_its_end_frees_the_folder(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(AnalysisError) as caught, locked(tmp_path):
            pass
        assert is_one_line(caught.value, str(tmp_path), str(holder.pid))
        # killed, it cannot clean up
        holder.kill()
        holder.wait()
        with locked(tmp_path):
            pass


def test_a_folder_is_held_once_in_a_process_and_free_afterwards(tmp_path: Path) -> None:
    with locked(tmp_path):
        with pytest.raises(AnalysisError) as caught, locked(tmp_path):
            pass
        assert is_one_line(caught.value, str(os.getpid()))
    with pytest.raises(KeyError), locked(tmp_path):
        raise KeyError
    with locked(tmp_path):
        pass


def test_a_folder_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(OutputError) as caught, locked(tmp_path / "gone"):
        pass
    assert is_one_line(caught.value, "gone")
