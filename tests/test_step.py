"""The train step on a tiny MusiLingo: torch's numbers, accumulation, one compile, nothing trained but the adapter."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType

from mlingo_jax.models.adapter import Adapter, AdapterConfig
from mlingo_jax.models.llama import Llama
from mlingo_jax.models.llama_config import LlamaConfig
from mlingo_jax.models.mert import Mert, MertConfig
from mlingo_jax.models.musilingo import Networks
from mlingo_jax.settings import Config
from mlingo_jax.training.optim import learning_rate, named_opt_state
from mlingo_jax.training.sharding import replicate
from mlingo_jax.training.step import Schedule, TrainState, compile_eval_step, compile_train_step, init_state
from tests.tiny import LLAMA, MERT, tiny_llama

WIDTH, MUSIC, ROWS, PLACES = MERT["hidden_size"], 3, 6, 20


def params_of(model: nnx.Module) -> tuple[Any, dict[str, Any]]:
    graph, state = nnx.split(model, nnx.Param)
    return graph, nnx.to_pure_dict(state)


@pytest.fixture(scope="module")
def llm() -> tuple[Any, dict[str, Any]]:
    return params_of(Llama(LlamaConfig.from_json(LLAMA, "tiny"), dtype=jnp.float32, rngs=nnx.Rngs(1)))


@pytest.fixture(scope="module")
def mesh() -> jax.sharding.Mesh:
    return jax.make_mesh((1, 1, 1), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)


def config(**changes: Any) -> Config:
    """Settings for a few steps at one learning rate."""
    made = dataclasses.replace(Config(), steps=20, accumulate=1, **changes)
    made.optim = dataclasses.replace(made.optim, lr=1e-2, min_lr=1e-2, warmup_steps=0)
    return made


def schedule_of(config: Config) -> Schedule:
    return Schedule(config.optim, config.steps, config.accumulate)


def new_adapter(states: int | None = None) -> tuple[Any, dict[str, Any]]:
    return params_of(Adapter(AdapterConfig(WIDTH, LLAMA["hidden_size"], states), rngs=nnx.Rngs(0)))


def make_batch(seed: int, rows: int = ROWS) -> dict[str, np.ndarray]:
    """Rows of BOS, music, text, answer and padding, with answers of different lengths."""
    rng = np.random.default_rng(seed)
    used = rng.integers(12, PLACES + 1, rows)
    place = np.arange(PLACES)
    text = (place < used[:, None]) & ~((place >= 1) & (place < 1 + MUSIC))
    answer = (place >= used[:, None] - rng.integers(2, 6, rows)[:, None]) & (place < used[:, None])
    music_index = np.where((place >= 1) & (place < 1 + MUSIC), place - 1, -1)
    return {
        "tokens": np.where(text, rng.integers(3, LLAMA["vocab_size"], (rows, PLACES)), 0).astype(np.int32),
        "music_index": np.broadcast_to(music_index, (rows, PLACES)).astype(np.int32),
        "positions": np.where(place < used[:, None], place, 0).astype(np.int32),
        "segments": (place < used[:, None]).astype(np.int32),
        "loss_weights": answer.astype(np.float32),
        "music": rng.normal(size=(rows, MUSIC, WIDTH)).astype(np.float32),
    }


def networks_of(llm: Any, encoder: Any = None, states: int | None = None) -> Networks:
    return Networks(
        adapter=new_adapter(states)[0],
        llm=llm[0],
        encoder=encoder,
        frames_per_token=25,
        remat="layer",
    )


def first_state(mesh: Any, states: int | None = None) -> TrainState:
    return replicate(init_state({"adapter": new_adapter(states)[1]}, config().optim), mesh)


@pytest.fixture(scope="module")
def step(llm, mesh) -> Any:
    """A step on six rows, an update in each."""
    return compile_train_step(networks_of(llm), schedule_of(config()), mesh)


def on_device(batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    return {name: jnp.asarray(values) for name, values in batch.items()}


def take_rows(batch: Mapping[str, np.ndarray], rows: slice) -> dict[str, np.ndarray]:
    return {name: values[rows] for name, values in batch.items()}


def test_three_steps_equal_torch(tmp_path: Path, mesh):
    """Loss, gradient and AdamW against transformers' LlamaForCausalLM and torch.optim.AdamW, from the same files."""
    torch = pytest.importorskip("torch")
    from transformers import LlamaForCausalLM

    from mlingo_jax.weights.load import load_tower

    folder = tiny_llama(tmp_path / "llm")
    tower = load_tower(folder, role="llm", dtype="float32")
    settings = config()
    settings.optim = dataclasses.replace(settings.optim, min_lr=1e-3, warmup_lr=1e-3, warmup_steps=2, epoch_steps=10)
    step = compile_train_step(networks_of((tower.graphdef,)), schedule_of(settings), mesh)
    state, frozen = first_state(mesh), {"llm": tower.params}

    theirs = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    projection = torch.nn.Linear(WIDTH, LLAMA["hidden_size"])
    projection.weight.data = torch.tensor(np.array(state.trained["adapter"]["projection"]["kernel"]).T)
    projection.bias.data = torch.tensor(np.array(state.trained["adapter"]["projection"]["bias"]))
    groups = [{"params": [projection.weight], "weight_decay": 0.05}, {"params": [projection.bias], "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, betas=(0.9, 0.999), eps=1e-8)

    for number in range(3):
        batch = make_batch(number, rows=1)
        state, metrics = step(state, frozen, on_device(batch))

        tokens = torch.tensor(batch["tokens"]).long()
        embedded = theirs.get_input_embeddings()(tokens)
        music = projection(torch.tensor(batch["music"]))
        inputs = torch.cat([embedded[:, :1], music, embedded[:, 1 + MUSIC :]], 1)
        inputs = inputs[:, : int(batch["segments"].sum())]
        logits = theirs(inputs_embeds=inputs).logits
        labels = torch.where(torch.tensor(batch["loss_weights"]) > 0, tokens, -100)[:, : inputs.shape[1]]
        loss = torch.nn.functional.cross_entropy(logits[0, :-1], labels[0, 1:])
        optimiser.zero_grad()
        loss.backward()
        for group in optimiser.param_groups:
            group["lr"] = float(learning_rate(number, settings.optim, settings.steps))
        optimiser.step()

        norm = torch.sqrt(sum((p.grad**2).sum() for p in projection.parameters()))
        assert float(metrics["loss"]) == pytest.approx(loss.item(), rel=1e-5)
        assert float(metrics["gradient_norm"]) == pytest.approx(norm.item(), rel=1e-4)
    # Adam divides small gradients by their own size: their rounding errors come out at the scale of the learning rate.
    kernel = projection.weight.detach().numpy().T
    np.testing.assert_allclose(state.trained["adapter"]["projection"]["kernel"], kernel, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        state.trained["adapter"]["projection"]["bias"], projection.bias.detach().numpy(), rtol=1e-4, atol=1e-5
    )


def test_an_update_does_not_depend_on_how_its_examples_fall_into_micro_batches(step, llm, mesh):
    batch, frozen = make_batch(0), {"llm": llm[1]}
    whole, _ = step(first_state(mesh), frozen, on_device(batch))
    part_step: Any = compile_train_step(
        networks_of(llm), schedule_of(dataclasses.replace(config(), accumulate=3)), mesh
    )
    state = first_state(mesh)
    before = np.array(state.trained["adapter"]["projection"]["kernel"])
    updates = []
    for number in range(3):
        state, metrics = part_step(state, frozen, on_device(take_rows(batch, slice(2 * number, 2 * number + 2))))
        updates.append(float(metrics["update_norm"]))
        if number == 1:
            np.testing.assert_array_equal(state.trained["adapter"]["projection"]["kernel"], before)
            assert float(state.token_count) == batch["loss_weights"][:4].sum()
    assert updates[:2] == [0, 0]
    assert updates[2] > 0
    assert float(state.token_count) == 0
    assert not np.any(state.gradient["adapter"]["projection"]["kernel"])
    # Adam's first step is nearly the gradient's sign, so a rounding error in a tiny gradient shows at full size.
    found, expected = (s.trained["adapter"]["projection"]["kernel"] for s in (state, whole))
    assert np.isclose(found, expected, rtol=1e-5, atol=1e-6).mean() > 0.999
    assert part_step._cache_size() == 1


def test_one_compile_and_only_the_adapter_changes(step, llm, mesh):
    first, frozen = first_state(mesh), {"llm": llm[1]}
    before = jax.tree.map(np.array, frozen)
    kernel = np.array(first.trained["adapter"]["projection"]["kernel"])
    state = first
    for number in range(4):
        state, metrics = step(state, frozen, on_device(make_batch(number)))
    restored = replicate(jax.tree.map(np.array, state), mesh)
    state, metrics = step(restored, frozen, on_device(make_batch(9)))
    assert step._cache_size() == 1
    assert first.trained["adapter"]["projection"]["kernel"].is_deleted()
    jax.tree.map(np.testing.assert_array_equal, frozen, before)
    opt_state = named_opt_state(state.opt_state)
    assert {int(n) for name, n in opt_state.items() if name.endswith("count")} == {int(state.step)} == {5}
    assert np.any(opt_state["1.0.mu.adapter.projection.kernel"])
    assert np.any(opt_state["1.0.nu.adapter.projection.bias"])
    moved = np.linalg.norm(state.trained["adapter"]["projection"]["kernel"] - kernel)
    assert 0 < float(metrics["update_norm"]) < moved
    assert state.trained["adapter"]["projection"]["kernel"].dtype == jnp.float32


def test_an_update_has_the_rate_that_is_reported_also_after_one_that_was_left_out(llm, mesh):
    settings, frozen, batch = config(), {"llm": llm[1]}, on_device(make_batch(0))
    settings.optim = dataclasses.replace(settings.optim, warmup_lr=1e-3, warmup_steps=4)
    step = compile_train_step(networks_of(llm), schedule_of(settings), mesh)
    _, first = step(first_state(mesh), frozen, batch)
    _, second = step(replicate(dataclasses.replace(first_state(mesh), step=np.int32(1)), mesh), frozen, batch)
    rates = [float(metrics["learning_rate"]) for metrics in (first, second)]
    assert rates == pytest.approx([1e-3, 3.25e-3])
    assert float(second["update_norm"] / first["update_norm"]) == pytest.approx(rates[1] / rates[0], rel=1e-5)


def test_training_lowers_the_loss(step, llm, mesh):
    state, batch = first_state(mesh), on_device(make_batch(0))
    losses = []
    for _ in range(20):
        state, metrics = step(state, {"llm": llm[1]}, batch)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0] - 0.3


def test_a_batch_without_answers_has_no_loss_and_no_gradient(step, llm, mesh):
    batch = make_batch(0)
    batch["loss_weights"][:] = 0
    state, metrics = step(first_state(mesh), {"llm": llm[1]}, on_device(batch))
    assert float(metrics["loss"]) == float(metrics["tokens"]) == float(metrics["gradient_norm"]) == 0
    assert np.all(np.isfinite(state.trained["adapter"]["projection"]["kernel"]))


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_a_step_that_is_not_finite_changes_nothing_but_their_number(llm, mesh, wrong):
    """The update that falls on it is that of the other micro-batches."""
    frozen, good, bad = {"llm": llm[1]}, make_batch(0), make_batch(1)
    bad["music"][2, 0, 0] = wrong
    step: Any = compile_train_step(networks_of(llm), schedule_of(dataclasses.replace(config(), accumulate=2)), mesh)
    state, _ = step(first_state(mesh), frozen, on_device(good))
    gathered = jax.tree.map(np.array, state)
    state, metrics = step(state, frozen, on_device(bad))
    assert not np.isfinite(metrics["gradient_norm"])
    assert float(metrics["update_norm"]) > 0
    alone: Any = compile_train_step(networks_of(llm), schedule_of(dataclasses.replace(config(), accumulate=1)), mesh)
    expected, _ = alone(first_state(mesh), frozen, on_device(good))
    # The learning rate is one and the same in both, so the updates are.
    jax.tree.map(np.testing.assert_array_equal, state.trained, expected.trained)
    again, _ = step(replicate(dataclasses.replace(gathered, step=np.int32(2)), mesh), frozen, on_device(bad))
    assert int(again.step) == 3
    jax.tree.map(np.testing.assert_array_equal, dataclasses.replace(again, step=gathered.step), gathered)


def test_without_a_finite_step_there_is_no_update(step, llm, mesh):
    batch = make_batch(0)
    batch["music"][:] = np.nan
    before = jax.tree.map(np.array, first_state(mesh))
    state, metrics = step(first_state(mesh), {"llm": llm[1]}, on_device(batch))
    assert float(metrics["update_norm"]) == 0
    jax.tree.map(np.testing.assert_array_equal, dataclasses.replace(state, step=before.step), before)


def test_the_evaluation_is_the_loss_of_the_step(step, llm, mesh):
    batch, state, frozen = on_device(make_batch(0)), first_state(mesh), {"llm": llm[1]}
    total, tokens = compile_eval_step(networks_of(llm), mesh)(state.trained, frozen, batch)
    _, metrics = step(state, frozen, batch)
    assert float(total / tokens) == pytest.approx(float(metrics["loss"]), rel=1e-6)


@pytest.mark.parametrize("per_layer", [False, True])
def test_audio_heard_in_the_step_gives_what_features_heard_before_give(llm, mesh, per_layer):
    encoder = Mert(MertConfig.from_json(MERT, "tiny"), dtype=jnp.float32, rngs=nnx.Rngs(2))
    graph, params = params_of(encoder)
    settings = config()
    lengths = np.array([24000, 9000], np.int32)
    waveform = np.random.default_rng(0).normal(size=(2, 24000)).astype(np.float32)
    waveform *= np.arange(24000) < lengths[:, None]
    features = jax.jit(lambda w, n: encoder.features(w, n, frames_per_token=25, per_layer=per_layer))(waveform, lengths)
    text = {name: jnp.asarray(values[:2]) for name, values in make_batch(0).items() if name != "music"}
    encoded = {**text, "waveform": jnp.asarray(waveform), "waveform_length": jnp.asarray(lengths)}
    frozen = {"llm": llm[1], "encoder": params}

    states = encoder.config.states if per_layer else None
    state = first_state(mesh, states)
    before = compile_eval_step(networks_of(llm, None, states), mesh)
    expected = before(state.trained, {"llm": llm[1]}, {**text, "music": features})
    if not per_layer:
        found = compile_eval_step(networks_of(llm, graph), mesh)(state.trained, frozen, encoded)
        np.testing.assert_allclose(found, expected, rtol=1e-5)
        return
    state, metrics = compile_train_step(networks_of(llm, graph, states), schedule_of(settings), mesh)(
        state, frozen, encoded
    )
    assert float(metrics["loss"]) == pytest.approx(float(expected[0] / expected[1]), rel=1e-5)
    assert np.all(named_opt_state(state.opt_state)["1.0.mu.adapter.layer_weights"] != 0)


def test_nothing_is_added_in_any_order(step, llm, mesh):
    """A GPU's scatter takes its summands as they come; two runs would differ in their last bits."""
    traced = step.trace(first_state(mesh), {"llm": llm[1]}, on_device(make_batch(0)))
    assert "dot_general" in str(traced.jaxpr)
    assert "scatter" not in str(traced.jaxpr)
