from vlalign_utils.progress import progress


def test_prints_one_line_that_never_changes(capsys):
    assert list(progress(range(3), "layers")) == [0, 1, 2]
    assert capsys.readouterr().out == "layers: 3/3\n"


def test_total_may_be_given_for_a_generator(capsys):
    assert sum(progress((n for n in range(3)), "layers", total=3)) == 3
    assert capsys.readouterr().out == "layers: 3/3\n"


def test_a_loop_left_early_claims_nothing(capsys):
    for _ in progress(range(3), "layers"):
        break
    assert capsys.readouterr().out == ""
