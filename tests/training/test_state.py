"""The state: what is restored is what was copied, and nothing unsound is taken or given."""

from pathlib import Path

import numpy as np
import pytest

from galmerhpc.config import Training
from galmerhpc.errors import GalmerhpcError, InputError
from galmerhpc.training.loss_scale import LossScale
from galmerhpc.training.state import State, mean_of, was_settled


def state_of(width: int, seed: int) -> State:
    import keras

    keras.utils.set_random_seed(seed)
    images = keras.Input((3,))
    hidden = keras.layers.BatchNormalization()(keras.layers.Dense(width)(images))
    model = keras.Model(images, hidden)
    optimizer = keras.optimizers.Adam(use_ema=True)
    optimizer.build(model.trainable_variables)
    for k, variable in enumerate([*optimizer.variables[2:], *model.non_trainable_weights]):
        variable.assign(np.full(variable.shape, k + seed))
    return State(model, optimizer, LossScale(Training()))


def test_what_was_copied_is_restored_to_the_bit() -> None:
    first, second = state_of(4, seed=1), state_of(4, seed=2)
    copied = {**first.copy(), **first.gather_own()}
    assert {name.partition("/")[0] for name in copied} == {
        "weights", "averages", "optimizer", "loss_scale", "rank0",
    }  # fmt: skip
    second.restore(copied, 1, Path("checkpoint"))
    for name, array in {**second.copy(), **second.gather_own()}.items():
        np.testing.assert_array_equal(array, copied[name], err_msg=name)


def test_another_number_of_ranks_takes_the_mean_of_the_statistics() -> None:
    first, second = state_of(4, seed=1), state_of(4, seed=2)
    own = [first.gather_own(), second.gather_own()]
    both = {
        name.replace("rank0", f"rank{k}"): v
        for k, arrays in enumerate(own)
        for name, v in arrays.items()
    }
    second.restore({**first.copy(), **both}, 2, Path("checkpoint"))
    for name, array in second.gather_own().items():
        np.testing.assert_array_equal(array, (own[0][name] + own[1][name]) / 2)
    assert mean_of([[np.float32([1])], [np.float32([2])]])[0].dtype == np.float32


def test_another_network_s_state_is_refused() -> None:
    first, second = state_of(4, seed=1), state_of(5, seed=1)
    with pytest.raises(InputError, match="checkpoint: weights/0 does not fit"):
        second.restore(first.copy(), 1, Path("checkpoint"))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(value: float) -> None:
    state = state_of(4, seed=1)
    state.check()
    weights = state.shared["weights/0"]
    weights.assign(np.where(np.eye(3, 4), value, weights.numpy()))
    with pytest.raises(GalmerhpcError, match="no longer finite; the last checkpoint is sound"):
        state.check()


@pytest.mark.parametrize(
    ("epoch", "step", "settled"), [(3, 0, False), (3, 5, True), (4, 0, True), (5, 0, True)]
)
def test_a_checkpoint_of_an_older_version_tells_by_its_keys_whether_statistics_were_settled(
    epoch: int, step: int, settled: bool
) -> None:
    keys = {"training.epochs": 5, "training.freeze_batchnorm_epochs": 2}
    assert was_settled({"epoch": epoch, "step": step, "configuration": keys}) == settled
    assert was_settled({"epoch": 0, "step": 1, "configuration": keys, "settled": True})
