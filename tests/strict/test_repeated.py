from mobileclip.strict import repeated


def test_names_that_come_more_than_once_are_sorted():
    assert repeated(["c", "b", "a", "c", "b", "c"]) == ["b", "c"]
    assert repeated(iter("abc")) == []
