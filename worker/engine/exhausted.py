"""Whether an error says that the memory or the disk is full: libraries say so in several ways."""

from __future__ import annotations

import errno

import torch


def memory(wrong: BaseException) -> bool:
    """Of the GPU, or of the machine, for which torch has no error of its own."""
    return isinstance(wrong, torch.OutOfMemoryError) or (
        isinstance(wrong, RuntimeError) and "can't allocate memory" in str(wrong)
    )


def disk(wrong: BaseException) -> bool:
    """No room to write; libraries in Rust tell it in words."""
    codes = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return (isinstance(wrong, OSError) and wrong.errno in codes) or any(
        f"(os error {code})" in str(wrong) for code in codes
    )
