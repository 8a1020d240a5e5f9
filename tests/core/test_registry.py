from __future__ import annotations

import sys
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import pytest

from understudy.core import registry
from understudy.core.registry import Registry, load_object, reference_to, summary_of


class Outer:
    class Inner:
        pass


def test_references_lead_there_and_back() -> None:
    assert load_object(reference_to(Path)) is Path
    assert load_object("understudy.core.registry:Registry.find") is Registry.find

    class Local:
        pass

    with pytest.raises(ValueError, match="defined in a function: define it at the top level"):
        reference_to(Local)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("pathlib", "write 'module:attribute'"),
        ("pathlib:", "write 'module:attribute'"),
        ("no_such_module:x", "cannot be imported"),
        ("pathlib:Pth", r"pathlib has no 'Pth'; did you mean Path\?"),
        ("pathlib:os.system", "leads to the module os"),
    ],
)
def test_what_names_nothing_is_refused(reference: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_object(reference)


def test_a_registry_knows_its_own_other_packages_and_the_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    points = EntryPoints([EntryPoint("theirs", "colorsys:hls_to_rgb", "understudy.tests")])
    monkeypatch.setattr(registry, "entry_points", lambda *, group: points.select(group=group))
    registry._announced.cache_clear()
    things: Registry[Any] = Registry("thing", "understudy.tests", {"own": "pathlib:PurePath", "late": "wave:Wave_read"})
    things["mine"] = Outer
    assert list(things) == ["late", "mine", "own", "theirs"]
    assert things.find("own") is things.find("pathlib:PurePath")
    assert things.name_of(Outer) == "mine"
    assert things.name_of(things["theirs"]) == "theirs"
    assert things.name_of(Path) is None
    assert things.reserved("theirs")
    assert not things.reserved("mine")
    with pytest.raises(ValueError, match=r"unknown thing 'theris'; did you mean theirs\?"):
        things.find("theris")
    sys.modules.pop("wave", None)
    assert things.summary("late") == "Variables used in this class:"
    assert "wave" not in sys.modules
    registry._announced.cache_clear()


def test_a_summary_of_nothing_is_empty() -> None:
    assert summary_of("no_such_module:x") == ""
    assert summary_of("pathlib:no_such_thing") == ""
    assert summary_of("understudy.core.registry:Registry").startswith("Things of one kind by name")
