"""Presets, files, overrides and their errors; evaluation counts are in test_plan.py."""

import tomllib
from importlib import resources
from pathlib import Path

import jax
import pytest

from uam_jax.errors import InputError
from uam_jax.method.config import (
    AuxiliaryConfig,
    EditConfig,
    InversionConfig,
    MaskConfig,
    SourceConfig,
)
from uam_jax.method.controls import MasaCtrl, NoControl
from uam_jax.method.inversions import DDIMInversion, FixedPointInversion

CONFIGS = Path(__file__).parents[2] / "configs"


def test_default_preset_is_the_default_config() -> None:
    assert EditConfig.load() == EditConfig.load("default") == EditConfig()


@pytest.mark.parametrize("name", ["default", "released"])
def test_presets_state_every_key(name: str) -> None:
    text = (resources.files("uam_jax.method") / "presets" / f"{name}.toml").read_text()
    assert tomllib.loads(text) == EditConfig.load(name).to_dict()


def test_released_preset_is_the_released_run() -> None:
    expected = EditConfig(
        steps=50,
        guidance=7.5,
        source=SourceConfig(condition="null", latents="replay"),
        auxiliary=AuxiliaryConfig(latents="replay", uniformity=1.0),
        preserve="latent",
        inversion=InversionConfig(method=DDIMInversion(), uniformity=0.0, guidance=1.0),
        mask=MaskConfig(rule="released", quantile=0.5, t_mask=200, radius=1, source_line=True),
        control=MasaCtrl(step_start=4, block_start=10),
    )
    assert EditConfig.load("released") == expected


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.name)
def test_example_configs_load_and_say_how_to_run_them(path: Path) -> None:
    EditConfig.load(path)
    assert path.read_text().startswith("# uam edit ")
    assert f"--config configs/{path.name}" in path.read_text().partition("\n")[0]


def test_the_example_of_algorithm_1_is_the_released_run_otherwise() -> None:
    released = EditConfig.load("released", ["mask.rule=algorithm1", "preserve=pixels"])
    assert EditConfig.load(CONFIGS / "algorithm1.toml") == released


def test_there_are_examples() -> None:
    assert len(list(CONFIGS.glob("*.toml"))) >= 2


def test_file_changes_only_what_it_names(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('steps = 20\ncontrol = "none"\n[mask]\nquantile = 1\n')
    config = EditConfig.load(path)
    assert config == EditConfig(steps=20, control=NoControl(), mask=MaskConfig(quantile=1.0))
    assert isinstance(config.mask.quantile, float)


def test_overrides_are_toml_values_or_bare_words_and_the_last_wins() -> None:
    config = EditConfig.load(
        "released",
        [
            "guidance=5",
            "mask.rule=algorithm1",
            'source.condition = "prompt"',
            "mask.source_line=false",
            "control.step_start=2",
            "control=none",
            "inversion={uniformity=1, guidance=2.5}",
            "steps=10",
            "steps=25",
        ],
    )
    assert (config.guidance, config.steps) == (5.0, 25)
    assert config.mask == MaskConfig(rule="algorithm1", source_line=False)
    assert config.source == SourceConfig(condition="prompt", latents="replay")
    assert config.control == NoControl()
    assert config.inversion == InversionConfig(uniformity=1.0, guidance=2.5)
    assert config.auxiliary.latents == "replay"


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("stepz=3", ["unknown key stepz", "did you mean steps?", "mask.quantile"]),
        ("quantile=0.3", ["unknown key quantile", "did you mean mask.quantile?"]),
        ("mask.quantil=0.3", ["unknown key mask.quantil ", "did you mean mask.quantile?"]),
        ("maks.quantile=0.3", ["unknown key maks", "mask.quantile"]),
        ("zzz=1", ["unknown key zzz;", "steps, guidance", "control.kind"]),
        ("mask.rule=relaesed", ["released, algorithm1, auto, none", "did you mean released?"]),
        ("mask.rule=1", ["mask.rule is 1", "released, algorithm1, auto, none"]),
        ("control=p2p", ["control.kind is 'p2p'", "none, masactrl", "module:Class"]),
        ("control=masactl", ["did you mean masactrl?"]),
        ("control.kind=3", ["control.kind is 3", "none, masactrl"]),
        ("control=3", ["control is 3", "a table"]),
        ("mask=none", ["mask is 'none'", "a table"]),
        (
            "control.resnet=-1",
            ["from 0 to 1000 (ResNet block whose features are taken"],
        ),
        ("inversion=3", ["inversion is 3", "a table"]),
        ("inversion=none", ["inversion.kind is 'none'", "ddim, fixed_point"]),
        ("inversion.iterations=1", ["belongs to the kind fixed_point", "inversion is ddim"]),
        ("inversion={kind='fixed_point', iterations=51}", ["inversion.iterations is 51"]),
        ("inversion.method=ddim", ["unknown key inversion.method", "inversion.kind"]),
        ("source=replay", ["source is now source.latents"]),
        ("source_context=null", ["source_context is now source.condition"]),
        ("auxiliary=replay", ["auxiliary is now auxiliary.latents"]),
        ("auxiliary_uniformity=1", ["is now auxiliary.uniformity"]),
        ("region.inversion=1", ["region.inversion is now inversion.outside_uniformity"]),
        ("region.target=1", ["region.target is now target.outside_uniformity"]),
        ("region.x=1", ["unknown key region"]),
        ("steps=0", ["steps is 0", "an integer from 1 to 1000"]),
        ("steps=1001", ["steps is 1001"]),
        ("steps=50.0", ["steps is 50.0", "an integer"]),
        ("steps=true", ["steps is True", "an integer"]),
        ("steps=many", ["steps is 'many'"]),
        ("guidance=true", ["guidance is True", "a number"]),
        ("guidance=-1", ["guidance is -1", "a number from 0"]),
        ("guidance=nan", ["guidance is nan"]),
        ("guidance=inf", ["guidance is inf"]),
        ("mask.quantile=1.5", ["mask.quantile is 1.5", "from 0 to 1"]),
        ("mask.t_mask=-1", ["mask.t_mask is -1", "from 0 to 1000"]),
        ("mask.radius=-1", ["mask.radius is -1"]),
        ("mask.source_line=1", ["mask.source_line is 1", "true or false"]),
        ("mask.source_line=True", ["mask.source_line is 'True'", "true or false"]),
        ("inversion.uniformity=2", ["inversion.uniformity is 2.0", "from 0 to 1"]),
        ("steps", ["key=value"]),
        ("=3", ["key=value"]),
        ("steps=1\nguidance=2", ["steps is"]),
    ],
)
def test_bad_overrides_say_what_is_valid(override: str, says: list[str]) -> None:
    with pytest.raises(InputError) as error:
        EditConfig.load("default", [override])
    for part in [f"--set {override}", *says]:
        assert part in str(error.value)


def test_direct_construction_is_checked_too() -> None:
    with pytest.raises(InputError, match=r"mask\.quantile is 2\.0"):
        MaskConfig(quantile=2.0)
    with pytest.raises(InputError, match="mask is 'released'; it must be a table"):
        EditConfig(mask="released")
    assert EditConfig(guidance=7) == EditConfig(guidance=7.0)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("steps = \nguidance = 2", "line 1"),
        ("[mask]\nquantile = 'high'", "mask.quantile is 'high'"),
        ("[msk]\nquantile = 0.5", "unknown key msk (did you mean mask"),
        ("[steps]\nx = 1", "steps is {'x': 1}"),
        ("[region]\ntarget = 0.5", "region.target is now target.outside_uniformity"),
        ("control = 'none'\n[mask]\nx = 1", "unknown key mask.x"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(InputError) as error:
        EditConfig.load(path)
    assert str(path) in str(error.value)
    assert says in str(error.value)


def test_unreadable_files_and_misspelt_presets(tmp_path: Path) -> None:
    with pytest.raises(
        InputError,
        match=r"\(captioned, ddim, default, fast, masactrl, plug-and-play, prompt-to-prompt, released\)"
        r".*did you mean released\?",
    ):
        EditConfig.load("relased")
    with pytest.raises(InputError, match="neither a preset"):
        EditConfig.load(tmp_path)
    binary = tmp_path / "picture.toml"
    binary.write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(InputError, match="neither a preset"):
        EditConfig.load(binary)


def test_a_file_of_windows_editors_is_read(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("steps = 20\n", encoding="utf-8-sig")
    assert EditConfig.load(path) == EditConfig(steps=20)
    path.write_text("steps = 20\n", encoding="utf-16")
    with pytest.raises(InputError, match="UTF-16"):
        EditConfig.load(path)


def test_round_trip_and_fingerprint() -> None:
    released = EditConfig.load("released")
    assert EditConfig().updated(released.to_dict()) == released
    assert EditConfig(guidance=7).fingerprint() == EditConfig(guidance=7.0).fingerprint()
    prints = {
        config.fingerprint()
        for config in (
            released,
            EditConfig(),
            released.updated({"steps": 49}),
            released.updated({"mask": {"radius": 2}}),
        )
    }
    assert len(prints) == 4
    assert all(len(text) == 16 and int(text, 16) >= 0 for text in prints)


def test_a_spacing_is_the_models_own_or_another() -> None:
    own = EditConfig.load("default", ["spacing=trailing"])
    assert own.spacing == "trailing" and own.fingerprint() != EditConfig().fingerprint()
    assert own.overridden(['spacing=""']) == EditConfig()
    with pytest.raises(InputError, match=r"spacing is 'karras'; the choices are leading, trailing"):
        EditConfig(spacing="karras")


def test_the_fingerprint_is_the_same_everywhere() -> None:
    # Jobs and caches know a config by it.
    assert EditConfig().fingerprint() == "2117ad96bbc70b3f"


def test_another_kind_begins_with_its_own_defaults_and_the_same_keeps_its_values() -> None:
    config = EditConfig().overridden(
        ["control=masactrl", "control.step_start=2", "control=masactrl"]
    )
    assert config.control == MasaCtrl(step_start=2)
    config = config.overridden(["control=none", "control={step_end=9, kind='masactrl'}"])
    assert config.control == MasaCtrl(step_end=9)
    with pytest.raises(InputError, match="belongs to the kind masactrl, and control is none: set"):
        EditConfig(control=NoControl()).overridden(["control.step_start=2"])


def test_the_keys_of_an_inversion_stand_beside_those_that_all_have() -> None:
    config = EditConfig().updated(
        {"inversion": {"iterations": 3, "kind": "fixed_point", "uniformity": 1}}
    )
    assert config.inversion == InversionConfig(
        method=FixedPointInversion(iterations=3), uniformity=1.0
    )
    table = config.to_dict()["inversion"]
    assert table == {
        "kind": "fixed_point", "iterations": 3, "solver": "iteration", "anderson": False,
        "uniformity": 1.0, "guidance": 1.0, "outside_uniformity": 0.0,
    }  # fmt: skip
    assert EditConfig().updated(config.to_dict()) == config
    assert config.overridden(["inversion=ddim"]).inversion == InversionConfig(uniformity=1.0)


def test_a_config_is_a_static_argument() -> None:
    traced = []

    def double(x: jax.Array, config: EditConfig) -> jax.Array:
        traced.append(config)
        return config.guidance * x

    jitted = jax.jit(double, static_argnames="config")
    assert jitted(1.0, config=EditConfig(guidance=2.0)) == 2
    assert jitted(1.0, config=EditConfig(guidance=2)) == 2
    assert len(traced) == 1
    assert jitted(1.0, config=EditConfig(guidance=3.0)) == 3


def test_a_url_is_no_file_of_settings() -> None:
    with pytest.raises(
        InputError, match="config gs://bucket/uam.toml: .*a local file is needed, not a URL"
    ):
        EditConfig.load("gs://bucket/uam.toml")


def test_an_inversion_brings_its_own_sampler_unless_another_is_named() -> None:
    times = range(951, 0, -50)
    plain = EditConfig(steps=20)
    for start in (plain, plain.updated({"sampler": "dpm++2m"})):
        for kind, sampler in (("belm", "belm"), ("edit-friendly", "ddpm")):
            brought = start.overridden(["control=none", f"inversion.kind={kind}"])
            assert (
                brought.sampler == sampler and start.updated({"inversion": kind}).sampler == sampler
            )
            brought.check()
            # Whoever leaves it leaves its sampler.
            assert brought.overridden(["inversion.kind=fixed_point"]).sampler == "ddim"
        # The others take what there is, or refuse it.
        assert start.overridden(["inversion.kind=fixed_point"]).sampler == start.sampler
    for named in (["sampler=ddim", "inversion.kind=belm"], ["inversion.kind=belm", "sampler=ddim"]):
        with pytest.raises(InputError, match="BELMInversion works with belm: set sampler=belm"):
            plain.overridden(named).plan(times)
    with pytest.raises(InputError, match="sampler is belm, and DDIMInversion works with ddim or"):
        plain.overridden(["sampler=belm"]).check()
