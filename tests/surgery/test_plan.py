"""Plans: which units are removed, by their original indices."""

import pytest

from isometry import Plan


def test_plans_compose_in_original_indices() -> None:
    first = Plan({"a": (1, 3)}, {"a": 6})
    both = first.then(Plan({"a": (0, 2), "b": (0,)}, {"a": 4, "b": 2}))
    assert both == Plan({"a": (0, 1, 3, 4), "b": (0,)}, {"a": 6, "b": 2})


def test_a_plan_says_what_is_removed_and_what_is_kept() -> None:
    first = Plan({"a": (1, 3)}, {"a": 6})
    both = first.then(Plan({"a": (0, 2), "b": (0,)}, {"a": 4, "b": 2}))
    assert first.kept("a") == (0, 2, 4, 5)
    assert both.ratio == 5 / 8
    assert "a: 4 of 6 units removed" in str(both)


def test_plans_survive_json() -> None:
    first = Plan({"a": (1, 3)}, {"a": 6})
    both = first.then(Plan({"a": (0, 2), "b": (0,)}, {"a": 4, "b": 2}))
    assert Plan.from_json(both.to_json()) == both


def test_a_plan_for_another_network_does_not_compose() -> None:
    first = Plan({"a": (1, 3)}, {"a": 6})
    with pytest.raises(ValueError, match="made for the network that this one gives"):
        first.then(Plan({"a": (0,)}, {"a": 6}))


def test_plans_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="ascending indices from 0 to 5"):
        Plan({"a": (3, 1)}, {"a": 6})
    with pytest.raises(ValueError, match="both for the same layers"):
        Plan({"a": (3,)}, {})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("not json", "no JSON"),
        ("[1]", "got list"),
        ("{}", "an empty object"),
        ('{"removed": {}, "widths": {}, "more": 1}', "got more, removed, widths"),
        ('{"removed": 3, "widths": {}}', "no lists of whole numbers"),
        ('{"removed": {"a": "12"}, "widths": {"a": 6}}', "no lists of whole numbers"),
        ('{"removed": {"a": [1.5]}, "widths": {"a": 6}}', "no lists of whole numbers"),
        ('{"removed": {"a": [true]}, "widths": {"a": 6}}', "no lists of whole numbers"),
        ('{"removed": {"a": [1]}, "widths": {"a": "6"}}', "widths that are no whole numbers"),
        ('{"removed": {"a": [1]}, "widths": {"a": 1}}', "ascending indices from 0 to 0"),
    ],
)
def test_json_that_is_no_plan_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Plan.from_json(text)
