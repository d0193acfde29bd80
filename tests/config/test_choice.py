"""Families register their members and refuse badly written ones."""

from dataclasses import dataclass

import pytest

from mlaan.config.choice import Choice, nearest_first, setting
from mlaan.errors import UserError


class Animal(Choice):
    """A family."""


@dataclass(frozen=True)
class Cat(Animal, name="cat"):
    """A member."""

    lives: int = setting(9, "lives left")


@dataclass(frozen=True)
class Lion(Cat, name="lion"):
    """A member that builds on another."""

    lives: int = 1


class Plant(Choice):
    """Another family, which may use the same names."""


def test_members_register_under_their_names():
    assert Animal.choices == {"cat": Cat, "lion": Lion}
    assert (Cat.name, Lion.name) == ("cat", "lion")


def test_families_do_not_share_a_registry():
    assert Plant.choices == {}


def test_make_fills_in_defaults():
    assert Animal.make("cat") == Cat(lives=9)
    assert Animal.make("cat", lives=3) == Cat(lives=3)


def test_the_name_is_not_a_field():
    assert "name" not in Cat.__dataclass_fields__


def test_setting_keeps_default_and_help():
    field = Cat.__dataclass_fields__["lives"]
    assert (field.default, field.metadata["help"]) == (9, "lives left")


def test_make_names_the_nearest_member_first():
    with pytest.raises(UserError, match=r"^Animal has no member 'lino': choose from 'lion', 'cat'$"):
        Animal.make("lino")


def test_make_without_members_says_what_to_import():
    with pytest.raises(RuntimeError, match="Plant has no members yet: import the package"):
        Plant.make("oak")


def test_a_taken_name_is_refused_and_the_first_owner_stays():
    with pytest.raises(TypeError, match="'cat' is taken by Cat: Other needs another"):

        class Other(Animal, name="cat"):
            pass

    assert Animal.choices["cat"] is Cat


def test_a_member_without_a_name_is_refused():
    with pytest.raises(TypeError, match="Nameless needs a name"):

        class Nameless(Animal):
            pass


def test_a_slots_dataclass_is_refused():
    class Rock(Choice):
        """A family of its own, so that the half-made member stays out of the others."""

    with pytest.raises(TypeError, match="without slots=True"):

        @dataclass(frozen=True, slots=True)
        class Slotted(Rock, name="slotted"):
            pass


def test_a_field_called_name_is_refused():
    with pytest.raises(TypeError, match="must not have a field called name"):

        class Named(Animal, name="named"):
            name: str = "mine"  # pyright: ignore[reportIncompatibleVariableOverride]

    assert "named" not in Animal.choices


def test_a_family_takes_no_name():
    with pytest.raises(TypeError, match="Minerals is a family"):

        class Minerals(Choice, name="minerals"):
            pass


def test_nearest_first_keeps_the_order_of_equals():
    assert nearest_first("zz", ["a", "b", "c"]) == ["a", "b", "c"]
    assert nearest_first("Digit", ["synthetic", "digits"]) == ["digits", "synthetic"]
