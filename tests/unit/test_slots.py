"""The slots of a worker, and which GPUs they own."""

from types import SimpleNamespace

import pytest

from shared.tables import Slot
from worker.machine import Machine
from worker.slots import Slots


def test_a_wide_job_gets_its_further_slots_or_none(tmp_path):
    slots = Slots(tmp_path, {Slot.COMPUTE: 3})
    first = slots.take(Slot.COMPUTE)
    assert slots.take_more(Slot.COMPUTE, 2, 0) == [1, 2]
    slots.give_back(Slot.COMPUTE, 2, None)
    assert slots.take_more(Slot.COMPUTE, 2, 0.05) is None
    assert slots.take(Slot.COMPUTE) == 2
    assert first == 0


@pytest.mark.parametrize(
    ("gpus", "slots", "indices", "device"),
    [
        (0, 2, [0, 1], "cpu"),
        (1, 1, [0], "cuda:0"),
        (4, 4, [1, 3], "cuda:1,cuda:3"),
        (4, 2, [1], "cuda:1,cuda:3"),
        (4, 1, [0], "cuda:0,cuda:1,cuda:2,cuda:3"),
        (1, 2, [1], "cuda:0"),
    ],
)
def test_slots_share_the_gpus_out(gpus, slots, indices, device):
    machine = SimpleNamespace(devices=[{}] * gpus, counts={Slot.COMPUTE: slots})
    assert Machine.device(machine, Slot.COMPUTE, indices) == device  # ty: ignore[invalid-argument-type]
