"""Ids that names make: always safe, never the same, whatever other pictures there are."""

import ntpath
import sys
from itertools import combinations
from posixpath import splitext

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from uam_jax.jobs.manifest import Item, checked
from uam_jax.jobs.names import fault, file_stems, folded, own_id, result_file

ODD = [
    "Screenshot 2024-05-01 12:30:59.png", "dog .png", " dog.png", "holiday 3..png", "写真" * 36 + ".png",
    "caf\udce9.png", "IMG_1.JPG", "img_1.png", "Img_1.png", "CON.png", "aux.jpg", "nul.tar.jpg", "com1",
    "a.", "...", "a?b*.png", "photo", "photo-1.jpg", "photo-1.png", "photo.jpg-1", ".uam-x.png", "a\tb.png",
    "a.jpg/b.png", "x/" * 600 + "a.png", "s\\b.jpg", "photo~12345678.png", "\xe9.png", "e\u0301.png", "LPT¹.png",
    "v1.2", "v1.2.png", "v1.2.jpg", "v1.2.jpg.png", "f-01.png", "f-01", "f.PNG", "f.png", "f.png.PNG",
    "https:", '"quoted".webp', "x" * 255, "a.png.png",
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("cat.png", "cat"),
        ("photo.jpg", "photo.jpg"),
        ("IMG_1.JPG", "IMG_1.JPG"),
        ("sub/a.webp", "sub/a.webp"),
        ("写真.png", "写真"),
        ("photo-1.png", "photo-1.png"),
        ("frame-0001.png", "frame-0001"),
        ("2024-05-01.png", "2024-05-01"),
        ("Screenshot 2024-05-01 at 12.30.59.png", "Screenshot 2024-05-01 at 12.30.59"),
        ("a.jpg.png", "a.jpg.png"),
        ("dog .png", "dog .png"),
    ],
)
def test_ordinary_names_are_ids(name: str, made: str) -> None:
    assert own_id(name) == made


def test_others_are_changed_and_marked() -> None:
    assert own_id("12:30.jpg").startswith("12_30~") and own_id("12:30.jpg").endswith(".jpg")
    assert own_id("caf\udce9.jpg").startswith("caf_~") and own_id("a./x.png")[:2] == "a~"
    assert own_id("x.png", "/one/x.png") != own_id("x.png", "/two/x.png")


names = st.lists(
    st.text(st.one_of(st.characters(exclude_characters="/\0"), st.sampled_from('aA.-1~:? ')), min_size=1),
    min_size=1, max_size=3,
).map("/".join)  # fmt: skip


@given(names)
@example("~/x.png")
def test_every_name_makes_a_safe_id(name: str) -> None:
    made = own_id(name)
    assert not fault(made)
    assert (
        own_id(made) != made or made == name or "." not in made
    )  # what was changed is not a name's own


@pytest.mark.parametrize("name", ODD)
def test_odd_names_make_safe_ids(name: str) -> None:
    assert not fault(own_id(name)) and own_id(name).encode()


def test_no_two_names_meet() -> None:
    """Not as ids, not as numbered results, not as files in either folder, and also where case does not count."""
    known = [
        *ODD,
        *("a" + kind for kind in (".png", ".jpg", ".PNG", ".jpg.png", "-1.jpg", "-1.png")),
    ]
    known += [own_id(name) + ".png" for name in ODD] + [own_id(name) for name in ODD]
    known += [f"{own_id(name)}-1{kind}" for name in ODD for kind in (".png", ".jpg", "")]
    known = list(dict.fromkeys(known))
    items = [
        Item(own_id(name), name, targets) for name in known for targets in [("x",), ("x", "y")]
    ]
    for first, second in combinations(items, 2):
        assert first.image == second.image or not {*first.results} & {*second.results}
    one = [item for item in items if len(item.targets) == 1]
    files = file_stems(item.id for item in one)
    for suffix in (".png", ".jpg", ".PNG"):
        images = [
            result_file(files[item.id], suffix, own=True) for item in one if kept(item, suffix)
        ]
        assert len({folded(name) for name in images}) == len(images)
    assert len({folded(name) for name in files.values()}) == len(one)


def kept(item: Item, suffix: str) -> bool:
    """Whether the item's result may have that suffix, if it is to be its picture's own or PNG."""
    return suffix == ".png" or item.image.endswith(suffix)


def test_files_of_pictures_whose_suffix_has_another_case_are_apart() -> None:
    files = file_stems(["a", "a.PNG", "b.PNG"])
    made = [
        result_file(files["a"], ".png", own=True),
        result_file(files["a.PNG"], ".PNG", own=True),
    ]
    assert len({*map(folded, made)}) == 2
    assert result_file(files["b.PNG"], ".PNG", own=True) == "b.PNG"


def test_a_result_keeps_its_pictures_name() -> None:
    assert result_file("IMG_1.JPG", ".JPG", own=True) == "IMG_1.JPG"
    assert result_file("cat", ".png", own=True) == "cat.png"
    assert result_file("v1.2.jpg", ".jpg", own=True) == "v1.2.jpg"
    assert result_file("IMG_1.JPG", ".JPG") == "IMG_1.JPG.JPG"
    assert result_file("a.jpg.png", ".png", own=True) == "a.jpg.png.png"  # a.jpg may become a PNG
    assert result_file("photo-1.png", ".png", own=True) == "photo-1.png.png"  # the first of `photo`


@pytest.mark.parametrize("targets", [("x",), ("x", "y")])
def test_no_pair_of_names_meets_whatever_becomes_of_them(targets: tuple[str, ...]) -> None:
    """Nor does `checked` refuse a pair; each may be written in its own format or as PNG."""
    stems = ["a", "a-1", "a-01", "a.1", "a.jpg", "a.png", "A", "a.jpg-1", "v1.2", "a-999"]
    known = dict.fromkeys(
        stem + kind for stem in stems for kind in (".png", ".PNG", ".jpg", ".JPG", "")
    )
    for first, second in combinations(known, 2):
        items = [Item(own_id(first), first, targets), Item(own_id(second), second, ("x",))]
        assert not {*items[0].results} & {*items[1].results}
        names = file_stems(name for item in checked(items, "m") for name in item.results)
        one, other = (
            {
                folded(result_file(names[name], suffix, own=True))
                for name in item.results
                for suffix in {splitext(item.image)[1] or ".jpg", ".png"}
            }
            for item in items
        )
        assert not one & other, (first, second)


def test_names_that_some_file_system_takes_for_one_get_files_of_their_own() -> None:
    apart = file_stems(["\xc9", "\xe9", "b", "e\u0301", "b"])
    assert apart["b"] == "b" and len(set(map(folded, apart.values()))) == 4
    assert all(not fault(name) for name in apart.values())


@pytest.mark.parametrize(
    "name", ["a:b", "CON", "sub/nul.txt", "com1.png", "a?b", 'x"', "<a>", "a|b", "a*", "a.", "a "]
)
def test_what_windows_refuses_is_refused(name: str) -> None:
    assert fault(name)
    if sys.version_info >= (3, 13):
        assert ntpath.isreserved(name)


@given(names)
def test_no_safe_name_is_reserved_on_windows(name: str) -> None:
    if sys.version_info >= (3, 13) and not fault(name):
        assert not ntpath.isreserved(name)
    assert fault(name) or ntpath.splitdrive(name) == ("", name)
