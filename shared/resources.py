"""What a job needs of a worker, and whether a worker has it.

A job takes as many slots as it has processes; on a worker whose slots own several GPUs each, as many as
own enough of them. One that is wider than a worker's slots takes them all: on a CPU its processes share
the cores, on GPUs there must be one for each. `FITS` says the same in SQL, for the claim.
"""

import math
from dataclasses import dataclass
from typing import Any

from shared.errors import Refused
from shared.tables import Slot, Worker

MOST_PROCESSES = 16  # of one job on one worker
MOST_GIGABYTES = 4096
MOST_CPUS = 1024
GB = 10**9
ENOUGH = 1_000_000
LIMITS = {  # need: the least and the most that may be asked for, and its name in sentences
    "processes": (1, MOST_PROCESSES, "processes"),
    "gpus": (0, MOST_PROCESSES, "GPUs"),
    "gpu_memory_gb": (0, MOST_GIGABYTES, "gigabytes of a GPU's memory"),
    "cpus": (0, MOST_CPUS, "CPU cores"),
}

WIDTH = """greatest(coalesce((j.resources ->> 'processes')::int, 1), coalesce((j.resources ->> 'gpus')::int, 0))"""
TAKES = f"""least(:slots, ceil({WIDTH}::numeric / :gpus_a_slot)::int)"""
FITS = f"""
    (:gpus >= {WIDTH}
     OR (:gpus = 0 AND coalesce((j.resources ->> 'gpus')::int, 0) = 0
         AND coalesce((j.resources ->> 'gpu_memory_gb')::int, 0) = 0))
    AND coalesce((j.resources ->> 'gpu_memory_gb')::bigint, 0) * 1000000000 <= greatest(:gpu_bytes, 0)
    AND (:cpus = 0 OR coalesce((j.resources ->> 'cpus')::int, 0) <= :cpus)"""


@dataclass(frozen=True)
class Offer:
    """What a worker has for one class of slot. `gpu_bytes` is its smallest GPU's memory, as any slot may be
    taken; `cpus` 0: not told.
    """

    slots: int
    gpus: int = 0
    gpu_bytes: int = 0
    cpus: int = 0

    @property
    def gpus_a_slot(self) -> int:
        """How many GPUs a slot owns; slots may also share one."""
        return max(1, self.gpus // max(1, self.slots))

    @property
    def values(self) -> dict[str, int]:
        """For `TAKES` and `FITS`."""
        return {
            "slots": self.slots,
            "gpus": self.gpus,
            "gpu_bytes": self.gpu_bytes,
            "cpus": self.cpus,
            "gpus_a_slot": self.gpus_a_slot,
        }


def offer(worker: Worker, slot: Slot | str) -> Offer:
    """What that worker has for jobs of that slot class. What a light slot does needs nothing of the machine."""
    if slot == Slot.LIGHT:
        return Offer(worker.slots.get(str(slot), 0), ENOUGH, ENOUGH * GB)
    devices = worker.devices
    least = min((device.get("memory_bytes") or 0 for device in devices), default=0)
    return Offer(worker.slots.get(str(slot), 0), len(devices), least, worker.cpus)


def width(needs: dict[str, Any]) -> int:
    """Processes or GPUs at once."""
    return max(needs.get("processes") or 1, needs.get("gpus") or 0)


def takes(needs: dict[str, Any], has: Offer) -> int:
    """How many slots of that worker the job occupies."""
    return min(has.slots, math.ceil(width(needs) / has.gpus_a_slot))


def fits(needs: dict[str, Any], has: Offer) -> bool:
    """Whether the worker could run the job if nothing else ran there."""
    gpus, memory = needs.get("gpus") or 0, (needs.get("gpu_memory_gb") or 0) * GB
    enough = has.gpus >= width(needs) or (has.gpus == 0 and gpus == 0 and memory == 0)
    cores = has.cpus == 0 or (needs.get("cpus") or 0) <= has.cpus
    return has.slots > 0 and enough and memory <= has.gpu_bytes and cores


def said(needs: dict[str, Any]) -> str:
    """The needs that not every worker meets, in words: «2 GPUs of 40 GB, 8 CPU cores»."""
    gpus, memory = needs.get("gpus") or 0, needs.get("gpu_memory_gb") or 0
    words = []
    if gpus or memory:
        count = max(gpus, 1)
        words.append(f"{count} {'GPU' if count == 1 else 'GPUs'}" + (f" of {memory} GB" if memory else ""))
    if needs.get("cpus"):
        words.append(f"{needs['cpus']} CPU {'core' if needs['cpus'] == 1 else 'cores'}")
    if width(needs) > max(gpus, 1):
        words.append(f"{width(needs)} processes")
    return ", ".join(words) or "a worker"


def checked(needs: dict[str, Any]) -> dict[str, int]:
    """The needs as a job keeps them, without those that say nothing. Raises Refused naming the one."""
    for name, value in needs.items():
        least, most, words = LIMITS[name]
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise Refused(
                f"The {words} are a whole number from {least} to {most}; {value} is not.",
                param=f"resources.{name}",
            )
    return {"processes": needs.get("processes", 1)} | {
        name: value for name, value in needs.items() if value and name != "processes"
    }
