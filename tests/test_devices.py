"""The GPU of a rank. None is here: what TensorFlow says of GPUs is ours, by rules of its own."""

import pytest

from galmerhpc import devices
from galmerhpc.errors import InputError


class Machine:
    """TensorFlow's configuration of a machine with GPUs."""

    def __init__(self, gpus: int) -> None:
        self.physical = [f"GPU:{k}" for k in range(gpus)]
        self.visible, self.growing, self.runs = list(self.physical), set[str](), False

    def set_visible_devices(self, device: str, _kind: str) -> None:
        if self.runs and self.visible != [device]:
            raise RuntimeError("Visible devices cannot be modified after being initialized")
        self.visible = [device]

    def set_memory_growth(self, device: str, _grows: bool) -> None:
        if self.runs and device not in self.growing:
            raise RuntimeError("Physical devices cannot be modified after being initialized")
        self.growing.add(device)


@pytest.fixture
def machine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Machine:
    import tensorflow as tf

    made = Machine(request.param)
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda _: made.physical)
    monkeypatch.setattr(tf.config, "get_visible_devices", lambda _: made.visible)
    monkeypatch.setattr(tf.config, "set_visible_devices", made.set_visible_devices)
    monkeypatch.setattr(tf.config.experimental, "set_memory_growth", made.set_memory_growth)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return made


@pytest.mark.parametrize("machine", [1, 4], indirect=True)
def test_what_comes_first_in_a_process_takes_the_gpu_for_all(machine: Machine) -> None:
    assert devices.take_gpu(0)  # an evaluation
    machine.runs = True
    assert devices.take_gpu(0)  # the training of a study's next point
    assert machine.visible == ["GPU:0"]
    assert machine.growing == {"GPU:0"}


@pytest.mark.parametrize("machine", [4], indirect=True)
def test_a_rank_takes_its_own_gpu_and_no_more_ranks_than_gpus_train(machine: Machine) -> None:
    devices.take_gpu(2)
    assert machine.visible == ["GPU:2"]
    devices.refuse_misfit(4)
    with pytest.raises(InputError, match="5 ranks on a node where TensorFlow sees 4 GPUs"):
        devices.refuse_misfit(5)


@pytest.mark.parametrize("machine", [1], indirect=True)
def test_one_visible_gpu_may_be_each_rank_s_own(machine: Machine) -> None:
    devices.refuse_misfit(4)
    assert machine.visible == ["GPU:0"]


@pytest.mark.parametrize("machine", [0], indirect=True)
def test_gpus_that_tensorflow_does_not_see_are_refused(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not devices.take_gpu(0)
    for none in ("", "-1", "NoDevFiles"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", none)
        devices.refuse_misfit(2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with pytest.raises(InputError, match="is 0,1, but TensorFlow sees no GPU: galmerhpc doctor"):
        devices.refuse_misfit(2)
    assert not machine.growing
