import pytest

from keras_muffnet.files import written_aside


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
