"""Prompt-to-Prompt: its windows, its maps on a small attention layer by hand, LocalBlend, and edits of a tiny model."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoint_files import CAPTIONS
from tiny import SMALL, SOURCE, assert_close

from uam_jax import Edit, EditConfig, Editor, InputError
from uam_jax.engine.parallel import Devices
from uam_jax.method.controls import Moment, PromptToPrompt
from uam_jax.method.controls.cross_maps import CrossMaps, word_maps
from uam_jax.method.controls.local_blend import region
from uam_jax.method.edits import Words
from uam_jax.method.schedule import Schedule
from uam_jax.models.attention import Attention

assert SOURCE in CAPTIONS
CONFIG = SMALL.updated(
    {
        "steps": 5,
        "mask": {"rule": "none"},
        "source": {"condition": "prompt"},
        "control": {"kind": "prompt-to-prompt", "blend_side": 1.0, "self_side": 1.0},
    }
)
"""Of the tiny model, whose two levels attend."""


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (2, 8, 8, 3)).astype(np.float32)


@pytest.mark.parametrize(
    ("control", "steps", "expected"),
    [
        (PromptToPrompt(), 50, (20, 30, 50)),
        (PromptToPrompt(), 10, (4, 6, 10)),
        (PromptToPrompt(cross_steps=1.0, self_steps=0.29), 100, (100, 29, 100)),
        (PromptToPrompt(word_steps=0.8, local_blend=False), 50, (40, 30, None)),
    ],
)
def test_windows_are_rounded_down(control: PromptToPrompt, steps: int, expected: Any) -> None:
    found = control.windows(steps)
    assert all(part.start == 0 for part in found.values())
    names = ("cross", "self", "blend")
    assert tuple(found[name].stop if name in found else None for name in names) == expected


def test_maps_are_mixed_token_by_token() -> None:
    """One sample a row: source, target without the prompt, target."""
    rng = np.random.default_rng(0)
    x, context = (
        jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((3, 4, 6), (3, 5, 8))
    )
    mapper = np.zeros((1, 5, 5), np.float32)
    mapper[0, [0, 3, 1, 2], [0, 1, 3, 3]] = 1, 1, 0.5, 0.5
    taken, kept = jnp.array([[1, 2, 0, 1, 0.0]]), jnp.array([[0, 0, 3, 0, 1.0]])
    words = jnp.zeros((1, 2, 2, 5)).at[0, 0, 0, 1].set(1).at[0, 0, 1, jnp.array([2, 3])].set(1)
    rule = CrossMaps((0,), (2,), 0, words, jnp.asarray(mapper), taken, kept)
    layer = Attention(3, 0, "cross", 6, "up", 2, jnp.float32)

    def run(layer: Any) -> Any:
        return rule(layer, x, context), layer.maps(layer.query(x), layer.key(context))

    (out, taps), maps = layer.init_with_output(jax.random.key(0), method=run)[0]
    variables = layer.init(jax.random.key(0), method=run)
    maps = np.asarray(maps, np.float64)
    edited = maps.copy()
    source = maps[0]
    edited[2, ..., 0] = source[..., 0]
    edited[2, ..., 1] = 2 * source[..., 3]
    edited[2, ..., 2] = 3 * maps[2, ..., 2]
    edited[2, ..., 3] = 0.5 * (source[..., 1] + source[..., 2])

    def finish(layer: Any) -> Any:
        values = jnp.einsum("bhns,bshd->bnhd", edited, layer.value(context))
        return layer.project(values)

    assert_close(out, layer.apply(variables, method=finish), 1e-5)
    tapped = np.asarray(taps["words"])
    assert tapped.shape == (1, 2, 2, 4)
    assert_close(tapped[0, 0], [maps[0].mean(0)[:, 1], edited[2].mean(0)[:, [2, 3]].sum(1)], 1e-6)
    assert not tapped[0, 1].any()


def test_a_words_weight_and_window() -> None:
    control = PromptToPrompt(cross_steps=0.4, word_steps=0.8)
    edit = Edit("a blue ball", SOURCE, Words(weights={"blue": 2}, windows={"a": (0.2, 0.8)}))
    data = {name: jnp.asarray(part) for name, part in control.prepare(Letters(), [edit]).items()}
    steps = Schedule().denoising(10)
    for i in range(10):
        step = jax.tree.map(lambda x, i=i: x[i], steps)
        taken, kept = control._shares(data, Moment(step, 10))
        # a red cube -> a blue ball: of start, a, blue, ball, end only the second word's place is not the same.
        inside, a = i < 4, 2 <= i < 8
        assert taken[0, :5].tolist() == [inside, a, 0, 0, inside]
        assert kept[0, :5].tolist() == [not inside, not a, 2 if inside else 1, 1, not inside]


class Letters:
    """A token a word, whose id is the sum of its letters."""

    start_id, end_id, length = 1, 2, 8

    def tokens(self, text: str) -> list[tuple[int, int, int]]:
        found, place = [], 0
        for word in text.split():
            begin = text.index(word, place)
            place = begin + len(word)
            found.append((sum(word.encode()), begin, place))
        return found


def test_the_region_is_where_the_words_are() -> None:
    maps = np.zeros((1, 2, 2, 6, 6), np.float32)
    maps[0, 0, 0, 1, 1], maps[0, 0, 0, 4, 4] = 1, 0.29  # the second is below the threshold
    maps[0, 0, 1, 1, 5] = 0.01  # its own maximum
    maps[0, 1, 1, 0, 0] = 5
    found = region(jnp.asarray(maps), (12, 12), threshold=0.3, subtract_threshold=0.3)
    expected = np.zeros((6, 6), bool)
    expected[0:3, 0:3] = expected[0:3, 4:6] = True
    expected[0, 0] = False  # without a margin
    np.testing.assert_array_equal(found[0, ..., 0], expected.repeat(2, 0).repeat(2, 1))
    nothing = region(jnp.zeros((1, 2, 2, 6, 6)), (12, 12), threshold=0.3, subtract_threshold=0.3)
    assert not np.asarray(nothing).any()


def test_word_maps_are_meaned_over_heads_and_summed_over_tokens() -> None:
    maps = jnp.asarray(np.random.default_rng(0).uniform(size=(4, 3, 5, 7)), jnp.float32)
    words = jnp.zeros((2, 2, 2, 7)).at[1, 0, 1, jnp.array([2, 6])].set(1)
    found = np.asarray(word_maps(maps, words))
    assert_close(found[1, 0, 1], np.asarray(maps)[3].mean(0)[:, [2, 6]].sum(1), 1e-6)
    assert np.count_nonzero(found.any(-1)) == 1


def test_the_same_prompt_changes_nothing(editor: Editor, images: np.ndarray) -> None:
    """All of the source's maps under the same values: the target is the source, whatever is shared."""
    made = editor.edit(images, [SOURCE] * 2, SOURCE, config=CONFIG)
    assert_close(made.latents, made.source_latents, 1e-4)


@pytest.mark.long
def test_words_limit_and_weigh_an_edit(editor: Editor, images: np.ndarray) -> None:
    def latents(edits: list[Any], rows: Any = slice(None)) -> np.ndarray:
        return np.asarray(editor.edit(images[rows], edits, SOURCE, config=CONFIG).latents)

    target = "a blue ball"
    plain = latents([target, "a red ball"])
    own = [Edit(target, words=Words(weights={"blue": 9.0})), "a red ball"]
    weighed = latents(own)
    assert np.abs(weighed[0] - plain[0]).max() > 1e-3
    np.testing.assert_allclose(weighed[1], plain[1], atol=1e-5)
    # All of the picture is subtracted: the target is the source from where LocalBlend begins.
    everything = Words(blend=("ball",), subtract=("a", "blue", "red", "ball", "cube"))
    both = [Edit(target, words=everything), Edit(target, words=Words(("ball",)))]
    made = editor.edit(images, both, SOURCE, config=CONFIG)
    mixed = np.asarray(made.latents)
    np.testing.assert_array_equal(mixed[0], np.asarray(made.source_latents)[0])
    assert (mixed[1] != np.asarray(made.source_latents)[1]).any()
    # Together and alone they are the same, and on two devices.
    assert_close(latents([Edit(target, words=Words(("ball",)))], slice(1, 2))[0], mixed[1], 1e-4)
    made = editor.on(Devices.local(2)).edit(
        images,
        [Edit(target, words=everything), Edit(target, words=Words(("ball",)))],
        SOURCE,
        config=CONFIG,
    )
    assert_close(made.latents, mixed, 1e-4)


@pytest.mark.parametrize(
    ("edit", "changes", "message"),
    [
        (Edit("a ball", words=Words(("cat",))), {}, "'cat' is not in 'a red cube' or 'a ball'"),
        (
            Edit("a ball", words=Words(weights={"cube": 2})),
            {},
            "'cube' is not in 'a ball'.* a, ball",
        ),
        (Edit("a ball", words=Words(windows={"ball": (0, 0.8)})), {}, "set control.word_steps=0.8"),
        (Edit("a ball"), {"mapping": "replace"}, "3 words and 'a ball' 2"),
        (Edit("a ball"), {"blend_side": 0.25}, "no cross-attention at 0.25 of the latent"),
    ],
)
def test_faults_name_their_remedy(
    editor: Editor, images: np.ndarray, edit: Edit, changes: dict, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        editor.edit(images[:1], [edit], SOURCE, config=CONFIG.updated({"control": changes}))


def test_it_needs_a_source_prompt(editor: Editor, images: np.ndarray) -> None:
    config = CONFIG.updated({"source": {"condition": "null"}})
    with pytest.raises(InputError, match="PromptToPrompt compares the prompts .*--source"):
        editor.evaluations(config)
    for source in ("", [SOURCE, " "]):
        with pytest.raises(InputError, match="the edit to 'a ball' has no source prompt"):
            editor.edit(images, ["a ball"] * 2, source, config=CONFIG)


def test_words_that_a_control_does_not_use_are_warned_of(
    editor: Editor, images: np.ndarray
) -> None:
    with pytest.warns(UserWarning, match=r"words \(blend\) have no effect: NoControl"):
        editor.edit(
            images[:1],
            [Edit("a ball", words=Words(("ball",)))],
            config=SMALL.updated({"control": "none"}),
        )


def test_the_keys_of_its_settings() -> None:
    config = EditConfig.load("default", ["control=prompt-to-prompt", "control.cross_steps=0.8"])
    assert config.control == PromptToPrompt(cross_steps=0.8)
    assert EditConfig().updated(config.to_dict()) == config
