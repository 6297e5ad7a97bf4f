"""Learning rates as factors of the initial one, by optimiser step."""


class InverseTimeDecay:
    """lr_t = lr_0 / (1 + rate t): what "learning rate decay of 1e-6" (IV-C) means in the frameworks of its time."""

    def __init__(self, rate: float):
        self.rate = rate

    def __call__(self, step: int) -> float:
        return 1 / (1 + self.rate * step)


class WarmupPolynomial:
    """Rises linearly over `warmup_steps`, then falls as (1 - t / T)^power to zero at `max_steps`.

    The warm-up takes at most a tenth of the run: one as long as the run would never come to its learning rate.
    """

    def __init__(self, warmup_steps: int, max_steps: int, power: float):
        if warmup_steps < 0:
            raise ValueError(f"warmup_steps={warmup_steps} is below 0")
        self.warmup_steps, self.max_steps, self.power = min(warmup_steps, max_steps // 10), max_steps, power

    def __call__(self, step: int) -> float:
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        rest = max(self.max_steps - self.warmup_steps, 1)
        return max(1 - (step - self.warmup_steps) / rest, 0.0) ** self.power
