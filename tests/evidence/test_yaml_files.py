import pytest

from vlalign_utils.evidence.yaml_files import YamlError, load_yaml


def test_plain_files_are_read_with_or_without_a_byte_order_mark(tmp_path):
    path = tmp_path / "é b.yml"
    path.write_bytes(b"\xef\xbb\xbfseed: 1\nother: &o {a: 1}\nmerged: {<<: *o, b: 2}\n")
    assert load_yaml(path) == {"seed": 1, "other": {"a": 1}, "merged": {"a": 1, "b": 2}}
    path.write_text("")
    assert load_yaml(path) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"seed: 1\nseed: 2", "line 2: 'seed' is given twice"),
        (b"a:\n  b: 1\n  b: 2", "line 3: 'b' is given twice"),
        (b"a:\n\tb: 1", "line 2: .*indent with blanks, not tabs"),
        (b"a: [", "is not YAML: line 1"),
        (b"a: \x00", "is not YAML: special characters are not allowed"),
        (b"\xff\xfe", "is not text in UTF-8"),
        (b"[1]: {", "is not YAML"),
        (b"a: 2026-13-45", "is not YAML: month must be in 1..12"),
        (b"a: !!python/object:os.system x", "could not determine a constructor"),
        (b"[" * 5000, "is not YAML"),
    ],
)
def test_what_is_wrong_is_one_sentence_with_its_line(tmp_path, text, message):
    path = tmp_path / "my.yml"
    path.write_bytes(text)
    with pytest.raises(YamlError, match=rf"my\.yml .*{message}|{message}") as caught:
        load_yaml(path)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(YamlError, match=r"my\.yml cannot be read: No such file"):
        load_yaml(tmp_path / "my.yml")
