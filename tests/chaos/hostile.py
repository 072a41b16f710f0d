"""A trainer that is not to be trusted: workers of the chaos tests find this as `sitecustomize`.

While a file `attack.py` lies beside it, every trainer does what stands there, inside its walls, before
it begins. Without the file nothing is changed.
"""

import os
import sys
from pathlib import Path


def arm() -> None:
    """In a process that was forked: where it becomes a trainer, the attack comes first."""
    plan, main = Path(__file__).with_name("attack.py"), sys.modules.get("worker.engine.__main__")
    if main is None or not plan.exists():
        return
    run = vars(main)["run"]

    def attacked(folder, stop, **more):
        exec(compile(plan.read_text(), str(plan), "exec"), {})
        return run(folder, stop, **more)

    vars(main)["run"] = attacked


os.register_at_fork(after_in_child=arm)
