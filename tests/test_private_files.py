import errno
import threading

import pytest

from keras_muffnet import _files as files
from keras_muffnet._files import write_version
from keras_muffnet._files import written_aside


def test_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "a.txt"
    with written_aside(path) as aside:
        aside.write_text("first")
        assert not path.exists()
    assert path.read_text() == "first"
    with pytest.raises(KeyboardInterrupt), written_aside(path) as aside:
        aside.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "first"
    assert list(path.parent.iterdir()) == [path]


def test_a_full_disk_is_told_with_the_file(tmp_path):
    with (
        pytest.raises(OSError, match=r"No space left on device: .*a\.txt"),
        written_aside(tmp_path / "a.txt") as aside,
    ):
        aside.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert not list(tmp_path.iterdir())


def test_an_error_without_a_number_keeps_its_text(tmp_path):
    with (
        pytest.raises(OSError, match=r"^the encoder failed$"),
        written_aside(tmp_path / "a.mp4"),
    ):
        raise OSError("the encoder failed")


def test_file_is_replaced(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with written_aside(path) as aside:
        aside.write_text("new")
    assert path.read_text() == "new"


def test_folder_appears_whole_and_is_never_replaced(tmp_path):
    with written_aside(tmp_path / "1") as aside:
        aside.mkdir()
        (aside / "x").write_text("x")
    assert (tmp_path / "1" / "x").read_text() == "x"
    refused = pytest.raises(FileExistsError, match="a folder")
    with refused, written_aside(tmp_path / "1"):
        raise AssertionError("nothing may run here")
    assert (tmp_path / "1" / "x").read_text() == "x"


def test_versions_count_up_past_what_is_there(tmp_path):
    base = tmp_path / "new" / "model"
    assert write_version(base, lambda folder: None) == base / "1"
    for name in ("007", "-9", "\u0669\u0669", "8.5", ".writing-9"):
        (base / name).mkdir()
    # A file counts too: no folder could take its name.
    (base / "11").write_text("")
    assert write_version(base, lambda folder: None) == base / "12"
    assert (base / "11").read_text() == ""


def test_two_that_write_at_a_time_get_a_version_each(tmp_path):
    together = threading.Barrier(4)

    def export(number):
        def write(folder):
            (folder / "number").write_text(str(number))
            together.wait(timeout=30)

        write_version(tmp_path, write)

    threads = [threading.Thread(target=export, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1", "2", "3", "4"]
    numbers = {(p / "number").read_text() for p in tmp_path.iterdir()}
    assert numbers == {"0", "1", "2", "3"}


def test_a_version_that_appears_at_the_last_moment_stays(tmp_path, monkeypatch):
    look = files._versions
    calls = []

    def look_too_early(base_path):
        found = look(base_path)
        if not calls:
            (tmp_path / "1").mkdir()
            (tmp_path / "1" / "mine").write_text("")
        calls.append(found)
        return found

    monkeypatch.setattr(files, "_versions", look_too_early)
    assert write_version(tmp_path, lambda folder: None) == tmp_path / "2"
    assert calls == [[], [1]]
    assert (tmp_path / "1" / "mine").exists()


def test_a_version_that_fails_leaves_nothing(tmp_path):
    def write(folder):
        (folder / "half").write_text("")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_version(tmp_path, write)
    assert list(tmp_path.iterdir()) == []
