"""An index brought up to date: what is encoded, what is kept, and how it goes on."""

import errno
import os
import signal
import threading
import time

import pytest
import torch
import torch.nn.functional as F
from helpers.runs import expect_exit
from helpers.stopping import in_a_child, status_of

from common import locks
from common.errors import InputError, Stopped, exit_on_input_error
from searching import update
from searching.encoding import Encoded, Fault
from searching.index import Marks, read_index
from searching.update import up_to_date

DIM = 4


def embedding(name, stat):
    """Of a photo's name and state, so that a wrong or an old row is seen."""
    seed = sum(map(ord, name)) * 1_000 + stat[0]
    return F.normalize(torch.randn(DIM, generator=torch.Generator().manual_seed(seed)), dim=0)


class Encoder:
    """Stands for the model: remembers whom it encoded, two photos at a time."""

    def __init__(self, found, broken=(), passing=(), each=lambda: None):
        self.found, self.broken, self.passing, self.each = found, broken, passing, each
        self.seen = []

    def __call__(self, photos):
        for start in range(0, len(photos), 2):
            names = [photo.name for photo in photos[start : start + 2]]
            self.seen += names
            bad = {*self.broken, *self.passing}
            good = [number for number, name in enumerate(names) if name not in bad]
            faults = [Fault(start + number, f"photo {name} is bad", name in self.broken)
                      for number, name in enumerate(names) if name in bad]
            embeds = [embedding(names[number], self.found[names[number]]) for number in good]
            yield Encoded([start + number for number in good],
                          torch.stack(embeds) if embeds else torch.empty(0, DIM), faults)
            self.each()


@pytest.fixture
def place(tmp_path):
    (tmp_path / "photos").mkdir()
    return tmp_path / "index"


@pytest.fixture
def bring(place):
    """Bring the index up to date with `found`; the encoder, after its embeddings were compared."""
    def call(found, **more):
        encoder = Encoder(found, **more)
        index = up_to_date(place, marks_of(place), found, DIM, encoder)
        assert index.photos.names == sorted(found.keys() - {*encoder.broken, *encoder.passing})
        for name, row in zip(index.photos.names, index.embeds):
            assert torch.equal(row, embedding(name, found[name]))
        return encoder

    return call


def marks_of(place):
    return Marks("model", place.parent / "photos")


def photos(*numbers):
    return {f"{number:03}.jpg": (number, 10 * number) for number in numbers}


def test_only_new_and_changed_photos_are_encoded(bring, place):
    found = photos(*range(7))
    assert bring(found).seen == list(found)
    written = place.stat().st_mtime_ns
    assert bring(found).seen == [] and place.stat().st_mtime_ns == written
    found |= photos(20)
    found["003.jpg"] = (99, 30)  # another size
    found["004.jpg"] = (4, 41)  # another time
    assert bring(found).seen == ["003.jpg", "004.jpg", "020.jpg"]
    assert bring(found).seen == []


def test_vanished_photos_are_dropped(bring, place):
    bring(photos(*range(6)))
    assert bring(photos(1, 4)).seen == []
    assert read_index(place, marks_of(place), DIM).photos.names == ["001.jpg", "004.jpg"]
    assert bring(photos(1, 2, 4)).seen == ["002.jpg"]  # back again: nothing is left of it


def test_a_broken_photo_is_named_once_until_it_changes(bring, capsys):
    found = photos(*range(5))
    bring(found, broken=["002.jpg"])
    told = capsys.readouterr().err
    assert told.count("002.jpg") == 1 and "passed over until it changes" in told
    assert bring(found, broken=["002.jpg"]).seen == []
    assert "002.jpg" not in capsys.readouterr().err
    found["002.jpg"] = (2, 21)
    assert bring(found).seen == ["002.jpg"]


def test_what_passes_is_tried_again(bring, capsys):
    """A photo that this user may not read, say, is not the photo's fault."""
    found = photos(*range(3))
    for _ in range(2):
        assert "001.jpg" in bring(found, passing=["001.jpg"]).seen
        assert "passed over\n" in capsys.readouterr().err
    assert bring(found).seen == ["001.jpg"]


def test_all_broken_and_none_left(bring):
    found = photos(1, 2)
    bring(found, broken=list(found))
    assert bring(found, broken=list(found)).seen == []


@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_keeps_what_is_done(bring, place, capsys, number, status):
    """It comes after three batches; the fourth is finished."""
    found, count = photos(*range(10)), []

    def main(arguments):
        with exit_on_input_error():
            bring(found, each=lambda: count.append(1) or len(count) == 3 and os.kill(
                os.getpid(), number))

    told = expect_exit([], status, capsys, ["8 of 10 photos are in", "goes on from there"], main)
    assert str(place) in told
    assert bring(found).seen == list(found)[8:]


def test_an_error_keeps_what_is_done(bring):
    def fail():
        raise RuntimeError("DataLoader worker (pid 5) was killed")

    found = photos(*range(6))
    with pytest.raises(RuntimeError):
        bring(found, each=fail)
    assert bring(found).seen == list(found)[2:]


@pytest.mark.parametrize("after", [1, 2, 4])
def test_killed_it_goes_on_where_it_was_saved(bring, place, monkeypatch, after):
    """SIGKILL, which nothing can catch, right after a batch; it saves after each."""
    monkeypatch.setattr(update, "SAVE_EVERY", -1)
    monkeypatch.setattr(update, "SHARE", 1e9)
    found, count = photos(*range(10)), []

    def kill():
        count.append(1)
        if len(count) == after:
            os.kill(os.getpid(), signal.SIGKILL)

    assert status_of(in_a_child(lambda: bring(found, each=kill))) == -signal.SIGKILL
    assert len(read_index(place, marks_of(place), DIM).photos.names) == 2 * after
    assert bring(found).seen == list(found)[2 * after :]
    assert not list(place.parent.glob("*.part"))


def test_killed_while_it_writes_the_last_one_stays(bring, place, monkeypatch):
    bring(photos(*range(4)))

    def killed(*arguments):
        os.kill(os.getpid(), signal.SIGKILL)

    child = in_a_child(lambda: (monkeypatch.setattr(os, "replace", killed),
                                bring(photos(*range(8)))))
    assert status_of(child) == -signal.SIGKILL
    assert bring(photos(*range(8))).seen == list(photos(4, 5, 6, 7))


def test_saving_takes_a_small_share_of_the_time(place, monkeypatch):
    """With a slow disk it is saved less often."""
    clock, saves = [0.0], []
    monkeypatch.setattr(update.time, "monotonic", lambda: clock[0])
    whole_write = update.write_index

    def slow_write(*arguments):
        saves.append(clock[0])
        clock[0] += 10.0
        whole_write(*arguments)

    def tick():
        clock[0] += 5.0

    monkeypatch.setattr(update, "write_index", slow_write)
    found = photos(*range(400))
    up_to_date(place, marks_of(place), found, DIM, Encoder(found, each=tick))
    gaps = [later - earlier for earlier, later in zip(saves, saves[1:-1])]
    assert len(saves) > 3 and all(gap >= 10 / update.SHARE for gap in gaps)


def test_two_at_once_do_not_encode_twice(bring, place, capsys):
    """The second waits for the first, says so, and then finds all done."""
    found = photos(*range(6))
    child = in_a_child(lambda: bring(found, each=lambda: time.sleep(0.3)))
    while not (place.parent / "index.lock").exists():
        time.sleep(0.01)
    time.sleep(0.1)
    assert bring(found).seen == []
    assert f"process {child} is at work on" in capsys.readouterr().err
    assert status_of(child) == 0


def test_the_lock_of_a_killed_process_is_gone(tmp_path):
    child = in_a_child(lambda: (locks.lock(tmp_path / "x"), time.sleep(60)))
    while not (tmp_path / "x").exists():
        time.sleep(0.01)
    time.sleep(0.1)
    with pytest.raises(locks.LockHeld, match=str(child)):
        locks.lock(tmp_path / "x")
    told = []
    threading.Timer(0.3, os.kill, (child, signal.SIGKILL)).start()
    locks.wait_for_lock(tmp_path / "x", told.append, 0.05).close()
    assert told == [f"process {child}"] and status_of(child) == -signal.SIGKILL


def test_where_nothing_can_be_written_nothing_is_encoded(bring, place, monkeypatch):
    """Told before hours of work; what needs no writing is done."""
    bring(photos(1, 2, 3))

    def refuse(path):
        raise InputError(f"--index {path} cannot be written")

    monkeypatch.setattr(update, "check_writable", refuse)
    assert bring(photos(1, 2, 3)).seen == []
    assert bring(photos(1, 3)).seen == []  # one has vanished
    encoder = Encoder(photos(1, 2, 3, 4))
    with pytest.raises(InputError, match="cannot be written"):
        up_to_date(place, marks_of(place), photos(1, 2, 3, 4), DIM, encoder)
    assert encoder.seen == []


def test_a_missing_folder_cannot_be_written(place):
    with pytest.raises(InputError, match="--index .* cannot be written"):
        update.check_writable(place / "nothing" / "index")


def test_a_full_disk_is_one_line_and_the_last_index_stays(bring, place):
    found = photos(1, 2)
    bring(found)
    before = place.read_bytes()

    def full(file):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(InputError, match="No space left"):
            bring(photos(1, 2, 3, 4, 5, 6))
    assert place.read_bytes() == before and not list(place.parent.glob("*.part"))
    assert bring(found).seen == []


def test_a_stop_is_no_error(bring):
    with pytest.raises(Stopped):
        bring(photos(*range(4)), each=lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_folder_that_is_gone_meanwhile_is_told_once(bring, place):
    """A network drive, say: none of its photos is taken for a broken one."""
    found = photos(*range(8))

    def lose():
        if (place.parent / "photos").exists():
            (place.parent / "photos").rmdir()

    encoder = Encoder(found, passing=[f"{number:03}.jpg" for number in range(2, 8)], each=lose)
    with pytest.raises(InputError, match="is gone: bring it back"):
        up_to_date(place, marks_of(place), found, DIM, encoder)
    (place.parent / "photos").mkdir()
    assert bring(found).seen == list(found)[2:]
