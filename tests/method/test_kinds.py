"""Controls and inversions of a user's own: declared, imported, refused, written and read back."""

import dataclasses
import json
import sys
import types
from pathlib import Path
from typing import Annotated

import jax.numpy as jnp
import pytest
from tiny import tiny_editor

from uam_jax.checkpoints.recommended import recommended_by
from uam_jax.engine.inversion import InversionKey
from uam_jax.errors import InputError
from uam_jax.jobs.manifest import Item
from uam_jax.jobs.plan import JobSettings, plan_job
from uam_jax.method.config import EditConfig, InversionConfig
from uam_jax.method.controls import Control, Moment, NoControl
from uam_jax.method.section import Between, Section, code
from uam_jax.types import Step

TOYS = '''
from __future__ import annotations
from dataclasses import dataclass
from typing import Annotated, Literal
from uam_jax.method.controls import Control
from uam_jax.method.inversions import InversionMethod
from uam_jax.method.section import Between

@dataclass(frozen=True)
class Fade(Control):
    """Fades the source out."""
    strength: Annotated[float, Between(0, 1), "share of the source that is kept"] = 0.5
    mode: Literal["linear", "cosine"] = "linear"

    def windows(self, steps):
        return {"early": range(2), "late": range(steps - 3, steps)}

@dataclass(frozen=True)
class Noisy(InversionMethod):
    seed: int = 0
    note: str = ""

class Bare(Control):
    strength: float = 0.5

@dataclass(frozen=True)
class Greedy(InversionMethod):
    guidance: float = 2.0

@dataclass(frozen=True)
class Open(Control):
    names: list[str] = ()

class Other:
    class Inner(Fade):
        pass

number = 3
'''


@pytest.fixture
def toys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """A module of the current directory, which is not on the path, under a name that is new to this process."""
    name = f"toys_{abs(hash(request.node.name))}"
    (tmp_path / f"{name}.py").write_text(TOYS)
    monkeypatch.setattr(sys, "path", [part for part in sys.path if part not in ("", str(tmp_path))])
    monkeypatch.chdir(tmp_path)
    yield name
    sys.modules.pop(name, None)


def test_a_control_from_the_current_directory_has_its_own_keys(toys: str) -> None:
    config = EditConfig.load("default", [f"control={toys}:Fade", "control.strength=1"])
    assert type(config.control).__name__ == "Fade" and config.control.strength == 1.0
    assert config.to_dict()["control"] == {
        "kind": f"{toys}:Fade", "strength": 1.0, "mode": "linear"
    }  # fmt: skip
    with pytest.raises(InputError, match=r"strength is 2\.0; .* 0 to 1 \(share of the source"):
        config.overridden(["control.strength=2"])
    with pytest.raises(InputError, match=r"control.mode is 'sine'; the choices are linear, cosine"):
        config.overridden(["control.mode=sine"])
    with pytest.raises(InputError, match=f"kind masactrl, and control is {toys}:Fade"):
        config.overridden(["control.step_start=3"])
    with pytest.raises(InputError, match=r"unknown key control.strenth \(did you mean control.str"):
        config.overridden(["control.strenth=3"])
    # The source is evaluated in its windows.
    anchored = config.updated({"source": {"latents": "anchored"}, "mask": {"rule": "none"}})
    parts = anchored.plan(range(1000, 0, -100)).segments
    assert [(part.start, part.stop) for part in parts if part.source] == [(0, 2), (7, 10)]


def test_an_inversion_from_a_file_of_settings(toys: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(f'[inversion]\nuniformity = 1\nseed = 7\nkind = "{toys}:Noisy"\nnote = "x"\n')
    config = EditConfig.load(path)
    assert config.inversion.uniformity == 1.0
    assert dataclasses.asdict(config.inversion.method) == {"seed": 7, "note": "x"}
    with pytest.raises(InputError, match="inversion.seed is 'x'; it must be an integer"):
        config.overridden(["inversion.seed=x"])
    with pytest.raises(InputError, match="inversion.note is 3; it must be a text"):
        config.overridden(["inversion.note=3"])


def test_what_is_written_is_read_back(toys: str) -> None:
    config = EditConfig().overridden([f"control={toys}:Other.Inner", f"inversion={toys}:Noisy"])
    table = json.loads(json.dumps(config.to_dict()))
    assert table["control"]["kind"] == f"{toys}:Other.Inner"
    assert EditConfig().updated(table) == config
    assert EditConfig().updated(table).fingerprint() == config.fingerprint()
    others = [EditConfig(), config.overridden(["control.strength=0.4"])]
    assert config.fingerprint() not in {other.fingerprint() for other in others}
    assert hash(config) == hash(EditConfig().updated(table))


def test_an_edited_module_gives_configs_and_inversions_other_names(
    toys: str, tmp_path: Path
) -> None:
    def fingerprints() -> tuple[str, str]:
        config = EditConfig().overridden([f"control={toys}:Fade", f"inversion={toys}:Noisy"])
        key = InversionKey("m", ("",), 0.0, 1.0, 2, method=config.inversion.method)
        assert "source files" not in config.to_dict() and [*code(config)] == [toys]
        return config.fingerprint(), key.fingerprint()

    first, again = fingerprints(), fingerprints()
    file = tmp_path / f"{toys}.py"
    file.write_text(TOYS.replace("range(2)", "range(40)"))
    # The classes are still those of the old file.
    assert first == again == fingerprints()
    old = EditConfig().overridden([f"control={toys}:Fade"]).control
    del sys.modules[toys]
    edited = fingerprints()
    assert edited[0] != first[0] and edited[1] != first[1]
    # In a process, the classes set programs apart.
    assert old != EditConfig().overridden([f"control={toys}:Fade"]).control
    file.write_text(TOYS)
    del sys.modules[toys]
    assert fingerprints() == first


def test_the_file_of_a_base_counts_too(toys: str, tmp_path: Path) -> None:
    derived = f"{toys}_derived"
    (tmp_path / f"{derived}.py").write_text(
        f"from {toys} import Fade\nclass Own(Fade):\n    pass\n"
    )
    config = EditConfig().overridden([f"control={derived}:Own"])
    assert {*code(config)} == {toys, derived}
    assert len({*code(config).values()}) == 2
    del sys.modules[derived]


def test_a_class_without_a_file_has_no_name_that_would_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "a_notebook", types.ModuleType("a_notebook"))

    @dataclasses.dataclass(frozen=True)
    class Cell(NoControl):
        __module__ = "a_notebook"

    config = EditConfig(control=Cell())  # it can be used
    with pytest.raises(InputError, match="comes from a_notebook, .* put the class into a file"):
        config.fingerprint()
    item, settings = Item("a", "a.png", ("a",)), JobSettings("m", "w", "h", "float32", {}, 8, 4, 1)
    with pytest.raises(InputError, match="item a: .*Cell comes from a_notebook"):
        plan_job([item], [(8, 8)], config, settings)
    assert not code(EditConfig())


def test_a_class_under_two_names_keeps_its_values(toys: str, tmp_path: Path) -> None:
    (tmp_path / f"{toys}_again.py").write_text(f"from {toys} import Fade")
    config = EditConfig().overridden([f"control={toys}_again:Fade", "control.strength=0.25"])
    assert config.overridden([f"control={toys}_again:Fade"]).control.strength == 0.25


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("no_such_module:Fade", "there is no module no_such_module in"),
        ("no_such.module:Fade", "there is no module no_such.module in"),
        ("{toys}:Fad", r"\.py has no class Fad"),
        ("{toys}:Other.x", r"\.py has no class Other.x"),
        ("{toys}:number", "which is no Control: derive the class from uam_jax.method.controls"),
        ("{toys}:Other", "which is no Control"),
        ("{toys}:Noisy", "which is no Control"),
        ("{toys}:Bare", r"Bare lacks the line @dataclass\(frozen=True\)"),
        ("{toys}:Open", r"Open.names is declared as list\[str\]: a setting is a bool, int"),
        ("{toys}:", "write it as module:Class"),
        (":Fade", "write it as module:Class"),
        ("a-b:Fade", "write it as module:Class"),
        ("../toys:Fade", "write it as module:Class"),
    ],
)
def test_a_kind_that_cannot_be_used_says_why(toys: str, kind: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        EditConfig().overridden([f"control={kind.format(toys=toys)}"])


def test_a_module_that_fails_says_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "toys_that_fail.py").write_text("1 / 0")
    (tmp_path / "toys_that_need.py").write_text("import toys_that_are_not_there")
    with pytest.raises(InputError, match="toys_that_fail failed with ZeroDivisionError: division"):
        EditConfig().overridden(["control=toys_that_fail:Fade"])
    with pytest.raises(InputError, match="toys_that_need failed with ModuleNotFoundError: No mod"):
        EditConfig().overridden(["control=toys_that_need:Fade"])


def test_a_field_that_would_hide_a_key_is_refused(toys: str) -> None:
    with pytest.raises(InputError, match="has a field guidance, but inversion.guidance is a key"):
        EditConfig().overridden([f"inversion={toys}:Greedy"])


def test_neither_a_manifest_nor_a_model_makes_a_module_run(toys: str, tmp_path: Path) -> None:
    kind = f"{toys}:Fade"
    item = Item("a", "a.png", ("a cone",), settings=(f'control="{kind}"',))
    settings = JobSettings("m", "w", "h", "float32", {}, 16, 8, 1)
    with pytest.raises(InputError, match=f"item a: .*{kind}.*--set control.kind={kind}, --config"):
        plan_job([item], [(16, 16)], EditConfig(), settings)
    model = tiny_editor(tmp_path / "model").checkpoint
    for default in ({"control": kind}, {"control": {"kind": kind}}, {"inversion": kind}):
        checkpoint = dataclasses.replace(model, settings={"default": default})
        with pytest.raises(InputError, match=r"model.uam\.toml: \[default\] .* may not ask for"):
            recommended_by(checkpoint)
    assert toys not in sys.modules
    # What the user has chosen may be set further by a row.
    chosen = EditConfig().overridden([f"control={kind}"])
    own = chosen.overridden([f"control={kind}", "control.strength=0.1"], imports=False)
    assert own.control.strength == 0.1


def test_a_control_is_a_value_in_python() -> None:
    @dataclasses.dataclass(frozen=True)
    class Mine(Control):
        weight: Annotated[float, Between(0, 2)] = 1.0

    assert EditConfig(control=Mine(weight=2)).control.weight == 2.0
    with pytest.raises(InputError, match=r"control.weight is 3\.0; it must be a number from 0 to"):
        Mine(weight=3.0)
    with pytest.raises(InputError, match="control is 'none'; it must be a table"):
        EditConfig(control="none")
    with pytest.raises(InputError, match=r"inversion.method is NoControl\(\)"):
        InversionConfig(method=NoControl())


def test_a_field_needs_a_default_value() -> None:
    @dataclasses.dataclass(frozen=True)
    class Needy(Section):
        weight: float

    with pytest.raises(InputError, match=r"Needy.weight has no default value: give it one"):
        Needy(weight=1.0)


def test_a_control_without_hooks_does_nothing() -> None:
    control, latents = NoControl(), {"target": jnp.zeros((1, 2, 2, 1))}
    step = Step(jnp.int32(0), jnp.int32(1), *map(jnp.float32, (0.3, 0.7, 0.5, 0.5)))
    assert control.windows(50) == {} and control.prepare(None, []) == {}
    rules = control.rules([], 1, {}, Moment(step, 50))
    assert (rules.cross, rules.own, rules.residual) == (None, None, None)
    assert control.after({}, latents, Moment(step, 50)) == ((), latents)
