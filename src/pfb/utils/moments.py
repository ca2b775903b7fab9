"""When the host may wait for the device: rarely, and on all ranks in the same steps."""

FIRST = 64


def may_wait(step: int) -> bool:
    """Whether this is step 64, 128, 256, ...

    Example:
        >>> [step for step in range(1, 1000) if may_wait(step)]
        [64, 128, 256, 512]
    """
    return step >= FIRST and step & (step - 1) == 0
